"""Measuring trained folds on the cases they have not seen, through the same prediction that users get."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from MambaSegLib.plan import Plan
from MambaSegLib.predictor import Predictor
from MambaSegLib.volume import Labels
from MambaSegLib.volume_io import read_channels, read_labels
from MambaSegTraining.component_selection import final_scores, prediction_file, select_components
from MambaSegTraining.dataset import Case
from MambaSegTraining.export import save_working_bundle, weights_file
from MambaSegTraining.files import read_json, remove_leftovers, write_json, write_text
from MambaSegTraining.fingerprint import dataset_of
from MambaSegTraining.largest_component import ComponentChoice
from MambaSegTraining.locks import own_folder
from MambaSegTraining.metrics import DEFINITIONS, LabelScore, MetricDefinition, score_case
from MambaSegTraining.run_folder import RunFolder
from MambaSegTraining.scores import (
    SCORES_FILE,
    FoldScores,
    Group,
    ScoresBasis,
    pooled,
    protocol,
    structures,
    summarize_groups,
)
from MambaSegTraining.validation_basis import basis_of, difference
from MambaSegTraining.validation_progress import PARTIAL_FILE, PartialScores
from MambaSegTraining.validation_tables import component_lines, csv_table, markdown_table

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ValidationSummary:
    """The tables as data.

    Attributes:
        protocol: Which cases the numbers are about.
        definitions: What the measures are.
        groups: The numbers.
        components: Whether structures keep only their largest component, and why.
    """

    protocol: str
    definitions: tuple[MetricDefinition, ...]
    groups: tuple[Group, ...]
    components: tuple[ComponentChoice, ...] = ()


def validate_fold(
    run: RunFolder,
    fold: int,
    *,
    device: str = "cpu",
    scan: str = "auto",
    weights: str = "final",
    mirroring: bool = False,
    again: bool = False,
    on_case: Callable[[str], None] = lambda name: None,
) -> FoldScores:
    """Predict and measure the validation cases of one fold, one after the other: memory holds one case at a time.

    Writes <case>.nii.gz, the label map on the case's own grid, and scores.json into `run.validation(fold)`. The scores of each
    case are kept as soon as they are known; the same call after a kill goes on with the next case. Cases whose scores
    would come out the same (weights, plan, files, tolerances, see `validation_basis`) are not measured again.

    Args:
        run: The run.
        fold: Number of the fold.
        device: See `MambaSegLib.Predictor`.
        scan: See `MambaSegLib.Predictor`.
        weights: "final", or "best" for those with the highest smoothed patch Dice.
        mirroring: See `MambaSegLib.Predictor`.
        again: Measure all cases, whatever is known.
        on_case: Called with the name of each case that is measured.

    Raises:
        InputError: If there is no such fold, it is not trained, or another process validates it.
    """
    folder = run.validation(fold)
    names = run.read_fold(fold).val
    file = weights_file(run, fold, weights)
    with own_folder(folder, "validate", f"Fold {fold} is validated"):
        remove_leftovers(run.working_bundle(fold).parent)
        cases = [case for case in dataset_of(run).cases if case.name in names]
        basis = basis_of(run, file, weights, cases, mirroring)
        if again:
            (folder / PARTIAL_FILE).unlink(missing_ok=True)
        known = None if again else _still_right(run, fold, basis)
        if known is not None and all(prediction_file(run, fold, case.name).is_file() for case in cases):
            (folder / SCORES_FILE).touch()  # newer than the weights: `cross-validate` tells finished folds by that
            return known
        partial = PartialScores(folder, basis.sha256)
        if known is not None:
            for case in cases:
                partial.add(case.name, tuple(score for score in known.scores if score.case == case.name))
        # Label maps are about to be replaced one by one: until all are, no scores may stand beside them as if they were theirs.
        (folder / SCORES_FILE).unlink(missing_ok=True)
        predictor = Predictor(save_working_bundle(run, fold, weights), device=device, scan=scan, mirroring=mirroring)
        for case in cases:
            if partial.of(case.name) is None or not prediction_file(run, fold, case.name).is_file():
                partial.add(case.name, _measure(predictor, case, run, fold))
            on_case(case.name)
        scores = tuple(score for case in cases for score in partial.of(case.name) or ())
        result = FoldScores(fold, weights, scores, mirroring, basis.sha256, basis)
        write_json(folder / SCORES_FILE, result)
        partial.remove()
    return result


def _measure(predictor: Predictor, case: Case, run: RunFolder, fold: int) -> tuple[LabelScore, ...]:
    plan = run.read_plan()
    predicted = predict_case(predictor, case, plan)
    predicted.write(prediction_file(run, fold, case.name))
    reference = read_labels(case.labels)
    return tuple(score_case(predicted, reference, case.name, fold, structures(run), plan.ignore_value))


def _still_right(run: RunFolder, fold: int, basis: ScoresBasis) -> FoldScores | None:
    """Scores of a validation that came to its end before, if the same would come out again; else the log says why not."""
    path = run.validation(fold) / SCORES_FILE
    if not path.is_file():
        return None
    scores = read_json(FoldScores, path)
    changed = difference(scores.basis, basis)
    if changed:
        log.info("Fold %d was validated before and is measured again: %s.", fold, changed)
    return None if changed else scores


def predict_case(predictor: Predictor, case: Case, plan: Plan) -> Labels:
    """Predict one case of a data set from its files."""
    volume = read_channels({channel.name: path for channel, path in zip(plan.channels, case.images, strict=True)})
    return predictor.predict(volume).labels


def summarize(run: RunFolder) -> str:
    """Write the tables of all validated folds and return them as Markdown.

    Decides which structures keep only their largest component; the tables are about the label maps with that applied.
    Writes components.json, scores.csv (every case), summary.json and summary.md into `run.tables`: per fold, and out of fold, where every
    case is measured once, by the network that has not seen it.
    """
    folds, splits = final_scores(run), run.read_splits()
    selection = select_components(run)
    folder = run.tables
    folder.mkdir(parents=True, exist_ok=True)
    plan = run.read_plan()
    labels = plan.structure_names
    groups = summarize_groups(folds, labels, splits)
    about = protocol(splits, folds, selection.names, plan.ignore_value)
    text = markdown_table(groups, labels, about)
    text += component_lines(selection.choices)
    write_text(folder / "summary.md", text)
    write_text(folder / "scores.csv", csv_table(pooled(folds)))
    write_json(folder / "summary.json", ValidationSummary(about, DEFINITIONS, groups, selection.choices))
    return text
