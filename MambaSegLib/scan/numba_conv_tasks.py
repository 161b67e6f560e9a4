"""How one causal convolution is divided among threads, and the arrays its tasks share."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from MambaSegLib.scan.numba_conv import Taps, conv_backward, conv_forward
from MambaSegLib.scan.numba_tasks import room_like, rows_of
from MambaSegLib.scan.numba_tiles import Part
from MambaSegLib.scan.parallel import Task, run_tasks
from MambaSegLib.scan.paths import Array
from MambaSegLib.scan.vector_ir import LANES

TOKENS_PER_TASK = 4096


def make_taps(weight: Tensor, bias: Tensor | None, silu: bool, path: Array) -> Taps:
    """Describe a convolution to the kernels: parameters in blocks of 16 channels, filled up with zeros."""
    channels, count = weight.shape
    blocks = -(-channels // LANES)
    weights, offsets = np.zeros((blocks * LANES, count), np.float32), np.zeros(blocks * LANES, np.float32)
    weights[:channels] = weight.detach().numpy()
    if bias is not None:
        offsets[:channels] = bias.detach().numpy()
    by_block = np.ascontiguousarray(weights.reshape(blocks, LANES, count).transpose(0, 2, 1))
    return Taps(channels, path, by_block, offsets.reshape(blocks, LANES), silu)


def run_forward(taps: Taps, x: Tensor, threads: int, out: Tensor | None = None) -> Tensor:
    """Convolve rows (B, L, D), into `out` if given."""
    out = room_like(x) if out is None else out
    source, target = rows_of(x), rows_of(out)
    tasks: list[Task] = [partial(conv_forward, taps, source, target, part) for part in _parts(taps, x.shape, threads)]
    run_tasks(tasks, threads)
    return out


def run_backward(taps: Taps, x: Tensor, dout: Tensor, threads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x as rows, of the weights (D, K) and of the bias (D,)."""
    dx = room_like(x)
    parts = _parts(taps, x.shape, threads)
    weight_sums, bias_sums = (np.zeros((len(parts), *array.shape)) for array in (taps.weights, taps.bias))
    tasks: list[Task] = [
        partial(conv_backward, taps, rows_of(x), rows_of(dout), rows_of(dx), weight_sums[i], bias_sums[i], part)
        for i, part in enumerate(parts)
    ]
    run_tasks(tasks, threads)
    dweight = weight_sums.sum(0).transpose(0, 2, 1).reshape(-1, taps.weights.shape[1])[: taps.channels]
    dbias = bias_sums.sum(0).reshape(-1)[: taps.channels]
    return dx, torch.from_numpy(dweight.astype(np.float32)), torch.from_numpy(dbias.astype(np.float32))


def _parts(taps: Taps, shape: tuple[int, ...], threads: int) -> list[Part]:
    batch, length, _ = shape
    span = length if threads == 1 else TOKENS_PER_TASK
    blocks = taps.bias.shape[0]
    return [
        Part(entry, 0, blocks, first, min(first + span, length))
        for entry in range(batch)
        for first in range(0, length, span)
    ]
