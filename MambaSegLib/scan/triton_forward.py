"""The scan in three kernels, so that one sequence fills a GPU: chunks from zero, the carry between them, the output.

The recurrence is linear: a chunk that starts from states h ends in 2**(A sum delta2) h + (its end when started from zero).
`chunk_ends` finds the second part of all chunks at once, `carry` walks over chunks instead of tokens, and `chunk_outputs`
runs every chunk again from its true first states. Grid: (chunks x blocks of channels, directions x batch). States stay in
registers as an (N, channels) block.

Layouts: rows of tokens as `triton_launch.Rows` describes; A as (directions, N, D); ends and states as
(directions x batch, chunks, N, D), sums as (directions x batch, chunks, D), all float32 and contiguous.
"""

from __future__ import annotations

import triton.language as tl

from MambaSegLib.scan.triton_chunks import channel_vector, load_ahead, part_of_scan, updated
from MambaSegLib.scan.triton_steps import (
    LN_2,
    PATH_NUMBERS,
    group_base,
    kernel,
    place,
    read_path,
    sigmoid,
    state_block,
    store_row,
    time_step,
    until,
)

NUMBERS = tl.constexpr(PATH_NUMBERS)


@kernel
def chunk_ends(
    u,
    delta,
    B,
    A,
    bias,
    ends,
    sums,
    paths,
    u_group,
    u_batch,
    u_row,
    delta_group,
    delta_batch,
    delta_row,
    B_group,
    B_batch,
    B_row,
    batch,
    length,
    chunks,
    D: tl.constexpr,
    N: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """States at the end of chunks 0 ... chunks - 1 that start from zero, and each chunk's sum of delta2."""
    chunk, _, pair, group, entry, d, n, is_d, is_n = part_of_scan(batch, D, N, BLOCK_D, BLOCK_N)
    u = group_base(u, u_group, u_batch, group, entry)
    delta = group_base(delta, delta_group, delta_batch, group, entry)
    B = group_base(B, B_group, B_batch, group, entry)
    path = read_path(paths + group * NUMBERS)
    inside = is_n[:, None] & is_d[None, :]
    in_block = state_block(n, d, D)
    rates = tl.load(A + group * N * D + in_block, mask=inside, other=0.0)
    shift = channel_vector(bias, group, d, is_d, D, BLOCK_D)
    h = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    total = tl.zeros((BLOCK_D,), tl.float32)
    t = chunk * CHUNK
    spot = place(path, t)
    columns, sources = (d, n, is_d, is_n), ((delta, u), (delta_row, u_row), (B,), (B_row,))
    coming, _, spot = load_ahead(sources, None, 0, path, spot, t, length, columns, UNROLL, False)
    for _step in range(0, CHUNK, UNROLL):  # Triton 3.4 takes _ for one variable, which must not change its type
        here = coming
        coming, _, spot = load_ahead(sources, None, 0, path, spot, t + UNROLL, length, columns, UNROLL, False)
        for j in tl.static_range(UNROLL):
            delta2 = time_step(here[3 * j] + shift, until(d, is_d, t + j, length), SOFTPLUS)
            h = updated(h, delta2, rates, here[3 * j + 1], here[3 * j + 2])
            total += delta2
        t += UNROLL
    slot = (pair.to(tl.int64) * chunks + chunk) * D
    tl.store(ends + slot * N + in_block, h, mask=inside)
    tl.store(sums + slot + d, total, mask=is_d)


@kernel
def _chained(decay1, end1, decay2, end2):
    """Two stretches of the recurrence as one."""
    return decay1 * decay2, decay2 * end1 + end2


@kernel
def carry(
    ends,
    sums,
    A,
    batch,
    chunks,
    D: tl.constexpr,
    N: tl.constexpr,
    BACKWARD: tl.constexpr,
    AT_ONCE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """In place: from what each chunk alone leaves behind to what leaves it in truth; from the last chunk if BACKWARD.

    Grid: (blocks of channels, directions x batch, N). AT_ONCE chunks are joined at a time, so that few loads wait.
    """
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    pair = tl.program_id(1)
    state = tl.program_id(2)
    rates = tl.load(A + ((pair // batch) * N + state) * D + d, mask=d < D, other=0.0)
    step = tl.arange(0, AT_ONCE)
    before = tl.zeros((BLOCK_D,), tl.float32)
    for first in range(0, chunks, AT_ONCE):
        number = first + step
        chunk = chunks - 1 - number if BACKWARD else number
        inside = (number < chunks)[:, None] & (d < D)[None, :]
        slots = (pair.to(tl.int64) * chunks + chunk) * D
        places = ends + (slots * N + state * D)[:, None] + d[None, :]
        own = tl.load(places, mask=inside, other=0.0)
        total = tl.load(sums + slots[:, None] + d[None, :], mask=inside, other=0.0)
        tl.debug_barrier()  # few channels are held by several threads, one of which stores: not before all have loaded
        decays, joined = tl.associative_scan((tl.exp2(total * rates[None, :]), own), 0, _chained)
        joined = joined + decays * before[None, :]
        tl.store(places, joined, mask=inside)
        before = tl.sum(tl.where((step == AT_ONCE - 1)[:, None], joined, 0.0), 0)


@kernel
def chunk_outputs(
    u,
    delta,
    B,
    C,
    z,
    A,
    skip,
    bias,
    starts,
    out,
    last,
    paths,
    u_group,
    u_batch,
    u_row,
    delta_group,
    delta_batch,
    delta_row,
    B_group,
    B_batch,
    B_row,
    C_group,
    C_batch,
    C_row,
    z_group,
    z_batch,
    z_row,
    out_group,
    out_batch,
    out_row,
    batch,
    length,
    chunks,
    D: tl.constexpr,
    N: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """The output of every chunk, skip and gate included, and the last states (directions x batch, N, D).

    `starts` holds the states after chunks 0 ... chunks - 2; it is None if there is one chunk.
    """
    chunk, _, pair, group, entry, d, n, is_d, is_n = part_of_scan(batch, D, N, BLOCK_D, BLOCK_N)
    u = group_base(u, u_group, u_batch, group, entry)
    delta = group_base(delta, delta_group, delta_batch, group, entry)
    B = group_base(B, B_group, B_batch, group, entry)
    C = group_base(C, C_group, C_batch, group, entry)
    out = group_base(out, out_group, out_batch, group, entry)
    if z is not None:
        z = group_base(z, z_group, z_batch, group, entry)
    path = read_path(paths + group * NUMBERS)
    inside = is_n[:, None] & is_d[None, :]
    in_block = state_block(n, d, D)
    rates = tl.load(A + group * N * D + in_block, mask=inside, other=0.0)
    shift = channel_vector(bias, group, d, is_d, D, BLOCK_D)
    passed = channel_vector(skip, group, d, is_d, D, BLOCK_D)
    OPERANDS: tl.constexpr = 4 if z is None else 5
    h = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    if starts is not None:
        started = starts + (pair.to(tl.int64) * (chunks - 1) + chunk - 1) * (N * D)
        h = tl.load(started + in_block, mask=inside & (in_block * 0 + chunk > 0), other=0.0)
    t = chunk * CHUNK
    spot = place(path, t)
    columns, sources = (d, n, is_d, is_n), ((delta, u), (delta_row, u_row), (B, C), (B_row, C_row))
    coming, coming_rows, spot = load_ahead(sources, z, z_row, path, spot, t, length, columns, UNROLL, False)
    for _step in range(0, CHUNK, UNROLL):  # Triton 3.4 takes _ for one variable, which must not change its type
        here, rows = coming, coming_rows
        coming, coming_rows, spot = load_ahead(
            sources, z, z_row, path, spot, t + UNROLL, length, columns, UNROLL, False
        )
        for j in tl.static_range(UNROLL):
            now_d = until(d, is_d, t + j, length)
            delta2 = time_step(here[OPERANDS * j] + shift, now_d, SOFTPLUS)
            token, written, read = here[OPERANDS * j + 1], here[OPERANDS * j + 2], here[OPERANDS * j + 3]
            # `updated`, but with its factors in an order that takes 8 registers less here.
            h = tl.exp2(delta2[None, :] * rates) * h + (delta2 * LN_2 * token)[None, :] * written[:, None]
            y = tl.sum(h * read[:, None], 0) + passed * token
            if z is not None:
                gate = here[OPERANDS * j + 4]
                y = y * gate * sigmoid(gate)
            store_row(out, rows[j], out_row, d, y, now_d)
        t += UNROLL
    if chunk == chunks - 1:
        tl.store(last + pair.to(tl.int64) * (N * D) + in_block, h, mask=inside)
