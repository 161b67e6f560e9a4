"""Which cases went worst, and why they are listed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from MambaSegTraining.metrics.scores import LabelScore


@dataclass(frozen=True)
class RankedCase:
    """One case, worst ones first.

    Attributes:
        case: Its name.
        fold: The fold that predicted it.
        dice: Mean Dice over its structures.
        hd95_mm: Largest HD95 of its structures.
        problem: What stands out, in words; "" if only the order does.
    """

    case: str
    fold: int
    dice: float
    hd95_mm: float
    problem: str


def worst_first(scores: Sequence[LabelScore]) -> tuple[RankedCase, ...]:
    """All cases with a structure to measure: missed or invented structures first, then by mean Dice."""
    by_case: dict[str, list[LabelScore]] = {}
    for score in scores:
        if score.dice is not None:
            by_case.setdefault(score.case, []).append(score)
    ranked = [_rank(case, found) for case, found in by_case.items()]
    return tuple(sorted(ranked, key=lambda entry: (not entry.problem, entry.dice, entry.case)))


def _rank(case: str, scores: Sequence[LabelScore]) -> RankedCase:
    missed = [score.label for score in scores if score.empty == "prediction"]
    invented = [score.label for score in scores if score.empty == "reference"]
    parts = [f"{text}: {', '.join(names)}" for text, names in (("missed", missed), ("invented", invented)) if names]
    dice = sum(score.dice or 0.0 for score in scores) / len(scores)
    distances = [score.hd95_mm for score in scores if score.hd95_mm is not None]
    return RankedCase(case, scores[0].fold, dice, max(distances, default=math.nan), "; ".join(parts))
