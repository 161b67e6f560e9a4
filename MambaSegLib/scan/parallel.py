"""Threads for compiled tasks that hold no interpreter lock.

Plain Python threads, started per call: numba's own thread layers are not safe to enter from several threads everywhere,
and threads kept alive between calls do not survive the fork of a data loader. Starting one takes 0.05 ms.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

Task = Callable[[], None]


def run_tasks(tasks: Sequence[Task], threads: int) -> None:
    """Run every task once, on this thread and up to `threads` - 1 more.

    An error of any task is raised here, as is Ctrl-C; then no further task is begun.
    """
    if threads <= 1 or len(tasks) <= 1:
        for task in tasks:
            task()
        return
    waiting = deque(tasks)

    def work() -> None:
        while True:
            try:
                task = waiting.popleft()
            except IndexError:
                return
            try:
                task()
            except BaseException:
                waiting.clear()
                raise

    helpers = min(threads, len(tasks)) - 1
    with ThreadPoolExecutor(helpers) as pool:
        others = [pool.submit(work) for _ in range(helpers)]
        work()
    for other in others:
        other.result()
