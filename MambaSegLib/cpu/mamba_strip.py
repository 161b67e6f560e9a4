"""One stretch of a Mamba layer's scan, a tile of tokens at a time through the whole layer.

T(x): x1 = out_proj(scan(...)) + x, then head(LN(x1)) + x1, as `networks.mamba.MambaLayer` has it. Between reading a token
and writing its result nothing leaves the first two levels of cache.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from MambaSegLib.cpu.pixelwise import copy_row
from MambaSegLib.cpu.products import PANEL, ROWS, multiply_rows
from MambaSegLib.cpu.token_kernels import add_residual, gelu_rows, normalize_tokens, write_residual
from MambaSegLib.scan.numba_conv import USUAL_TAPS, convolve_any_silu, convolve_four_silu
from MambaSegLib.scan.numba_forward import advance_fading, finish_gated, prepare_softplus
from MambaSegLib.scan.numba_tiles import GROUP, ROW_BYTES, TILE_BYTES, fill_rows, row_buffers
from MambaSegLib.scan.paths import Array
from MambaSegLib.scan.vector_ir import LANES, address_of, compiled, keep

STEPS = TILE_BYTES // ROW_BYTES // ROWS * ROWS
"""Tokens per tile: whole groups of rows, and no more than the scan's kernels have room for."""
FORGOTTEN = -27.0
"""Base-2 logarithm of a decay that float32 arithmetic cannot tell from zero."""


class LayerNorm(NamedTuple):
    """Weight, bias and a 1 for every channel in use (channels rounded up,), and (1 / channels, epsilon)."""

    weight: Array
    bias: Array
    used: Array
    constants: Array


class LayerWeights(NamedTuple):
    """Parameters of `networks.mamba.MambaLayer`; matrices in panels, see `products.packed_panels`.

    Attributes:
        outer: Normalization before anything else.
        has_outer: Whether there is one.
        norm1: Before the Mamba block.
        norm2: Before the head.
        in_proj: Channels to (x, z), each of D rounded up.
        taps: (blocks, K, 16): of the causal convolution, oldest first.
        taps_bias: (blocks, 16).
        x_proj: D to (time step, B, C), each rounded up; see `rank` and `states`.
        dt_proj: Time step to D.
        dt_bias: (blocks, 16).
        rates: A, (blocks, N rounded up, 16); where there is no state or channel, that of a neighbor.
        skip: D's skip connection, (blocks, 16).
        out_proj: D to channels.
        head1: Channels to channels.
        head1_bias: Its bias.
        head2: The same, after a GELU; only with `is_mlp`.
        head2_bias: Its bias.
        is_mlp: Whether the head has two layers.
        rank: Width of the time step inside x_proj's output, rounded up.
    """

    outer: LayerNorm
    has_outer: bool
    norm1: LayerNorm
    norm2: LayerNorm
    in_proj: Array
    taps: Array
    taps_bias: Array
    x_proj: Array
    dt_proj: Array
    dt_bias: Array
    rates: Array
    skip: Array
    out_proj: Array
    head1: Array
    head1_bias: Array
    head2: Array
    head2_bias: Array
    is_mlp: bool
    rank: int


@compiled
def _matrix(panels: Array, rows: Array, out: Array, row_stride: int) -> None:
    """out[:, :] = rows @ panels for `STEPS` rows; `rows` may start inside a wider buffer."""
    depth, zero = panels.shape[1], np.zeros(1, np.int64)
    for panel in range(panels.shape[0]):
        weights = address_of(panels[panel])
        for first in range(0, STEPS, ROWS):
            source = address_of(rows) + 4 * first * row_stride
            target = address_of(out) + 4 * (first * out.shape[1] + panel * PANEL)
            multiply_rows((1, address_of(zero), depth, source, row_stride, weights, target, out.shape[1]))
    keep((zero,))


@compiled
def _layer_norm(norm: LayerNorm, steps: int, rows: int, source: int, stride: int, out: Array) -> None:
    width = norm.weight.shape[0]
    normalize_tokens(
        (
            steps, width // LANES, rows, source, stride, address_of(norm.constants), address_of(norm.weight),
            address_of(norm.bias), address_of(norm.used), address_of(out), out.shape[1],
        )
    )  # fmt: skip


@compiled
def _convolve(weights: LayerWeights, steps: int, xz: Array, u: Array, counting: int) -> None:
    """SiLU of the causal convolution; `xz` begins K - 1 tokens early."""
    taps = weights.taps.shape[1]
    for block in range(weights.taps.shape[0]):
        arguments = (
            steps, taps, address_of(weights.taps[block]), address_of(weights.taps_bias[block]), counting,
            address_of(xz) + block * ROW_BYTES, xz.shape[1], counting, address_of(u) + block * ROW_BYTES, u.shape[1],
        )  # fmt: skip
        if taps == USUAL_TAPS:
            convolve_four_silu(arguments)
        else:
            convolve_any_silu(arguments)


@compiled
def _scan(
    weights: LayerWeights, steps: int, u: Array, delta: Array, projected: Array, z: int, z_stride: int, y: Array,
    states: Array, delta_sums: Array, tiles: Array, counting: int, warming: bool,
) -> None:  # fmt: skip
    """The selective scan of a tile and its gate; while warming up, sums of delta / ln 2 instead of the gate."""
    width = weights.rates.shape[1]
    b_at = address_of(projected) + 4 * weights.rank
    tile = address_of(tiles)
    for block in range(weights.rates.shape[0]):
        offset = block * ROW_BYTES
        prepare_softplus(
            (
                steps, counting, address_of(u) + offset, u.shape[1], address_of(delta) + offset, delta.shape[1],
                address_of(weights.dt_bias[block]), address_of(weights.skip[block]), tile, tile + TILE_BYTES,
                tile + 2 * TILE_BYTES,
            )
        )  # fmt: skip
        for n in range(0, width, GROUP):
            advance_fading(
                (
                    steps, address_of(weights.rates[block, n]), address_of(states[block, n]), b_at + 4 * n,
                    b_at + 4 * (width + n), projected.shape[1], tile, tile + TILE_BYTES, tile + 2 * TILE_BYTES,
                )
            )  # fmt: skip
        if warming:
            for step in range(steps):
                for lane in range(LANES):
                    delta_sums[block, lane] += tiles[0, step, lane]
        else:
            finish_gated(
                (
                    steps, counting, tile + 2 * TILE_BYTES, z + offset, z_stride, address_of(y) + offset, y.shape[1],
                )
            )  # fmt: skip


@compiled
def _all_forgotten(weights: LayerWeights, delta_sums: Array) -> bool:
    """Whether nothing from before the given sums survives in any state."""
    blocks, width, _ = weights.rates.shape
    for block in range(blocks):
        for n in range(width):
            for lane in range(LANES):
                # Written so that a NaN counts as remembered.
                if not weights.rates[block, n, lane] * delta_sums[block, lane] < FORGOTTEN:
                    return False
    return True


@compiled
def run_stretch(
    weights: LayerWeights, path: Array, x: Array, out: Array, accumulate: bool, start: int, stop: int,
    warm: int, states: Array, delta_sums: Array,
) -> bool:  # fmt: skip
    """Run the layer over positions `start` to before `stop` of a scan.

    Args:
        weights: The layer.
        path: See `numba_tiles.fill_rows`.
        x: (tokens, channels rounded up) in memory order.
        out: The same, written at the tokens of the stretch.
        accumulate: Whether results are added to what `out` holds.
        start: First position, a multiple of `STEPS`.
        stop: Position after the last.
        warm: Positions before `start` that are run first, for the states only; all there are, or a multiple of `STEPS`.
        states: (blocks, N rounded up, 16) of zeros; afterwards what the stretch leaves.
        delta_sums: (blocks, 16) of zeros; afterwards the sums of delta / ln 2 over all but the first warm-up tile.

    Returns:
        False, with nothing written, if what came before the warm-up would have changed the states.
    """
    before = weights.taps.shape[1] - 1
    inner, channels = weights.taps.shape[0] * LANES, x.shape[1]
    tokens, rows_ = row_buffers(STEPS + before)
    residual, normed = np.zeros((STEPS, channels), np.float32), np.zeros((STEPS, channels), np.float32)
    xz = np.zeros((STEPS + before, weights.in_proj.shape[0] * PANEL), np.float32)
    u = np.zeros((STEPS, inner), np.float32)
    projected = np.zeros((STEPS, weights.x_proj.shape[0] * PANEL), np.float32)
    delta = np.zeros((STEPS, weights.dt_proj.shape[0] * PANEL), np.float32)
    y = np.zeros((STEPS, inner), np.float32)
    wide = weights.out_proj.shape[0] * PANEL
    mixed, head = np.zeros((STEPS, wide), np.float32), np.zeros((STEPS, wide), np.float32)
    head2, tiles = np.zeros((STEPS, wide), np.float32), np.zeros((3, TILE_BYTES // ROW_BYTES, LANES), np.float32)
    no_bias, vectors = np.zeros(channels, np.float32), channels // LANES
    listed, counting = address_of(tokens), address_of(rows_)
    first = start - warm
    for position in range(first, stop, STEPS):
        warming = position < start
        if position == first + STEPS and warm > 0:
            delta_sums[:] = 0.0  # what the first tile did with wrong inputs must be forgotten, too
        if position == start and 0 < warm < start and not _all_forgotten(weights, delta_sums):
            return False
        steps = min(STEPS, (start if warming else stop) - position)
        fill_rows(path, position, steps, tokens)
        if weights.has_outer:
            _layer_norm(weights.outer, steps, listed, address_of(x), channels, residual)
        else:
            for step in range(steps):
                copy_row(
                    (
                        1,
                        vectors,
                        address_of(x) + 4 * tokens[step] * channels,
                        channels,
                        address_of(residual[step]),
                        channels,
                    )
                )
        _layer_norm(weights.norm1, steps, counting, address_of(residual), channels, normed)
        _matrix(weights.in_proj, normed, xz[before:], channels)
        _convolve(weights, steps, xz, u, counting)
        _matrix(weights.x_proj, u, projected, inner)
        _matrix(weights.dt_proj, projected, delta, projected.shape[1])
        z = address_of(xz[before:]) + 4 * inner
        _scan(weights, steps, u, delta, projected, z, xz.shape[1], y, states, delta_sums, tiles, counting, warming)
        xz[:before] = xz[steps : steps + before].copy()
        if warming:
            continue
        _matrix(weights.out_proj, y, mixed, inner)
        write_residual(
            (
                steps, vectors, address_of(mixed), wide, address_of(residual), channels, address_of(no_bias), counting,
                address_of(mixed), wide,
            )
        )  # fmt: skip
        _layer_norm(weights.norm2, steps, counting, address_of(mixed), wide, normed)
        _matrix(weights.head1, normed, head, channels)
        bias = address_of(weights.head1_bias)
        if weights.is_mlp:
            gelu_rows((steps, vectors, address_of(head), wide, bias))
            _matrix(weights.head2, head, head2, wide)
            bias = address_of(weights.head2_bias)
        arguments = (
            steps, vectors, address_of(head2 if weights.is_mlp else head), wide, address_of(mixed), wide, bias, listed,
            address_of(out), channels,
        )  # fmt: skip
        if accumulate:
            add_residual(arguments)
        else:
            write_residual(arguments)
    keep((tokens, rows_))
    keep((residual, normed, xz, u, projected, delta, y, mixed, head, head2))
    keep((tiles,))
    keep((no_bias,))
    return True


@compiled
def run_chunk(
    weights: LayerWeights, path: Array, x: Array, out: Array, accumulate: bool, start: int, stop: int, warm: int
) -> None:
    """Run the layer over a part of a scan on its own.

    What earlier positions leave in the states is found by running the last `warm` of them, or more where a state
    remembers longer; at worst all.
    """
    states, delta_sums = np.zeros(weights.rates.shape, np.float32), np.zeros(weights.dt_bias.shape, np.float32)
    warm = min(warm // STEPS * STEPS, start)
    while not run_stretch(weights, path, x, out, accumulate, start, stop, warm, states, delta_sums):
        states[:] = 0.0
        delta_sums[:] = 0.0
        warm = min(4 * warm, start)


@compiled
def join_ways(a: Array, b: Array, norm: LayerNorm, out: Array, accumulate: bool, start: int, stop: int) -> None:
    """Write (or add) LN(a + b) of tokens `start` to before `stop`, (tokens, channels rounded up)."""
    channels = a.shape[1]
    tokens, counting = row_buffers(STEPS)
    total, normed = np.zeros((STEPS, channels), np.float32), np.zeros((STEPS, channels), np.float32)
    nothing = np.zeros((STEPS, channels), np.float32)
    vectors = channels // LANES
    for first in range(start, stop, STEPS):
        steps = min(STEPS, stop - first)
        for step in range(steps):
            tokens[step] = first + step
        at, listed = address_of(counting), address_of(tokens)
        write_residual(
            (
                steps, vectors, address_of(a[first]), channels, address_of(b[first]), channels, address_of(nothing), at,
                address_of(total), channels,
            )
        )  # fmt: skip
        _layer_norm(norm, steps, at, address_of(total), channels, normed)
        arguments = (
            steps, vectors, address_of(normed), channels, address_of(nothing), channels, address_of(nothing), listed,
            address_of(out), channels,
        )  # fmt: skip
        if accumulate:
            add_residual(arguments)
        else:
            write_residual(arguments)
    keep((tokens, counting))
    keep((total, normed, nothing))
