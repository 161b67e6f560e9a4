"""Measuring trained folds on the cases they have not seen, through the same prediction that users get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from MambaSegLib.predictor import Predictor

from MambaSegLib.plan import Plan
from MambaSegLib.progress import Progress, ProgressCallback
from MambaSegLib.volume import Labels
from MambaSegLib.volume_io import read_channels, read_labels
from MambaSegTraining.dataset import Case, read_dataset
from MambaSegTraining.export import save_working_bundle
from MambaSegTraining.files import read_json, write_json, write_text
from MambaSegTraining.fingerprint import DatasetFingerprint
from MambaSegTraining.metrics import DICE_DEFINITION, Summary
from MambaSegTraining.run_folder import RunFolder
from MambaSegTraining.scores import SCORES_FILE, FoldScores, Score, protocol, read_scores, score_case, summaries
from MambaSegTraining.validation_tables import csv_table, markdown_table


def validate_fold(
    run: RunFolder,
    fold: int,
    *,
    device: str = "cpu",
    scan: str = "auto",
    weights: str = "final",
    on_progress: ProgressCallback = lambda progress: None,
) -> FoldScores:
    """Predict and measure the validation cases of one fold.

    Writes fold_<k>/validation/<case>.nii.gz, the label map on the case's own grid, and scores.json.

    Raises:
        InputError: If the fold is not trained.
    """
    folder = run.fold(fold) / "validation"
    folder.mkdir(parents=True, exist_ok=True)
    plan, names = run.read_plan(), run.read_splits().folds[fold].val
    predictor = Predictor(save_working_bundle(run, fold, weights), device=device, scan=scan)
    dataset = read_dataset(Path(read_json(DatasetFingerprint, run.fingerprint_file).folder))
    cases = [case for case in dataset.cases if case.name in names]
    scores: list[Score] = []
    for done, case in enumerate(cases, start=1):
        predicted = predict_case(predictor, case, plan)
        predicted.write(folder / f"{case.name}.nii.gz")
        scores.extend(score_case(case.name, fold, predicted, read_labels(case.labels), plan))
        on_progress(Progress(f"Validating fold {fold}", done, len(cases)))
    result = FoldScores(fold, weights, DICE_DEFINITION, tuple(scores))
    write_json(folder / SCORES_FILE, result)
    return result


def predict_case(predictor: Predictor, case: Case, plan: Plan) -> Labels:
    """Predict one case of a data set from its files."""
    volume = read_channels({channel.name: path for channel, path in zip(plan.channels, case.images, strict=True)})
    return predictor.predict(volume).labels


def summarize(run: RunFolder) -> str:
    """Write the tables of all validated folds and return them as Markdown.

    Writes report/scores.csv (every case), report/summary.json and report/summary.md (per fold, and out of fold: every
    case measured once, by the network that has not seen it).
    """
    folds, splits = read_scores(run), run.read_splits()
    folder = run.path / "report"
    folder.mkdir(parents=True, exist_ok=True)
    labels = [label.name for label in run.read_plan().labels]
    rows = [(f"fold {fold.fold}", summaries(fold.scores, labels, splits)) for fold in folds]
    if len(folds) > 1:
        rows.append(("out of fold", summaries([score for fold in folds for score in fold.scores], labels, splits)))
    text = markdown_table(rows, labels, protocol(splits, folds))
    write_text(folder / "summary.md", text)
    write_text(folder / "scores.csv", csv_table([score for fold in folds for score in fold.scores]))
    write_json(folder / "summary.json", Report(DICE_DEFINITION, protocol(splits, folds), tuple(_rows(rows))))
    return text


@dataclass(frozen=True)
class ReportRow:
    """One mean: of one structure ("mean": of all), over the cases of one fold or of all ("out of fold")."""

    cases: str
    label: str
    dice: Summary | None


@dataclass(frozen=True)
class Report:
    """The table as data."""

    definition: str
    protocol: str
    rows: tuple[ReportRow, ...]


def _rows(rows: Sequence[tuple[str, Mapping[str, Summary]]]) -> list[ReportRow]:
    return [
        ReportRow(cases, label, summary if summary.n else None)
        for cases, by_label in rows
        for label, summary in by_label.items()
    ]
