"""Scores of cases, and what their means are over folds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from MambaSegLib.plan import Plan
from MambaSegLib.volume import Labels
from MambaSegTraining.files import read_json
from MambaSegTraining.metrics import Summary, dice, summarize_values
from MambaSegTraining.run_folder import RunFolder
from MambaSegTraining.splits import Splits

SCORES_FILE = "scores.json"


@dataclass(frozen=True)
class Score:
    """One structure in one case.

    Attributes:
        case: The case.
        fold: The fold that predicted it, without having seen it.
        label: Name of the structure.
        dice: Dice similarity coefficient; None if both masks are empty.
        predicted_ml: Volume of the prediction.
        reference_ml: Volume of the reference.
    """

    case: str
    fold: int
    label: str
    dice: float | None
    predicted_ml: float
    reference_ml: float


@dataclass(frozen=True)
class FoldScores:
    """All of one fold.

    Attributes:
        fold: Its number.
        weights: "final" or "best".
        definition: What the Dice is.
        scores: One per case and structure.
    """

    fold: int
    weights: str
    definition: str
    scores: tuple[Score, ...]


def score_case(case: str, fold: int, predicted: Labels, reference: Labels, plan: Plan) -> tuple[Score, ...]:
    """Compare a prediction with its reference, structure by structure."""
    millilitres = reference.geometry.voxel_volume_mm3 / 1000
    scores = []
    for label in plan.labels:
        found, true = predicted.array == label.value, reference.array == label.value
        value = dice(found, true)
        volumes = (float(found.sum()) * millilitres, float(true.sum()) * millilitres)
        scores.append(Score(case, fold, label.name, None if math.isnan(value) else value, *volumes))
    return tuple(scores)


def read_scores(run: RunFolder) -> tuple[FoldScores, ...]:
    """The folds that were validated, in order."""
    paths = [run.fold(fold) / "validation" / SCORES_FILE for fold in range(len(run.read_splits().folds))]
    return tuple(read_json(FoldScores, path) for path in paths if path.is_file())


def summaries(scores: Sequence[Score], labels: Sequence[str], splits: Splits) -> dict[str, Summary]:
    """Summary per structure, and of the mean over the structures of each case under "mean"."""
    result = {}
    by_case: dict[str, list[float]] = {}
    for label in labels:
        values = {score.case: _number(score.dice) for score in scores if score.label == label}
        result[label] = summarize_values(values, splits.subjects)
        for case, value in values.items():
            by_case.setdefault(case, []).append(value)
    means = {case: _mean([value for value in values if not math.isnan(value)]) for case, values in by_case.items()}
    result["mean"] = summarize_values(means, splits.subjects)
    return result


def protocol(splits: Splits, folds: Sequence[FoldScores]) -> str:
    """Say in a line which cases the numbers are about."""
    total, done = len(splits.folds), [str(fold.fold) for fold in folds]
    which = "" if len(done) == total else f", folds {', '.join(done)} only"
    return f"out of fold, {total}-fold cross-validation grouped by {splits.grouped_by}{which}; {splits.source}"


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
