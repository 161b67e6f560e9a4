"""A whole Mamba block for prediction on a CPU, streamed: a few thousand tokens at a time go through all of it.

Projections, convolution, scan and gate of one stretch of the scan stay in the processor's caches, and no tensor as long as
the volume is made but the result. The states and the convolution's last inputs pass from one stretch to the next.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from MambaSegLib.scan import numba_conv_tasks, numba_tasks
from MambaSegLib.scan.arguments import BlockWeights
from MambaSegLib.scan.numba_conv import Taps
from MambaSegLib.scan.numba_tiles import Problem, fill_rows
from MambaSegLib.scan.order import NATURAL_ORDER, ScanOrder
from MambaSegLib.scan.paths import Array, Grid, path_numbers
from MambaSegLib.scan.vector_ir import LANES

STRETCH = 8192
"""Tokens per stretch and thread that the blocks of channels leave idle; 2 MiB of buffer per 64 channels."""


class _Buffers(NamedTuple):
    """One stretch of everything between the projections; the first K - 1 rows of xz and u belong to the stretch before."""

    xz: Tensor
    u: Tensor
    projected: Tensor
    delta: Tensor
    y: Tensor


def stream_block(tokens: Tensor, weights: BlockWeights, grid: Grid, order: ScanOrder, stretch: int = STRETCH) -> Tensor:
    """Run a Mamba block on float32 tokens (B, L, C) in memory order, without gradients; the result is in memory order."""
    threads = torch.get_num_threads()
    channels, taps = weights.conv.shape
    stretch = min(stretch * max(1, threads // -(-channels // LANES)), tokens.shape[1])
    room = stretch + taps - 1
    projected = weights.x_proj.shape[0]
    sizes = ((room, 2 * channels), (room, channels), (stretch, projected), (stretch, channels), (stretch, channels))
    buffers = _Buffers(*(tokens.new_empty(size) for size in sizes))
    problem = _problem(weights, buffers, taps - 1)
    convolution = numba_conv_tasks.make_taps(weights.conv, weights.conv_bias, True, _straight(room))
    path = path_numbers(grid, order)
    result = torch.empty_like(tokens, memory_format=torch.contiguous_format)
    for entry, target in zip(tokens, result, strict=True):
        states = np.zeros((1, *problem.rates.shape), np.float32)
        buffers.xz[: taps - 1] = 0.0
        for start in range(0, len(entry), stretch):
            stop = min(start + stretch, len(entry))
            if order == NATURAL_ORDER:
                part = entry[start:stop]
                target[start:stop], states = _run_stretch(part, weights, buffers, convolution, problem, states, threads)
                continue
            where = _tokens_at(path, start, stop)
            mixed, states = _run_stretch(
                entry.index_select(0, where), weights, buffers, convolution, problem, states, threads
            )
            target.index_copy_(0, where, mixed)
    return result


def _straight(length: int) -> Array:
    return path_numbers((1, 1, length), NATURAL_ORDER)


def _tokens_at(path: Array, start: int, stop: int) -> Tensor:
    rows = np.empty(stop - start, np.int64)
    fill_rows(path, start, stop - start, rows)
    return torch.from_numpy(rows)


def _problem(weights: BlockWeights, buffers: _Buffers, before: int) -> Problem:
    """The scan of one stretch; it reads B and C inside the projection, and the gate beside x."""
    channels, states = weights.A.shape
    b, c = buffers.projected[None, :, -2 * states : -states], buffers.projected[None, :, -states:]
    gate = buffers.xz[None, before:, channels:]
    operands = numba_tasks.Operands(buffers.u[None, before:], buffers.delta[None], b, c, gate)
    path = _straight(len(buffers.y))
    return numba_tasks.make_problem(operands, weights.A, weights.D, weights.dt_bias, True, path)


def _run_stretch(
    tokens: Tensor,
    weights: BlockWeights,
    buffers: _Buffers,
    convolution: Taps,
    problem: Problem,
    states: Array,
    threads: int,
) -> tuple[Tensor, Array]:
    """Mixed tokens in scan order, and the states after them; leaves the last inputs where the next stretch looks."""
    count, before = len(tokens), len(buffers.u) - len(buffers.y)
    channels = buffers.u.shape[1]
    end = before + count
    torch.mm(tokens, weights.in_proj.T, out=buffers.xz[before:end])
    x, u = buffers.xz[None, :end, :channels], buffers.u[None, :end]
    numba_conv_tasks.run_forward(convolution, x, threads, u)
    projected = buffers.projected[:count]
    torch.mm(buffers.u[before:end], weights.x_proj.T, out=projected)
    torch.mm(projected[:, : weights.dt_proj.shape[1]], weights.dt_proj.T, out=buffers.delta[:count])
    y = buffers.y[:count]
    states, _ = numba_tasks.run_forward(problem, y[None], 0, threads, states)
    buffers.xz[:before] = buffers.xz[count:end].clone()  # the clone: a last stretch may be shorter than K - 1
    return y @ weights.out_proj.T, states
