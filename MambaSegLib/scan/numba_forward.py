"""The scan's forward pass on a CPU: tiles of 64 steps x 16 channels, states in registers, softplus, skip and gate fused.

h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t,  y_t = C_t h_t + D u_t, both gated and ungated. Decays are computed as
2**(delta2 A) with delta2 = delta / ln 2, so A needs no scaling and no structure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from MambaSegLib.scan.numba_tiles import (
    GROUP,
    TILE,
    Rows,
    block_list,
    copy_rows,
    counting_rows,
    fill_rows,
    read_rows,
    target_rows,
    write_back,
)
from MambaSegLib.scan.vector_ir import LANES, LN2, LOG2E, Value, Vectors, address_of, compiled, keep, vector_kernel

if TYPE_CHECKING:
    from MambaSegLib.scan.paths import Array

ROW_BYTES = 4 * LANES
TILE_BYTES = TILE * ROW_BYTES


def _prepare_kernel(softplus: bool) -> Any:
    @vector_kernel
    def prepare(
        v: Vectors,
        steps: Value,
        rows: Value,
        u: Value,
        u_stride: Value,
        delta: Value,
        delta_stride: Value,
        bias: Value,
        skip: Value,
        delta2_tile: Value,
        input_tile: Value,
        y_tile: Value,
    ) -> None:
        """Per step: delta2, the input delta u, and y's start value D u."""
        bias_vector, skip_vector = v.load(bias), v.load(skip)
        with v.loop(steps) as step:
            raw = v.add(v.load(v.row(delta, rows, step, delta_stride)), bias_vector)
            u_value = v.load(v.row(u, rows, step, u_stride))
            delta2 = v.softplus2(raw) if softplus else v.mul(raw, v.constant(LOG2E))
            v.store(delta2, v.tile_row(delta2_tile, step))
            v.store(v.mul(v.mul(delta2, v.constant(LN2)), u_value), v.tile_row(input_tile, step))
            v.store(v.mul(skip_vector, u_value), v.tile_row(y_tile, step))

    return prepare


prepare_softplus = _prepare_kernel(softplus=True)
prepare_plain = _prepare_kernel(softplus=False)


@vector_kernel
def advance_states(
    v: Vectors,
    steps: Value,
    decay_rates: Value,
    states: Value,
    b_tile: Value,
    c_tile: Value,
    width: Value,
    delta2_tile: Value,
    input_tile: Value,
    y_tile: Value,
) -> None:
    """Take `GROUP` states of 16 channels through a tile and add C h to y."""
    rates = [v.load(v.at(decay_rates, n * LANES)) for n in range(GROUP)]
    h = [v.variable(v.load(v.at(states, n * LANES))) for n in range(GROUP)]
    with v.loop(steps) as step:
        offset = v.builder.mul(step, width)
        b_row, c_row = v.at(b_tile, offset), v.at(c_tile, offset)
        delta2 = v.load(v.tile_row(delta2_tile, step))
        inputs = v.load(v.tile_row(input_tile, step))
        even, odd = v.load(v.tile_row(y_tile, step)), v.constant(0.0)
        for n in range(GROUP):
            decay = v.exp2(v.mul(delta2, rates[n]))
            state = v.fma(decay, h[n].get(), v.mul(inputs, v.broadcast(v.at(b_row, n))))
            h[n].set(state)
            output = v.broadcast(v.at(c_row, n))
            if n % 2 == 0:
                even = v.fma(state, output, even)
            else:
                odd = v.mul(state, output) if n == 1 else v.fma(state, output, odd)
        v.store(v.add(even, odd), v.tile_row(y_tile, step))
    for n in range(GROUP):
        v.store(h[n].get(), v.at(states, n * LANES))


@vector_kernel
def advance_states_only(
    v: Vectors,
    steps: Value,
    decay_rates: Value,
    states: Value,
    b_tile: Value,
    width: Value,
    delta2_tile: Value,
    input_tile: Value,
) -> None:
    """Take `GROUP` states of 16 channels through a tile; nothing is output."""
    rates = [v.load(v.at(decay_rates, n * LANES)) for n in range(GROUP)]
    h = [v.variable(v.load(v.at(states, n * LANES))) for n in range(GROUP)]
    with v.loop(steps) as step:
        b_row = v.at(b_tile, v.builder.mul(step, width))
        delta2 = v.load(v.tile_row(delta2_tile, step))
        inputs = v.load(v.tile_row(input_tile, step))
        for n in range(GROUP):
            decay = v.exp2(v.mul(delta2, rates[n]))
            h[n].set(v.fma(decay, h[n].get(), v.mul(inputs, v.broadcast(v.at(b_row, n)))))
    for n in range(GROUP):
        v.store(h[n].get(), v.at(states, n * LANES))


def _finish_kernel(gated: bool) -> Any:
    @vector_kernel
    def finish(
        v: Vectors, steps: Value, rows: Value, y_tile: Value, z: Value, z_stride: Value, out: Value, out_stride: Value
    ) -> None:
        """Write y, times silu(z) if there is a gate, to its rows."""
        with v.loop(steps) as step:
            y = v.load(v.tile_row(y_tile, step))
            if gated:
                y = v.mul(y, v.silu(v.load(v.row(z, rows, step, z_stride))))
            v.store(y, v.row(out, rows, step, out_stride))

    return finish


finish_gated = _finish_kernel(gated=True)
finish_plain = _finish_kernel(gated=False)


@compiled
def scan_forward(
    u: Rows,
    delta: Rows,
    z: Rows,
    b: Rows,
    c: Rows,
    out: Rows,
    sizes: tuple[int, int],
    path: Array,
    parameters: tuple[Array, Array, Array],
    states: Array,
    checkpoints: Array,
    checkpoint_steps: int,
    softplus: bool,
    batch: int,
    blocks: tuple[int, int],
    span: tuple[int, int],
) -> None:
    """Scan blocks of 16 channels over a span of positions, starting from and ending in `states`.

    Args:
        u: Input rows; `delta`, `z` (address 0: no gate) likewise.
        b: Rows of B, N values each; `c` likewise.
        out: Output rows, all of them written.
        sizes: Channels and states, (D, N).
        path: See `fill_rows`.
        parameters: A as (blocks, N rounded up, 16), D and delta_bias as (blocks, 16), zero where there is no channel.
        states: (blocks, N rounded up, 16) of this batch entry, updated in place.
        checkpoints: (checkpoints, blocks, N rounded up, 16) of this batch entry: the state before every
            `checkpoint_steps` positions (a multiple of `TILE`); not written if `checkpoint_steps` is 0.
        checkpoint_steps: See above.
        softplus: Whether delta goes through softplus.
        batch: Batch entry.
        blocks: First block, and the one after the last.
        span: First position, and the one after the last; the first is a multiple of `TILE`.
    """
    D, N = sizes
    rates, skip, bias = parameters
    width = rates.shape[1]
    rows, counting = np.empty(TILE, np.int64), counting_rows(TILE)
    lists = (address_of(rows), address_of(counting))
    tiles = np.zeros((7, TILE, LANES), np.float32)
    bc_tiles = np.zeros((2, TILE, width), np.float32)
    tile, spare = address_of(tiles), address_of(tiles[3])
    delta2_tile, input_tile, y_tile = tile, tile + TILE_BYTES, tile + 2 * TILE_BYTES
    b_tile, c_tile = address_of(bc_tiles[0]), address_of(bc_tiles[1])
    for start in range(span[0], span[1], TILE):
        steps = min(TILE, span[1] - start)
        fill_rows(path, start, steps, rows)
        copy_rows((steps, N, lists[0], b.address + 4 * batch * b.batch, b.row, lists[1], b_tile, width))
        copy_rows((steps, N, lists[0], c.address + 4 * batch * c.batch, c.row, lists[1], c_tile, width))
        if checkpoint_steps > 0 and start % checkpoint_steps == 0:
            checkpoints[start // checkpoint_steps, blocks[0] : blocks[1]] = states[blocks[0] : blocks[1]]
        for block in range(blocks[0], blocks[1]):
            lanes = min(LANES, D - block * LANES)
            listed = block_list(lanes, lists)
            u_at, u_row = read_rows(u, batch, block, lanes, steps, lists, spare)
            delta_at, delta_row = read_rows(delta, batch, block, lanes, steps, lists, spare + TILE_BYTES)
            z_at, z_row = read_rows(z, batch, block, lanes, steps, lists, spare + 2 * TILE_BYTES)
            out_at, out_row = target_rows(out, batch, block, lanes, spare + 3 * TILE_BYTES)
            bias_at, skip_at = address_of(bias) + block * ROW_BYTES, address_of(skip) + block * ROW_BYTES
            prepare_args = (
                steps,
                listed,
                u_at,
                u_row,
                delta_at,
                delta_row,
                bias_at,
                skip_at,
                delta2_tile,
                input_tile,
                y_tile,
            )
            if softplus:
                prepare_softplus(prepare_args)
            else:
                prepare_plain(prepare_args)
            for n in range(0, width, GROUP):
                at = (block * width + n) * ROW_BYTES
                rates_at, states_at = address_of(rates) + at, address_of(states) + at
                advance_states(
                    (steps, rates_at, states_at, b_tile + 4 * n, c_tile + 4 * n, width, delta2_tile, input_tile, y_tile)
                )
            if z.address != 0:
                finish_gated((steps, listed, y_tile, z_at, z_row, out_at, out_row))
            else:
                finish_plain((steps, listed, y_tile, z_at, z_row, out_at, out_row))
            write_back(out, batch, block, lanes, steps, lists, spare + 3 * TILE_BYTES)
    keep((rows, counting))
    keep((tiles, bc_tiles))
