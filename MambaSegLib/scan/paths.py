"""From a grid and a scan order to the memory a scan walks through: numbers for kernels, copies for those that cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from MambaSegLib.scan.order import NATURAL_ORDER, ScanOrder

if TYPE_CHECKING:
    from torch import Tensor

Array = npt.NDArray[Any]
Grid = tuple[int, int, int]


def checked_grid(length: int, grid: Grid | None, order: ScanOrder | None) -> tuple[Grid, ScanOrder]:
    """Fill in what was left out, and refuse a grid that does not hold `length` tokens.

    Raises:
        ValueError: If the grid's size is not `length`, or an order that needs a grid comes without one.
    """
    order = order or NATURAL_ORDER
    if grid is None:
        if order.axes != NATURAL_ORDER.axes:
            msg = f"scan order {order.axes} needs the grid (Z, Y, X) that the {length} tokens come from"
            raise ValueError(msg)
        return (1, 1, length), order
    z, y, x = (int(size) for size in grid)
    if z * y * x != length or min(z, y, x) < 1:
        msg = f"grid {tuple(grid)} has {z * y * x} voxels, the sequence has {length} tokens"
        raise ValueError(msg)
    return (z, y, x), order


def path_numbers(grid: Grid, order: ScanOrder) -> Array:
    """Axis lengths and token strides from the slowest to the fastest axis, then 1 for backward: see `fill_rows`."""
    strides = (grid[1] * grid[2], grid[2], 1)
    lengths = [grid[axis] for axis in order.axes]
    steps = [strides[axis] for axis in order.axes]
    return np.array([*lengths, *steps, int(order.backward)], dtype=np.int64)


def to_scan_order(tokens: Tensor, grid: Grid, order: ScanOrder) -> Tensor:
    """Copy the last axis of `tokens` into the order in which the scan visits it."""
    if order.axes != NATURAL_ORDER.axes:
        volume = tokens.reshape(*tokens.shape[:-1], *grid)
        first = volume.ndim - 3
        leading = range(first)
        tokens = volume.permute(*leading, *(first + axis for axis in order.axes)).flatten(-3)
    return tokens.flip(-1) if order.backward else tokens


def from_scan_order(sequence: Tensor, grid: Grid, order: ScanOrder) -> Tensor:
    """Undo `to_scan_order`."""
    tokens = sequence.flip(-1) if order.backward else sequence
    if order.axes == NATURAL_ORDER.axes:
        return tokens
    volume = tokens.reshape(*tokens.shape[:-1], *(grid[axis] for axis in order.axes))
    first = volume.ndim - 3
    back = [first + order.axes.index(axis) for axis in range(3)]
    return volume.permute(*range(first), *back).flatten(-3)
