"""Progress as a value handed to a callback: what a progress bar, a log line or a JSON event is made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far one prediction has come.

    Attributes:
        stage: What is being done, for a person: "Preprocessing", "Predicting", "Writing".
        done: Finished steps of this stage.
        total: All steps of this stage.
        seconds_left: Estimate for the whole prediction; None while there is nothing to base it on.
    """

    stage: str
    done: int
    total: int
    seconds_left: float | None = None


ProgressCallback = Callable[[Progress], None]
"""Called after every step. To cancel, raise `CancelledError` from it: it ends the work at that step."""
