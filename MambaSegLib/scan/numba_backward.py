"""The scan's backward pass on a CPU: per tile, the states are computed again from a checkpoint, then walked in reverse.

With g_t = dL/dy_t (before the gate) and the carry r_t = a_{t+1} dh_{t+1}: dh_t = C_t g_t + r_t, and all gradients are
products of dh_t with what the forward pass had at t. B and C are shared by all channels, so their gradients are sums over
lanes, done by a tree of shuffles in registers, and over blocks, done in a tile buffer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from MambaSegLib.scan.numba_forward import (
    ROW_BYTES,
    TILE_BYTES,
    advance_states_only,
    prepare_plain,
    prepare_softplus,
)
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
from MambaSegLib.scan.vector_ir import LANES, LN2, Value, Vectors, address_of, compiled, keep, vector_kernel

if TYPE_CHECKING:
    from MambaSegLib.scan.paths import Array

FLUSH_TILES = 16
"""Tiles after which float32 sums of parameter gradients move to float64: rounding stays small at a million steps."""


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
    """`advance_states` that keeps every state (the starting one first) and every decay; `states` is only read."""
    wide = GROUP * LANES
    rates = [v.load(v.at(decay_rates, n * LANES)) for n in range(GROUP)]
    h = [v.variable(v.load(v.at(states, n * LANES))) for n in range(GROUP)]
    for n in range(GROUP):
        v.store(h[n].get(), v.at(h_history, n * LANES))
    with v.loop(steps) as step:
        offset = v.builder.mul(step, width)
        b_row, c_row = v.at(b_tile, offset), v.at(c_tile, offset)
        delta2 = v.load(v.tile_row(delta2_tile, step))
        inputs = v.load(v.tile_row(input_tile, step))
        y = v.load(v.tile_row(y_tile, step))
        h_row, decay_row = v.tile_row(h_history, step, wide), v.tile_row(decay_history, step, wide)
        for n in range(GROUP):
            decay = v.exp2(v.mul(delta2, rates[n]))
            v.store(decay, v.at(decay_row, n * LANES))
            state = v.fma(decay, h[n].get(), v.mul(inputs, v.broadcast(v.at(b_row, n))))
            h[n].set(state)
            v.store(state, v.at(h_row, wide + n * LANES))
            y = v.fma(state, v.broadcast(v.at(c_row, n)), y)
        v.store(y, v.tile_row(y_tile, step))


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
    rates = [v.load(v.at(decay_rates, n * LANES)) for n in range(GROUP)]
    carry = [v.variable(v.load(v.at(carries, n * LANES))) for n in range(GROUP)]
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
            dh = v.fma(v.broadcast(v.at(c_row, n)), dy, carry[n].get())
            for_b.append(v.mul(dh, inputs))
            for_c.append(v.mul(dy, h_after))
            dinput = v.fma(dh, v.broadcast(v.at(b_row, n)), dinput)
            passed_on = v.mul(dh, v.load(v.at(decay_row, n * LANES)))
            carry[n].set(passed_on)
            by_decay = v.mul(passed_on, h_before)
            ddelta = v.fma(by_decay, rates[n], ddelta)
            drates[n].set(v.fma(by_decay, delta2, drates[n].get()))
        v.store(dinput, dinput_at)
        v.store(ddelta, ddelta_at)
        _add_lane_sums(v, for_b + for_c, (v.at(db_tile, offset), v.at(dc_tile, offset)))
    for n in range(GROUP):
        v.store(carry[n].get(), v.at(carries, n * LANES))
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
def flush(sums: tuple[Array, Array, Array], totals: tuple[Array, Array, Array], blocks: tuple[int, int]) -> None:
    """Move float32 partial sums of these blocks into their float64 totals."""
    for block in range(blocks[0], blocks[1]):
        for n in range(sums[0].shape[1]):
            for lane in range(LANES):
                totals[0][block, n, lane] += sums[0][block, n, lane]
        for lane in range(LANES):
            totals[1][block, lane] += sums[1][block, lane]
            totals[2][block, lane] += sums[2][block, lane]
        sums[0][block] = 0.0
        sums[1][block] = 0.0
        sums[2][block] = 0.0


@compiled
def states_of_segment(
    u: Rows,
    delta: Rows,
    b: Rows,
    sizes: tuple[int, int],
    path: Array,
    parameters: tuple[Array, Array, Array],
    checkpoints: Array,
    checkpoint_steps: int,
    softplus: bool,
    batch: int,
    blocks: tuple[int, int],
    last_start: int,
    tile_states: Array,
) -> None:
    """States before every tile from the checkpoint before `last_start` up to the tile that starts there."""
    D, N = sizes
    rates, skip, bias = parameters
    width = rates.shape[1]
    first_start = last_start // checkpoint_steps * checkpoint_steps
    tile_states[0] = checkpoints[last_start // checkpoint_steps, blocks[0] : blocks[1]]
    rows, counting = np.empty(TILE, np.int64), counting_rows(TILE)
    lists = (address_of(rows), address_of(counting))
    tiles = np.zeros((5, TILE, LANES), np.float32)
    b_rows = np.zeros((TILE, width), np.float32)
    tile, spare, b_tile = address_of(tiles), address_of(tiles[3]), address_of(b_rows)
    for place in range((last_start - first_start) // TILE):
        start = first_start + place * TILE
        fill_rows(path, start, TILE, rows)
        copy_rows((TILE, N, lists[0], b.address + 4 * batch * b.batch, b.row, lists[1], b_tile, width))
        tile_states[place + 1] = tile_states[place]
        for block in range(blocks[0], blocks[1]):
            lanes = min(LANES, D - block * LANES)
            listed = block_list(lanes, lists)
            u_at, u_row = read_rows(u, batch, block, lanes, TILE, lists, spare)
            delta_at, delta_row = read_rows(delta, batch, block, lanes, TILE, lists, spare + TILE_BYTES)
            bias_at, skip_at = address_of(bias) + block * ROW_BYTES, address_of(skip) + block * ROW_BYTES
            prepare_args = (
                TILE,
                listed,
                u_at,
                u_row,
                delta_at,
                delta_row,
                bias_at,
                skip_at,
                tile,
                tile + TILE_BYTES,
                tile + 2 * TILE_BYTES,
            )
            if softplus:
                prepare_softplus(prepare_args)
            else:
                prepare_plain(prepare_args)
            target = address_of(tile_states[place + 1, block - blocks[0]])
            for n in range(0, width, GROUP):
                rates_at = address_of(rates) + (block * width + n) * ROW_BYTES
                advance_states_only(
                    (TILE, rates_at, target + n * ROW_BYTES, b_tile + 4 * n, width, tile, tile + TILE_BYTES)
                )
    keep((rows, counting))
    keep((tiles, b_rows))


@compiled
def scan_backward(
    u: Rows,
    delta: Rows,
    z: Rows,
    b: Rows,
    c: Rows,
    dout: Rows,
    gradients: tuple[Rows, Rows, Rows, Rows, Rows],
    sizes: tuple[int, int],
    path: Array,
    parameters: tuple[Array, Array, Array],
    parameter_gradients: tuple[Array, Array, Array],
    checkpoints: Array,
    checkpoint_steps: int,
    carries: Array,
    softplus: bool,
    batch: int,
    blocks: tuple[int, int],
    span: tuple[int, int],
) -> None:
    """Gradients of blocks of 16 channels over a span of positions, walked from its end.

    Args:
        u: As in `scan_forward`; `delta`, `z`, `b`, `c`, `sizes`, `path`, `parameters`, `softplus`, `batch`, `blocks` too.
        dout: Gradient of the output.
        gradients: Rows to write for u, delta, z (address 0: none), and for B and C summed over these blocks alone.
        parameter_gradients: float64 sums to add to: for A as (blocks, N rounded up, 16), D and delta_bias as (blocks, 16).
        checkpoints: What `scan_forward` stored.
        checkpoint_steps: Its `checkpoint_steps`.
        carries: (blocks, N rounded up, 16): on entry a_{t+1} dh_{t+1} from the position after the span; updated.
        span: First position (a multiple of `checkpoint_steps`), and the one after the last.
    """
    D, N = sizes
    rates, skip, bias = parameters
    width = rates.shape[1]
    du, ddelta, dz, db, dc = gradients
    rows, counting = np.empty(TILE, np.int64), counting_rows(TILE)
    lists = (address_of(rows), address_of(counting))
    tiles = np.zeros((13, TILE, LANES), np.float32)
    bc_tiles = np.zeros((4, TILE, width), np.float32)
    history = np.empty((2 * TILE + 1, GROUP, LANES), np.float32)
    tile, spare = address_of(tiles), address_of(tiles[6])
    delta2_tile, input_tile, y_tile = tile, tile + TILE_BYTES, tile + 2 * TILE_BYTES
    dy_tile, dinput_tile, ddelta_tile = tile + 3 * TILE_BYTES, tile + 4 * TILE_BYTES, tile + 5 * TILE_BYTES
    b_tile, c_tile = address_of(bc_tiles[0]), address_of(bc_tiles[1])
    db_tile, dc_tile = address_of(bc_tiles[2]), address_of(bc_tiles[3])
    h_history, decay_history = address_of(history), address_of(history[TILE + 1 :])
    sums = (np.zeros_like(rates), np.zeros_like(skip), np.zeros_like(bias))
    segment_tiles = checkpoint_steps // TILE
    tile_states = np.empty((segment_tiles, blocks[1] - blocks[0], width, LANES), np.float32)
    done = 0
    for start in range(span[0] + (span[1] - 1 - span[0]) // TILE * TILE, span[0] - 1, -TILE):
        steps = min(TILE, span[1] - start)
        place = start % checkpoint_steps // TILE
        if done == 0 or place == segment_tiles - 1:
            states_of_segment(
                u, delta, b, sizes, path, parameters, checkpoints, checkpoint_steps, softplus, batch, blocks,
                start, tile_states,
            )  # fmt: skip
        fill_rows(path, start, steps, rows)
        copy_rows((steps, N, lists[0], b.address + 4 * batch * b.batch, b.row, lists[1], b_tile, width))
        copy_rows((steps, N, lists[0], c.address + 4 * batch * c.batch, c.row, lists[1], c_tile, width))
        bc_tiles[2:] = 0.0
        for block in range(blocks[0], blocks[1]):
            lanes = min(LANES, D - block * LANES)
            listed = block_list(lanes, lists)
            u_at, u_row = read_rows(u, batch, block, lanes, steps, lists, spare)
            delta_at, delta_row = read_rows(delta, batch, block, lanes, steps, lists, spare + TILE_BYTES)
            z_at, z_row = read_rows(z, batch, block, lanes, steps, lists, spare + 2 * TILE_BYTES)
            dout_at, dout_row = read_rows(dout, batch, block, lanes, steps, lists, spare + 3 * TILE_BYTES)
            du_at, du_row = target_rows(du, batch, block, lanes, spare + 4 * TILE_BYTES)
            ddelta_at, ddelta_row = target_rows(ddelta, batch, block, lanes, spare + 5 * TILE_BYTES)
            dz_at, dz_row = target_rows(dz, batch, block, lanes, spare + 6 * TILE_BYTES)
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
            if z.address != 0:
                output_gradient_gated((steps, listed, z_at, z_row, dout_at, dout_row, dy_tile))
            else:
                output_gradient_plain((steps, listed, z_at, z_row, dout_at, dout_row, dy_tile))
            for n in range(0, width, GROUP):
                at = (block * width + n) * ROW_BYTES
                rates_at, carries_at, sums_at = (
                    address_of(rates) + at,
                    address_of(carries) + at,
                    address_of(sums[0]) + at,
                )
                states_at = (
                    address_of(tile_states)
                    + ((place * (blocks[1] - blocks[0]) + block - blocks[0]) * width + n) * ROW_BYTES
                )
                recompute_states(
                    (
                        steps,
                        rates_at,
                        states_at,
                        b_tile + 4 * n,
                        c_tile + 4 * n,
                        width,
                        delta2_tile,
                        input_tile,
                        y_tile,
                        h_history,
                        decay_history,
                    )
                )
                walk_back(
                    (
                        steps,
                        rates_at,
                        carries_at,
                        b_tile + 4 * n,
                        c_tile + 4 * n,
                        width,
                        delta2_tile,
                        input_tile,
                        dy_tile,
                        h_history,
                        decay_history,
                        dinput_tile,
                        ddelta_tile,
                        sums_at,
                        db_tile + 4 * n,
                        dc_tile + 4 * n,
                    )
                )
            row_args = (
                steps,
                listed,
                u_at,
                u_row,
                delta_at,
                delta_row,
                z_at,
                z_row,
                dout_at,
                dout_row,
                bias_at,
                skip_at,
                delta2_tile,
                y_tile,
                dy_tile,
                dinput_tile,
                ddelta_tile,
                du_at,
                du_row,
                ddelta_at,
                ddelta_row,
                dz_at,
                dz_row,
                address_of(sums[1]) + block * ROW_BYTES,
                address_of(sums[2]) + block * ROW_BYTES,
            )
            if softplus and z.address != 0:
                row_gradients_softplus_gated(row_args)
            elif softplus:
                row_gradients_softplus(row_args)
            elif z.address != 0:
                row_gradients_gated(row_args)
            else:
                row_gradients_plain(row_args)
            write_back(du, batch, block, lanes, steps, lists, spare + 4 * TILE_BYTES)
            write_back(ddelta, batch, block, lanes, steps, lists, spare + 5 * TILE_BYTES)
            if z.address != 0:
                write_back(dz, batch, block, lanes, steps, lists, spare + 6 * TILE_BYTES)
        copy_rows((steps, N, lists[1], db_tile, width, lists[0], db.address + 4 * batch * db.batch, db.row))
        copy_rows((steps, N, lists[1], dc_tile, width, lists[0], dc.address + 4 * batch * dc.batch, dc.row))
        done += 1
        if done % FLUSH_TILES == 0:
            flush(sums, parameter_gradients, blocks)
    flush(sums, parameter_gradients, blocks)
    keep((rows, counting))
    keep((tiles, bc_tiles, history))
