"""The scan's gradients, in the forward kernels' pattern: chunks alone, the carry between them from the end, the gradients.

With dy the gradient of y (`dout` through the gate) and a_t = 2**(delta2_t A), the gradient of the states runs backward::

    dh_t = C_t dy_t + a_{t+1} dh_{t+1}

`chunk_leaving` finds a_t dh_t at each chunk's first position if nothing comes in at its end, `triton_forward.carry` joins
the chunks, and `chunk_gradients` needs one more pass. That pass meets the states in reverse, so it first keeps every
KEPT-th of a chunk in memory and then computes KEPT at a time into registers. Nothing is added with atomics: sums over
channels and tokens come out as parts, added afterward in a fixed order, so equal inputs give equal gradients to the bit.
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
def chunk_leaving(
    delta,
    C,
    z,
    dout,
    A,
    bias,
    leaving,
    sums,
    paths,
    delta_group,
    delta_batch,
    delta_row,
    C_group,
    C_batch,
    C_row,
    z_group,
    z_batch,
    z_row,
    dout_group,
    dout_batch,
    dout_row,
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
    """a_t dh_t at the first position of chunks 1 ... chunks, zero coming in, and each of these chunks' sum of delta2.

    Layouts as the ends and sums of `triton_forward.chunk_ends`; here slot 0 is chunk 1.
    """
    slot, _, pair, group, entry, d, n, is_d, is_n = part_of_scan(batch, D, N, BLOCK_D, BLOCK_N)
    delta = group_base(delta, delta_group, delta_batch, group, entry)
    C = group_base(C, C_group, C_batch, group, entry)
    dout = group_base(dout, dout_group, dout_batch, group, entry)
    if z is not None:
        z = group_base(z, z_group, z_batch, group, entry)
    OPERANDS: tl.constexpr = 3 if z is None else 4
    path = read_path(paths + group * NUMBERS)
    inside = is_n[:, None] & is_d[None, :]
    in_block = state_block(n, d, D)
    rates = tl.load(A + group * N * D + in_block, mask=inside, other=0.0)
    shift = channel_vector(bias, group, d, is_d, D, BLOCK_D)
    carried = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    total = tl.zeros((BLOCK_D,), tl.float32)
    t = (slot + 2) * CHUNK - 1
    spot = place(path, t)
    columns, sources = (d, n, is_d, is_n), ((delta, dout), (delta_row, dout_row), (C,), (C_row,))
    coming, _, spot = load_ahead(sources, z, z_row, path, spot, t, length, columns, UNROLL, True)
    for _step in range(0, CHUNK, UNROLL):  # Triton 3.4 takes _ for one variable, which must not change its type
        here = coming
        # Those of chunk 0 at the very end: there, and not used.
        coming, _, spot = load_ahead(sources, z, z_row, path, spot, t - UNROLL, length, columns, UNROLL, True)
        for j in tl.static_range(UNROLL):
            now_d = until(d, is_d, t - j, length)
            delta2 = time_step(here[OPERANDS * j] + shift, now_d, SOFTPLUS)
            dy = here[OPERANDS * j + 1]
            if z is not None:
                gate = here[OPERANDS * j + 3]
                dy *= gate * sigmoid(gate)
            carried = tl.exp2(delta2[None, :] * rates) * (carried + here[OPERANDS * j + 2][:, None] * dy[None, :])
            total += delta2
        t -= UNROLL
    at = (pair.to(tl.int64) * chunks + slot) * D
    tl.store(leaving + at * N + in_block, carried, mask=inside)
    tl.store(sums + at + d, total, mask=is_d)


@kernel
def chunk_gradients(
    u,
    delta,
    B,
    C,
    z,
    dout,
    A,
    skip,
    bias,
    starts,
    leaving,
    kept,
    du,
    ddelta,
    dz,
    dB_parts,
    dC_parts,
    shared_parts,
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
    dout_group,
    dout_batch,
    dout_row,
    grad_group,
    grad_batch,
    grad_row,
    batch,
    length,
    chunks,
    first_chunk,
    chunks_here,
    D: tl.constexpr,
    N: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    KEPT: tl.constexpr,
):
    """Gradients of chunks first_chunk ... first_chunk + chunks_here - 1.

    Args (beyond those of the forward kernels):
        leaving: a_t dh_t at the first position of chunks 1 ... chunks - 1, as `carry` leaves it; None as starts.
        kept: Room for the states before every KEPT-th step, (directions x batch, chunks_here, CHUNK / KEPT, N, D).
        du, ddelta, dz: Rows as u; ddelta before softplus. They share their steps `grad_...`.
        dB_parts, dC_parts: Sums over one block of channels, (blocks, directions x batch, chunks_here x CHUNK, N), in scan
            order.
        shared_parts: Sums over one chunk of what all tokens share, (directions x batch, chunks, N + 2, D): A, skip, bias.
    """
    OPERANDS: tl.constexpr = 5 if z is None else 6
    here, block, pair, group, entry, d, n, is_d, is_n = part_of_scan(batch, D, N, BLOCK_D, BLOCK_N)
    chunk = first_chunk + here
    u = group_base(u, u_group, u_batch, group, entry)
    delta = group_base(delta, delta_group, delta_batch, group, entry)
    B = group_base(B, B_group, B_batch, group, entry)
    C = group_base(C, C_group, C_batch, group, entry)
    dout = group_base(dout, dout_group, dout_batch, group, entry)
    du = group_base(du, grad_group, grad_batch, group, entry)
    ddelta = group_base(ddelta, grad_group, grad_batch, group, entry)
    if z is not None:
        z = group_base(z, z_group, z_batch, group, entry)
        dz = group_base(dz, grad_group, grad_batch, group, entry)
    path = read_path(paths + group * NUMBERS)
    inside = is_n[:, None] & is_d[None, :]
    in_block = n[:, None] * D + d[None, :]
    rates = tl.load(A + group * N * D + in_block, mask=inside, other=0.0)
    shift = channel_vector(bias, group, d, is_d, D, BLOCK_D)
    passed = channel_vector(skip, group, d, is_d, D, BLOCK_D)
    columns = (d, n, is_d, is_n)

    # Forward through the chunk, keeping the states before every KEPT-th step.
    neighbor = (pair.to(tl.int64) * (chunks - 1) + chunk) * (N * D)
    h = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    if starts is not None:
        h = tl.load(starts + neighbor - N * D + in_block, mask=inside & (in_block * 0 + chunk > 0), other=0.0)
    kept = kept + (pair.to(tl.int64) * chunks_here + here) * (CHUNK // KEPT * N * D) + in_block
    t = chunk * CHUNK
    spot = place(path, t)
    sources = ((delta, u), (delta_row, u_row), (B,), (B_row,))
    coming, _, spot = load_ahead(sources, None, 0, path, spot, t, length, columns, KEPT, False)
    for segment in range(CHUNK // KEPT):
        tl.store(kept + segment * (N * D), h, mask=inside)
        present = coming
        coming, _, spot = load_ahead(sources, None, 0, path, spot, t + KEPT, length, columns, KEPT, False)
        for j in tl.static_range(KEPT):
            delta2 = time_step(present[3 * j] + shift, until(d, is_d, t + j, length), SOFTPLUS)
            h = updated(h, delta2, rates, present[3 * j + 1], present[3 * j + 2])
        t += KEPT

    # Backward, KEPT steps at a time; tuples hold the latest step first. A thread may load what another one stored.
    tl.debug_barrier()
    carried = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    if leaving is not None:
        carried = tl.load(leaving + neighbor + in_block, mask=inside & (in_block * 0 + chunk < chunks - 1), other=0.0)
    dA = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    dskip, dbias = tl.zeros((BLOCK_D,), tl.float32), tl.zeros((BLOCK_D,), tl.float32)
    parts = ((block * (tl.num_programs(1)) + pair).to(tl.int64) * chunks_here + here) * (CHUNK * N)
    t = (chunk + 1) * CHUNK - 1
    spot = place(path, t)
    sources = ((delta, u, dout), (delta_row, u_row, dout_row), (B, C), (B_row, C_row))
    coming, coming_rows, spot = load_ahead(sources, z, z_row, path, spot, t, length, columns, KEPT, True)
    for backward_segment in range(CHUNK // KEPT):
        segment = CHUNK // KEPT - 1 - backward_segment
        h = tl.load(kept + segment * (N * D), mask=inside, other=0.0)
        present, rows = coming, coming_rows
        coming, coming_rows, spot = load_ahead(sources, z, z_row, path, spot, t - KEPT, length, columns, KEPT, True)
        states, deltas = (), ()
        for j in tl.static_range(KEPT - 1, -1, -1):
            delta2 = time_step(present[OPERANDS * j] + shift, until(d, is_d, t - j, length), SOFTPLUS)
            states, deltas = states + (h,), deltas + (delta2,)
            if j > 0:
                h = updated(h, delta2, rates, present[OPERANDS * j + 1], present[OPERANDS * j + 3])
        for j in tl.static_range(KEPT):
            now_d = until(d, is_d, t - j, length)
            before, row_j, delta2 = states[KEPT - 1 - j], rows[j], deltas[KEPT - 1 - j]
            token, dy = present[OPERANDS * j + 1], present[OPERANDS * j + 2]
            written, read = present[OPERANDS * j + 3], present[OPERANDS * j + 4]
            natural = delta2 * LN_2
            entering = natural * token
            decay = tl.exp2(delta2[None, :] * rates)
            after = decay * before + entering[None, :] * written[:, None]
            if z is not None:
                gate = present[OPERANDS * j + 5]
                opened = sigmoid(gate)
                y = tl.sum(after * read[:, None], 0) + passed * token
                store_row(dz, row_j, grad_row, d, dy * y * opened * (1.0 + gate * (1.0 - opened)), now_d)
                dy *= gate * opened
            dh = carried + read[:, None] * dy[None, :]
            carried = decay * dh
            by_decay = carried * before
            by_entering = tl.sum(dh * written[:, None], 0)
            dnatural = by_entering * token + tl.sum(by_decay * rates, 0)
            if SOFTPLUS:
                dnatural *= sigmoid(present[OPERANDS * j] + shift)
            store_row(du, row_j, grad_row, d, by_entering * natural + passed * dy, now_d)
            store_row(ddelta, row_j, grad_row, d, dnatural, now_d)
            at = parts + (segment * KEPT + KEPT - 1 - j) * N + n
            tl.store(dB_parts + at, tl.sum(dh * entering[None, :], 1), mask=is_n)
            tl.store(dC_parts + at, tl.sum(after * dy[None, :], 1), mask=is_n)
            dA += by_decay * natural[None, :]
            dskip += dy * token
            dbias += tl.where(now_d, dnatural, 0.0)
        t -= KEPT
    shared = shared_parts + (pair.to(tl.int64) * chunks + chunk) * ((N + 2) * D)
    tl.store(shared + in_block, dA, mask=inside)
    tl.store(shared + N * D + d, dskip, mask=is_d)
    tl.store(shared + (N + 1) * D + d, dbias, mask=is_d)


@kernel
def join_parts(
    parts,
    dB,
    dC,
    paths,
    joined_group,
    joined_batch,
    joined_row,
    batch,
    length,
    first,
    here,
    blocks,
    N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Add the blocks' parts of dB and dC, and put each position's row where its token is.

    `parts` is (2, blocks, directions x batch, here, N), dB's first, for positions first ... first + here - 1. dB and dC share
    their steps. Grid: (blocks of positions, directions x batch, 2).
    """
    pair, which = tl.program_id(1), tl.program_id(2)
    group, entry = pair // batch, pair % batch
    path = read_path(paths + group * NUMBERS)
    offset = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    n = tl.arange(0, BLOCK_N)
    inside = ((offset < here) & (first + offset < length))[:, None] & (n < N)[None, :]
    row, _, _ = place(path, first + offset)
    total = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
    for block in range(blocks):
        base = ((which * blocks + block) * tl.num_programs(1) + pair).to(tl.int64) * here
        total += tl.load(parts + (base + offset)[:, None] * N + n[None, :], mask=inside, other=0.0)
    at = row[:, None].to(tl.int64) * joined_row + n[None, :]
    # Two names: dB and dC may differ in type, and a variable that both branches set may not.
    if which == 0:
        written = group_base(dB, joined_group, joined_batch, group, entry)
        tl.store(written + at, total.to(dB.dtype.element_ty), mask=inside)
    else:
        read = group_base(dC, joined_group, joined_batch, group, entry)
        tl.store(read + at, total.to(dC.dtype.element_ty), mask=inside)
