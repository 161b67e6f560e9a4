"""Measuring trained folds on the cases they have not seen, through the same prediction that users get."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from MambaSegLib.plan import Plan
from MambaSegLib.predictor import Predictor
from MambaSegLib.volume import Labels
from MambaSegLib.volume_io import read_channels, read_labels
from MambaSegTraining.dataset import Case, read_dataset
from MambaSegTraining.export import save_working_bundle
from MambaSegTraining.files import read_json, write_json, write_text
from MambaSegTraining.fingerprint import DatasetFingerprint
from MambaSegTraining.metrics import DEFINITIONS, LabelScore, MetricDefinition, score_case
from MambaSegTraining.run_folder import RunFolder
from MambaSegTraining.scores import (
    SCORES_FILE,
    FoldScores,
    Group,
    pooled,
    protocol,
    read_scores,
    structures,
    summarize_groups,
)
from MambaSegTraining.validation_tables import csv_table, markdown_table


@dataclass(frozen=True)
class ValidationSummary:
    """The tables as data.

    Attributes:
        protocol: Which cases the numbers are about.
        definitions: What the measures are.
        groups: The numbers.
    """

    protocol: str
    definitions: tuple[MetricDefinition, ...]
    groups: tuple[Group, ...]


def validate_fold(
    run: RunFolder,
    fold: int,
    *,
    device: str = "cpu",
    scan: str = "auto",
    weights: str = "final",
    mirroring: bool = False,
    on_case: Callable[[str], None] = lambda name: None,
) -> FoldScores:
    """Predict and measure the validation cases of one fold.

    Writes fold_<k>/validation/<case>.nii.gz, the label map on the case's own grid, and scores.json.

    Args:
        run: The run.
        fold: Number of the fold.
        device: See `MambaSegLib.Predictor`.
        scan: See `MambaSegLib.Predictor`.
        weights: "final", or "best" for those with the highest smoothed patch Dice.
        mirroring: See `MambaSegLib.Predictor`.
        on_case: Called with the name of each case that is measured.

    Raises:
        InputError: If there is no such fold or it is not trained.
    """
    folder = run.fold(fold) / "validation"
    names, measured = run.read_fold(fold).val, structures(run)
    bundle = save_working_bundle(run, fold, weights)
    predictor = Predictor(bundle, device=device, scan=scan, mirroring=mirroring)
    dataset = read_dataset(Path(read_json(DatasetFingerprint, run.fingerprint_file).folder))
    cases = [case for case in dataset.cases if case.name in names]
    folder.mkdir(parents=True, exist_ok=True)
    scores: list[LabelScore] = []
    for case in cases:
        predicted = predict_case(predictor, case, bundle.manifest.plan)
        predicted.write(folder / f"{case.name}.nii.gz")
        scores.extend(score_case(predicted, read_labels(case.labels), case.name, fold, measured))
        on_case(case.name)
    result = FoldScores(fold, weights, tuple(scores))
    write_json(folder / SCORES_FILE, result)
    return result


def predict_case(predictor: Predictor, case: Case, plan: Plan) -> Labels:
    """Predict one case of a data set from its files."""
    volume = read_channels({channel.name: path for channel, path in zip(plan.channels, case.images, strict=True)})
    return predictor.predict(volume).labels


def summarize(run: RunFolder) -> str:
    """Write the tables of all validated folds and return them as Markdown.

    Writes validation/scores.csv (every case), summary.json and summary.md: per fold, and out of fold, where every case
    is measured once, by the network that has not seen it.
    """
    folds, splits = read_scores(run), run.read_splits()
    folder = run.path / "validation"
    folder.mkdir(parents=True, exist_ok=True)
    labels = [label.name for label in run.read_plan().labels]
    groups = summarize_groups(folds, labels, splits)
    text = markdown_table(groups, labels, protocol(splits, folds))
    write_text(folder / "summary.md", text)
    write_text(folder / "scores.csv", csv_table(pooled(folds)))
    write_json(folder / "summary.json", ValidationSummary(protocol(splits, folds), DEFINITIONS, groups))
    return text
