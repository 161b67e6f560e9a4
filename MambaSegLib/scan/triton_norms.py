"""LayerNorms of many short rows in Triton, with the sums around them, and their gradients.

A program takes a block of whole rows of C channels into registers: mean and variance cost no second look at memory, and
gradients compute them again instead of reading what was kept. Tensors are contiguous: (groups, rows, C), or (rows, C) where
the directions, here "groups", share them.
"""

from __future__ import annotations

import triton.language as tl

from MambaSegLib.scan.triton_steps import kernel


@kernel
def _block(first, rows, C: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Offsets from the block's first row, and which of them exist."""
    row, column = tl.arange(0, ROWS), tl.arange(0, BLOCK_C)
    return row[:, None] * C + column[None, :], (first + row < rows)[:, None] & (column < C)[None, :]


@kernel
def _read(base, at, inside):
    return tl.load(base + at, mask=inside, other=0.0).to(tl.float32)


@kernel
def _parameter(base, path, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """A path's weight or bias."""
    column = tl.arange(0, BLOCK_C)
    return tl.load(base + path * C + column, mask=column < C, other=0.0)


@kernel
def _write(base, at, values, inside):
    tl.store(base + at, values.to(base.dtype.element_ty), mask=inside)


@kernel
def _normalized(values, inside, eps, C: tl.constexpr):
    """LayerNorm before weight and bias, 0 where nothing is inside; and 1 / standard deviation of each row."""
    mean = tl.sum(values, 1) / C
    centered = tl.where(inside, values - mean[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(centered * centered, 1) / C + eps)
    return centered * scale[:, None], scale


@kernel
def _through_norm(gradient, normalized, scale, C: tl.constexpr):
    """Gradient of a row from that of its LayerNorm before weight and bias."""
    mean = tl.sum(gradient, 1) / C
    along = tl.sum(gradient * normalized, 1) / C
    return (gradient - mean[:, None] - normalized * along[:, None]) * scale[:, None]


@kernel
def add_norm(
    x,
    residual,
    out,
    rows,
    groups,
    eps,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """LN(x + residual). Programs that share rows of the residual follow each other, so that it is read from memory once."""
    group, first = tl.program_id(0) % groups, (tl.program_id(0) // groups).to(tl.int64) * ROWS
    at, inside = _block(first, rows, C, ROWS, BLOCK_C)
    own = (group.to(tl.int64) * rows + first) * C
    values = _read(x + own, at, inside)
    if residual is not None:
        values += _read(residual + first * C, at, inside)
    normalized, _ = _normalized(values, inside, eps, C)
    _write(out + own, at, normalized, inside)


@kernel
def add_norm_gradients(
    x,
    residual,
    dout,
    dx,
    dresidual,
    rows,
    groups,
    eps,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Gradients; the residual's is the sum over groups."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    at, inside = _block(first, rows, C, ROWS, BLOCK_C)
    shared = tl.zeros((ROWS, BLOCK_C), tl.float32)
    if residual is not None:
        shared = _read(residual + first * C, at, inside)
    total = tl.zeros((ROWS, BLOCK_C), tl.float32)
    own = first * C
    for _ in range(groups):
        normalized, scale = _normalized(_read(x + own, at, inside) + shared, inside, eps, C)
        gradient = _through_norm(_read(dout + own, at, inside), normalized, scale, C)
        _write(dx + own, at, gradient, inside)
        total += gradient
        own += rows.to(tl.int64) * C
    if residual is not None:
        _write(dresidual + first * C, at, total, inside)


@kernel
def _path_sum(headed, mixed, shared, own, step, at, inside, EACH: tl.constexpr):
    """Sum of a path's results over its directions; `own` is where the first one begins, `step` leads to the next."""
    total = tl.zeros(shared.shape, tl.float32)
    for direction in tl.static_range(EACH):
        here = own + direction * step
        total += _read(headed + here, at, inside) + (_read(mixed + here, at, inside) + shared)
    return total


@kernel
def sum_paths(
    headed,
    mixed,
    tokens,
    weight,
    bias,
    before,
    total,
    rows,
    path_count,
    eps,
    EACH: tl.constexpr,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """See `row_norms.sum_paths`; EACH is the number of directions of every path."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    at, inside = _block(first, rows, C, ROWS, BLOCK_C)
    shared = _read(tokens + first * C, at, inside)
    step = rows.to(tl.int64) * C
    found = tl.zeros((ROWS, BLOCK_C), tl.float32)
    for path in range(path_count):
        values = _path_sum(headed, mixed, shared, first * C + path * EACH * step, step, at, inside, EACH)
        if weight is not None:
            normalized, _ = _normalized(values, inside, eps, C)
            values = normalized * _parameter(weight, path, C, BLOCK_C)[None, :]
            values += _parameter(bias, path, C, BLOCK_C)[None, :]
        found += values
    if before is not None:
        found += _read(before + first * C, at, inside)
    _write(total + first * C, at, found, inside)


@kernel
def sum_paths_gradients(
    headed,
    mixed,
    tokens,
    weight,
    dtotal,
    dresults,
    dtokens,
    dweight_parts,
    dbias_parts,
    rows,
    path_count,
    eps,
    EACH: tl.constexpr,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Gradients where there is a LayerNorm: of headed and mixed, which are the same, and of tokens.

    Those of weight and bias come as parts per block of rows, (blocks, paths, C) and (blocks, C): every path has the same bias
    gradient.
    """
    first = tl.program_id(0).to(tl.int64) * ROWS
    at, inside = _block(first, rows, C, ROWS, BLOCK_C)
    column = tl.arange(0, BLOCK_C)
    shared = _read(tokens + first * C, at, inside)
    outer = _read(dtotal + first * C, at, inside)
    step = rows.to(tl.int64) * C
    slot = tl.program_id(0).to(tl.int64) * C
    tl.store(dbias_parts + slot + column, tl.sum(outer, 0), mask=column < C)
    summed = tl.zeros((ROWS, BLOCK_C), tl.float32)
    for path in range(path_count):
        own = first * C + path * EACH * step
        values = _path_sum(headed, mixed, shared, own, step, at, inside, EACH)
        normalized, scale = _normalized(values, inside, eps, C)
        tl.store(dweight_parts + slot * path_count + path * C + column, tl.sum(outer * normalized, 0), mask=column < C)
        own_outer = outer * _parameter(weight, path, C, BLOCK_C)[None, :]
        gradient = _through_norm(own_outer, normalized, scale, C)
        for direction in tl.static_range(EACH):
            _write(dresults + own + direction * step, at, gradient, inside)
        summed += EACH * gradient
    _write(dtokens + first * C, at, summed, inside)
