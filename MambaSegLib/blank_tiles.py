"""Tiles that show nothing, such as air below a CT's window: computed once, whatever their number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from MambaSegLib.memory_ladder import Placement
    from MambaSegLib.sliding_window import WeightedTiles

ROUNDING = 1e-5
"""What resampling may leave of a constant, as a fraction of it (or of 1 if it is smaller): several roundings in float32."""

Values = tuple[float, ...]
"""Value per channel."""


class BlankTile:
    """The result of a tile that is the same value all over, for the next one that is the same image.

    Such are air below a CT's window, and padding. No other tile is left out.
    """

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._known: tuple[Values, Placement, WeightedTiles] | None = None

    def result_for(self, values: Values, corner: tuple[int, int], placement: Placement) -> WeightedTiles | None:
        """The remembered result, placed at the tile's corner; None if none of these values was made at this placement."""
        if self._known is None:
            return None
        known, where, result = self._known
        if where != placement or not all(map(_same, known, values)):
            return None
        return replace(result, corners=(corner,))

    def remember(self, values: Values, result: WeightedTiles, placement: Placement) -> None:
        """Remember a blank tile's result in the place of the one before."""
        self._known = values, placement, result


def blank_values(tile: Tensor) -> Values | None:
    """Value per channel of a tile (C, Z, Y, X) that is constant but for rounding; None for any other."""
    first, last = tile[:, 0, 0, 0].tolist(), tile[:, -1, -1, -1].tolist()
    # Two opposite corners differ in nearly every tile that shows something; the rest need not be read then.
    if not all(map(_same, first, last)):
        return None
    return tuple(first) if all(map(_is_constant, tile, first)) else None


def _is_constant(channel: Tensor, value: float) -> bool:
    return _same(float(channel.min()), value) and _same(float(channel.max()), value)


def _same(one: float, other: float) -> bool:
    return abs(one - other) <= ROUNDING * max(1.0, abs(other))


def split_by_blankness(
    image: Tensor, corners: Sequence[tuple[int, int]], size: tuple[int, int]
) -> tuple[dict[tuple[int, int], Values], list[tuple[int, int]]]:
    """Tell blank tiles, with their values, from the others.

    Args:
        image: (C, patch depth, Y, X): the slices of a row of tiles, in main memory.
        corners: First (y, x) of each tile.
        size: (Y, X) of a tile.
    """
    found = {(y, x): blank_values(image[:, :, y : y + size[0], x : x + size[1]]) for y, x in corners}
    blank = {corner: values for corner, values in found.items() if values is not None}
    return blank, [corner for corner in corners if corner not in blank]
