"""From tensors to launches of the Triton kernels: steps in memory, grids, room for intermediate results.

Everything here is about rows: tensors (directions, B, L, K) whose last axis is contiguous. All directions of a layer, each
with a scan order of its own, go into the same launches.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from MambaSegLib.scan import triton_backward, triton_convolution, triton_forward, triton_tuning
from MambaSegLib.scan.order import ScanOrder
from MambaSegLib.scan.paths import Grid
from MambaSegLib.scan.triton_tuning import ScanConfig, pieces, power_of_2

COMMON = {"enable_fp_fusion": True}
"""a b + c in one rounding, whatever this version of Triton does by default."""
CHUNKS_AT_ONCE = 32
"""Chunks `carry` joins in one step."""


class Operands(NamedTuple):
    """What a scan reads: rows, then parameters in float32, A as (directions, N, D), skip and bias as (directions, D)."""

    u: Tensor
    delta: Tensor
    B: Tensor
    C: Tensor
    z: Tensor | None
    A: Tensor
    skip: Tensor | None
    bias: Tensor | None


class Gradients(NamedTuple):
    """In the order of `Operands`; A as (directions, D, N)."""

    u: Tensor
    delta: Tensor
    B: Tensor
    C: Tensor
    z: Tensor | None
    A: Tensor
    skip: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Walk:
    """How the directions go through the volume.

    Attributes:
        grid: (Z, Y, X).
        orders: One per direction.
    """

    grid: Grid
    orders: tuple[ScanOrder, ...]

    def table(self, device: torch.device) -> Tensor:
        """The numbers `triton_steps.read_path` expects, (directions, 6); uploaded once."""
        return path_table(self.grid, self.orders, device)


@lru_cache(maxsize=256)
def path_table(grid: Grid, orders: tuple[ScanOrder, ...], device: torch.device) -> Tensor:
    """See `Walk.table`. Backward is forward from the last voxel with all steps negative."""
    numbers = []
    for order in orders:
        strides = (grid[1] * grid[2], grid[2], 1)
        lengths, steps = [grid[axis] for axis in order.axes], [strides[axis] for axis in order.axes]
        first = grid[0] * grid[1] * grid[2] - 1 if order.backward else 0
        numbers.append([*lengths[1:], *(-step if order.backward else step for step in steps), first])
    return torch.tensor(numbers, dtype=torch.int32).to(device)


def by_rows(rows: Tensor) -> Tensor:
    """Rows as they are, or a copy if their last axis is not contiguous."""
    return rows if rows.stride(-1) == 1 or rows.shape[-1] == 1 else rows.contiguous()


def _steps(rows: Tensor | None) -> tuple[int, int, int]:
    return (0, 0, 0) if rows is None else rows.stride()[:3]  # type: ignore[return-value]


def on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


class _Scan:
    """One scan's sizes, and the arguments its kernels share."""

    def __init__(self, operands: Operands, walk: Walk, softplus: bool, config: ScanConfig) -> None:
        self.operands, self.config = operands, config
        self.groups, self.batch, self.length, self.channels = operands.u.shape
        self.states = operands.A.shape[1]
        self.pairs = self.groups * self.batch
        self.chunks = pieces(self.length, config.chunk)
        self.blocks = pieces(self.channels, config.block_channels)
        self.paths = walk.table(operands.u.device)
        self.constants = {
            "D": self.channels,
            "N": self.states,
            "SOFTPLUS": softplus,
            "CHUNK": config.chunk,
            "BLOCK_N": power_of_2(self.states),
            "num_warps": config.warps,
            **COMMON,
        }

    def room(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.operands.u.device)

    @property
    def boundary_grid(self) -> tuple[int, int]:
        """Of all chunks but one: nothing crosses the end of the last."""
        return (self.chunks - 1) * pieces(self.channels, self.config.boundary_channels), self.pairs

    def boundaries(self) -> tuple[Tensor, Tensor]:
        """Room for what crosses from chunk to chunk, and the sums of delta2."""
        count = self.chunks - 1
        return self.room(self.pairs, count, self.states, self.channels), self.room(self.pairs, count, self.channels)

    def join(self, ends: Tensor, sums: Tensor, backward: bool) -> None:
        block = min(32, power_of_2(self.channels))
        grid = (pieces(self.channels, block), self.pairs, self.states)
        triton_forward.carry[grid](
            ends, sums, self.operands.A, self.batch, self.chunks - 1,
            D=self.channels, N=self.states, BACKWARD=backward, AT_ONCE=CHUNKS_AT_ONCE, BLOCK_D=block, num_warps=4, **COMMON,
        )  # fmt: skip

    def starts(self) -> Tensor | None:
        """States after chunks 0 ... chunks - 2; None if there is but one."""
        if self.chunks == 1:
            return None
        u, delta, B, _, _, A, _, bias = self.operands
        ends, sums = self.boundaries()
        triton_forward.chunk_ends[self.boundary_grid](
            u, delta, B, A, bias, ends, sums, self.paths, *_steps(u), *_steps(delta), *_steps(B),
            self.batch, self.length, self.chunks - 1, UNROLL=self.config.unroll,
            BLOCK_D=self.config.boundary_channels, **self.constants,
        )  # fmt: skip
        self.join(ends, sums, backward=False)
        return ends

    def leaving(self, dout: Tensor) -> Tensor | None:
        """a_t dh_t at the first position of chunks 1 ... chunks - 1; None if there is but one."""
        if self.chunks == 1:
            return None
        _, delta, _, C, z, A, _, bias = self.operands
        ends, sums = self.boundaries()
        triton_backward.chunk_leaving[self.boundary_grid](
            delta, C, z, dout, A, bias, ends, sums, self.paths,
            *_steps(delta), *_steps(C), *_steps(z), *_steps(dout),
            self.batch, self.length, self.chunks - 1, UNROLL=self.config.unroll,
            BLOCK_D=self.config.boundary_channels, **self.constants,
        )  # fmt: skip
        self.join(ends, sums, backward=True)
        return ends


def run_forward(operands: Operands, walk: Walk, softplus: bool) -> tuple[Tensor, Tensor]:
    """Output (directions, B, L, D) in the type of u, and the last states (directions x B, N, D)."""
    u, delta, B, C, z, A, skip, bias = operands
    scan = _Scan(operands, walk, softplus, triton_tuning.config_for("forward", u, A.shape[1]))
    out = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    last = scan.room(scan.pairs, scan.states, scan.channels)
    with on_device_of(u):
        starts = scan.starts()
        triton_forward.chunk_outputs[(scan.chunks * scan.blocks, scan.pairs)](
            u, delta, B, C, z, A, skip, bias, starts, out, last, scan.paths,
            *_steps(u), *_steps(delta), *_steps(B), *_steps(C), *_steps(z), *_steps(out),
            scan.batch, scan.length, scan.chunks, UNROLL=scan.config.unroll,
            BLOCK_D=scan.config.block_channels, **scan.constants,
        )  # fmt: skip
    return out, last


def run_backward(operands: Operands, dout: Tensor, walk: Walk, softplus: bool) -> Gradients:
    """Gradients of everything that was read; the states come from a pass of their own instead of being kept."""
    u, delta, B, C, z, A, skip, bias = operands
    scan = _Scan(operands, walk, softplus, triton_tuning.config_for("backward", u, A.shape[1]))
    du, ddelta = (torch.empty(u.shape, dtype=t.dtype, device=u.device) for t in (u, delta))
    dz = None if z is None else torch.empty(u.shape, dtype=z.dtype, device=u.device)
    dB, dC = (torch.empty(t.shape, dtype=t.dtype, device=u.device) for t in (B, C))
    pairs, chunks, N, D = scan.pairs, scan.chunks, scan.states, scan.channels
    shared_parts = scan.room(pairs, chunks, N + 2, D)
    with on_device_of(u):
        starts, leaving = scan.starts(), scan.leaving(dout)
        at_once = _chunks_at_once(scan)
        kept = scan.room(pairs * at_once * (scan.config.chunk // scan.config.kept_every) * N * D)
        part = 2 * scan.blocks * pairs * scan.config.chunk * N
        all_parts = scan.room(at_once * part)
        for first in range(0, chunks, at_once):
            here = min(at_once, chunks - first)
            parts = all_parts[: here * part].view(2, -1)
            triton_backward.chunk_gradients[(here * scan.blocks, pairs)](
                u, delta, B, C, z, dout, A, skip, bias, starts, leaving, kept, du, ddelta, dz, *parts, shared_parts,
                scan.paths, *_steps(u), *_steps(delta), *_steps(B), *_steps(C), *_steps(z), *_steps(dout), *_steps(du),
                scan.batch, scan.length, chunks, first, here, KEPT=scan.config.kept_every,
                BLOCK_D=scan.config.block_channels, **scan.constants,
            )  # fmt: skip
            _join_parts(scan, parts, dB, dC, first, here)
    shared = _sum_of_chunks(shared_parts, scan.groups)
    return Gradients(du, ddelta, dB, dC, dz, shared[:, :N].transpose(1, 2), shared[:, N], shared[:, N + 1])


def _sum_of_chunks(parts: Tensor, groups: int) -> Tensor:
    """Sums over batch and chunks: (directions x batch, chunks, ...) to (directions, ...)."""
    each = parts.reshape(groups, parts.shape[0] // groups * parts.shape[1], *parts.shape[2:])
    return each[:, 0] if each.shape[1] == 1 else each.sum(1)


def _chunks_at_once(scan: _Scan) -> int:
    config = scan.config
    kept = config.chunk // config.kept_every * scan.states * scan.channels
    per_chunk = 4 * scan.pairs * (kept + 2 * scan.blocks * config.chunk * scan.states)
    return min(scan.chunks, max(1, triton_tuning.SCRATCH_BYTES // max(1, per_chunk)))


def _join_parts(scan: _Scan, parts: Tensor, dB: Tensor, dC: Tensor, first_chunk: int, chunks_here: int) -> None:
    block_states = power_of_2(scan.states)
    block_positions = max(1, 1024 // block_states)
    here = chunks_here * scan.config.chunk
    triton_backward.join_parts[(pieces(here, block_positions), scan.pairs, 2)](
        parts, dB, dC, scan.paths, *_steps(dB), scan.batch, scan.length, first_chunk * scan.config.chunk, here,
        scan.blocks, N=scan.states, BLOCK_T=block_positions, BLOCK_N=block_states, num_warps=4, **COMMON,
    )  # fmt: skip


def run_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, walk: Walk, silu: bool) -> Tensor:
    """Rows like x; weight (directions, K, D) and bias (directions, D) in float32."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    grid, sizes = _convolution_grid(x, weight)
    with on_device_of(x):
        triton_convolution.convolve[grid](
            x, weight, bias, out, walk.table(x.device), *_steps(x), *_steps(out), x.shape[1], x.shape[2],
            SILU=silu, **sizes,
        )  # fmt: skip
    return out


def run_convolution_backward(
    x: Tensor, weight: Tensor, bias: Tensor | None, dout: Tensor, walk: Walk, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, of weight as (directions, K, D), and of bias."""
    grid, sizes = _convolution_grid(x, weight)
    groups, batch, length, channels = x.shape
    blocks, taps = pieces(length, sizes["BLOCK_T"]), weight.shape[1]
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dweight = torch.empty((groups, batch * blocks, taps, channels), dtype=torch.float32, device=x.device)
    dbias = torch.empty((groups, batch * blocks, channels), dtype=torch.float32, device=x.device)
    with on_device_of(x):
        triton_convolution.convolve_gradients[grid](
            x, weight, bias, dout, dx, dweight, dbias, walk.table(x.device), *_steps(x), *_steps(dout), *_steps(dx),
            batch, length, SILU=silu, **sizes,
        )  # fmt: skip
    return dx, dweight.sum(1), dbias.sum(1)


def _convolution_grid(x: Tensor, weight: Tensor) -> tuple[tuple[int, int], dict[str, int]]:
    groups, batch, length, channels = x.shape
    positions, width = triton_tuning.CONVOLUTION_BLOCK
    width = min(width, power_of_2(channels))
    grid = (pieces(length, positions) * pieces(channels, width), groups * batch)
    return grid, {"D": channels, "K": weight.shape[1], "BLOCK_T": positions, "BLOCK_D": width, "num_warps": 4, **COMMON}
