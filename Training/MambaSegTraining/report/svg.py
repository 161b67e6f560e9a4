"""Matplotlib's SVG without what a page does not need: the same picture in a small part of the bytes."""

from __future__ import annotations

import re
import zlib
from collections import Counter

NUMBER = r"-?\d+(?:\.\d+)?"
REPEATED = 3
"""A style that stands this often gets a class."""


def compact(svg: str) -> str:
    """Shorten an <svg> element: tenths of a point, no invisible shapes, no fonts (the page has its own), no repetitions.

    Args:
        svg: As Matplotlib writes it.
    """
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<path d="[^"]*" style="fill: none; opacity: 0"/>', "", svg)
    svg = re.sub(rf' transform="rotate\(-0 {NUMBER} {NUMBER}\)"', "", svg)
    svg = re.sub(r"font-family: [^;\"]*(; )?", "", svg)
    svg = re.sub(r'(?<= d=")[^"]*', lambda found: _path(found.group()), svg)
    svg = re.sub(rf'(?<= )(x|y)="({NUMBER})"', lambda found: f'{found.group(1)}="{_short(found.group(2))}"', svg)
    return _with_classes(_without_groups(re.sub(r">\s+<", "><", svg)))


def _path(data: str) -> str:
    """Path data with short numbers; a line from a point to itself, which a round cap makes a dot, is drawn as h0."""
    data = re.sub(NUMBER, lambda found: _short(found.group()), data)
    data = re.sub(rf"M ({NUMBER}) ({NUMBER})\s+L \1 \2(?=\s)", r"M \1 \2 h0", data)
    return re.sub(r"\s*([A-Za-z])\s*", r"\1", data).strip().replace("\n", " ")


def _short(number: str) -> str:
    text = f"{float(number):.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def _without_groups(svg: str) -> str:
    """Leave out <g> elements that only have a name, which repeats from figure to figure."""
    kept: list[bool] = []

    def decide(found: re.Match[str]) -> str:
        if found.group() == "</g>":
            return "</g>" if kept.pop() else ""
        kept.append(" " in re.sub(r' id="[^"]*"', "", found.group()))
        return re.sub(r' id="[^"]*"', "", found.group()) if kept[-1] else ""

    return re.sub(r"<g[^>]*>|</g>", decide, svg)


def _with_classes(svg: str) -> str:
    """Styles that repeat are written once; their classes are named after them, for all figures of a page share names."""
    attribute = re.compile(r' style="([^"]*)"')
    counts = Counter(attribute.findall(svg))
    names = {style: f"s{zlib.crc32(style.encode()):x}" for style, count in counts.items() if count >= REPEATED}
    rules = "".join(f".{name}{{{style}}}" for style, name in names.items())
    svg = attribute.sub(
        lambda found: f' class="{names[found.group(1)]}"' if found.group(1) in names else found.group(), svg
    )
    return svg.replace("</style>", f"{rules}</style>", 1)
