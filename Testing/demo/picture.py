"""Draws a segmentation as one picture: three orthogonal slices with outlines and a 3D surface. Needs no OpenGL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from mpl_toolkits.mplot3d.art3d import Poly3DCollection
from scipy import ndimage
from skimage.measure import marching_cubes

from MambaSegLib.geometry import Geometry
from MambaSegLib.plan import Label
from MambaSegLib.volume import Array, Labels, Volume

BACKGROUND, INK, FAINT = "#0b0e13", "#eef1f6", "#8f99a8"
DISPLAY_ORIENTATION = "SPL"
FIELD_OF_VIEW_MM = 84.0
SCALE_BAR_MM = 20.0
OUTLINE = [withStroke(linewidth=3, foreground=BACKGROUND)]
LIGHT_RAS = np.array([-0.5, 0.4, 0.77])
LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class SliceView:
    """One slice panel of an array whose axes grow to superior, posterior and left.

    Attributes:
        name: Its anatomical name.
        color: 3D Slicer's color for it.
        axis: Array axis the slice is perpendicular to.
        coordinate: RAS coordinate along that axis: its letter and its place in (x, y, z).
        letters: Directions at the left, right, top and bottom edge.
    """

    name: str
    color: str
    axis: int
    coordinate: tuple[str, int]
    letters: tuple[str, str, str, str]


VIEWS = (
    SliceView("Axial", "#f06a58", 0, ("z", 2), ("R", "L", "A", "P")),
    SliceView("Coronal", "#74c76f", 1, ("y", 1), ("R", "L", "S", "I")),
    SliceView("Sagittal", "#edd458", 2, ("x", 0), ("A", "P", "S", "I")),
)


def draw(image: Volume, labels: Labels, volumes_ml: Mapping[int, float], caption: str, path: Path) -> None:
    """Write the picture as PNG.

    Args:
        image: Its first channel is shown.
        labels: Segmentation on the same grid, not empty.
        volumes_ml: Volume per label value, for the legend.
        caption: Line below the panels.
        path: PNG file to write.
    """
    turn = image.geometry.reorientation_to(DISPLAY_ORIENTATION)
    image, mask = image.reoriented(turn), turn.apply(labels.array)
    center = [round(index) for index in np.argwhere(mask).mean(axis=0)]
    figure = Figure(figsize=(10, 10.75), facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    panels = figure.subplot_mosaic(
        [["Axial", "Surface"], ["Coronal", "Sagittal"]], per_subplot_kw={"Surface": {"projection": "3d"}}
    )
    figure.subplots_adjust(left=0.012, right=0.988, top=0.99, bottom=0.075, wspace=0.02, hspace=0.02)
    for view in VIEWS:
        _draw_slice(panels[view.name], view, image, mask, labels.table, center)
    _draw_surfaces(panels["Surface"], mask, image.geometry, labels.table)
    handles = [
        Patch(color=_color(label), label=f"{label.name}: {volumes_ml[label.value]:.2f} ml") for label in labels.table
    ]
    figure.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.5, 0.03),
        ncols=4,
        frameon=False,
        labelcolor=INK,
        fontsize=12,
    )
    figure.text(0.5, 0.014, caption, color=FAINT, ha="center", fontsize=9.5)
    figure.savefig(path, dpi=110, facecolor=BACKGROUND)


def _draw_slice(
    axes: Any, view: SliceView, image: Volume, mask: Array, table: tuple[Label, ...], center: list[int]
) -> None:
    """One panel: the slice through `center`, fill and outline per label, letters, scale bar, overview."""
    row, column = (axis for axis in range(3) if axis != view.axis)
    spacing = image.geometry.spacing_mm
    rows_mm, columns_mm = (np.arange(mask.shape[axis]) * spacing[axis] for axis in (row, column))
    plane, cut = (array.take(center[view.axis], view.axis) for array in (image.array[0], mask))
    extent = (columns_mm[0], columns_mm[-1], rows_mm[0], rows_mm[-1])
    low, high = np.percentile(image.array[0][image.array[0] > image.array[0].min()], (4, 99.9))
    shown = {"cmap": "gray", "vmin": low, "vmax": high, "extent": extent, "origin": "lower"}
    axes.imshow(plane, interpolation="bicubic", **shown)
    for label in table:
        inside = (cut == label.value).astype(float)
        if inside.any():
            axes.contourf(columns_mm, rows_mm, inside, levels=[0.5, 1.5], colors=[_color(label)], alpha=0.3)
            axes.contour(columns_mm, rows_mm, inside, levels=[0.5], colors=[_color(label)], linewidths=1.8)
    middle = (center[column] * spacing[column], center[row] * spacing[row])
    half, down = (
        FIELD_OF_VIEW_MM / 2,
        -1 if view.axis == 0 else 1,
    )  # rows of an axial slice grow to posterior: downwards
    axes.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] - down * half, middle[1] + down * half))
    _frame(axes, view.color)
    overview = axes.inset_axes((0.735, 0.015, 0.25, 0.25))
    overview.imshow(plane, **shown)
    overview.add_patch(Rectangle((middle[0] - half, middle[1] - half), 2 * half, 2 * half, fill=False, ec=view.color))
    overview.set(ylim=overview.get_ylim()[::down], facecolor=BACKGROUND)
    _frame(overview, "#3a424e")
    letter, component = view.coordinate
    position = (image.geometry.to_world(center) * LPS_TO_RAS)[component]
    _annotate(axes, view, f"{view.name}   {letter} = {position:.0f} mm")


def _frame(axes: Any, color: str) -> None:
    """A thin colored edge, no ticks."""
    axes.set(xticks=[], yticks=[], facecolor=BACKGROUND)
    for spine in axes.spines.values():
        spine.set(color=color, linewidth=1.0)


def _annotate(axes: Any, view: SliceView, title: str) -> None:
    """Title, direction letters at the edges, and a scale bar, in fractions of the panel."""
    text = {"color": INK, "fontsize": 13, "fontweight": "bold", "transform": axes.transAxes, "path_effects": OUTLINE}
    places = ((0.025, 0.5), (0.975, 0.5), (0.5, 0.965), (0.5, 0.035))
    for letter, (x, y) in zip(view.letters, places, strict=True):
        axes.text(x, y, letter, ha="center", va="center", **text)
    axes.text(0.025, 0.965, title, va="center", **{**text, "color": view.color, "fontsize": 11})
    length = SCALE_BAR_MM / FIELD_OF_VIEW_MM
    axes.plot(
        (0.03, 0.03 + length), (0.035, 0.035), color=INK, linewidth=2.5, transform=axes.transAxes, path_effects=OUTLINE
    )
    axes.text(0.03, 0.05, f"{SCALE_BAR_MM:.0f} mm", va="bottom", **{**text, "fontsize": 9, "fontweight": "normal"})


def _draw_surfaces(axes: Any, mask: Array, geometry: Geometry, table: tuple[Label, ...]) -> None:
    """The labels' surfaces, seen from lateral and in front, with the three patient directions at a corner."""
    triangles, colors = [], []
    for label in table:
        for triangle, shade in _shaded_triangles(mask == label.value, geometry):
            triangles.append(triangle)
            colors.append(np.asarray(to_rgb(_color(label))) * shade)
    axes.add_collection3d(Poly3DCollection(triangles, facecolors=colors, edgecolors=colors, linewidths=0.2))
    points = np.concatenate(triangles)
    low, high = points.min(axis=0), points.max(axis=0)
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), zlim=(low[2], high[2]), facecolor=BACKGROUND)
    axes.set_box_aspect(high - low, zoom=1.1)
    left = (low + high)[0] < 0
    axes.view_init(elev=22, azim=148 if left else 32)
    axes.set_axis_off()
    lateral = np.array([-1.0 if left else 1.0, 0, 0])
    corner = np.where(lateral < 0, low, high) * abs(lateral) + low * (1 - abs(lateral)) + (0, 6, 0)
    for direction, letter in (
        (lateral, "L" if left else "R"),
        (np.array([0, 1.0, 0]), "A"),
        (np.array([0, 0, 1.0]), "S"),
    ):
        axes.plot(*np.stack([corner, corner + 5 * direction]).T, color=FAINT, linewidth=2)
        axes.text(
            *(corner + 7 * direction), letter, color=INK, fontsize=11, fontweight="bold", ha="center", va="center"
        )
    axes.text2D(0.025, 0.965, "Surface", color="#7fb2ff", fontsize=11, fontweight="bold", transform=axes.transAxes)


def _shaded_triangles(inside: Array, geometry: Geometry) -> Iterator[tuple[Array, float]]:
    """Triangles (3, 3) of the smoothed surface in RAS mm, each with its brightness, 0-1."""
    where = np.argwhere(inside)
    if not where.size:
        return
    start = where.min(axis=0)
    block = np.pad(inside[tuple(map(slice, start, where.max(axis=0) + 1))].astype(np.float32), 2)
    fine = ndimage.gaussian_filter(ndimage.zoom(block, 2, order=1, grid_mode=True, mode="nearest"), 1.2)
    vertices, faces, _, _ = marching_cubes(fine, 0.5)
    index = (vertices + 0.5) / 2 - 0.5 + (start - 2)
    corners = (geometry.to_world(index) * LPS_TO_RAS)[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12
    outward = corners.mean(axis=1) - corners.mean(axis=(0, 1))
    normals *= np.sign((normals * outward).sum())  # marching cubes orients all triangles alike, inwards or outwards
    yield from zip(corners, 0.38 + 0.62 * np.clip(normals @ LIGHT_RAS, 0, 1), strict=True)


def _color(label: Label) -> str:
    return "#{:02x}{:02x}{:02x}".format(*label.color)
