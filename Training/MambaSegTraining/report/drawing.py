"""Figures as text that goes into a page: SVG that follows the page's colors."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

from MambaSegLib.plan import IntTriple
from MambaSegLib.volume import Array
from MambaSegTraining.report.svg import compact

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colors that no plot uses otherwise; the page replaces them, so that a figure is readable on light and dark ground.
INK, FAINT = "#111213", "#919293"
SIZE = 9.0

FOLD_COLORS = (
    "#3b7dd8",
    "#e0862b",
    "#3fa66a",
    "#b65fc0",
    "#d4515b",
    "#7d8794",
    "#a0803c",
    "#38a3a5",
    "#8e6ee0",
    "#c46a98",
)


def new_figure(
    width: float, height: float, rows: int, columns: int, *, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """An empty figure with a grid of plots, row by row; sizes in inches."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.11, h_pad=0.06)  # type: ignore[union-attr, call-arg]
    FigureCanvasSVG(figure)
    figure.patch.set_alpha(0)
    axes = [axis for row in figure.subplots(rows, columns, squeeze=False, sharey=sharey) for axis in row]
    for axis in axes:
        axis.patch.set_alpha(0)
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(FAINT)
        axis.tick_params(colors=INK, labelsize=SIZE, color=FAINT, length=3)
        axis.grid(color=FAINT, alpha=0.25, linewidth=0.6)
        axis.set_axisbelow(True)
    return figure, axes


def draw_dots(axis: Axes, x: Array, y: Array, width: float, color: str, alpha: float, above: int) -> None:
    """Draw points of a width in pt as one path of lines without length and with round ends: a few bytes for each.

    Args:
        axis: Where.
        x: Their places along x.
        y: Along y.
        width: Diameter in points.
        color: Of all.
        alpha: Their opacity; where points of one call overlap, it is not more.
        above: Matplotlib's zorder.
    """
    import numpy as np
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    if not len(x):
        return
    ends = np.repeat(np.column_stack((x, y)), 2, axis=0)
    dots = Path(ends, [Path.MOVETO, Path.LINETO] * len(x))
    dots.should_simplify = False  # it would leave out what has no length
    axis.add_patch(
        PathPatch(dots, fill=False, edgecolor=color, linewidth=width, alpha=alpha, capstyle="round", zorder=above)
    )
    axis.update_datalim(ends)
    axis.autoscale_view()


def as_svg(figure: Figure, description: str) -> str:
    """The figure as an <svg> element.

    Args:
        figure: From `new_figure`.
        description: What is to be seen, for those who cannot see it.
    """
    import matplotlib as mpl

    stream = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report", "font.family": "sans-serif"}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    svg = compact(text[text.index("<svg") :])
    # A width in points would overrule the page's; the view box keeps the proportions.
    svg = re.sub(r'^(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'^(<svg[^>]*?) height="[^"]*"', r"\1", svg))
    svg = svg.replace(INK, "currentColor").replace(FAINT, "var(--faint)")
    return svg.replace("<svg", f'<svg role="img" aria-label="{_attribute(description)}"', 1)


def as_hex(color: IntTriple) -> str:
    """A color for matplotlib and for style sheets."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def _attribute(text: str) -> str:
    import html

    return html.escape(text, quote=True)
