"""Accuracy against what it costs, one point per validated run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from MambaSegLib.atomic import new_file
from MambaSegTraining.component_selection import final_scores
from MambaSegTraining.costs.records import NetworkCost
from MambaSegTraining.metrics.definitions import DSC
from MambaSegTraining.metrics.summary import MEAN, summarize_values, values_by_case
from MambaSegTraining.run_folder import RunFolder
from MambaSegTraining.scores import pooled


@dataclass(frozen=True)
class Point:
    """A measured network and its accuracy.

    Attributes:
        cost: With a measurement.
        dsc: Mean over the structures of a case, then over the cases, 0 to 1.
    """

    cost: NetworkCost
    dsc: float


def mean_dsc(run: RunFolder) -> float | None:
    """Mean DSC of a run's validated cases; None if there are none."""
    if not run.splits_file.is_file():
        return None
    values = values_by_case(pooled(final_scores(run)), MEAN, DSC.field, run.read_plan().structure_names)
    summary = summarize_values(values, run.read_splits().subjects)
    return summary.mean if summary.n else None


def draw_costs(points: Sequence[Point], path: Path) -> None:
    """Write a PNG: DSC against time per image, training memory and multiply-adds, a color per data set."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3, sharey=True)
    panels = (
        ("Time per image [s]", _seconds),
        ("Training memory [GB]", _gigabytes),
        ("Multiply-adds per patch [G]", _gmacs),
    )
    for axis, (label, value) in zip(axes, panels, strict=True):
        for number, dataset in enumerate(dict.fromkeys(point.cost.dataset for point in points)):
            shown = [(value(point.cost), point) for point in points if point.cost.dataset == dataset]
            known = [(x, point) for x, point in shown if x is not None]
            axis.scatter([x for x, _ in known], [100 * p.dsc for _, p in known], color=f"C{number}", label=dataset)
            for x, point in known:
                axis.annotate(
                    point.cost.network, (x, 100 * point.dsc), xytext=(5, 4), textcoords="offset points", fontsize=7
                )
        axis.set_xscale("log")
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
        axis.margins(x=0.25, y=0.15)
    axes[0].set_ylabel("Mean DSC [%]")
    axes[0].legend(frameon=False, fontsize=8)
    with new_file(path) as work:
        figure.savefig(work, format="png", dpi=120)


def _seconds(cost: NetworkCost) -> float | None:
    return None if cost.measured is None else cost.measured.volume_s


def _gigabytes(cost: NetworkCost) -> float | None:
    memory = None if cost.measured is None else cost.measured.training_memory_bytes
    return None if memory is None else memory / 1e9


def _gmacs(cost: NetworkCost) -> float | None:
    return cost.gmacs
