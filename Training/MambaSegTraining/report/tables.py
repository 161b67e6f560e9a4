"""Tables of the page as HTML. Every text from outside is escaped here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from MambaSegTraining.comparison import TESTED_METRICS, PairedComparison, p_text
from MambaSegTraining.metrics.definitions import DEFINITIONS, MetricDefinition
from MambaSegTraining.metrics.scores import Structure
from MambaSegTraining.metrics.summary import MetricSummary, shown_labels
from MambaSegTraining.report.drawing import as_hex
from MambaSegTraining.report.paper_table import PaperTable
from MambaSegTraining.report.ranking import RankedCase
from MambaSegTraining.report.records import ModelRun

LINES = "<span class='nowrap'>mean ± SD</span><span class='small'>95 % interval<br>median<br>middle half</span>"
"""What the lines of a cell of the results are."""


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """A table from cells that are HTML already; all but the first `text_columns` are numbers."""
    head = "".join(f'<th scope="col"{_kind(k, text_columns)}>{cell}</th>' for k, cell in enumerate(heads))
    body = "".join(
        "<tr>" + "".join(f"<td{_kind(k, text_columns)}>{cell}</td>" for k, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def results_table(run: ModelRun, summaries: Sequence[MetricSummary]) -> str:
    """Mean with interval, median with quartiles, per structure and measure."""
    heads = ["Structure", "", *(_head(metric) for metric in DEFINITIONS), "Cases"]
    rows = []
    for label in shown_labels(run.labels):
        found = {entry.metric: entry for entry in summaries if entry.label == label}
        structure = next((item for item in run.structures if item.name == label), None)
        name = swatch(structure) if structure else f"<b>Mean of {len(run.labels)}</b>"
        cells = [_number(found[metric.id], metric) for metric in DEFINITIONS]
        rows.append([name, LINES, *cells, _counts(found[DEFINITIONS[0].id])])
    return table(heads, rows, text_columns=2)


def _counts(entry: MetricSummary) -> str:
    counted = entry.summary.n if entry.summary else 0
    excluded = entry.summary.excluded if entry.summary else 0
    small = [
        f"{number} {word}" for number, word in ((excluded, "in neither mask"), (entry.flagged, "flagged")) if number
    ]
    return f"{counted}" + (f'<span class="small">{"<br>".join(small)}</span>' if small else "")


def _number(entry: MetricSummary, metric: MetricDefinition) -> str:
    summary = entry.summary
    if summary is None:
        return "–"
    show = formatter(metric)
    spread = formatter(metric, signed=False)
    return (
        f'<b>{show(summary.mean)}</b> ± {spread(summary.std)}<span class="small">'
        f"{show(summary.ci_low)} to {show(summary.ci_high)}<br>{show(summary.median)}<br>"
        f"{show(summary.quartile_low)} to {show(summary.quartile_high)}</span>"
    )


def formatter(metric: MetricDefinition, *, signed: bool = True) -> Callable[[float], str]:
    """How numbers of a measure are written; errors with their sign, unless it has none."""
    sign = "+" if signed and metric.better == "zero" else ""
    if metric.field == "volume_error_relative":
        return lambda value: _minus(f"{100 * value:{sign}.1f} %")
    return lambda value: _minus(f"{value:{sign}.{2 if metric.unit else 3}f}")


def _minus(number: str) -> str:
    """A minus sign instead of a hyphen, and none before zero."""
    is_zero = not number.strip("+-0. %")
    return number.lstrip("+-") if is_zero else number.replace("-", "−")


def _head(metric: MetricDefinition) -> str:
    arrow = {"higher": " ↑", "lower": " ↓", "zero": ""}[metric.better]
    unit = f'<span class="small">{escape(metric.unit)}</span>' if metric.unit else ""
    return f'<abbr title="{escape(metric.plain, quote=True)}">{escape(metric.name)}</abbr>{arrow}{unit}'


def swatch(structure: Structure) -> str:
    """The name of a structure behind a spot of its color."""
    return f'<span class="swatch" style="background:{as_hex(structure.color)}"></span>{escape(structure.name)}'


def comparison_table(tests: Sequence[PairedComparison]) -> str:
    """Paired tests, the verdict in words first."""
    rows = []
    for test in tests:
        metric = next(metric for metric in TESTED_METRICS if metric.id == test.metric)
        show = formatter(metric)
        interval = f"{show(test.difference)}<span class='small'>{show(test.ci_low)} to {show(test.ci_high)}</span>"
        rows.append([f"{escape(test.first)} − {escape(test.second)}", escape(metric.name), escape(test.verdict), interval,
                     _minus(f"{test.effect:+.2f}"), p_text(test.p_holm), str(test.subjects)])  # fmt: skip
    heads = [
        "Models",
        "Measure",
        "What it means",
        "Difference<span class='small'>95 % interval</span>",
        "Effect",
        "p (Holm)",
        "Patients",
    ]
    return table(heads, rows, text_columns=3)


def worst_table(cases: Sequence[RankedCase]) -> str:
    """The worst cases as a list."""
    rows = [
        [escape(case.case), escape(case.problem) or "–", str(case.fold), f"{case.dice:.3f}", f"{case.hd95_mm:.1f}"]
        for case in cases
    ]
    return table(
        ["Case", "Structure missed or invented", "Fold", "Mean DSC", "Largest HD95 [mm]"], rows, text_columns=2
    )


def paper_html(content: PaperTable) -> str:
    """The table in the paper's shape."""
    wrap = {0: "{}", 1: "<b>{}</b>", 2: "<u>{}</u>"}
    rows = [[wrap[cell.rank].format(escape(cell.text)) for cell in row] for row in content.rows]
    return f"<div class='compact'>{table([escape(head) for head in content.heads], rows, text_columns=2)}</div>"


def definition_list(structures: Sequence[Structure]) -> str:
    """What every measure is, and the tolerance of every structure."""
    entries = "".join(
        f"<dt>{escape(metric.name)} <span class='small inline'>{escape(metric.title)}, id {escape(metric.id)}</span></dt>"
        f"<dd>{escape(metric.plain)} {escape(metric.text)}</dd>"
        for metric in DEFINITIONS
    )
    tolerances = ", ".join(f"{escape(item.name)} {item.tolerance_mm:g} mm" for item in structures)
    return f"<dl>{entries}</dl><p>Tolerance of the NSD: {tolerances}.</p>"


def _kind(column: int, text_columns: int) -> str:
    return "" if column < text_columns else ' class="number"'
