"""Scores of the validation cases of a run's folds, and what is told about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from MambaSegLib.schema import to_json
from MambaSegTraining.files import read_json
from MambaSegTraining.json_hash import json_hash
from MambaSegTraining.metrics import LabelScore, MetricSummary, Structure, structures_of, summarize_scores
from MambaSegTraining.run_folder import RunFolder
from MambaSegTraining.splits import Splits

SCORES_FILE = "scores.json"


@dataclass(frozen=True)
class ScoresBasis:
    """What scores depend on, see `validation_basis`.

    Attributes:
        weights: Hash of the network's weights.
        plan: Hash of the part of the plan that decides which voxels come out.
        structures: Hash of what is measured, with its tolerances.
        files: Hash of the contents of the images and label maps.
        manner: Which weights, and whether with mirroring, in words.
        program: Version of the prediction, and the measures.
    """

    weights: str
    plan: str
    structures: str
    files: str
    manner: str
    program: str

    @property
    def sha256(self) -> str:
        """Hash of all of it."""
        return json_hash(to_json(self))


@dataclass(frozen=True)
class FoldScores:
    """All of one fold.

    Attributes:
        fold: Its number.
        weights: "final" or "best".
        scores: One per case and structure.
        mirroring: Whether the predictions are means over mirrored images.
        identity: Hash of `basis`; of earlier versions, of something like it.
        basis: What the scores depend on; None in files of earlier versions.
    """

    fold: int
    weights: str
    scores: tuple[LabelScore, ...]
    mirroring: bool = False
    identity: str = ""
    basis: ScoresBasis | None = None


@dataclass(frozen=True)
class Group:
    """Summaries over some cases.

    Attributes:
        cases: "fold 0", ..., or "out of fold": all cases, each measured by the network that has not seen it.
        metrics: Every measure of every structure.
    """

    cases: str
    metrics: tuple[MetricSummary, ...]


def structures(run: RunFolder) -> tuple[Structure, ...]:
    """What is measured: every region or label of the plan, with the tolerance the settings give it."""
    validation, plan = run.read_settings().validation, run.read_plan()
    return structures_of(plan.labels, validation.tolerances_mm, validation.tolerance_mm, plan.regions)


def read_scores(run: RunFolder) -> tuple[FoldScores, ...]:
    """The folds that were validated, in order."""
    paths = [run.validation(fold) / SCORES_FILE for fold in range(len(run.read_splits().folds))]
    return tuple(read_json(FoldScores, path) for path in paths if path.is_file())


def pooled(folds: Sequence[FoldScores]) -> tuple[LabelScore, ...]:
    """The scores of all folds."""
    return tuple(score for fold in folds for score in fold.scores)


def summarize_groups(folds: Sequence[FoldScores], labels: Sequence[str], splits: Splits) -> tuple[Group, ...]:
    """Each fold, and if there are several, all of them pooled."""
    named = [(f"fold {fold.fold}", fold.scores) for fold in folds]
    if len(folds) > 1:
        named.append(("out of fold", pooled(folds)))
    return tuple(Group(name, summarize_scores(scores, labels, splits.subjects)) for name, scores in named)


def protocol(
    splits: Splits, folds: Sequence[FoldScores], largest_only: Sequence[str] = (), ignore_value: int | None = None
) -> str:
    """Say in a line which cases the numbers are about, what was chosen on the same cases, what is left out."""
    total, done = len(splits.folds), [str(fold.fold) for fold in folds]
    which = "" if len(done) == total else f", fold {', '.join(done)} only"
    how = "; predicted with mirroring" if any(fold.mirroring for fold in folds) else ""
    if any(fold.weights == "best" for fold in folds):
        how += "; weights with the best patch Dice on the same cases"
    if largest_only:
        how += f"; only the largest component of {', '.join(largest_only)}, decided on the same cases"
    how += "" if ignore_value is None else "; voxels labelled ignore, and surface that touches them, left out"
    return (
        f"out of fold, {total}-fold cross-validation grouped by {splits.grouped_by}{which}; folds: {splits.source}{how}"
    )
