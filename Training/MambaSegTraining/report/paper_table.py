"""Results in the shape of the paper's Table 1: quality per data set on the left, cost on the right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from MambaSegTraining.metrics.definitions import DSC, HD95
from MambaSegTraining.metrics.summary import MEAN, summarize_values, values_by_case
from MambaSegTraining.report.records import Cost, ModelRun


@dataclass(frozen=True)
class TableCell:
    """A number as text, and whether it is the best (1), second best (2) or neither (0) of its column."""

    text: str
    rank: int = 0


@dataclass(frozen=True)
class PaperTable:
    """The table, ready to be drawn.

    Attributes:
        heads: Of the columns.
        rows: A line per model: family, name, numbers; "" where nothing was measured.
        notes: What the columns mean, and on what hardware the costs were measured.
    """

    heads: tuple[str, ...]
    rows: tuple[tuple[TableCell, ...], ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Column:
    head: str
    values: dict[str, float]
    lower_is_better: bool
    digits: int
    is_ranked: bool = True


def paper_table(runs: Sequence[ModelRun]) -> PaperTable:
    """Put the runs into the table; a model measured on several data sets gets one line."""
    columns = [column for dataset in _datasets(runs) for column in _quality(runs, dataset)]
    columns += _cost_columns(runs)
    models = list(dict.fromkeys(run.name for run in runs))
    families = {run.name: run.family for run in runs}
    order = sorted(models, key=lambda name: ("CNNs", "Transformers", "Mamba").index(families[name]))
    rows = [
        (TableCell(families[name]), TableCell(name), *(_cell(column, name) for column in columns)) for name in order
    ]
    return PaperTable(("Family", "Model", *(column.head for column in columns)), tuple(rows), _notes(runs))


def as_markdown(table: PaperTable) -> str:
    """The table in Markdown: best numbers bold, second best underlined."""
    lines = [f"| {' | '.join(table.heads)} |", f"|---|---|{'---:|' * (len(table.heads) - 2)}"]
    lines += [f"| {' | '.join(_marked(cell) for cell in row)} |" for row in table.rows]
    return "\n".join([*lines, "", *(f"* {note}" for note in table.notes), ""])


def _marked(cell: TableCell) -> str:
    text = cell.text.replace("|", "\\|")
    return {0: text, 1: f"**{text}**", 2: f"<u>{text}</u>"}[cell.rank]


def _datasets(runs: Sequence[ModelRun]) -> list[str]:
    return list(dict.fromkeys(run.dataset for run in runs))


def _quality(runs: Sequence[ModelRun], dataset: str) -> list[_Column]:
    about = [run for run in runs if run.dataset == dataset]
    dice = {run.name: value * 100 for run in about if (value := _mean(run, DSC.field)) is not None}
    hd95 = {run.name: value for run in about if (value := _mean(run, HD95.field)) is not None}
    columns = [_Column(f"{dataset} DSC ↑ [%]", dice, False, 2), _Column(f"{dataset} HD95 ↓ [mm]", hd95, True, 2)]
    if any(run.legacy for run in about):
        columns += [
            _Column(
                f"{dataset} legacy DSC ↑ [%]",
                {run.name: _legacy(run)[0] * 100 for run in about if run.legacy},
                False,
                2,
            ),
            _Column(
                f"{dataset} legacy HD95 ↓ [voxels]", {run.name: _legacy(run)[1] for run in about if run.legacy}, True, 2
            ),
        ]
    return columns


def _mean(run: ModelRun, field: str) -> float | None:
    summary = summarize_values(values_by_case(run.scores, MEAN, field, run.labels), run.subjects)
    return summary.mean if summary.n else None


def _legacy(run: ModelRun) -> tuple[float, float]:
    """The scripts' own order: mean over cases per structure, then over structures."""
    per_label = []
    for label in run.labels:
        found = [(score.dice, score.hd95_voxels) for score in run.legacy if score.label == label]
        per_label.append([sum(values) / len(values) for values in zip(*found, strict=True)])
    dice, distance = (sum(values) / len(values) for values in zip(*per_label, strict=True))
    return dice, distance


def _cost_columns(runs: Sequence[ModelRun]) -> list[_Column]:
    shown = (
        ("Params [M]", "parameters", 1e-6, 2),
        ("GMACs per patch", "gmacs", 1, 1),
        ("Training memory [GB]", "training_memory_gb", 1, 2),
        ("Training step [s]", "step_s", 1, 3),
        ("Training, all folds [h]", "training_hours", 1, 2),
        ("Network per volume [s]", "volume_s", 1, 2),
    )
    return [
        _Column(
            head,
            {run.name: value * factor for run in runs if (value := getattr(run.cost, field)) is not None},
            True,
            digits,
            is_ranked=False,
        )
        for head, field, factor, digits in shown
    ]


def _cell(column: _Column, name: str) -> TableCell:
    if name not in column.values:
        return TableCell("")
    text = f"{column.values[name]:.{column.digits}f}"
    shown = {f"{value:.{column.digits}f}" for value in column.values.values()}
    ordered = sorted(shown, key=float, reverse=not column.lower_is_better)
    if not column.is_ranked or len(column.values) < 2:
        return TableCell(text)
    return TableCell(text, {0: 1, 1: 2}.get(ordered.index(text), 0))


def _notes(runs: Sequence[ModelRun]) -> tuple[str, ...]:
    notes = [
        f"{run.dataset}: mean over {', '.join(run.labels)}; {run.protocol}."
        for run in {run.dataset: run for run in reversed(runs)}.values()
    ]
    notes += ["DSC in percent and HD95 in mm: mean over the structures of a case, then over the cases."]
    if any(run.legacy for run in runs):
        notes.append(
            "legacy: the convention of the 2025 paper's scripts (voxels instead of mm, missed structures score 0), "
            "the only columns that may be held against its Table 1."
        )
    return (*notes, *_cost_notes(runs))


def _cost_notes(runs: Sequence[ModelRun]) -> list[str]:
    notes = []
    if any(run.cost.gmacs is not None for run in runs):
        from MambaSegTraining.costs.counting import CONVENTION

        notes.append(f"GMACs, in 10^9: {CONVENTION} Papers that count a multiply-add as one print this as GFLOPs.")
    for text, field in (("Memory, step and volume", "hardware"), ("Hours of training", "training_hardware")):
        told = {f"{run.name}: {getattr(run.cost, field)}" for run in runs if getattr(run.cost, field)}
        if told:
            notes.append(f"{text} measured on {'; '.join(sorted(told))}.")
    numbers = [name for name in Cost.__dataclass_fields__ if not name.endswith("hardware")]
    if any(getattr(run.cost, name) is None for run in runs for name in numbers):
        notes.append(
            "An empty field was not measured; mambaseg-train cost measures parameters, GMACs, memory and times."
        )
    return notes
