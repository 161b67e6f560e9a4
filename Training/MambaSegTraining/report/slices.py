"""Pictures of single cases: the slice with the largest disagreement, prediction and reference as contours."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from MambaSegLib.volume import Array
from MambaSegTraining.metrics.scores import Structure
from MambaSegTraining.report.drawing import as_hex
from MambaSegTraining.report.records import CaseImages

ORIENTATION = "SPL"
"""Axial stacks as radiologists look at them: anterior on top, the patient's left on the right of the picture."""

PLANES = {0: "axial", 1: "coronal", 2: "sagittal"}
MARGIN_MM = 12.0
PICTURE_INCHES, DPI = 2.6, 130


@dataclass(frozen=True)
class SlicePicture:
    """A picture as it goes into a page.

    Attributes:
        source: PNG as a data URL.
        caption: Plane and place of the slice.
    """

    source: str
    caption: str


@dataclass(frozen=True)
class _Slice:
    image: Array
    reference: Array
    prediction: Array
    step_mm: tuple[float, float]


def draw_case(images: CaseImages, structures: Sequence[Structure]) -> SlicePicture:
    """Draw the slice in which most voxels disagree, cut to the structures with a margin."""
    turn = images.reference.geometry.reorientation_to(ORIENTATION)
    volume, reference, prediction = (
        turn.apply(array) for array in (images.volume.array[0], images.reference.array, images.prediction.array)
    )
    spacing_mm = images.reference.geometry.reoriented(turn).spacing_mm
    # Thick slices are looked at one by one; between equal sides the axial plane is the usual one.
    axis = int(np.argmax(np.array(spacing_mm) > 1.2 * min(spacing_mm)))
    values = [value for structure in structures for value in structure.values]
    shown = [np.where(np.isin(labels, values), labels, 0) for labels in (reference, prediction)]
    others = tuple(k for k in range(3) if k != axis)
    differs = shown[0] != shown[1]
    if images.ignore_value is not None:
        differs &= reference != images.ignore_value
    wrong = differs.sum(axis=others)
    index = int(np.argmax(wrong if wrong.any() else (shown[0] > 0).sum(axis=others)))
    step_mm = (spacing_mm[others[0]], spacing_mm[others[1]])
    planes = [np.take(array, index, axis=axis) for array in (volume, *shown)]
    if axis != 0:  # rows of coronal and sagittal planes run upward
        planes = [plane[::-1] for plane in planes]
    cut = _around((planes[1] > 0) | (planes[2] > 0), step_mm)
    picture = _Slice(planes[0][cut], planes[1][cut], planes[2][cut], step_mm)
    return SlicePicture(_png(picture, structures), f"{PLANES[axis]} slice {index + 1} of {volume.shape[axis]}")


def _around(mask: Array, step_mm: tuple[float, float]) -> tuple[slice, slice]:
    """Rows and columns of a mask with a margin; everything where it is empty."""
    if not mask.any():
        return slice(None), slice(None)
    cuts = []
    for axis in range(2):
        found, margin = np.flatnonzero(mask.any(axis=1 - axis)), int(np.ceil(MARGIN_MM / step_mm[axis]))
        cuts.append(slice(max(0, int(found[0]) - margin), int(found[-1]) + margin + 1))
    return cuts[0], cuts[1]


def _png(picture: _Slice, structures: Sequence[Structure]) -> str:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, columns = picture.image.shape
    height_mm, width_mm = rows * picture.step_mm[0], columns * picture.step_mm[1]
    scale = PICTURE_INCHES / max(height_mm, width_mm)
    figure = Figure(figsize=(width_mm * scale, height_mm * scale), dpi=DPI)
    FigureCanvasAgg(figure)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    low, high = np.percentile(picture.image, (0.5, 99.5))
    axis.imshow(
        picture.image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect="auto", interpolation="bilinear"
    )
    for structure in structures:
        color = as_hex(structure.color)
        for labels, style, width in ((picture.reference, "solid", 1.8), (picture.prediction, (0, (2.2, 1.3)), 1.5)):
            mask = np.pad(np.isin(labels, structure.values).astype(float), 1)
            if mask.any():
                grid = np.arange(-1, columns + 1), np.arange(-1, rows + 1)
                lines = axis.contour(*grid, mask, levels=[0.5], colors="white" if style != "solid" else color)
                lines.set(linewidth=width, linestyle=style)
    axis.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    _scale_bar(axis, rows, columns, picture.step_mm[1])
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(_fewer_colors(stream.getvalue())).decode()


def _scale_bar(axis: object, rows: int, columns: int, step_mm: float) -> None:
    """A line of a round length, in mm, in the lower left corner."""
    from matplotlib import patheffects

    longest = columns * step_mm / 3
    length = max((step for step in (1, 2, 5, 10, 20, 50, 100) if step <= longest), default=1)
    outline = [patheffects.withStroke(linewidth=2.6, foreground="black")]
    left, bottom = 0.04 * columns, 0.95 * rows
    axis.plot([left, left + length / step_mm], [bottom, bottom], color="white", linewidth=1.6, path_effects=outline)  # type: ignore[attr-defined]
    axis.text(left, bottom - 0.025 * rows, f"{length} mm", color="white", fontsize=7, va="bottom", path_effects=outline)  # type: ignore[attr-defined]


def _fewer_colors(png: bytes) -> bytes:
    """The same picture with a palette of 256 colors: a third of the bytes."""
    from PIL import Image

    stream = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
        stream, "PNG", optimize=True
    )
    return stream.getvalue()
