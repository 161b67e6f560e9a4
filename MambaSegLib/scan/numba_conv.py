"""Depthwise causal convolution with optional SiLU along a scan order, by row index, forward and backward, on a CPU.

y_t = f(b + sum_k w_k x_{t-K+1+k}): every tap reads the row of an earlier position, so no copy in scan order is made.
Mamba has K = 4 taps: kernels for it keep the last four rows in registers. Others load each row K times.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from MambaSegLib.scan.numba_tiles import (
    ROW_BYTES,
    TILE,
    Part,
    RowLists,
    Rows,
    block_list,
    copy_rows,
    fill_rows,
    row_buffers,
    target_block,
    write_back,
)
from MambaSegLib.scan.paths import Array
from MambaSegLib.scan.vector_ir import LANES, Value, Variable, Vectors, address_of, compiled, keep, vector_kernel

USUAL_TAPS = 4


class Taps(NamedTuple):
    """One convolution's parameters.

    Attributes:
        channels: D.
        path: See `fill_rows`.
        weights: (blocks, K, 16), oldest tap first, zero where there is no channel.
        bias: (blocks, 16).
        silu: Whether SiLU follows.
    """

    channels: int
    path: Array
    weights: Array
    bias: Array
    silu: bool


class _Window:
    """The last `USUAL_TAPS` rows of a walk through a list, in registers."""

    def __init__(self, v: Vectors, row_at: Callable[[Value], Value]) -> None:
        """Load all rows but the last of the first step; `row_at(i)` gives row i's address."""
        self._v, self._row_at = v, row_at
        self._held: list[Variable] = [v.variable(v.load(row_at(v.index(tap)))) for tap in range(USUAL_TAPS - 1)]

    def at(self, step: Value) -> list[Value]:
        """Rows `step`, ..., `step` + 3; to be called for every step in turn."""
        newest = self._v.load(self._row_at(self._v.builder.add(step, self._v.index(USUAL_TAPS - 1))))
        rows = [variable.get() for variable in self._held] + [newest]
        for variable, row in zip(self._held, rows[1:], strict=True):
            variable.set(row)
        return rows


def _usual_weights(v: Vectors, weights: Value) -> list[Value]:
    return [v.load(v.at(weights, tap * LANES)) for tap in range(USUAL_TAPS)]


def _weighted_sums(
    v: Vectors, usual: bool, taps: Value, weights: Value, bias: Value, row_at: Callable[[Value], Value]
) -> Callable[[Value], Value]:
    """A function that emits bias + the sum over taps at a step; row `step` of the list is the oldest tap's."""
    start = v.load(bias)
    if usual:
        window, fixed = _Window(v, row_at), _usual_weights(v, weights)

        def sum_of_four(step: Value) -> Value:
            total = start
            for weight, row in zip(fixed, window.at(step), strict=True):
                total = v.fma(row, weight, total)
            return total

        return sum_of_four

    def sum_of_any(step: Value) -> Value:
        total = v.variable(start)
        with v.loop(taps) as tap:
            row = v.load(row_at(v.builder.add(step, tap)))
            total.set(v.fma(row, v.load(v.tile_row(weights, tap)), total.get()))
        return total.get()

    return sum_of_any


def _convolve_kernel(silu: bool, usual: bool) -> Any:
    @vector_kernel
    def convolve(
        v: Vectors,
        steps: Value,
        taps: Value,
        weights: Value,
        bias: Value,
        in_rows: Value,
        x: Value,
        x_stride: Value,
        out_rows: Value,
        out: Value,
        out_stride: Value,
    ) -> None:
        """One block of 16 channels over a tile."""
        sums = _weighted_sums(v, usual, taps, weights, bias, lambda row: v.row(x, in_rows, row, x_stride))
        with v.loop(steps) as step:
            y = sums(step)
            v.store(v.silu(y) if silu else y, v.row(out, out_rows, step, out_stride))

    return convolve


convolve_four_silu = _convolve_kernel(silu=True, usual=True)
convolve_four = _convolve_kernel(silu=False, usual=True)
convolve_any_silu = _convolve_kernel(silu=True, usual=False)
convolve_any = _convolve_kernel(silu=False, usual=False)


def _silu_gradient_kernel(usual: bool) -> Any:
    @vector_kernel
    def silu_gradient(
        v: Vectors, steps: Value, taps: Value, weights: Value, bias: Value, x_tile: Value, dsum_tile: Value
    ) -> None:
        """Turn the gradient of SiLU's output in `dsum_tile` into that of its input, in place."""
        sums = _weighted_sums(v, usual, taps, weights, bias, lambda row: v.tile_row(x_tile, row))
        one = v.constant(1.0)
        with v.loop(steps) as step:
            total, at = sums(step), v.tile_row(dsum_tile, step)
            gate = v.sigmoid(total)
            slope = v.mul(gate, v.fma(total, v.sub(one, gate), one))
            v.store(v.mul(v.load(at), slope), at)

    return silu_gradient


silu_gradient_four = _silu_gradient_kernel(usual=True)
silu_gradient_any = _silu_gradient_kernel(usual=False)


@vector_kernel
def spread_gradient_four(
    v: Vectors,
    steps: Value,
    taps: Value,
    weights: Value,
    x_tile: Value,
    dsum_tile: Value,
    rows: Value,
    dx: Value,
    dx_stride: Value,
    dweights: Value,
    dbias: Value,
) -> None:
    """Gradient of x in a tile from the sums' gradients there and K - 1 steps on; adds to the gradients of weights and bias.

    `x_tile` starts K - 1 steps before the tile, `dsum_tile` at its first step.
    """
    del taps
    fixed = _usual_weights(v, weights)
    x_window = _Window(v, lambda row: v.tile_row(x_tile, row))
    dsum_window = _Window(v, lambda row: v.tile_row(dsum_tile, row))
    weight_sums = [v.variable(v.load(v.at(dweights, tap * LANES))) for tap in range(USUAL_TAPS)]
    bias_sum = v.variable(v.load(dbias))
    with v.loop(steps) as step:
        dsums = dsum_window.at(step)
        total = v.constant(0.0)
        for weight, dsum in zip(fixed, reversed(dsums), strict=True):
            total = v.fma(dsum, weight, total)
        v.store(total, v.row(dx, rows, step, dx_stride))
        bias_sum.set(v.add(bias_sum.get(), dsums[0]))
        for weight_sum, x in zip(weight_sums, x_window.at(step), strict=True):
            weight_sum.set(v.fma(x, dsums[0], weight_sum.get()))
    for tap, weight_sum in enumerate(weight_sums):
        v.store(weight_sum.get(), v.at(dweights, tap * LANES))
    v.store(bias_sum.get(), dbias)


@vector_kernel
def spread_gradient_any(
    v: Vectors,
    steps: Value,
    taps: Value,
    weights: Value,
    x_tile: Value,
    dsum_tile: Value,
    rows: Value,
    dx: Value,
    dx_stride: Value,
    dweights: Value,
    dbias: Value,
) -> None:
    """As `spread_gradient_four`, for any number of taps."""
    last = v.builder.sub(taps, v.index(1))
    bias_sum = v.variable(v.load(dbias))
    with v.loop(steps) as step:
        total = v.variable(v.constant(0.0))
        with v.loop(taps) as tap:
            later = v.builder.add(step, v.builder.sub(last, tap))
            total.set(v.fma(v.load(v.tile_row(dsum_tile, later)), v.load(v.tile_row(weights, tap)), total.get()))
        v.store(total.get(), v.row(dx, rows, step, dx_stride))
        bias_sum.set(v.add(bias_sum.get(), v.load(v.tile_row(dsum_tile, step))))
    v.store(bias_sum.get(), dbias)
    with v.loop(taps) as tap:
        at = v.tile_row(dweights, tap)
        with v.loop(steps) as step:
            x = v.load(v.tile_row(x_tile, v.builder.add(step, tap)))
            v.store(v.fma(x, v.load(v.tile_row(dsum_tile, step)), v.load(at)), at)


@compiled
def conv_forward(taps: Taps, x: Rows, out: Rows, part: Part) -> None:
    """Convolve a part: rows of `x` into rows of `out`."""
    before = taps.weights.shape[1] - 1
    rows, counting = row_buffers(TILE + before)
    spare = np.zeros((2 * TILE + before, LANES), np.float32)
    x_spare, out_spare = address_of(spare), address_of(spare[TILE + before :])
    lists = RowLists(address_of(rows[before:]), address_of(counting))
    for start in range(part.start, part.stop, TILE):
        steps = min(TILE, part.stop - start)
        missing = max(0, before - start)  # taps before the first token
        fill_rows(taps.path, start - before + missing, steps + before - missing, rows[missing:])
        spare[:missing] = 0.0
        for block in range(part.first_block, part.end_block):
            lanes = min(LANES, taps.channels - block * LANES)
            x_at, x_row, in_list = x.address + 4 * (part.batch * x.batch + block * LANES), x.row, address_of(rows)
            if lanes < LANES or missing > 0:
                known, known_rows = steps + before - missing, address_of(rows[missing:])
                target = x_spare + missing * ROW_BYTES
                copy_rows((known, lanes, known_rows, x_at, x_row, lists.counting, target, LANES))
                x_at, x_row, in_list = x_spare, LANES, lists.counting
            out_at, out_row = target_block(out, part.batch, block, lanes, out_spare)
            weights_at, bias_at = address_of(taps.weights[block]), address_of(taps.bias[block])
            out_list = block_list(lanes, lists)
            _convolve_block(
                taps.silu,
                (steps, before + 1, weights_at, bias_at, in_list, x_at, x_row, out_list, out_at, out_row),
            )
            write_back(out, part.batch, block, lanes, steps, lists, out_spare)
    keep((rows, counting))
    keep((spare,))


@compiled
def _convolve_block(silu: bool, arguments: Any) -> None:
    if arguments[1] == USUAL_TAPS:
        if silu:
            convolve_four_silu(arguments)
        else:
            convolve_four(arguments)
    elif silu:
        convolve_any_silu(arguments)
    else:
        convolve_any(arguments)


@compiled
def conv_backward(taps: Taps, x: Rows, dout: Rows, dx: Rows, weight_sums: Array, bias_sums: Array, part: Part) -> None:
    """Write the gradient of x, and add to float64 sums for weights (blocks, K, 16) and bias (blocks, 16)."""
    count = taps.weights.shape[1]
    before = count - 1
    length = taps.path[0] * taps.path[1] * taps.path[2]
    size = TILE + 2 * before
    rows, counting = row_buffers(size)
    tiles = np.zeros((2, size, LANES), np.float32)  # x from K - 1 steps before the tile on; gradients of the sums
    spare, sums = np.zeros((TILE, LANES), np.float32), np.zeros((count + 1, LANES), np.float32)
    x_tile, dsum_tile, spare_at, sums_at = address_of(tiles), address_of(tiles[1]), address_of(spare), address_of(sums)
    lists = RowLists(address_of(rows[before:]), address_of(counting))
    for start in range(part.start, part.stop, TILE):
        steps = min(TILE, part.stop - start)
        missing = max(0, before - start)
        known = min(length, start + steps + before) - start  # steps from `start` on that exist
        fill_rows(taps.path, start - before + missing, known + before - missing, rows[missing:])
        for block in range(part.first_block, part.end_block):
            lanes = min(LANES, taps.channels - block * LANES)
            tiles[0, :missing] = 0.0
            tiles[1, known:] = 0.0
            if lanes < LANES:
                tiles[:, :, lanes:] = 0.0
            _load_block(
                x,
                part.batch,
                block,
                lanes,
                known + before - missing,
                address_of(rows[missing:]),
                lists,
                x_tile + missing * ROW_BYTES,
            )
            _load_block(dout, part.batch, block, lanes, known, lists.tokens, lists, dsum_tile)
            weights_at, bias_at = address_of(taps.weights[block]), address_of(taps.bias[block])
            if taps.silu and count == USUAL_TAPS:
                silu_gradient_four((known, count, weights_at, bias_at, x_tile, dsum_tile))
            elif taps.silu:
                silu_gradient_any((known, count, weights_at, bias_at, x_tile, dsum_tile))
            dx_at, dx_row = target_block(dx, part.batch, block, lanes, spare_at)
            arguments = (
                steps, count, weights_at, x_tile, dsum_tile, block_list(lanes, lists), dx_at, dx_row,
                sums_at, sums_at + count * ROW_BYTES,
            )  # fmt: skip
            if count == USUAL_TAPS:
                spread_gradient_four(arguments)
            else:
                spread_gradient_any(arguments)
            write_back(dx, part.batch, block, lanes, steps, lists, spare_at)
            _add_sums(sums, weight_sums[block], bias_sums[block])
    keep((rows, counting))
    keep((tiles,))
    keep((spare, sums))


@compiled
def _load_block(
    tensor: Rows, batch: int, block: int, lanes: int, steps: int, tokens: int, lists: RowLists, tile: int
) -> None:
    address = tensor.address + 4 * (batch * tensor.batch + block * LANES)
    copy_rows((steps, lanes, tokens, address, tensor.row, lists.counting, tile, LANES))


@compiled
def _add_sums(sums: Array, weight_sums: Array, bias_sums: Array) -> None:
    """Add one tile's float32 sums to float64 totals, and clear them."""
    taps = weight_sums.shape[0]
    for lane in range(LANES):
        for tap in range(taps):
            weight_sums[tap, lane] += sums[tap, lane]
        bias_sums[lane] += sums[taps, lane]
    sums[:] = 0.0
