"""The scan's forward pass on a CPU: tiles of 64 steps x 16 channels, states in registers, softplus, skip and gate fused.

h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t,  y_t = C_t h_t + D u_t, out_t = y_t silu(z_t). Decays are computed as
2**(delta2 A) with delta2 = delta / ln 2, so A needs no scaling and no structure.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from MambaSegLib.scan.numba_tiles import (
    GROUP,
    ROW_BYTES,
    TILE,
    TILE_BYTES,
    Group,
    Part,
    Problem,
    RowLists,
    Rows,
    block_list,
    fill_rows,
    gather,
    read_block,
    row_buffers,
    target_block,
    write_back,
)
from MambaSegLib.scan.paths import Array
from MambaSegLib.scan.vector_ir import LANES, LN2, LOG2E, Value, Vectors, address_of, compiled, keep, vector_kernel


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


def _advance_kernel(fading: bool) -> Any:
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
        group = Group(v, decay_rates, states, fading)
        with v.loop(steps) as step:
            offset = v.builder.mul(step, width)
            b_row, c_row = v.at(b_tile, offset), v.at(c_tile, offset)
            delta2 = v.load(v.tile_row(delta2_tile, step))
            inputs = v.load(v.tile_row(input_tile, step))
            even, odd = v.load(v.tile_row(y_tile, step)), v.constant(0.0)
            for n in range(GROUP):
                state = group.advance(n, group.decay(n, delta2), inputs, b_row)
                output = v.broadcast(v.at(c_row, n))
                if n % 2 == 0:
                    even = v.fma(state, output, even)
                else:
                    odd = v.mul(state, output) if n == 1 else v.fma(state, output, odd)
            v.store(v.add(even, odd), v.tile_row(y_tile, step))
        group.store(states)

    return advance_states


advance_fading = _advance_kernel(fading=True)
advance_any = _advance_kernel(fading=False)


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
    group = Group(v, decay_rates, states)
    with v.loop(steps) as step:
        b_row = v.at(b_tile, v.builder.mul(step, width))
        delta2 = v.load(v.tile_row(delta2_tile, step))
        inputs = v.load(v.tile_row(input_tile, step))
        for n in range(GROUP):
            group.advance(n, group.decay(n, delta2), inputs, b_row)
    group.store(states)


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
def prepare_block(
    problem: Problem, batch: int, block: int, lanes: int, steps: int, lists: RowLists, tile: int, spare: int
) -> tuple[int, int, int, int]:
    """Fill the first three tile buffers at `tile` (delta2, input, y) for one block.

    Returns:
        Where u lies (address, row stride), and where delta does; a copy in the buffers at `spare` for the last channels.
    """
    u_at, u_row = read_block(problem.u, batch, block, lanes, steps, lists, spare)
    delta_at, delta_row = read_block(problem.delta, batch, block, lanes, steps, lists, spare + TILE_BYTES)
    bias_at, skip_at = address_of(problem.bias) + block * ROW_BYTES, address_of(problem.skip) + block * ROW_BYTES
    rows = block_list(lanes, lists)
    arguments = (
        steps, rows, u_at, u_row, delta_at, delta_row, bias_at, skip_at, tile, tile + TILE_BYTES, tile + 2 * TILE_BYTES,
    )  # fmt: skip
    if problem.softplus:
        prepare_softplus(arguments)
    else:
        prepare_plain(arguments)
    return u_at, u_row, delta_at, delta_row


@compiled
def scan_forward(problem: Problem, out: Rows, states: Array, checkpoints: Array, every: int, part: Part) -> None:
    """Scan a part, starting from and ending in `states`.

    Args:
        problem: The scan.
        out: Output rows; every value of the part is written.
        states: (blocks, N rounded up, 16) before the part; after it on return.
        checkpoints: (checkpoints, blocks, N rounded up, 16) of this batch entry, filled with the state before every
            `every`-th position.
        every: A multiple of `TILE`, or 0 for no checkpoints.
        part: Batch entry, channels and positions.
    """
    width = problem.rates.shape[1]
    rows, counting = row_buffers(TILE)
    lists = RowLists(address_of(rows), address_of(counting))
    tiles, bc_tiles = np.zeros((7, TILE, LANES), np.float32), np.zeros((2, TILE, width), np.float32)
    tile, spare = address_of(tiles), address_of(tiles[3])
    b_tile, c_tile = address_of(bc_tiles[0]), address_of(bc_tiles[1])
    for start in range(part.start, part.stop, TILE):
        steps = min(TILE, part.stop - start)
        fill_rows(problem.path, start, steps, rows)
        gather(problem.b, part.batch, problem.states, steps, lists, b_tile, width)
        gather(problem.c, part.batch, problem.states, steps, lists, c_tile, width)
        if every > 0 and start % every == 0:
            mine = slice(part.first_block, part.end_block)
            checkpoints[start // every, mine] = states[mine]
        for block in range(part.first_block, part.end_block):
            lanes = min(LANES, problem.channels - block * LANES)
            prepare_block(problem, part.batch, block, lanes, steps, lists, tile, spare)
            for n in range(0, width, GROUP):
                at = (block * width + n) * ROW_BYTES
                rates_at, states_at = address_of(problem.rates) + at, address_of(states) + at
                arguments = (
                    steps, rates_at, states_at, b_tile + 4 * n, c_tile + 4 * n, width,
                    tile, tile + TILE_BYTES, tile + 2 * TILE_BYTES,
                )  # fmt: skip
                if problem.fading:
                    advance_fading(arguments)
                else:
                    advance_any(arguments)
            finish_block(
                problem.z, out, part.batch, block, lanes, steps, lists, tile + 2 * TILE_BYTES, spare + 2 * TILE_BYTES
            )
    keep((rows, counting))
    keep((tiles, bc_tiles))


@compiled
def finish_block(
    z: Rows, out: Rows, batch: int, block: int, lanes: int, steps: int, lists: RowLists, y_tile: int, spare: int
) -> None:
    """Gate y and write it to its rows."""
    z_at, z_row = read_block(z, batch, block, lanes, steps, lists, spare)
    out_at, out_row = target_block(out, batch, block, lanes, spare + TILE_BYTES)
    arguments = (steps, block_list(lanes, lists), y_tile, z_at, z_row, out_at, out_row)
    if z.address != 0:
        finish_gated(arguments)
    else:
        finish_plain(arguments)
    write_back(out, batch, block, lanes, steps, lists, spare + TILE_BYTES)


@compiled
def advance_tile(problem: Problem, states: Array, first_block: int, part: Part, start: int) -> None:
    """Take states (blocks from `first_block` on, N rounded up, 16) through the tile at `start`; nothing is output."""
    width = problem.rates.shape[1]
    steps = min(TILE, part.stop - start)
    rows, counting = row_buffers(TILE)
    lists = RowLists(address_of(rows), address_of(counting))
    tiles, b_rows = np.zeros((5, TILE, LANES), np.float32), np.zeros((TILE, width), np.float32)
    tile, spare, b_tile = address_of(tiles), address_of(tiles[3]), address_of(b_rows)
    fill_rows(problem.path, start, steps, rows)
    gather(problem.b, part.batch, problem.states, steps, lists, b_tile, width)
    for block in range(part.first_block, part.end_block):
        lanes = min(LANES, problem.channels - block * LANES)
        prepare_block(problem, part.batch, block, lanes, steps, lists, tile, spare)
        for n in range(0, width, GROUP):
            rates_at = address_of(problem.rates) + (block * width + n) * ROW_BYTES
            states_at = address_of(states) + ((block - first_block) * width + n) * ROW_BYTES
            advance_states_only((steps, rates_at, states_at, b_tile + 4 * n, width, tile, tile + TILE_BYTES))
    keep((rows, counting))
    keep((tiles, b_rows))
