"""How long the rest will take, from how long the last steps took."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

WINDOW = 50
"""Reports the estimate looks back on: few enough to follow a laptop that throttles, enough to even out jitter."""


WARM_UP_S = 30.0
"""Compilation, the choice of algorithms and caches filling up take up to this long within the first step."""


class TimeEstimate:
    """Seconds left of a job of equal steps.

    The time until the first report is left out as soon as there is a second one, as it holds the warm-up, which can
    take longer than all the rest. By itself it counts only where steps take much longer than a warm-up.
    """

    def __init__(
        self, total: int, clock: Callable[[], float] = time.monotonic, expected_step_s: float | None = None
    ) -> None:
        """Start the clock.

        Args:
            total: Steps of the job.
            clock: Time in seconds.
            expected_step_s: Time of a step in an earlier job of this kind; the estimate until steps are measured.
        """
        self._expected_step_s = expected_step_s
        self._total = total
        self._clock = clock
        self._start = clock()
        self._reports: deque[tuple[int, float]] = deque(maxlen=WINDOW)

    def seconds_left(self, done: int) -> float | None:
        """Report that `done` steps are finished now, and estimate the time for the others; None while unknown."""
        now = self._clock()
        since, start = self._reports[0] if self._reports else (0, self._start)
        self._reports.append((done, now))
        if done >= self._total:
            return 0.0
        if done <= since or (since == 0 and now - start < WARM_UP_S):
            return self.seconds_expected(done)
        return (now - start) / (done - since) * (self._total - done)

    def seconds_expected(self, done: int = 0) -> float | None:
        """Seconds for all but `done` steps at the speed of an earlier job; None without one."""
        return None if self._expected_step_s is None else self._expected_step_s * (self._total - done)

    def step_s(self) -> float | None:
        """Measured time of a step, the first report's left out; None if there were too few."""
        if len(self._reports) < 2:
            return None
        (first, start), (last, stop) = self._reports[0], self._reports[-1]
        return (stop - start) / (last - first) if last > first else None
