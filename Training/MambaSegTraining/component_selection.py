"""Keeping only the largest component of a structure: decided on a run's validated cases, and what follows from it.

The label maps of the validation stay as the networks made them. What was decided is kept in validation/components.json and
goes into the bundle's plan; scores and pictures are those of the label maps that the bundle will give.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from MambaSegLib.plan import Plan
from MambaSegLib.postprocessing import keep_largest_component
from MambaSegLib.volume import Labels
from MambaSegLib.volume_io import read_labels
from MambaSegTraining.files import read_json, write_json
from MambaSegTraining.fingerprint import dataset_of
from MambaSegTraining.json_hash import json_hash
from MambaSegTraining.largest_component import ComponentChoice, choose_keep_largest
from MambaSegTraining.metrics import LabelScore, Structure, score_case
from MambaSegTraining.run_folder import RunFolder
from MambaSegTraining.scores import FoldScores, pooled, read_scores, structures

COMPONENTS_FILE = "components.json"


@dataclass(frozen=True)
class ComponentSelection:
    """What was decided for a run.

    Attributes:
        identity: What it depends on (the scores of the folds, the rule), as one hash.
        choices: One per structure; none where structures overlap or not all voxels are labelled.
        changed: Scores of the structures that keep only their largest component, of the cases where that changes them.
    """

    identity: str
    choices: tuple[ComponentChoice, ...] = ()
    changed: tuple[LabelScore, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Structures that keep only their largest component."""
        return tuple(choice.label for choice in self.choices if choice.keep_largest)


def select_components(run: RunFolder) -> ComponentSelection:
    """What was decided for a run; decided here, and stored, if its scores are new."""
    folds = read_scores(run)
    identity, path = _identity(folds), run.tables / COMPONENTS_FILE
    if path.is_file():
        stored = read_json(ComponentSelection, path)
        if stored.identity == identity:
            return stored
    selection = _decide(run, folds, identity)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, selection)
    return selection


def final_scores(run: RunFolder) -> tuple[FoldScores, ...]:
    """The validated folds with the scores of the label maps that the run's bundle gives."""
    changed = {(score.case, score.label): score for score in select_components(run).changed}
    return tuple(
        replace(fold, scores=tuple(changed.get((score.case, score.label), score) for score in fold.scores))
        for fold in read_scores(run)
    )


def final_plan(run: RunFolder) -> Plan:
    """The run's plan with what was decided."""
    plan, names = run.read_plan(), select_components(run).names
    chosen = tuple(label.value for label in plan.labels if label.name in names)
    return replace(plan, keep_largest=tuple(sorted({*plan.keep_largest, *chosen})))


def final_prediction(run: RunFolder, fold: int, case: str) -> Labels:
    """Label map of a validated case as the run's bundle gives it."""
    labels = read_labels(prediction_file(run, fold, case))
    for value in final_plan(run).keep_largest:
        keep_largest_component(labels.array, value)
    return labels


def prediction_file(run: RunFolder, fold: int, case: str) -> Path:
    """Where validation keeps the label map of a case, as the network made it."""
    return run.validation(fold) / f"{case}.nii.gz"


def _identity(folds: Sequence[FoldScores]) -> str:
    parts = [[fold.fold, fold.identity, [repr(score) for score in fold.scores]] for fold in folds]
    return json_hash(parts)


def _decide(run: RunFolder, folds: Sequence[FoldScores], identity: str) -> ComponentSelection:
    measured, plan = structures(run), run.read_plan()
    if plan.regions:
        return ComponentSelection(identity)  # they share voxels: removing some of one changes the others
    if plan.ignore_value is not None:
        return ComponentSelection(identity)  # the largest component may lie where nobody labelled
    before = pooled(folds)
    after = {(score.case, score.label): score for score in _with_largest_only(run, folds, measured)}
    swapped = [after.get((score.case, score.label), score) for score in before]
    choices = choose_keep_largest(before, swapped, [structure.name for structure in measured])
    kept = {choice.label for choice in choices if choice.keep_largest}
    return ComponentSelection(identity, choices, tuple(score for score in after.values() if score.label in kept))


def _with_largest_only(
    run: RunFolder, folds: Sequence[FoldScores], measured: Sequence[Structure]
) -> Iterator[LabelScore]:
    """Scores with only the largest component, of the cases and structures that have another one."""
    cases = {case.name: case for case in dataset_of(run).cases}
    for fold in folds:
        for name in dict.fromkeys(score.case for score in fold.scores):
            labels = read_labels(prediction_file(run, fold.fold, name))
            changed = [structure for structure in measured if _remove_smaller(labels, structure)]
            if changed:
                yield from score_case(labels, read_labels(cases[name].labels), name, fold.fold, changed)


def _remove_smaller(labels: Labels, structure: Structure) -> bool:
    """Whether anything was removed."""
    before = int((labels.array == structure.values[0]).sum())
    keep_largest_component(labels.array, structure.values[0])
    return int((labels.array == structure.values[0]).sum()) < before
