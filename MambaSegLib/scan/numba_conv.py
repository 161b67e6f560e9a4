"""Depthwise causal convolution with optional SiLU along a scan order, by row index, forward and backward, on a CPU.

y_t = f(b + sum_k w_k x_{t-K+1+k}): every tap reads the row of an earlier position, so no copy in scan order is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from MambaSegLib.scan.numba_tiles import (
    TILE,
    Rows,
    block_list,
    copy_rows,
    counting_rows,
    fill_rows,
    target_rows,
    write_back,
)
from MambaSegLib.scan.vector_ir import LANES, Value, Vectors, address_of, compiled, keep, vector_kernel

if TYPE_CHECKING:
    from MambaSegLib.scan.paths import Array

ROW_BYTES = 4 * LANES


def _weighted_sum(
    v: Vectors, taps: Value, weights: Value, bias: Value, rows: Value, x: Value, x_stride: Value, step: Value
) -> Value:
    """Bias + sum over taps at one step; row `step` of the list is the oldest tap's."""
    total = v.variable(bias)
    with v.loop(taps) as tap:
        value = v.load(v.row(x, rows, v.builder.add(step, tap), x_stride))
        total.set(v.fma(value, v.load(v.tile_row(weights, tap)), total.get()))
    return total.get()


def _convolve_kernel(silu: bool) -> Any:
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
        bias_vector = v.load(bias)
        with v.loop(steps) as step:
            y = _weighted_sum(v, taps, weights, bias_vector, in_rows, x, x_stride, step)
            v.store(v.silu(y) if silu else y, v.row(out, out_rows, step, out_stride))

    return convolve


convolve_silu = _convolve_kernel(silu=True)
convolve_plain = _convolve_kernel(silu=False)


def _gradient_before_activation_kernel(silu: bool) -> Any:
    @vector_kernel
    def gradient_before_activation(
        v: Vectors,
        steps: Value,
        taps: Value,
        weights: Value,
        bias: Value,
        x_tile: Value,
        counting: Value,
        dy_tile: Value,
        dy_lanes: Value,
    ) -> None:
        """Turn dy in `dy_tile` into the gradient of the weighted sum, in place."""
        bias_vector = v.load(bias)
        with v.loop(steps) as step:
            at = v.row(dy_tile, counting, step, dy_lanes)
            dy = v.load(at)
            if silu:
                total = _weighted_sum(v, taps, weights, bias_vector, counting, x_tile, v.index(LANES), step)
                gate, one = v.sigmoid(total), v.constant(1.0)
                dy = v.mul(dy, v.mul(gate, v.fma(total, v.sub(one, gate), one)))
            v.store(dy, at)

    return gradient_before_activation


gradient_silu = _gradient_before_activation_kernel(silu=True)


@vector_kernel
def spread_gradient(
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
    """Dx of a tile from the sums' gradients there and K - 1 steps on; adds to the gradients of weights and bias.

    `x_tile` starts K - 1 steps before the tile, `dsum_tile` at its first step.
    """
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
        weight_sum = v.variable(v.load(at))
        with v.loop(steps) as step:
            x = v.load(v.tile_row(x_tile, v.builder.add(step, tap)))
            weight_sum.set(v.fma(x, v.load(v.tile_row(dsum_tile, step)), weight_sum.get()))
        v.store(weight_sum.get(), at)


@compiled
def conv_forward(
    x: Rows,
    out: Rows,
    channels: int,
    path: Array,
    weights: Array,
    bias: Array,
    silu: bool,
    batch: int,
    blocks: tuple[int, int],
    span: tuple[int, int],
) -> None:
    """Convolve blocks of 16 channels over a span of positions.

    Args:
        x: Input rows; `out`: output rows.
        channels: D.
        path: See `fill_rows`.
        weights: (blocks, K, 16), oldest tap first; `bias`: (blocks, 16); zero where there is no channel.
        silu: Whether SiLU follows.
        batch: Batch entry.
        blocks: First block, and the one after the last.
        span: First position, and the one after the last.
    """
    taps = weights.shape[1]
    before = taps - 1
    rows, counting = np.zeros(TILE + before, np.int64), counting_rows(TILE + before)
    spare = np.zeros((2 * TILE + before, LANES), np.float32)
    x_spare, out_spare = address_of(spare), address_of(spare[TILE + before :])
    for start in range(span[0], span[1], TILE):
        steps = min(TILE, span[1] - start)
        missing = max(0, before - start)  # taps before the first token
        fill_rows(path, start - before + missing, steps + before - missing, rows[missing:])
        lists = (address_of(rows[before:]), address_of(counting))
        for block in range(blocks[0], blocks[1]):
            lanes = min(LANES, channels - block * LANES)
            x_at, x_row = x.address + 4 * (batch * x.batch + block * LANES), x.row
            in_list = address_of(rows)
            if lanes < LANES or missing > 0:
                copy_rows(
                    (steps + before - missing, lanes, address_of(rows[missing:]), x_at, x_row,
                     lists[1], x_spare + missing * ROW_BYTES, LANES)
                )  # fmt: skip
                x_at, x_row, in_list = x_spare, LANES, lists[1]
            out_at, out_row = target_rows(out, batch, block, lanes, out_spare)
            args = (
                steps, taps, address_of(weights[block]), address_of(bias[block]),
                in_list, x_at, x_row, block_list(lanes, lists), out_at, out_row,
            )  # fmt: skip
            if silu:
                convolve_silu(args)
            else:
                convolve_plain(args)
            write_back(out, batch, block, lanes, steps, lists, out_spare)
    keep((rows, counting))
    keep((spare,))


@compiled
def conv_backward(
    x: Rows,
    dout: Rows,
    dx: Rows,
    channels: int,
    path: Array,
    weights: Array,
    bias: Array,
    gradients: tuple[Array, Array],
    silu: bool,
    batch: int,
    blocks: tuple[int, int],
    span: tuple[int, int],
) -> None:
    """Write dx of a span and add to `gradients`, float64 sums for (weights, bias); otherwise as `conv_forward`."""
    taps = weights.shape[1]
    before = taps - 1
    length = path[0] * path[1] * path[2]
    size = TILE + 2 * before
    rows, counting = np.zeros(size, np.int64), counting_rows(size)
    x_tile, dsum_tile = np.zeros((size, LANES), np.float32), np.zeros((TILE + before, LANES), np.float32)
    dx_spare = np.zeros((TILE, LANES), np.float32)
    sums, bias_sums = np.zeros((taps, LANES), np.float32), np.zeros(LANES, np.float32)
    for start in range(span[0], span[1], TILE):
        steps = min(TILE, span[1] - start)
        missing = max(0, before - start)
        known = min(length, start + steps + before) - start  # positions from `start` on that exist
        fill_rows(path, start - before + missing, known + before - missing, rows[missing:])
        lists = (address_of(rows[before:]), address_of(counting))
        x_tile[:missing] = 0.0
        dsum_tile[known:] = 0.0
        for block in range(blocks[0], blocks[1]):
            lanes = min(LANES, channels - block * LANES)
            offset = block * LANES
            copy_rows(
                (known + before - missing, lanes, address_of(rows[missing:]), x.address + 4 * (batch * x.batch + offset), x.row,
                 lists[1], address_of(x_tile[missing:]), LANES)
            )  # fmt: skip
            copy_rows(
                (known, lanes, lists[0], dout.address + 4 * (batch * dout.batch + offset), dout.row,
                 lists[1], address_of(dsum_tile), LANES)
            )  # fmt: skip
            if lanes < LANES:
                x_tile[:, lanes:] = 0.0
                dsum_tile[:, lanes:] = 0.0
            weights_at, bias_at = address_of(weights[block]), address_of(bias[block])
            if silu:
                gradient_silu(
                    (known, taps, weights_at, bias_at, address_of(x_tile), lists[1], address_of(dsum_tile), LANES)
                )
            dx_at, dx_row = target_rows(dx, batch, block, lanes, address_of(dx_spare))
            spread_gradient(
                (steps, taps, weights_at, address_of(x_tile), address_of(dsum_tile),
                 block_list(lanes, lists), dx_at, dx_row, address_of(sums), address_of(bias_sums))
            )  # fmt: skip
            write_back(dx, batch, block, lanes, steps, lists, address_of(dx_spare))
            for lane in range(LANES):
                for tap in range(taps):
                    gradients[0][block, tap, lane] += sums[tap, lane]
                gradients[1][block, lane] += bias_sums[lane]
            sums[:] = 0.0
            bias_sums[:] = 0.0
    keep((rows, counting))
    keep((x_tile, dsum_tile, dx_spare, sums, bias_sums))
