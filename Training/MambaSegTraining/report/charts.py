"""The report's plots: scores per case, agreement of volumes, the course of training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from MambaSegLib.volume import Array
from MambaSegTraining.metrics.definitions import ASSD, DSC, HD95, NSD, MetricDefinition
from MambaSegTraining.metrics.scores import LabelScore, Structure
from MambaSegTraining.report.drawing import FAINT, FOLD_COLORS, INK, SIZE, as_hex, as_svg, draw_dots, new_figure
from MambaSegTraining.report.records import ModelRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = (DSC, NSD, HD95, ASSD)
GOLDEN = 0.618034


def box_plots(runs: Sequence[ModelRun]) -> str:
    """Every case as a point, one line per structure and model, one column per measure."""
    rows = [(structure, run) for structure in runs[0].structures for run in runs]
    figure, axes = new_figure(10.4, 0.75 + 0.46 * len(rows), 1, len(SHOWN), sharey=True)
    for axis, metric in zip(axes, SHOWN, strict=True):
        limit = _limits(runs, metric)
        for place, (structure, run) in enumerate(rows):
            _draw_row(
                axis, place, [score for score in run.scores if score.label == structure.name], metric, structure, limit
            )
        axis.set_xlim(*limit)
        axis.set_title(f"{metric.name}{f' [{metric.unit}]' if metric.unit else ''}", fontsize=SIZE + 1, color=INK)
        arrow = "higher is better →" if metric.better == "higher" else "← lower is better"
        axis.set_xlabel(arrow, fontsize=SIZE - 1, color=FAINT)
        axis.grid(axis="y", visible=False)
    names = [structure.name if len(runs) == 1 else f"{structure.name} · {run.name}" for structure, run in rows]
    axes[0].set_yticks(range(len(rows)), names)
    axes[0].set_ylim(len(rows) - 0.45, -0.55)
    return as_svg(figure, "Box plots of DSC, NSD, HD95 and ASSD per structure, cases as points")


def bland_altman(run: ModelRun) -> str:
    """Volume error against mean volume per structure, with mean error and limits of agreement."""
    columns = min(3, len(run.structures))
    rows = math.ceil(len(run.structures) / columns)
    figure, axes = new_figure(10.4 if columns > 1 else 5.6, 0.2 + 2.8 * rows, rows, columns)
    for axis, structure in zip(axes, run.structures, strict=False):
        _draw_agreement(axis, [score for score in run.scores if score.label == structure.name], structure)
    for axis in axes[len(run.structures) :]:
        axis.set_visible(False)
    return as_svg(figure, "Bland-Altman plots: volume error against mean of predicted and reference volume")


def training_curves(run: ModelRun) -> str:
    """Loss and patch Dice of each fold over the epochs."""
    figure, (loss, dice) = new_figure(10.4, 3.0, 1, 2)
    for number, (fold, records) in enumerate(sorted(run.curves.items())):
        color = FOLD_COLORS[number % len(FOLD_COLORS)]
        loss.plot([record.epoch + 1 for record in records], [record.train_loss for record in records], color=color,
                  linewidth=1.4, label=f"fold {fold}")  # fmt: skip
        checked = [
            (record.epoch + 1, record.mean_patch_dice) for record in records if record.mean_patch_dice is not None
        ]
        if checked:
            dice.plot(*zip(*checked, strict=True), color=color, linewidth=1.4, label=f"fold {fold}")
    for axis, title, unit in (
        (loss, "Training loss", "loss"),
        (dice, "Quick check on patches of unseen cases", "patch Dice"),
    ):
        axis.set_title(title, fontsize=SIZE + 1, color=INK)
        axis.set_xlabel("epoch", fontsize=SIZE, color=INK)
        axis.set_ylabel(unit, fontsize=SIZE, color=INK)
    loss.legend(frameon=False, fontsize=SIZE - 0.5, labelcolor=INK, ncols=2 if len(run.curves) > 4 else 1)
    return as_svg(figure, "Training loss and patch Dice per fold over the epochs")


def _limits(runs: Sequence[ModelRun], metric: MetricDefinition) -> tuple[float, float]:
    """Axis limits from the cases that are not flagged: one image diagonal would squeeze all others."""
    values = [value for run in runs for score in run.scores
              if (value := getattr(score, metric.field)) is not None and not score.is_flagged]  # fmt: skip
    if metric.better == "higher":
        low = min(values, default=0.0)
        return max(-0.02, low - 0.08 * (1 - low) - 0.01), 1.0 + 0.02 * (1 - low)
    high = max(values, default=1.0) or 1.0
    return -0.03 * high, 1.06 * high


def _draw_row(
    axis: Axes,
    place: int,
    scores: Sequence[LabelScore],
    metric: MetricDefinition,
    structure: Structure,
    limit: tuple[float, float],
) -> None:
    color = as_hex(structure.color)
    measured = [(value, score.is_flagged) for score in scores if (value := getattr(score, metric.field)) is not None]
    if not measured:
        axis.text(sum(limit) / 2, place, "no case", ha="center", va="center", fontsize=SIZE - 1, color=FAINT)
        return
    values = np.array([value for value, _ in measured])
    flags = np.array([flag for _, flag in measured])
    spread = ((np.arange(len(values)) * GOLDEN) % 1 - 0.5) * 0.5  # fills the width evenly, the same in every run
    draw_dots(axis, values[~flags], place + spread[~flags], 2.6, color, 0.55, 2)
    edge = limit[0] if metric.better == "higher" else limit[1]
    axis.scatter(np.full(flags.sum(), edge), place + spread[flags], s=22, marker="x", color="#d22f2f", linewidths=1.3,
                 zorder=4, clip_on=False)  # fmt: skip
    _draw_box(axis, place, values, limit, color)


def _draw_box(axis: Axes, place: int, values: Array, limit: tuple[float, float], color: str) -> None:
    """Quartiles, median, and whiskers to the farthest case within 1.5 times the box, as far as the axis shows them."""
    from matplotlib.patches import Rectangle

    low, middle, high = np.percentile(values, (25, 50, 75))
    reach = 1.5 * (high - low)
    ends = np.clip(values[(values >= low - reach) & (values <= high + reach)], *limit)
    low, middle, high = np.clip((low, middle, high), *limit)
    axis.plot([ends.min(), low], [place, place], color=INK, linewidth=1, zorder=3)
    axis.plot([high, ends.max()], [place, place], color=INK, linewidth=1, zorder=3)
    corner, width, height = (low, place - 0.28), max(high - low, 1e-9), 0.56
    axis.add_patch(Rectangle(corner, width, height, facecolor=color, edgecolor="none", alpha=0.28, zorder=1))
    axis.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=INK, linewidth=1, zorder=3))
    axis.plot([middle, middle], [place - 0.28, place + 0.28], color=INK, linewidth=2.2, zorder=3, solid_capstyle="butt")


def _draw_agreement(axis: Axes, scores: Sequence[LabelScore], structure: Structure) -> None:
    shown = [score for score in scores if score.empty != "both"]
    means = np.array([(score.predicted_ml + score.reference_ml) / 2 for score in shown])
    errors = np.array([score.predicted_ml - score.reference_ml for score in shown])
    axis.set_title(structure.name, fontsize=SIZE + 1, color=INK)
    axis.set_xlabel("mean of predicted and reference volume [ml]", fontsize=SIZE, color=INK)
    axis.set_ylabel("predicted − reference [ml]", fontsize=SIZE, color=INK)
    if not shown:
        return
    draw_dots(axis, means, errors, 3.5, as_hex(structure.color), 0.7, 3)
    mean, spread = float(errors.mean()), float(errors.std(ddof=1)) if len(errors) > 1 else 0.0
    axis.axhline(0, color=FAINT, linewidth=0.8)
    lines = [(mean, "-", "mean")]
    if spread:
        lines += [(mean + 1.96 * spread, "--", "+1.96 SD"), (mean - 1.96 * spread, "--", "−1.96 SD")]
    for value, style, text in lines:
        axis.axhline(value, color=INK, linewidth=1, linestyle=style)
        axis.annotate(f"{text}: {value:+.2f}".replace("-", "−"), (1.0, value), xycoords=("axes fraction", "data"), xytext=(-2, 2),
                      textcoords="offset points", ha="right", va="bottom", fontsize=SIZE - 1.5, color=INK)  # fmt: skip
    axis.margins(x=0.08, y=0.14)
