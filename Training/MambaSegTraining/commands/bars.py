"""Progress bars of the commands; only on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from MambaSegLib.progress import Progress, ProgressCallback


@contextmanager
def case_bar(title: str, total: int) -> Iterator[Callable[[str], None]]:
    """A progress bar; yields what to call with the name of each finished case."""
    from tqdm import tqdm

    with tqdm(total=total, desc=title, unit="case", disable=None) as bar:  # None: only on a terminal
        yield lambda name: bar.update() and None


@contextmanager
def step_bar(title: str, total: int, shown: bool) -> Iterator[ProgressCallback]:
    """A progress bar below the lines of the log; yields what to call with the progress."""
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    with logging_redirect_tqdm(), tqdm(total=total, desc=title, unit="step", disable=None if shown else True) as bar:

        def note(progress: Progress) -> None:
            if bar.n == 0:  # what an earlier run did must not count for the speed
                bar.initial = bar.n = bar.last_print_n = progress.done - 1
            bar.update(progress.done - bar.n)

        yield note
