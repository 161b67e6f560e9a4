"""What the network predicts on patches of the validation cases, as one picture to look at while it trains."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from MambaSegLib.atomic import new_file
from MambaSegLib.plan import Plan
from MambaSegLib.volume import Array

OPACITY = 0.55
INCHES = 2.4


def can_draw() -> bool:
    """Whether matplotlib is there."""
    return find_spec("matplotlib") is not None


def draw_predictions(path: Path, title: str, images: Array, labels: Array, predictions: Array, plan: Plan) -> None:
    """Write a PNG: a row per patch with its image, its labels and the prediction, in the slice with most structure.

    Args:
        path: File to write, whole or not at all.
        title: Line above.
        images: (B, C, Z, Y, X); the first channel is shown.
        labels: (B, Z, Y, X).
        predictions: (B, Z, Y, X).
        plan: Gives the colors and the shape of a pixel.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * INCHES, len(images) * INCHES + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(images), 3, squeeze=False)
    colors = {label.value: label.color for label in plan.labels}
    aspect = plan.spacing_mm[1] / plan.spacing_mm[2]
    for row, image, truth, predicted in zip(axes, images[:, 0], labels, predictions, strict=True):
        z = fullest_slice(truth)
        panels = (overlay(image[z], shown, colors) for shown in (np.zeros_like(truth[z]), truth[z], predicted[z]))
        for axis, panel in zip(row, panels, strict=True):
            axis.imshow(panel, aspect=aspect, interpolation="nearest")
            axis.set_axis_off()
    for axis, name in zip(axes[0], ("image", "labels", "prediction"), strict=True):
        axis.set_title(name, fontsize=9)
    figure.suptitle(title, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as work:
        figure.savefig(work, dpi=100, format="png")


def fullest_slice(labels: Array) -> int:
    """Index of the slice with most labelled voxels; the middle one if there are none."""
    counts = (labels > 0).sum((1, 2))
    return int(np.argmax(counts)) if counts.any() else len(labels) // 2


def overlay(image: Array, labels: Array, colors: dict[int, tuple[int, int, int]]) -> Array:
    """Gray image between its 1st and 99th percentile with the labels in color above, (Y, X, 3) uint8."""
    low, high = np.percentile(image, (1, 99))
    gray = np.clip((image - low) / max(high - low, 1e-6), 0, 1) * 255
    shown = np.repeat(gray[..., None], 3, axis=-1)
    for value, color in colors.items():
        inside = labels == value
        shown[inside] = (1 - OPACITY) * shown[inside] + OPACITY * np.asarray(color)
    return shown.round().astype(np.uint8)
