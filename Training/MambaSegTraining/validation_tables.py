"""Scores as text: Markdown for people, CSV for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import fields

from MambaSegTraining.largest_component import ComponentChoice
from MambaSegTraining.metrics import DEFINITIONS, LabelScore, MetricDefinition, MetricSummary
from MambaSegTraining.metrics.definitions import DSC
from MambaSegTraining.metrics.summary import MEAN, shown_labels
from MambaSegTraining.scores import Group

OVERALL = tuple(metric for metric in DEFINITIONS if metric.field in ("nsd", "hd95_mm"))
"""Measures shown as the mean over the structures only, or of the only one; summary.json has all."""


def markdown_table(groups: Sequence[Group], labels: Sequence[str], protocol: str) -> str:
    """Mean and standard deviation of the Dice per structure and of other measures over all; below it what they mean.

    Args:
        groups: One line each.
        labels: Structures, in order.
        protocol: Which cases the numbers are about.
    """
    shown = shown_labels(labels)
    columns = [(label, DSC) for label in shown] + [(shown[-1], metric) for metric in OVERALL]
    heads = [f"{metric.name} {label}{f' ({metric.unit})' if metric.unit else ''}" for label, metric in columns]
    lines = [f"| cases | n | {' | '.join(heads)} |", f"|---|---|{'---|' * len(heads)}"]
    for group in groups:
        cells = [_cell(_find(group, label, metric)) for label, metric in columns]
        overall = _find(group, MEAN, DSC).summary
        lines.append(f"| {group.cases} | {overall.n if overall else 0} | {' | '.join(cells)} |")
    meanings = [f"* {metric.name}: {metric.text}" for metric in (DSC, *OVERALL)]
    intro = "Mean ± standard deviation over cases; in brackets the 95 % interval of the mean (bootstrap over subjects)."
    return "\n".join([*lines, "", intro, f"Cases: {protocol}.", "", *meanings, ""])


def component_lines(choices: Sequence[ComponentChoice]) -> str:
    """Whether structures keep only their largest connected component, and why."""
    lines = [f"* {choice.label}: {choice.reason}" for choice in choices]
    return "\n".join(["", "Connected components, decided on these cases:", "", *lines, ""]) if lines else ""


def csv_table(scores: Sequence[LabelScore]) -> str:
    """One line per case and structure; an undefined number is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [field.name for field in fields(LabelScore)]
    writer.writerow(names)
    writer.writerows([getattr(score, name) for name in names] for score in scores)
    return text.getvalue()


def _find(group: Group, label: str, metric: MetricDefinition) -> MetricSummary:
    return next(entry for entry in group.metrics if (entry.label, entry.metric) == (label, metric.id))


def _cell(entry: MetricSummary) -> str:
    summary = entry.summary
    if summary is None:
        return "-"
    excluded = f", {summary.excluded} excluded" if summary.excluded else ""
    return f"{summary.mean:.3f} ± {summary.std:.3f} ({summary.ci_low:.3f} to {summary.ci_high:.3f}{excluded})"
