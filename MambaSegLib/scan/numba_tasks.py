"""How one scan is divided among threads, and the arrays its tasks share."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from MambaSegLib.scan.numba_backward import Gradients, scan_backward
from MambaSegLib.scan.numba_chunks import leaving_carries, leaving_states
from MambaSegLib.scan.numba_forward import scan_forward
from MambaSegLib.scan.numba_tiles import GROUP, TILE, Part, Problem, Rows
from MambaSegLib.scan.parallel import Task, run_tasks
from MambaSegLib.scan.paths import Array
from MambaSegLib.scan.vector_ir import LANES

BLOCKS_PER_TASK = 4
"""Neighboring blocks of 16 channels that one task owns, if there are enough: a task that reads less than 256 bytes of a
row shares its memory pages with others, which costs twice the time on long sequences."""
LONG_SEQUENCE = 16384
"""Tokens from which on the backward pass divides the sequence, not the channels: then no task needs a B and C gradient of
its own over the whole sequence."""
SHARED_GRADIENT_BYTES = 256 << 20
"""What the gradients of B and C, one per task, may take on a shorter one, however many threads there are."""
SHORTEST_CHUNK = 4096
"""Tokens of a chunk below which what crosses between chunks costs more than another thread brings."""
FREE_CHECKPOINT_BYTES = 32 << 20
"""Checkpoints are as dense as the backward pass can use while they take no more than this."""
CHECKPOINT_SHARE = 0.15
"""Beyond, the most memory they take as a share of u."""


class Operands(NamedTuple):
    """Tensors of a scan as rows, (B, L, D) and (B, L, N) float32 with neighboring channels; z may be None."""

    u: Tensor
    delta: Tensor
    b: Tensor
    c: Tensor
    z: Tensor | None


def rows_of(tensor: Tensor | None) -> Rows:
    """Where a tensor lies; the caller keeps it alive."""
    if tensor is None:
        return Rows(0, 0, 0)
    return Rows(tensor.data_ptr(), tensor.stride(0), tensor.stride(1))


def by_rows(tensor: Tensor) -> Tensor:
    """The tensor itself if the values of a token are neighbors, else a copy in which they are."""
    tensor = tensor.detach()
    return tensor if tensor.stride(2) == 1 else tensor.contiguous()


def room_like(rows: Tensor) -> Tensor:
    """Room for rows of the same shape, contiguous, whatever type and device PyTorch makes tensors of by default."""
    return torch.empty_like(rows, memory_format=torch.contiguous_format)


def make_problem(
    operands: Operands, A: Tensor, D: Tensor | None, delta_bias: Tensor | None, softplus: bool, path: Array
) -> Problem:
    """Describe a scan to the kernels: parameters in blocks of 16 channels, filled up with zeros."""
    channels, states = A.shape
    blocks, width = -(-channels // LANES), -(-states // GROUP) * GROUP
    padded = np.zeros((blocks * LANES, width), np.float32)
    padded[:channels, :states] = A.detach().numpy()
    rates = np.ascontiguousarray(padded.reshape(blocks, LANES, width).transpose(0, 2, 1))
    skip, bias = (np.zeros(blocks * LANES, np.float32) for _ in range(2))
    if D is not None:
        skip[:channels] = D.detach().numpy()
    if delta_bias is not None:
        bias[:channels] = delta_bias.detach().numpy()
    u, delta, b, c, z = (rows_of(tensor) for tensor in operands)
    fading = softplus and not bool((rates > 0).any())
    vectors = (skip.reshape(blocks, LANES), bias.reshape(blocks, LANES))
    return Problem(u, delta, z, b, c, channels, states, softplus, fading, path, rates, *vectors)


def unblocked(blocked: Array, problem: Problem) -> Tensor:
    """(..., blocks, N rounded up, 16) as a float32 tensor (..., D, N)."""
    swapped = np.swapaxes(blocked, -1, -2)
    flat = swapped.reshape(*blocked.shape[:-3], -1, blocked.shape[-2])
    return torch.from_numpy(flat[..., : problem.channels, : problem.states].astype(np.float32))


def checkpoint_distance(out: Tensor, states: int) -> int:
    """Positions between checkpoints: a tile while memory is small, farther apart (and slower) on large volumes."""
    if 4 * out.numel() * states // TILE <= FREE_CHECKPOINT_BYTES:
        return TILE
    return TILE * -(-states // int(TILE * CHECKPOINT_SHARE))


def forward_parts(batch: int, blocks: int, length: int, threads: int) -> list[list[Part]]:
    """Chunks of every run of blocks of every batch entry, in sequence order."""
    size = BLOCKS_PER_TASK if length >= LONG_SEQUENCE else max(1, min(BLOCKS_PER_TASK, batch * blocks // threads))
    return _divide(batch, blocks, size, length, threads, TILE)


def backward_parts(batch: int, blocks: int, length: int, threads: int, every: int, most_runs: int) -> list[list[Part]]:
    """As `forward_parts`; chunks start at checkpoints, and a long sequence's task owns all channels.

    Channels are divided into at most `most_runs` runs of blocks.
    """
    runs = 1 if length >= LONG_SEQUENCE else min(most_runs, -(-threads // batch))
    size = -(-blocks // runs)
    return _divide(batch, blocks, size, length, threads, every)


def _divide(batch: int, blocks: int, size: int, length: int, threads: int, multiple: int) -> list[list[Part]]:
    runs = [(entry, first, min(first + size, blocks)) for entry in range(batch) for first in range(0, blocks, size)]
    chunks = _chunk_count(len(runs), length, threads)
    chunk = -(-length // (chunks * multiple)) * multiple
    return [[Part(*run, start, min(start + chunk, length)) for start in range(0, length, chunk)] for run in runs]


def _chunk_count(runs: int, length: int, threads: int) -> int:
    """The fewest chunks that keep all threads busy to the end."""
    most = max(1, length // SHORTEST_CHUNK)
    for chunks in range(1, most):
        tasks = runs * chunks
        if tasks % threads == 0 or tasks >= 4 * threads:
            return chunks
    return most


def run_forward(
    problem: Problem, out: Tensor, every: int, threads: int, initial: Array | None = None
) -> tuple[Array, Array]:
    """Fill `out`, (B, L, D), starting from states `initial` (B, blocks, N rounded up, 16), or from zero.

    Returns:
        The last states (B, blocks, N rounded up, 16), and checkpoints (B, checkpoints, blocks, N rounded up, 16) every
        `every` positions (none if 0).
    """
    batch, length, _ = out.shape
    runs = forward_parts(batch, problem.rates.shape[0], length, threads)
    states = _entering(problem, runs, threads, None, initial)
    count = 0 if every == 0 else -(-length // every)
    checkpoints = np.empty((batch, count, *problem.rates.shape), np.float32)
    target = rows_of(out)
    tasks: list[Task] = [
        partial(scan_forward, problem, target, states[part.batch, number], checkpoints[part.batch], every, part)
        for run in runs
        for number, part in enumerate(run)
    ]
    run_tasks(tasks, threads)
    return states[:, -1], checkpoints


class ScanGradients(NamedTuple):
    """Gradients of the operands as rows, and float64 sums for A, D and delta_bias in blocks."""

    operands: Operands
    rates: Array
    skip: Array
    bias: Array


def run_backward(
    problem: Problem, operands: Operands, dout: Tensor, checkpoints: Array, every: int, threads: int
) -> ScanGradients:
    """All gradients of a scan, from its output's and the checkpoints that `run_forward` made."""
    batch, length, _ = dout.shape
    blocks = problem.rates.shape[0]
    most_runs = max(1, SHARED_GRADIENT_BYTES // (2 * 4 * operands.b.numel()))
    runs = backward_parts(batch, blocks, length, threads, every, most_runs)
    source = rows_of(dout)
    carries = _entering(problem, runs, threads, source)
    du, ddelta = room_like(operands.u), room_like(operands.u)
    dz = None if operands.z is None else room_like(operands.u)
    # Runs of blocks that share B and C write one gradient each; their sum does not depend on which thread was faster.
    shared = len(runs) // batch
    db, dc = (operands.b.new_empty(shared, *operands.b.shape) for _ in range(2))
    tasks: list[Task] = []
    sums = []
    for number, run in enumerate(runs):
        for chunk, part in enumerate(run):
            own = (np.zeros(problem.rates.shape), np.zeros(problem.skip.shape), np.zeros(problem.bias.shape))
            sums.append(own)
            place = number % shared
            shared_rows = (rows_of(db[place]), rows_of(dc[place]))
            gradients = Gradients(rows_of(du), rows_of(ddelta), rows_of(dz), *shared_rows, *own)
            carry = carries[part.batch, chunk]
            tasks.append(
                partial(scan_backward, problem, source, gradients, checkpoints[part.batch], every, carry, part)
            )
    run_tasks(tasks, threads)
    totals = [np.sum(parts, axis=0) for parts in zip(*sums, strict=True)]
    db, dc = (t[0] if shared == 1 else t.sum(0) for t in (db, dc))
    return ScanGradients(Operands(du, ddelta, db, dc, dz), *totals)


def _entering(
    problem: Problem, runs: list[list[Part]], threads: int, dout: Rows | None, initial: Array | None = None
) -> Array:
    """State (or, given the output's gradient, carry) that enters each chunk: (B, chunks, blocks, N rounded up, 16)."""
    batch, chunks = runs[-1][0].batch + 1, len(runs[0])
    leaving = np.zeros((batch, chunks, *problem.rates.shape), np.float32)
    entering = np.zeros_like(leaving)
    if initial is not None:
        entering[:, 0] = initial
    if chunks == 1:
        return entering
    delta_sums = np.zeros((batch, chunks, *problem.skip.shape), np.float32)
    complete = np.zeros((len(runs), chunks), np.int64)
    tasks: list[Task] = []
    for number, run in enumerate(runs):
        for chunk, part in enumerate(run):
            arrays = (leaving[part.batch, chunk], delta_sums[part.batch, chunk], complete[number, chunk : chunk + 1])
            if dout is None and chunk < chunks - 1:
                tasks.append(partial(leaving_states, problem, part, *arrays))
            elif dout is not None and chunk > 0:
                tasks.append(partial(leaving_carries, problem, dout, part, *arrays))
    run_tasks(tasks, threads)
    for number, run in enumerate(runs):
        _, first, end, _, _ = run[0]
        where = (run[0].batch, slice(None), slice(first, end))
        decays = np.exp2(problem.rates[first:end] * delta_sums[where][:, :, None])
        decays[complete[number] == 0] = 0.0
        order = range(chunks - 1) if dout is None else range(chunks - 1, 0, -1)
        step = 1 if dout is None else -1
        mine, left = entering[where], leaving[where]
        for chunk in order:
            mine[chunk + step] = left[chunk] + decays[chunk] * mine[chunk]
    return entering
