"""Scores as text: Markdown for people, CSV for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from MambaSegTraining.metrics import DICE_DEFINITION, Summary

if TYPE_CHECKING:
    from MambaSegTraining.scores import Score


def markdown_table(rows: Sequence[tuple[str, Mapping[str, Summary]]], labels: Sequence[str], protocol: str) -> str:
    """Mean and standard deviation of the Dice per structure; below it what they mean.

    Args:
        rows: Name and summary per structure and "mean".
        labels: Structures, in order.
        protocol: Which cases the numbers are about.
    """
    columns = [*labels, "mean"]
    lines = [
        f"| cases | n | {' | '.join(columns)} | 95 % interval of the mean |",
        f"|---|---|{'---|' * (len(columns) + 1)}",
    ]
    for name, by_label in rows:
        overall = by_label["mean"]
        cells = [_cell(by_label[column]) for column in columns]
        interval = f"{overall.ci_low:.4f} to {overall.ci_high:.4f}" if overall.n else "-"
        lines.append(f"| {name} | {overall.n} | {' | '.join(cells)} | {interval} |")
    return "\n".join(
        [*lines, "", f"Mean ± standard deviation over cases. {DICE_DEFINITION}", f"Cases: {protocol}.", ""]
    )


def csv_table(scores: Sequence[Score]) -> str:
    """One line per case and structure; an undefined Dice is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if scores:
        names = [field.name for field in fields(scores[0])]
        writer.writerow(names)
        writer.writerows([getattr(score, name) for name in names] for score in scores)
    return text.getvalue()


def _cell(summary: Summary) -> str:
    if not summary.n:
        return "-"
    excluded = f" ({summary.excluded} excluded)" if summary.excluded else ""
    return f"{summary.mean:.4f} ± {summary.std:.4f}{excluded}"
