"""The scan's backward pass on a CPU: per tile, the states are computed again from a checkpoint, then walked in reverse.

With g_t = dL/dy_t (before the gate) and the carry r_t = a_{t+1} dh_{t+1}: dh_t = C_t g_t + r_t, and all gradients are
products of dh_t with what the forward pass had at t. B and C are shared by all channels, so their gradients are sums over
lanes, done by a tree of shuffles in registers, and over blocks, done in a tile buffer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from MambaSegLib.scan.numba_forward import advance_tile, prepare_block
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
    scatter,
    target_block,
    write_back,
)
from MambaSegLib.scan.paths import Array
from MambaSegLib.scan.vector_ir import LANES, LN2, Value, Vectors, address_of, compiled, keep, vector_kernel


class Gradients(NamedTuple):
    """Rows to write, and sums to add to.

    Attributes:
        u: Rows for the gradient of u; so `delta` and `z` (address 0: no gate).
        b: Rows for the gradient of B, summed over the task's blocks alone; so `c`.
        rates: float64 sums for A as (blocks, N rounded up, 16).
        skip: float64 sums for D as (blocks, 16).
        bias: float64 sums for delta_bias as (blocks, 16).
    """

    u: Rows
    delta: Rows
    z: Rows
    b: Rows
    c: Rows
    rates: Array
    skip: Array
    bias: Array


def _output_gradient_kernel(gated: bool) -> Any:
    @vector_kernel
    def output_gradient(
        v: Vectors,
        steps: Value,
        rows: Value,
        z: Value,
        z_stride: Value,
        dout: Value,
        dout_stride: Value,
        dy_tile: Value,
    ) -> None:
        """Gradient of y before the gate."""
        with v.loop(steps) as step:
            dy = v.load(v.row(dout, rows, step, dout_stride))
            if gated:
                dy = v.mul(dy, v.silu(v.load(v.row(z, rows, step, z_stride))))
            v.store(dy, v.tile_row(dy_tile, step))

    return output_gradient


output_gradient_gated = _output_gradient_kernel(gated=True)
output_gradient_plain = _output_gradient_kernel(gated=False)


def _recompute_kernel(fading: bool) -> Any:
    @vector_kernel
    def recompute_states(
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
        h_history: Value,
        decay_history: Value,
    ) -> None:
        """The forward pass of a tile again; it keeps every state (the starting one first) and every decay; `states` is only read."""
        wide = GROUP * LANES
        group = Group(v, decay_rates, states, fading)
        group.store(h_history)
        with v.loop(steps) as step:
            offset = v.builder.mul(step, width)
            b_row, c_row = v.at(b_tile, offset), v.at(c_tile, offset)
            delta2 = v.load(v.tile_row(delta2_tile, step))
            inputs = v.load(v.tile_row(input_tile, step))
            y = v.load(v.tile_row(y_tile, step))
            h_row, decay_row = v.tile_row(h_history, step, wide), v.tile_row(decay_history, step, wide)
            for n in range(GROUP):
                decay = group.decay(n, delta2)
                v.store(decay, v.at(decay_row, n * LANES))
                state = group.advance(n, decay, inputs, b_row)
                v.store(state, v.at(h_row, wide + n * LANES))
                y = v.fma(state, v.broadcast(v.at(c_row, n)), y)
            v.store(y, v.tile_row(y_tile, step))

    return recompute_states


recompute_fading = _recompute_kernel(fading=True)
recompute_any = _recompute_kernel(fading=False)


def _add_lane_sums(v: Vectors, vectors: list[Value], targets: tuple[Value, Value]) -> None:
    """Sum the lanes of 2 x `GROUP` vectors and add the sums to two rows of `GROUP` values."""
    width = LANES
    while len(vectors) > 1:
        vectors = [v.sum_pairs(vectors[i], vectors[i + 1], width) for i in range(0, len(vectors), 2)]
        width //= 2
    (sums,) = vectors  # two lanes are left per original vector
    for position, target in enumerate(targets):
        lanes = [2 * (position * GROUP + n) for n in range(GROUP)]
        total = v.add(v.shuffle(sums, sums, lanes), v.shuffle(sums, sums, [lane + 1 for lane in lanes]))
        v.store(v.add(v.load(target, GROUP), total), target)


@vector_kernel
def walk_back(
    v: Vectors,
    steps: Value,
    decay_rates: Value,
    carries: Value,
    b_tile: Value,
    c_tile: Value,
    width: Value,
    delta2_tile: Value,
    input_tile: Value,
    dy_tile: Value,
    h_history: Value,
    decay_history: Value,
    dinput_tile: Value,
    ddelta_tile: Value,
    rate_gradient: Value,
    db_tile: Value,
    dc_tile: Value,
) -> None:
    """Reverse sweep of `GROUP` states over a tile; adds to the gradient tiles of the input, of delta (by decay), B and C."""
    wide = GROUP * LANES
    group = Group(v, decay_rates, carries)
    drates = [v.variable(v.constant(0.0)) for _ in range(GROUP)]
    with v.reverse_loop(steps) as step:
        offset = v.builder.mul(step, width)
        b_row, c_row = v.at(b_tile, offset), v.at(c_tile, offset)
        delta2 = v.load(v.tile_row(delta2_tile, step))
        inputs = v.load(v.tile_row(input_tile, step))
        dy = v.load(v.tile_row(dy_tile, step))
        dinput_at, ddelta_at = v.tile_row(dinput_tile, step), v.tile_row(ddelta_tile, step)
        dinput, ddelta = v.load(dinput_at), v.load(ddelta_at)
        h_row, decay_row = v.tile_row(h_history, step, wide), v.tile_row(decay_history, step, wide)
        for_b, for_c = [], []
        for n in range(GROUP):
            h_before, h_after = v.load(v.at(h_row, n * LANES)), v.load(v.at(h_row, wide + n * LANES))
            dh = v.fma(v.broadcast(v.at(c_row, n)), dy, group.values[n].get())
            for_b.append(v.mul(dh, inputs))
            for_c.append(v.mul(dy, h_after))
            dinput = v.fma(dh, v.broadcast(v.at(b_row, n)), dinput)
            passed_on = v.mul(dh, v.load(v.at(decay_row, n * LANES)))
            group.values[n].set(passed_on)
            by_decay = v.mul(passed_on, h_before)
            ddelta = v.fma(by_decay, group.rates[n], ddelta)
            drates[n].set(v.fma(by_decay, delta2, drates[n].get()))
        v.store(dinput, dinput_at)
        v.store(ddelta, ddelta_at)
        _add_lane_sums(v, for_b + for_c, (v.at(db_tile, offset), v.at(dc_tile, offset)))
    group.store(carries)
    for n in range(GROUP):
        at = v.at(rate_gradient, n * LANES)
        v.store(v.fma(drates[n].get(), v.constant(LN2), v.load(at)), at)


def _row_gradients_kernel(softplus: bool, gated: bool) -> Any:
    @vector_kernel
    def row_gradients(
        v: Vectors,
        steps: Value,
        rows: Value,
        u: Value,
        u_stride: Value,
        delta: Value,
        delta_stride: Value,
        z: Value,
        z_stride: Value,
        dout: Value,
        dout_stride: Value,
        bias: Value,
        skip: Value,
        delta2_tile: Value,
        y_tile: Value,
        dy_tile: Value,
        dinput_tile: Value,
        ddelta_tile: Value,
        du: Value,
        du_stride: Value,
        ddelta_out: Value,
        ddelta_stride: Value,
        dz: Value,
        dz_stride: Value,
        skip_gradient: Value,
        bias_gradient: Value,
    ) -> None:
        """From gradients of y, input and decay to those of u, delta as given, z, D and the bias; clears the tiles it read."""
        one, zero = v.constant(1.0), v.constant(0.0)
        skip_vector, bias_vector = v.load(skip), v.load(bias)
        skip_sum, bias_sum = v.variable(v.load(skip_gradient)), v.variable(v.load(bias_gradient))
        with v.loop(steps) as step:
            u_value = v.load(v.row(u, rows, step, u_stride))
            dy = v.load(v.tile_row(dy_tile, step))
            dinput_at, ddelta_at = v.tile_row(dinput_tile, step), v.tile_row(ddelta_tile, step)
            dinput = v.load(dinput_at)
            delta_value = v.mul(v.load(v.tile_row(delta2_tile, step)), v.constant(LN2))
            v.store(v.fma(dinput, delta_value, v.mul(skip_vector, dy)), v.row(du, rows, step, du_stride))
            ddelta = v.fma(dinput, u_value, v.load(ddelta_at))
            if softplus:
                raw = v.add(v.load(v.row(delta, rows, step, delta_stride)), bias_vector)
                ddelta = v.mul(ddelta, v.sigmoid(raw))
            v.store(ddelta, v.row(ddelta_out, rows, step, ddelta_stride))
            bias_sum.set(v.add(bias_sum.get(), ddelta))
            skip_sum.set(v.fma(dy, u_value, skip_sum.get()))
            if gated:
                z_value = v.load(v.row(z, rows, step, z_stride))
                by_gate = v.mul(v.load(v.row(dout, rows, step, dout_stride)), v.load(v.tile_row(y_tile, step)))
                gate = v.sigmoid(z_value)
                slope = v.mul(gate, v.fma(z_value, v.sub(one, gate), one))
                v.store(v.mul(by_gate, slope), v.row(dz, rows, step, dz_stride))
            v.store(zero, dinput_at)
            v.store(zero, ddelta_at)
        v.store(skip_sum.get(), skip_gradient)
        v.store(bias_sum.get(), bias_gradient)

    return row_gradients


row_gradients_softplus_gated = _row_gradients_kernel(softplus=True, gated=True)
row_gradients_softplus = _row_gradients_kernel(softplus=True, gated=False)
row_gradients_gated = _row_gradients_kernel(softplus=False, gated=True)
row_gradients_plain = _row_gradients_kernel(softplus=False, gated=False)


@compiled
def output_gradient_of_block(
    z: Rows, dout: Rows, batch: int, block: int, lanes: int, steps: int, lists: RowLists, dy_tile: int, spare: int
) -> tuple[int, int, int, int]:
    """Fill `dy_tile` for one block; return where z lies (address, row stride), and where dout does."""
    z_at, z_row = read_block(z, batch, block, lanes, steps, lists, spare)
    dout_at, dout_row = read_block(dout, batch, block, lanes, steps, lists, spare + TILE_BYTES)
    arguments = (steps, block_list(lanes, lists), z_at, z_row, dout_at, dout_row, dy_tile)
    if z.address != 0:
        output_gradient_gated(arguments)
    else:
        output_gradient_plain(arguments)
    return z_at, z_row, dout_at, dout_row


@compiled
def _states_of_segment(
    problem: Problem, part: Part, checkpoints: Array, every: int, last_start: int, tile_states: Array
) -> None:
    """States before every tile from the checkpoint before `last_start` up to the tile that starts there."""
    first_start = last_start // every * every
    tile_states[0] = checkpoints[last_start // every, part.first_block : part.end_block]
    for place in range((last_start - first_start) // TILE):
        tile_states[place + 1] = tile_states[place]
        advance_tile(problem, tile_states[place + 1], part.first_block, part, first_start + place * TILE)


@compiled
def _add_sums(gradients: Gradients, block: int, rate_sums: Array, vector_sums: Array) -> None:
    """Add one tile's float32 sums for A, and for D and the bias, to the float64 totals, and clear them.

    At a million steps, float32 totals would lose what a tile adds.
    """
    for n in range(rate_sums.shape[0]):
        for lane in range(LANES):
            gradients.rates[block, n, lane] += rate_sums[n, lane]
            rate_sums[n, lane] = 0.0
    for lane in range(LANES):
        gradients.skip[block, lane] += vector_sums[0, lane]
        gradients.bias[block, lane] += vector_sums[1, lane]
    vector_sums[:] = 0.0


@compiled
def _walk_block_back(
    problem: Problem,
    block: int,
    steps: int,
    tile: int,
    bc_tile: int,
    h_history: int,
    decay_history: int,
    states: Array,
    carries: Array,
    rate_sums: Array,
) -> None:
    """All states of one block back through one tile.

    `tile` holds the buffers delta2, input, y, dy, and the gradients by input and by delta; `bc_tile` those of B, C and
    their gradients; `states` are (N rounded up, 16) before the tile, `carries` those of all blocks.
    """
    width = problem.rates.shape[1]
    delta2_tile, input_tile, y_tile, dy_tile = tile, tile + TILE_BYTES, tile + 2 * TILE_BYTES, tile + 3 * TILE_BYTES
    for n in range(0, width, GROUP):
        at = (block * width + n) * ROW_BYTES
        rates_at, carries_at = address_of(problem.rates) + at, address_of(carries) + at
        b_at = bc_tile + 4 * n
        c_at, db_at, dc_at = b_at + 4 * TILE * width, b_at + 8 * TILE * width, b_at + 12 * TILE * width
        arguments = (
            steps, rates_at, address_of(states) + n * ROW_BYTES, b_at, c_at, width, delta2_tile, input_tile, y_tile,
            h_history, decay_history,
        )  # fmt: skip
        if problem.fading:
            recompute_fading(arguments)
        else:
            recompute_any(arguments)
        walk_back(
            (steps, rates_at, carries_at, b_at, c_at, width, delta2_tile, input_tile, dy_tile, h_history, decay_history,
             tile + 4 * TILE_BYTES, tile + 5 * TILE_BYTES, address_of(rate_sums) + n * ROW_BYTES, db_at, dc_at)
        )  # fmt: skip


@compiled
def _block_backward(
    problem: Problem,
    dout: Rows,
    gradients: Gradients,
    batch: int,
    block: int,
    steps: int,
    lists: RowLists,
    buffers: tuple[int, int, int, int, int],
    states: Array,
    carries: Array,
    rate_sums: Array,
    vector_sums: Array,
) -> None:
    """Everything for one block of 16 channels and one tile; `buffers`: tile, spare, B and C, states and decays kept."""
    tile, spare, bc_tile, h_history, decay_history = buffers
    lanes = min(LANES, problem.channels - block * LANES)
    u_at, u_row, delta_at, delta_row = prepare_block(problem, batch, block, lanes, steps, lists, tile, spare)
    z_at, z_row, dout_at, dout_row = output_gradient_of_block(
        problem.z, dout, batch, block, lanes, steps, lists, tile + 3 * TILE_BYTES, spare + 2 * TILE_BYTES
    )
    _walk_block_back(
        problem, block, steps, tile, bc_tile, h_history, decay_history, states, carries, rate_sums
    )  # fmt: skip
    spare += 4 * TILE_BYTES
    du_at, du_row = target_block(gradients.u, batch, block, lanes, spare)
    ddelta_at, ddelta_row = target_block(gradients.delta, batch, block, lanes, spare + TILE_BYTES)
    dz_at, dz_row = target_block(gradients.z, batch, block, lanes, spare + 2 * TILE_BYTES)
    _write_row_gradients(
        problem.softplus, problem.z.address != 0,
        (steps, block_list(lanes, lists), u_at, u_row, delta_at, delta_row, z_at, z_row, dout_at, dout_row,
         address_of(problem.bias) + block * ROW_BYTES, address_of(problem.skip) + block * ROW_BYTES,
         tile, tile + 2 * TILE_BYTES, tile + 3 * TILE_BYTES, tile + 4 * TILE_BYTES, tile + 5 * TILE_BYTES,
         du_at, du_row, ddelta_at, ddelta_row, dz_at, dz_row,
         address_of(vector_sums), address_of(vector_sums) + ROW_BYTES),
    )  # fmt: skip
    write_back(gradients.u, batch, block, lanes, steps, lists, spare)
    write_back(gradients.delta, batch, block, lanes, steps, lists, spare + TILE_BYTES)
    write_back(gradients.z, batch, block, lanes, steps, lists, spare + 2 * TILE_BYTES)


@compiled
def _write_row_gradients(softplus: bool, gated: bool, arguments: Any) -> None:
    if softplus and gated:
        row_gradients_softplus_gated(arguments)
    elif softplus:
        row_gradients_softplus(arguments)
    elif gated:
        row_gradients_gated(arguments)
    else:
        row_gradients_plain(arguments)


@compiled
def scan_backward(
    problem: Problem, dout: Rows, gradients: Gradients, checkpoints: Array, every: int, carries: Array, part: Part
) -> None:
    """Gradients of a part, walked from its end.

    Args:
        problem: The scan.
        dout: Rows of the output's gradient.
        gradients: What to write and add to.
        checkpoints: What `scan_forward` stored, every `every` positions; the part starts at one of them.
        every: As there.
        carries: (blocks, N rounded up, 16): on entry a_t dh_t of the position after the part; on return of its first.
        part: Batch entry, channels and positions.
    """
    width = problem.rates.shape[1]
    rows, counting = row_buffers(TILE)
    lists = RowLists(address_of(rows), address_of(counting))
    tiles, bc_tiles = np.zeros((13, TILE, LANES), np.float32), np.zeros((4, TILE, width), np.float32)
    history = np.empty((2 * TILE + 1, GROUP, LANES), np.float32)
    rate_sums, vector_sums = np.zeros((width, LANES), np.float32), np.zeros((2, LANES), np.float32)
    tile_states = np.empty((every // TILE, part.end_block - part.first_block, width, LANES), np.float32)
    buffers = (
        address_of(tiles), address_of(tiles[6]), address_of(bc_tiles), address_of(history), address_of(history[TILE + 1 :]),
    )  # fmt: skip
    b_tile, tile_bytes = buffers[2], 4 * TILE * width
    last = part.start + (part.stop - 1 - part.start) // TILE * TILE
    for start in range(last, part.start - 1, -TILE):
        steps = min(TILE, part.stop - start)
        place = start % every // TILE
        if start == last or place == every // TILE - 1:
            _states_of_segment(problem, part, checkpoints, every, start, tile_states)
        fill_rows(problem.path, start, steps, rows)
        gather(problem.b, part.batch, problem.states, steps, lists, b_tile, width)
        gather(problem.c, part.batch, problem.states, steps, lists, b_tile + tile_bytes, width)
        bc_tiles[2:] = 0.0
        for block in range(part.first_block, part.end_block):
            _block_backward(
                problem, dout, gradients, part.batch, block, steps, lists, buffers,
                tile_states[place, block - part.first_block], carries, rate_sums, vector_sums,
            )  # fmt: skip
            _add_sums(gradients, block, rate_sums, vector_sums)
        scatter(gradients.b, part.batch, problem.states, steps, lists, b_tile + 2 * tile_bytes, width)
        scatter(gradients.c, part.batch, problem.states, steps, lists, b_tile + 3 * tile_bytes, width)
    keep((rows, counting))
    keep((tiles, bc_tiles, history))
