"""What the kernels over chunks share: which part of the scan a program has, its operands a few steps ahead, one update.

Triton compiles these functions into the kernels that call them. Loads are issued for the next steps before the present ones
are computed, so that a program with few warps does not wait for memory; that is why operands travel as tuples, one after the
other: what goes by channel, what goes by state, then the gate if there is one.
"""

from __future__ import annotations

import triton.language as tl

from MambaSegLib.scan.triton_steps import LN_2, kernel, load_row, next_place, previous_place, until


@kernel
def part_of_scan(batch, D: tl.constexpr, N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr):
    """A program's chunk and block of channels, its direction and batch entry as one number and as two, channels and states.

    Grid: (chunks x blocks of channels, directions x batch).
    """
    blocks = tl.cdiv(D, BLOCK_D)
    chunk, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    pair = tl.program_id(1)
    d, n = block * BLOCK_D + tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_N)
    return chunk, block, pair, pair // batch, pair % batch, d, n, d < D, n < N


@kernel
def channel_vector(vector, group, d, is_d, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """A direction's (D,) parameter at some channels, zeros if it has none."""
    found = tl.zeros((BLOCK_D,), tl.float32)
    if vector is not None:
        found = tl.load(vector + group * D + d, mask=is_d, other=0.0)
    return found


@kernel
def load_ahead(sources, z, z_row, path, spot, t, length, columns, COUNT: tl.constexpr, BACKWARD: tl.constexpr):
    """Operands of COUNT positions from t on (or back), their rows, and the spot behind them.

    Args:
        sources: Tensors of rows (D,) at the direction's and batch entry's first row, and their steps from row to row; the same
            for rows (N,).
        z: The gate's rows, None if there is none; not among the sources, since Triton 3.3 takes no None in a tuple.
        z_row: Their step.
        path: From `read_path`.
        spot: Of position t, from `place`.
        t: First position.
        length: How many positions there are; others are read as zeros.
        columns: Channels and states of this program, and which of them exist.
        COUNT: How many positions.
        BACKWARD: Whether they lead to smaller t.
    """
    by_channel, channel_steps, by_state, state_steps = sources
    d, n, is_d, is_n = columns
    found, rows = (), ()
    for j in tl.static_range(COUNT):
        at = t - j if BACKWARD else t + j
        row = spot[0]
        now_d, now_n = until(d, is_d, at, length), until(n, is_n, at, length)
        for i in tl.static_range(len(by_channel)):
            found = found + (load_row(by_channel[i], row, channel_steps[i], d, now_d),)
        for i in tl.static_range(len(by_state)):
            found = found + (load_row(by_state[i], row, state_steps[i], n, now_n),)
        if z is not None:
            found = found + (load_row(z, row, z_row, d, now_d),)
        rows = rows + (row,)
        spot = previous_place(path, spot) if BACKWARD else next_place(path, spot)
    return found, rows, spot


@kernel
def updated(h, delta2, rates, token, written):
    """States after a step: 2**(delta2 A) h + delta B u."""
    entering = delta2 * LN_2 * token
    return tl.exp2(delta2[None, :] * rates) * h + entering[None, :] * written[:, None]
