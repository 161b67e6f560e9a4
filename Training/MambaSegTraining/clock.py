"""Times of a training: what is left, how long it waited for batches, when to save."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

from MambaSegLib.progress import Progress
from MambaSegTraining.batches import Batch

CHECKPOINT_EVERY_S = 300.0


class Clock:
    """Starts with the training, or with its continuation."""

    def __init__(self, max_minutes: float | None, steps: int) -> None:
        """Start.

        Args:
            max_minutes: When `is_over` becomes true; None: never.
            steps: Steps of the whole training.
        """
        self._start = self._epoch_start = self._last_checkpoint = time.monotonic()
        self._end = self._start + max_minutes * 60 if max_minutes is not None else math.inf
        self._steps, self._done = steps, 0
        self._waited = 0.0

    def waiting_for(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Pass batches on and count the time until each comes."""
        while True:
            start = time.monotonic()
            batch = next(batches, None)
            self._waited += time.monotonic() - start
            if batch is None:
                return
            yield batch

    def step_done(self) -> None:
        """Count a step, also one that is taken again."""
        self._done += 1

    def progress(self, step: int) -> Progress:
        """What is left when `step` steps of the training are done."""
        per_step = (time.monotonic() - self._start) / max(self._done, 1)
        return Progress("Training", step, self._steps, per_step * (self._steps - step))

    def finish_epoch(self) -> tuple[float, float]:
        """Seconds since the last call, and the share of them spent waiting."""
        now = time.monotonic()
        seconds, waited = now - self._epoch_start, self._waited
        self._epoch_start, self._waited = now, 0.0
        return seconds, waited / seconds

    def is_over(self) -> bool:
        """Whether the time limit is reached."""
        return time.monotonic() >= self._end

    def checkpoint_is_due(self) -> bool:
        """Whether the last one is too old."""
        return time.monotonic() - self._last_checkpoint >= CHECKPOINT_EVERY_S

    def checkpoint_done(self) -> None:
        """Note that one was saved."""
        self._last_checkpoint = time.monotonic()
