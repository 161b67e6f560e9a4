"""From runs to files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from MambaSegLib.errors import InputError
from MambaSegLib.manifest import utc_now
from MambaSegTraining.comparison import PairedComparison, compare_models
from MambaSegTraining.files import write_json, write_text
from MambaSegTraining.largest_component import ComponentChoice
from MambaSegTraining.metrics.definitions import DEFINITIONS, LEGACY_DEFINITIONS, MetricDefinition
from MambaSegTraining.metrics.legacy import LegacyScore
from MambaSegTraining.metrics.scores import LabelScore, Structure
from MambaSegTraining.metrics.summary import MetricSummary, summarize_scores
from MambaSegTraining.report.page import page
from MambaSegTraining.report.paper_table import as_markdown, paper_table
from MambaSegTraining.report.records import Cost, ModelRun


@dataclass(frozen=True)
class ReportFiles:
    """The files of a report."""

    html: Path
    json: Path
    markdown: Path


@dataclass(frozen=True)
class RunReport:
    """Everything known about one run, as numbers."""

    model: str
    dataset: str
    protocol: str
    leakage: str
    structures: tuple[Structure, ...]
    summaries: tuple[MetricSummary, ...]
    scores: tuple[LabelScore, ...]
    legacy: tuple[LegacyScore, ...]
    subjects: Mapping[str, str]
    components: tuple[ComponentChoice, ...]
    cost: Cost
    provenance: Mapping[str, str]


@dataclass(frozen=True)
class Report:
    """The content of report.json."""

    title: str
    created: str
    definitions: tuple[MetricDefinition, ...]
    runs: tuple[RunReport, ...]
    comparisons: tuple[PairedComparison, ...]


def write_report(runs: Sequence[ModelRun], folder: Path, title: str = "Segmentation report") -> ReportFiles:
    """Write report.html, report.json and report.md.

    Args:
        runs: One or more models; those on the same data set are compared with one another.
        folder: Where to write; made if it is not there.
        title: Title of the page.

    Raises:
        InputError: If there is no run, one without scores, two with one name on one data set, or runs that cannot be compared.
    """
    _check(runs)
    created = utc_now()
    summaries = [summarize_scores(run.scores, run.labels, run.subjects) for run in runs]
    tests = _compare(runs)
    records = tuple(_record(run, found) for run, found in zip(runs, summaries, strict=True))
    files = ReportFiles(*(folder / f"report.{suffix}" for suffix in ("html", "json", "md")))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(files.json, Report(title, created, DEFINITIONS + LEGACY_DEFINITIONS, records, tests))
    write_text(files.markdown, _markdown(title, runs, tests))
    write_text(files.html, page(title, created, runs, summaries, tests))
    return files


def _check(runs: Sequence[ModelRun]) -> None:
    if not runs:
        msg = "a report needs at least one validated run"
        raise InputError(msg)
    names = [(run.name, run.dataset) for run in runs]
    for name in names:
        if names.count(name) > 1:
            msg = f"two runs are called {name[0]} on {name[1]}; give them different names"
            raise InputError(msg)
    for run in runs:
        if not run.scores:
            msg = f"{run.name} has no scores; validate its folds first"
            raise InputError(msg)


def _compare(runs: Sequence[ModelRun]) -> tuple[PairedComparison, ...]:
    tests: list[PairedComparison] = []
    for dataset in dict.fromkeys(run.dataset for run in runs):
        group = [run for run in runs if run.dataset == dataset]
        if len({run.structures for run in group}) > 1:
            msg = f"the runs on {dataset} measure different structures or tolerances, so they cannot be compared"
            raise InputError(msg)
        if len(group) > 1:
            # Of several ideas who is who, the one with fewest people: taking two cases of one for independent is the worse mistake.
            subjects = min((run.subjects for run in group), key=lambda found: len(set(found.values())))
            tests += compare_models({run.name: run.scores for run in group}, group[0].labels, subjects)
    return tuple(tests)


def _record(run: ModelRun, summaries: tuple[MetricSummary, ...]) -> RunReport:
    return RunReport(run.name, run.dataset, run.protocol, run.leakage, run.structures, summaries, run.scores, run.legacy,
                     run.subjects, run.components, run.cost, run.provenance)  # fmt: skip


def _markdown(title: str, runs: Sequence[ModelRun], tests: Sequence[PairedComparison]) -> str:
    lines = [f"# {title}", "", as_markdown(paper_table(runs))]
    if tests:
        lines += [
            "## Comparisons",
            "",
            *(f"* {test.first} and {test.second}, {_name(test.metric)}: {test.verdict}" for test in tests),
            "",
        ]
    lines += [
        "## Definitions",
        "",
        *(f"* **{metric.name}** ({metric.id}): {metric.text}" for metric in DEFINITIONS),
        "",
    ]
    lines += ["## Leaks", "", *(f"* {run.name} on {run.dataset}: {run.leakage}" for run in runs), ""]
    return "\n".join(lines)


def _name(metric_id: str) -> str:
    return next(metric.name for metric in DEFINITIONS if metric.id == metric_id)
