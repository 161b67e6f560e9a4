"""Instance normalization in Triton, with what surrounds it: a residual that is added, LeakyReLU, and all gradients.

Maps have "rows": one channel of one batch entry, whose voxels are normalized together. In memory a map is (outer, rows,
voxels), with batch and channels as rows, or with LAST (outer, voxels, rows), with the batch outside and channels as rows. A
program works on a block (ROWS, VOXELS) of it. A "slot" counts rows over the whole map: outer * rows + row; its channel is
slot % channels.

Statistics are float32. Means and squared deviations of pieces are merged as Chan, Golub & LeVeque (1979) describe, in a fixed
order, so equal inputs give equal results to the bit.

Grids: (pieces or blocks of voxels, blocks of rows, outer), unless a kernel says otherwise.
"""

from __future__ import annotations

from typing import Any

import triton.language as tl

from MambaSegLib.scan.triton_steps import jit

VARYING = ("tiles", "pieces", "slots", "per_part")
"""Arguments whose values tell the compiler nothing; sizes of the map do: what divides by 16 is read 16 bytes at a time."""


def kernel(function: Any) -> Any:
    """`jit` for kernels whose `VARYING` vary."""
    return jit(function, VARYING)


@kernel
def _block(start, rows, voxels, ROWS: tl.constexpr, VOXELS: tl.constexpr, LAST: tl.constexpr):
    """A block's offsets in memory, where it is inside of the map, its slots, and which of them exist."""
    first, outer = tl.program_id(1) * ROWS, tl.program_id(2)
    row, voxel = first + tl.arange(0, ROWS), tl.arange(0, VOXELS)
    is_row = row < rows
    inside = is_row[:, None] & (start + voxel < voxels)[None, :]
    if LAST:
        offset = (outer.to(tl.int64) * voxels + start) * rows + (voxel[None, :] * rows + row[:, None])
    else:
        offset = (outer.to(tl.int64) * rows + row)[:, None] * voxels + start + voxel[None, :]
    return offset, inside, outer * rows + row, is_row


@kernel
def _read(x, offset, inside):
    """A block in float32, 0 where not inside."""
    return tl.load(x + offset, mask=inside, other=0.0).to(tl.float32)


@kernel
def _store(x, offset, values, inside):
    """Write a block, rounded to the tensor's type."""
    tl.store(x + offset, values.to(x.dtype.element_ty), mask=inside)


@kernel
def _column(statistic, slot, is_row):
    """A number of each row, as a column."""
    return tl.load(statistic + slot, mask=is_row, other=0.0)[:, None]


@kernel
def _pivot(x, rows, voxels, ROWS: tl.constexpr, LAST: tl.constexpr):
    """First voxel of each row, float32. Means are those of differences from it: exact for a row that is constant."""
    row, outer = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.program_id(2)
    offset = outer.to(tl.int64) * voxels * rows + row if LAST else (outer.to(tl.int64) * rows + row) * voxels
    return _read(x, offset, row < rows)


@kernel
def _deviations(values, pivot, inside, count):
    """Mean of each row of a block, the differences from it, and the sum of their squares."""
    mean = pivot + tl.sum(tl.where(inside, values - pivot[:, None], 0.0), 1) / count
    centered = tl.where(inside, values - mean[:, None], 0.0)
    return mean, centered, tl.sum(centered * centered, 1)


@kernel
def _affine(weight, bias, slot, is_row, channels):
    """Weight and bias of each row, as columns."""
    channel = slot % channels
    return _read(weight, channel, is_row)[:, None], _read(bias, channel, is_row)[:, None]


@kernel
def _write(out, centered, scale, shift, residual, slope, offset, inside, ACTIVATE: tl.constexpr):
    """LeakyReLU(centered * scale + shift + residual), rounded to the type of `out`."""
    result = centered * scale + shift
    if residual is not None:
        result += _read(residual, offset, inside)
    if ACTIVATE:
        result = tl.where(result > 0, result, result * slope)
    _store(out, offset, result, inside)


@kernel
def normalize_whole(
    x,
    residual,
    out,
    mean,
    rstd,
    weight,
    bias,
    rows,
    voxels,
    channels,
    eps,
    slope,
    ROWS: tl.constexpr,
    VOXELS: tl.constexpr,
    LAST: tl.constexpr,
    ACTIVATE: tl.constexpr,
):
    """Everything at once, for rows that fit into registers; `out` may be `x`. Grid: (1, blocks of rows, outer)."""
    offset, inside, slot, is_row = _block(0, rows, voxels, ROWS, VOXELS, LAST)
    values = _read(x, offset, inside)
    count = voxels.to(tl.float32)
    row_mean, centered, squares = _deviations(values, _pivot(x, rows, voxels, ROWS, LAST), inside, count)
    row_rstd = 1.0 / tl.sqrt(squares / count + eps)
    if mean is not None:
        tl.store(mean + slot, row_mean, mask=is_row)
        tl.store(rstd + slot, row_rstd, mask=is_row)
    scale, shift = _affine(weight, bias, slot, is_row, channels)
    _write(out, centered, row_rstd[:, None] * scale, shift, residual, slope, offset, inside, ACTIVATE)


@kernel
def moments(
    x,
    means,
    squares,
    rows,
    voxels,
    tiles,
    slots,
    ROWS: tl.constexpr,
    VOXELS: tl.constexpr,
    LAST: tl.constexpr,
):
    """Mean and sum of squared deviations of a piece of each row, (pieces, slots); a piece is `tiles` blocks long."""
    part, pivot = tl.program_id(0), _pivot(x, rows, voxels, ROWS, LAST)
    count = 0.0
    mean, total = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32)
    for tile in range(part * tiles, tl.minimum((part + 1) * tiles, tl.cdiv(voxels, VOXELS))):
        offset, inside, _, _ = _block(tile * VOXELS, rows, voxels, ROWS, VOXELS, LAST)
        values = _read(x, offset, inside)
        here = tl.minimum(voxels - tile * VOXELS, VOXELS).to(tl.float32)
        tile_mean, _, tile_squares = _deviations(values, pivot, inside, here)
        delta = tile_mean - mean
        share = here / (count + here)
        mean += delta * share
        total += tile_squares + delta * delta * (count * share)
        count += here
    _, _, slot, is_row = _block(0, rows, voxels, ROWS, VOXELS, LAST)
    place = part.to(tl.int64) * slots + slot
    tl.store(means + place, mean, mask=is_row)
    tl.store(squares + place, total, mask=is_row)


@kernel
def _pieces(piece, pieces, slot, is_slot, slots):
    """Where some pieces' numbers lie in (pieces, slots), and which of them exist."""
    return piece.to(tl.int64)[:, None] * slots + slot[None, :], (piece < pieces)[:, None] & is_slot[None, :]


@kernel
def join_moments(
    means, squares, mean, rstd, voxels, pieces, per_part, slots, eps, SLOTS: tl.constexpr, PARTS: tl.constexpr
):
    """Mean and 1 / standard deviation of whole rows, from those of their pieces. Grid: (blocks of slots,)."""
    slot, part = tl.program_id(0) * SLOTS + tl.arange(0, SLOTS), tl.arange(0, PARTS)
    is_slot = slot < slots
    pivot = tl.load(means + slot, mask=is_slot, other=0.0)
    whole = tl.zeros((SLOTS,), tl.float32)
    for first in range(0, pieces, PARTS):
        place, inside = _pieces(first + part, pieces, slot, is_slot, slots)
        here = tl.minimum(voxels - (first + part) * per_part, per_part).to(tl.float32) / voxels
        delta = tl.where(inside, tl.load(means + place, mask=inside, other=0.0) - pivot[None, :], 0.0)
        whole += tl.sum(delta * here[:, None], 0)
    whole += pivot
    total = tl.zeros((SLOTS,), tl.float32)
    for first in range(0, pieces, PARTS):
        place, inside = _pieces(first + part, pieces, slot, is_slot, slots)
        here = tl.minimum(voxels - (first + part) * per_part, per_part).to(tl.float32)
        delta = tl.load(means + place, mask=inside, other=0.0) - whole[None, :]
        found = tl.load(squares + place, mask=inside, other=0.0) + delta * delta * here[:, None]
        total += tl.sum(tl.where(inside, found, 0.0), 0)
    tl.store(mean + slot, whole, mask=is_slot)
    tl.store(rstd + slot, 1.0 / tl.sqrt(total / voxels + eps), mask=is_slot)


@kernel
def normalize(
    x,
    residual,
    out,
    mean,
    rstd,
    weight,
    bias,
    rows,
    voxels,
    channels,
    slope,
    ROWS: tl.constexpr,
    VOXELS: tl.constexpr,
    LAST: tl.constexpr,
    ACTIVATE: tl.constexpr,
):
    """Normalize with known statistics; `out` may be `x`."""
    offset, inside, slot, is_row = _block(tl.program_id(0) * VOXELS, rows, voxels, ROWS, VOXELS, LAST)
    values = _read(x, offset, inside)
    centered = values - _column(mean, slot, is_row)
    scale, shift = _affine(weight, bias, slot, is_row, channels)
    scale *= _column(rstd, slot, is_row)
    _write(out, centered, scale, shift, residual, slope, offset, inside, ACTIVATE)


@kernel
def _gradient(dout, out, centered, scale, shift, slope, offset, inside, ACTIVATE: tl.constexpr):
    """Gradient before the activation: LeakyReLU kept the sign, which is read from `out` or, without one, computed again."""
    gradient = _read(dout, offset, inside)
    if ACTIVATE:
        signed = _read(out, offset, inside) if out is not None else centered * scale + shift
        gradient = tl.where(signed > 0, gradient, gradient * slope)
    return gradient


@kernel
def gradients_whole(
    x,
    dout,
    out,
    mean,
    rstd,
    weight,
    bias,
    dx,
    dresidual,
    sums,
    products,
    rows,
    voxels,
    channels,
    slope,
    ROWS: tl.constexpr,
    VOXELS: tl.constexpr,
    LAST: tl.constexpr,
    ACTIVATE: tl.constexpr,
):
    """All gradients at once, for rows that fit into registers; sums as in `gradient_sums`. Grid: (1, blocks of rows, outer)."""
    offset, inside, slot, is_row = _block(0, rows, voxels, ROWS, VOXELS, LAST)
    values = _read(x, offset, inside)
    centered = values - _column(mean, slot, is_row)
    spread = _column(rstd, slot, is_row)
    scale, shift = _affine(weight, bias, slot, is_row, channels)
    gradient = _gradient(dout, out, centered, spread * scale, shift, slope, offset, inside, ACTIVATE)
    normal = centered * spread
    total, product = tl.sum(gradient, 1), tl.sum(tl.where(inside, gradient * normal, 0.0), 1)
    tl.store(sums + slot, total, mask=is_row)
    tl.store(products + slot, product, mask=is_row)
    if dresidual is not None:
        _store(dresidual, offset, gradient, inside)
    count = voxels.to(tl.float32)
    through = gradient - (total / count)[:, None] - normal * (product / count)[:, None]
    _store(dx, offset, through * (spread * scale), inside)


@kernel
def gradient_sums(
    x,
    dout,
    out,
    mean,
    rstd,
    weight,
    bias,
    dresidual,
    sums,
    products,
    rows,
    voxels,
    channels,
    slope,
    tiles,
    slots,
    ROWS: tl.constexpr,
    VOXELS: tl.constexpr,
    LAST: tl.constexpr,
    ACTIVATE: tl.constexpr,
):
    """Sums of a piece of each row, (pieces, slots): of the gradient before the activation, and of it times the normalized map.

    That gradient is the residual's, and is written if there is one.
    """
    part = tl.program_id(0)
    offset, inside, slot, is_row = _block(0, rows, voxels, ROWS, VOXELS, LAST)
    average = _column(mean, slot, is_row)
    spread = _column(rstd, slot, is_row)
    scale, shift = _affine(weight, bias, slot, is_row, channels)
    total, product = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32)
    for tile in range(part * tiles, tl.minimum((part + 1) * tiles, tl.cdiv(voxels, VOXELS))):
        offset, inside, slot, is_row = _block(tile * VOXELS, rows, voxels, ROWS, VOXELS, LAST)
        centered = _read(x, offset, inside) - average
        gradient = _gradient(dout, out, centered, spread * scale, shift, slope, offset, inside, ACTIVATE)
        if dresidual is not None:
            _store(dresidual, offset, gradient, inside)
        total += tl.sum(gradient, 1)
        product += tl.sum(tl.where(inside, gradient * centered * spread, 0.0), 1)
    place = part.to(tl.int64) * slots + slot
    tl.store(sums + place, total, mask=is_row)
    tl.store(products + place, product, mask=is_row)


@kernel
def join_sums(part_sums, part_products, sums, products, pieces, slots, SLOTS: tl.constexpr, PARTS: tl.constexpr):
    """Sums of whole rows from those of their pieces. Grid: (blocks of slots,)."""
    slot, part = tl.program_id(0) * SLOTS + tl.arange(0, SLOTS), tl.arange(0, PARTS)
    is_slot = slot < slots
    total, product = tl.zeros((SLOTS,), tl.float32), tl.zeros((SLOTS,), tl.float32)
    for first in range(0, pieces, PARTS):
        place, inside = _pieces(first + part, pieces, slot, is_slot, slots)
        total += tl.sum(tl.load(part_sums + place, mask=inside, other=0.0), 0)
        product += tl.sum(tl.load(part_products + place, mask=inside, other=0.0), 0)
    tl.store(sums + slot, total, mask=is_slot)
    tl.store(products + slot, product, mask=is_slot)


@kernel
def gradients(
    x,
    dout,
    mean,
    rstd,
    weight,
    bias,
    dx,
    sums,
    products,
    rows,
    voxels,
    channels,
    slope,
    ROWS: tl.constexpr,
    VOXELS: tl.constexpr,
    LAST: tl.constexpr,
    ACTIVATE: tl.constexpr,
):
    """Gradient of x. With a residual, `dout` is the gradient `gradient_sums` wrote, and ACTIVATE false."""
    offset, inside, slot, is_row = _block(tl.program_id(0) * VOXELS, rows, voxels, ROWS, VOXELS, LAST)
    centered = _read(x, offset, inside) - _column(mean, slot, is_row)
    spread = _column(rstd, slot, is_row)
    scale, shift = _affine(weight, bias, slot, is_row, channels)
    gradient = _gradient(dout, None, centered, spread * scale, shift, slope, offset, inside, ACTIVATE)
    count = voxels.to(tl.float32)
    average, slant = _column(sums, slot, is_row) / count, _column(products, slot, is_row) / count
    through = gradient - average - centered * spread * slant
    _store(dx, offset, through * (spread * scale), inside)
