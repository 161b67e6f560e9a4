"""Tiles that show nothing, such as air below a CT's window: computed once, whatever their number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

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
        self._known: tuple[Values, WeightedTiles] | None = None

    def result_for(self, values: Values, corner: tuple[int, int], accumulator: torch.device) -> WeightedTiles | None:
        """The remembered result, placed at the tile's corner, where the sums are; None if none has these values."""
        if self._known is None or not same_values(self._known[0], values):
            return None
        result = self._known[1]
        if result.probabilities.device != accumulator:  # memory ran out in between
            entropies = None if result.entropies is None else result.entropies.to(accumulator)
            result = replace(result, probabilities=result.probabilities.to(accumulator), entropies=entropies)
            self._known = self._known[0], result
        return replace(result, corners=(corner,))

    def remember(self, values: Values, result: WeightedTiles) -> None:
        """Remember a blank tile's result in the place of the one before."""
        self._known = values, result


def blank_values(tile: Tensor) -> Values | None:
    """Value per channel of a tile (C, Z, Y, X) that is constant but for rounding; None for any other."""
    first, last = tile[:, 0, 0, 0].tolist(), tile[:, -1, -1, -1].tolist()
    # Two opposite corners differ in nearly every tile that shows something; the rest need not be read then.
    if not same_values(first, last):
        return None
    return tuple(first) if all(map(_is_constant, tile, first)) else None


def same_values(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether values are equal but for rounding."""
    return all(map(_same, one, other))


def _is_constant(channel: Tensor, value: float) -> bool:
    return _same(float(channel.min()), value) and _same(float(channel.max()), value)


def _same(one: float, other: float) -> bool:
    return abs(one - other) <= ROUNDING * max(1.0, abs(other))


@dataclass(frozen=True)
class Row:
    """The tiles that start in one slice.

    Attributes:
        start: That slice.
        blank: First (y, x) of each blank tile, and its values.
        others: First (y, x) of the tiles that show something.
    """

    start: int
    blank: dict[tuple[int, int], Values]
    others: tuple[tuple[int, int], ...]


def row_of(image: Tensor, corners: Sequence[tuple[int, int]], size: tuple[int, int], start: int) -> Row:
    """Tell blank tiles from the others.

    Args:
        image: (C, patch depth, Y, X): the slices of a row of tiles, in main memory.
        corners: First (y, x) of each tile.
        size: (Y, X) of a tile.
        start: The row's first slice.
    """
    found = {(y, x): blank_values(image[:, :, y : y + size[0], x : x + size[1]]) for y, x in corners}
    blank = {corner: values for corner, values in found.items() if values is not None}
    return Row(start, blank, tuple(corner for corner in corners if corner not in blank))


def count_computed(rows: Iterable[Row]) -> int:
    """Tiles a network has to see: all but the blank ones that follow one of the same values."""
    computed, known = 0, None
    for row in rows:
        for values in row.blank.values():
            if known is None or not same_values(known, values):
                computed, known = computed + 1, values
        computed += len(row.others)
    return computed
