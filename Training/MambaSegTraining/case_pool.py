"""Cases of a data set worked on by several processes, each holding one case at a time."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context
from typing import TypeVar

from MambaSegLib.errors import EnvironmentProblemError
from MambaSegTraining.dataset import Case
from MambaSegTraining.interrupts import ignoring

Result = TypeVar("Result")


def map_cases(
    function: Callable[[Case], Result], cases: Sequence[Case], workers: int, at_a_time: int = 1
) -> Iterator[Result]:
    """Apply a function to each case, in order; an error ends the work without trying the cases that wait.

    Args:
        function: What to do; can be pickled unless `workers` is 0.
        cases: The cases.
        workers: Processes; 0 works here.
        at_a_time: Cases handed to a process together.

    Raises:
        EnvironmentProblemError: If the system ends a process, as it does when memory runs out.
    """
    if workers == 0:
        yield from map(function, cases)
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        with ignoring(signal.SIGINT):  # or each would tell where a Ctrl-C met it
            results = pool.map(function, cases, chunksize=at_a_time)
        yield from results
    except KeyboardInterrupt:
        for process in active_children():
            process.terminate()
        raise
    except BrokenProcessPool as error:
        msg = (
            f"One of {workers} processes was ended by the system, most likely because memory ran out. What is finished is "
            f"kept; run the same step again with fewer processes, such as --workers {max(1, workers // 2)}."
        )
        raise EnvironmentProblemError(msg) from error
    finally:
        pool.shutdown(cancel_futures=True)
