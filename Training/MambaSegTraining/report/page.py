"""The report as one HTML page that needs nothing else: no network, no other file."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from MambaSegTraining.comparison import PairedComparison
from MambaSegTraining.metrics.definitions import ASSD, DSC, HD95, NSD, MetricDefinition
from MambaSegTraining.metrics.summary import MEAN, MetricSummary
from MambaSegTraining.report.charts import bland_altman, box_plots, training_curves
from MambaSegTraining.report.paper_table import paper_table
from MambaSegTraining.report.ranking import RankedCase, worst_first
from MambaSegTraining.report.records import ModelRun
from MambaSegTraining.report.slices import draw_case
from MambaSegTraining.report.style import CSS
from MambaSegTraining.report.tables import (
    comparison_table,
    definition_list,
    formatter,
    paper_html,
    results_table,
    swatch,
    table,
    worst_table,
)

DISCLAIMER = "For research; not a medical device. Numbers hold for data like those measured here, not for others."
PICTURES, LISTED = 8, 12


def page(
    title: str, created: str, runs: Sequence[ModelRun], summaries: Sequence[Sequence[MetricSummary]],
    tests: Sequence[PairedComparison],
) -> str:  # fmt: skip
    """Build the page.

    Args:
        title: Its title.
        created: Date and time, ISO 8601.
        runs: The models; those on one data set stand together.
        summaries: Of each run, in the same order.
        tests: Comparisons between runs on one data set.
    """
    tiled = (
        "".join(_tiles(run, found) for run, found in zip(runs[:1], summaries[:1], strict=True))
        if len(runs) == 1
        else ""
    )
    body = [
        f"<h1>{escape(title)}</h1><p class='lead'>{escape(_lead(runs))}</p>{tiled}",
        *(_results(run, found) for run, found in zip(runs, summaries, strict=True)),
        *_boxes(runs),
        _comparisons(tests),
        *(_volumes(run) for run in runs),
        *(_worst(run, len(runs)) for run in runs),
        *(_curves(run) for run in runs if any(run.curves.values())),
        _paper(runs),
        *(_components(run) for run in runs if run.components),
        _definitions(runs),
        *(_provenance(run) for run in runs),
        f"<p class='note'>Written {escape(created)}. {DISCLAIMER}</p>",
    ]
    head = f"<meta charset='utf-8'><meta name='viewport' content='width=device-width,initial-scale=1'><title>{escape(title)}</title>"
    return f"<!DOCTYPE html>\n<html lang='en'><head>{head}<style>{CSS}</style></head><body><main>{''.join(body)}</main></body></html>\n"


def _lead(runs: Sequence[ModelRun]) -> str:
    models, datasets = ({getattr(run, name): None for run in runs} for name in ("name", "dataset"))
    return f"{', '.join(models)} on {', '.join(datasets)}."


def _tiles(run: ModelRun, summaries: Sequence[MetricSummary]) -> str:
    subjects = {run.subjects.get(score.case, score.case) for score in run.scores}
    cases = {score.case for score in run.scores}
    flagged = sum(score.is_flagged for score in run.scores)
    words = "structure missed or invented" if flagged == 1 else "structures missed or invented"
    tiles = [_metric_tile(metric, summaries) for metric in (DSC, NSD, HD95, ASSD)]
    tiles += [_tile(str(len(cases)), f"cases of {len(subjects)} patients"), _tile(str(flagged), words)]
    return f"<div class='tiles'>{''.join(tiles)}</div>"


def _metric_tile(metric: MetricDefinition, summaries: Sequence[MetricSummary]) -> str:
    entry = next(item for item in summaries if item.label == MEAN and item.metric == metric.id)
    if entry.summary is None:
        return _tile("–", f"mean {metric.name}")
    show, unit = formatter(metric), f" {metric.unit}" if metric.unit else ""
    interval = f"{show(entry.summary.ci_low)} to {show(entry.summary.ci_high)}"
    return _tile(show(entry.summary.mean) + unit, f"mean {metric.name}; 95 % interval {interval}")


def _tile(number: str, text: str) -> str:
    return f"<div class='tile'><b>{escape(number)}</b><span>{escape(text)}</span></div>"


def _section(title: str, *parts: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def _note(text: str) -> str:
    return f"<p class='note'>{text}</p>"


def _results(run: ModelRun, summaries: Sequence[MetricSummary]) -> str:
    note = (
        "Mean and standard deviation (SD) over cases, the 95 % interval of the mean (bootstrap that draws patients), the "
        "median and the middle half of the cases. ↑ higher is better, ↓ lower is better; point at a name to see what it means. A structure "
        "in neither mask is left out of a case; one that is in only one mask (missed or invented) counts with the worst "
        f"value and is flagged. Mean over: {escape(', '.join(run.labels))}."
    )
    measured = f"Measured: {escape(run.protocol)}."
    leak = "Check for leaks between training and measured cases: " + escape(run.leakage)
    return _section(
        f"{run.name} on {run.dataset}", results_table(run, summaries), _note(measured), _note(note), _note(leak)
    )


def _boxes(runs: Sequence[ModelRun]) -> list[str]:
    note = (
        "Each point is one case. Box: middle half of the cases, thick line: median, whiskers: the farthest cases "
        "within 1.5 box lengths. A red cross marks a structure that was missed or invented; it stands at the axis' end."
    )
    by_dataset: dict[str, list[ModelRun]] = {}
    for run in runs:
        by_dataset.setdefault(run.dataset, []).append(run)
    return [_section(f"Every case: {dataset}", box_plots(group), _note(note)) for dataset, group in by_dataset.items()]


def _comparisons(tests: Sequence[PairedComparison]) -> str:
    if not tests:
        return ""
    note = (
        "Both models measured on the same patients (a patient's cases averaged): Wilcoxon's signed-rank test, two-sided, "
        "with Holm's correction for all lines of this table. Effect: +1 if the first model's value is the higher one for "
        "every patient, -1 if for none. The test knows the noise between patients only: training the same network again "
        "with another seed also changes its scores."
    )
    return _section("Is one model better?", comparison_table(tests), _note(note))


def _volumes(run: ModelRun) -> str:
    note = (
        "Bland-Altman plots: each point is one case. Solid line: mean error; dashed: limits that hold 95 % of the errors "
        "if they are normally distributed. Points above 0: too much was segmented."
    )
    return _section(f"Volumes: {run.name} on {run.dataset}", bland_altman(run), _note(note))


def _worst(run: ModelRun, runs: int) -> str:
    ranked = worst_first(run.scores)
    shown = ranked[: max(2, PICTURES // runs)] if run.load_case else ()
    pictures = "".join(_picture(run, case) for case in shown)
    legend = " ".join(swatch(structure) for structure in run.structures)
    note = f"Solid color: reference ({legend}). White dashes: prediction. DSC: mean of the structures, HD95: the largest. The slice with the most wrong voxels; the patient's left is on the right of axial and coronal pictures."
    parts = [f"<div class='cases'>{pictures}</div>", _note(note)] if pictures else []
    return _section(f"Worst cases first: {run.name} on {run.dataset}", *parts, worst_table(ranked[:LISTED]))


def _picture(run: ModelRun, case: RankedCase) -> str:
    assert run.load_case is not None  # checked by the caller
    picture = draw_case(run.load_case(case.case), run.structures)
    problem = f"<br><span class='bad'>{escape(case.problem)}</span>" if case.problem else ""
    text = f"<b>{escape(case.case)}</b><br>DSC {case.dice:.3f} · HD95 {case.hd95_mm:.1f} mm<br>{picture.caption}, fold {case.fold}"
    image = f"<img alt='{escape(case.case, quote=True)}: {picture.caption}' src='{picture.source}'>"
    return f"<figure><div class='frame'>{image}</div><figcaption>{text}{problem}</figcaption></figure>"


def _curves(run: ModelRun) -> str:
    note = (
        "The patch Dice is a quick check on pieces of the cases the fold has not seen. It tells whether training went "
        "well; the scores above, on whole images, tell how good the model is."
    )
    return _section(f"Training: {run.name} on {run.dataset}", training_curves(run), _note(note))


def _paper(runs: Sequence[ModelRun]) -> str:
    content = paper_table(runs)
    return _section("Quality and cost", paper_html(content), *(_note(escape(note)) for note in content.notes))


def _components(run: ModelRun) -> str:
    rows = [
        [escape(choice.label), "largest only" if choice.keep_largest else "all", escape(choice.reason)]
        for choice in run.components
    ]
    note = (
        "Decided on the cases that the tables above are about, as predicted by networks that had not seen them: the largest "
        "only if mean Dice or mean HD95 gets better and neither worse."
    )
    return _section(
        f"Connected components kept: {run.name}", table(["Structure", "Components", "Why"], rows, 3), _note(note)
    )


def _definitions(runs: Sequence[ModelRun]) -> str:
    structures = {structure.name: structure for run in runs for structure in run.structures}
    return _section("What the numbers mean", definition_list(tuple(structures.values())))


def _provenance(run: ModelRun) -> str:
    rows = [[escape(name), f"<code>{escape(value)}</code>"] for name, value in run.provenance.items()]
    return _section(f"Provenance: {run.name} on {run.dataset}", table(["What", "Value"], rows, 2))
