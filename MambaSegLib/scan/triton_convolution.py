"""The causal depthwise convolution in Triton, with SiLU, and its gradients: every tap finds its token by index.

Grid: (blocks of positions x blocks of channels, directions x batch). Weights are (directions, K, D), rows as in
`triton_forward`.
"""

from __future__ import annotations

import triton.language as tl

from MambaSegLib.scan.triton_steps import PATH_NUMBERS, group_base, kernel, place, read_path, sigmoid

NUMBERS = tl.constexpr(PATH_NUMBERS)


@kernel
def _tokens(base, path, row_step, t, length, d, is_d):
    """Tokens (positions, channels) in float32; zeros before the first and behind the last."""
    row, _, _ = place(path, tl.maximum(t, 0))
    inside = ((t >= 0) & (t < length))[:, None] & is_d[None, :]
    return tl.load(base + row[:, None].to(tl.int64) * row_step + d[None, :], mask=inside, other=0.0).to(tl.float32)


@kernel
def convolve(
    x,
    weight,
    bias,
    out,
    paths,
    x_group,
    x_batch,
    x_row,
    out_group,
    out_batch,
    out_row,
    batch,
    length,
    D: tl.constexpr,
    K: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """out_t = silu(bias + sum_k weight_k x_{t - K + 1 + k})."""
    blocks = tl.cdiv(D, BLOCK_D)
    pair = tl.program_id(1)
    group, entry = pair // batch, pair % batch
    t = (tl.program_id(0) // blocks) * BLOCK_T + tl.arange(0, BLOCK_T)
    d = (tl.program_id(0) % blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    is_d = d < D
    x = group_base(x, x_group, x_batch, group, entry)
    out = group_base(out, out_group, out_batch, group, entry)
    path = read_path(paths + group * NUMBERS)
    total = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    if bias is not None:
        total += tl.load(bias + group * D + d, mask=is_d, other=0.0)[None, :]
    for k in tl.static_range(K):
        tap = tl.load(weight + (group * K + k) * D + d, mask=is_d, other=0.0)
        total += tap[None, :] * _tokens(x, path, x_row, t - (K - 1) + k, length, d, is_d)
    if SILU:
        total *= sigmoid(total)
    row, _, _ = place(path, t)
    inside = (t < length)[:, None] & is_d[None, :]
    tl.store(out + row[:, None].to(tl.int64) * out_row + d[None, :], total.to(out.dtype.element_ty), mask=inside)


@kernel
def convolve_gradients(
    x,
    weight,
    bias,
    dout,
    dx,
    dweight_parts,
    dbias_parts,
    paths,
    x_group,
    x_batch,
    x_row,
    dout_group,
    dout_batch,
    dout_row,
    dx_group,
    dx_batch,
    dx_row,
    batch,
    length,
    D: tl.constexpr,
    K: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Gradients; those of weight and bias as parts per block of positions, (directions x batch, blocks, K, D) and (..., D).

    The sum before SiLU is computed again instead of kept: for the block's own positions and the K - 1 behind them, whose
    gradients reach back into the block.
    """
    blocks = tl.cdiv(D, BLOCK_D)
    pair = tl.program_id(1)
    group, entry = pair // batch, pair % batch
    time_block = tl.program_id(0) // blocks
    t = time_block * BLOCK_T + tl.arange(0, BLOCK_T)
    d = (tl.program_id(0) % blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    is_d = d < D
    x = group_base(x, x_group, x_batch, group, entry)
    dout = group_base(dout, dout_group, dout_batch, group, entry)
    dx = group_base(dx, dx_group, dx_batch, group, entry)
    path = read_path(paths + group * NUMBERS)
    slot = (pair.to(tl.int64) * tl.cdiv(length, BLOCK_T) + time_block) * D
    shift = tl.zeros((BLOCK_D,), tl.float32)
    if bias is not None:
        shift = tl.load(bias + group * D + d, mask=is_d, other=0.0)
    total = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    tokens = ()
    for offset in tl.static_range(2 * K - 1):
        tokens = tokens + (_tokens(x, path, x_row, t - (K - 1) + offset, length, d, is_d),)
    for ahead in tl.static_range(K):
        gradient = _tokens(dout, path, dout_row, t + ahead, length, d, is_d)
        if SILU:
            before = tl.zeros((BLOCK_T, BLOCK_D), tl.float32) + shift[None, :]
            for k in tl.static_range(K):
                tap = tl.load(weight + (group * K + k) * D + d, mask=is_d, other=0.0)
                before += tap[None, :] * tokens[ahead + k]
            opened = sigmoid(before)
            gradient *= opened * (1.0 + before * (1.0 - opened))
        reaching = tl.load(weight + (group * K + (K - 1 - ahead)) * D + d, mask=is_d, other=0.0)
        total += reaching[None, :] * gradient
        if ahead == 0:
            tl.store(dbias_parts + slot + d, tl.sum(gradient, 0), mask=is_d)
            for k in tl.static_range(K):
                tl.store(dweight_parts + slot * K + k * D + d, tl.sum(gradient * tokens[k], 0), mask=is_d)
    row, _, _ = place(path, t)
    inside = (t < length)[:, None] & is_d[None, :]
    tl.store(dx + row[:, None].to(tl.int64) * dx_row + d[None, :], total.to(dx.dtype.element_ty), mask=inside)
