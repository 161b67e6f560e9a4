"""From feature maps to launches of the kernels of instance normalization: layout, grids, room for partial results."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from MambaSegLib.networks import norm_kernels
from MambaSegLib.scan.triton_launch import COMMON, on_device_of
from MambaSegLib.scan.triton_tuning import pieces, power_of_2

WHOLE = 8192
"""Elements of the largest block that a program keeps in registers, 32 per thread."""
TILE = 4096
"""Elements of a block of maps whose rows are longer."""
WIDTH = 64
"""Channels of a block where channels are adjacent in memory; `NARROW` where the block holds whole rows."""
NARROW = 8
PROGRAMS = 1024
"""Wanted number of programs that gather statistics: several for each multiprocessor of a large GPU."""
JOIN = {"SLOTS": 4, "PARTS": 256, "num_warps": 4, **COMMON}


class Statistics(NamedTuple):
    """Mean and 1 / standard deviation of every channel of every batch entry, (B * C,) float32."""

    mean: Tensor
    rstd: Tensor


class Affine(NamedTuple):
    """Parameters of a norm; `slope` is that of the LeakyReLU after it, 1 for none."""

    weight: Tensor
    bias: Tensor
    eps: float
    slope: float


def is_channels_last(x: Tensor) -> bool | None:
    """How a map (B, C, Z, Y, X) lies in memory: channels adjacent or not; None if it is dense in neither way."""
    if x.is_contiguous():
        return False
    return True if x.is_contiguous(memory_format=torch.channels_last_3d) else None


class Layout:
    """How a map is cut into blocks."""

    def __init__(self, x: Tensor) -> None:
        """Of a map that is dense in one of the two ways."""
        batch, channels, *sizes = x.shape
        self.last = bool(is_channels_last(x))
        self.voxels = sizes[0] * sizes[1] * sizes[2]
        self.slots, self.channels = batch * channels, channels
        self.outer, self.rows = (batch, channels) if self.last else (1, self.slots)
        wide, long = power_of_2(self.rows), power_of_2(self.voxels)
        narrow = min(NARROW, wide) if self.last else 1
        self.whole = narrow * long <= WHOLE
        if self.whole:
            block_rows, block_voxels = narrow if self.last else min(4, wide, max(1, TILE // long)), long
        else:
            block_rows = min(WIDTH, wide) if self.last else 1
            block_voxels = min(long, TILE // block_rows)
        self.row_blocks, self.all_tiles = pieces(self.rows, block_rows), pieces(self.voxels, block_voxels)
        self.tiles = pieces(self.all_tiles, max(1, PROGRAMS // (self.row_blocks * self.outer)))
        self.parts = pieces(self.all_tiles, self.tiles)
        self.per_part = self.tiles * block_voxels
        self.constants: dict[str, Any] = {
            "ROWS": block_rows,
            "VOXELS": block_voxels,
            "LAST": self.last,
            "num_warps": min(8, max(4, block_rows * block_voxels // 1024)),
            **COMMON,
        }

    def grid(self, first: int) -> tuple[int, int, int]:
        """Of a kernel with `first` programs along the voxels."""
        return first, self.row_blocks, self.outer

    def room(self, x: Tensor, *shape: int) -> Tensor:
        """Uninitialized float32 numbers beside x."""
        return torch.empty(shape, dtype=torch.float32, device=x.device)


def run_forward(x: Tensor, residual: Tensor | None, affine: Affine, out: Tensor, keep: bool) -> Statistics | None:
    """Write LeakyReLU(norm(x) + residual) into `out`.

    Args:
        x: Map, dense in one of two ways.
        residual: Map of the same shape that lies in memory as x does.
        affine: Parameters.
        out: As x, of any type; may be x.
        keep: Whether the statistics are wanted.
    """
    layout = Layout(x)
    sizes = (layout.rows, layout.voxels, layout.channels)
    options = layout.constants | {"ACTIVATE": affine.slope != 1}
    with on_device_of(x):
        if layout.whole:
            kept = Statistics(layout.room(x, layout.slots), layout.room(x, layout.slots)) if keep else None
            norm_kernels.normalize_whole[layout.grid(1)](
                x, residual, out, *(kept or (None, None)), affine.weight, affine.bias, *sizes, affine.eps, affine.slope,
                **options,
            )  # fmt: skip
            return kept
        statistics = _statistics(x, layout, affine.eps)
        norm_kernels.normalize[layout.grid(layout.all_tiles)](
            x, residual, out, *statistics, affine.weight, affine.bias, *sizes, affine.slope, **options
        )
    return statistics if keep else None


def _statistics(x: Tensor, layout: Layout, eps: float) -> Statistics:
    parts = [layout.room(x, layout.parts, layout.slots) for _ in range(2)]
    norm_kernels.moments[layout.grid(layout.parts)](
        x, *parts, layout.rows, layout.voxels, layout.tiles, layout.slots, **layout.constants
    )
    found = Statistics(layout.room(x, layout.slots), layout.room(x, layout.slots))
    norm_kernels.join_moments[(pieces(layout.slots, JOIN["SLOTS"]),)](
        *parts, *found, layout.voxels, layout.parts, layout.per_part, layout.slots, eps, **JOIN
    )
    return found


def run_backward(
    x: Tensor, dout: Tensor, out: Tensor | None, statistics: Statistics, affine: Affine
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Gradients of x, the residual, weight and bias.

    Args:
        x: What was normalized.
        dout: Gradient of the result; lies in memory as x does.
        out: The result if there was a residual before the activation, lying as x does; else None.
        statistics: From `run_forward`.
        affine: As there.

    Returns:
        Gradients in the types of x, of `dout`, and float32; None for a residual without activation, whose gradient is `dout`.
    """
    layout = Layout(x)
    sizes = (layout.rows, layout.voxels, layout.channels)
    options = layout.constants | {"ACTIVATE": affine.slope != 1}
    dx, dresidual = torch.empty_like(x), None if out is None else torch.empty_like(dout)
    sums = [layout.room(x, layout.slots) for _ in range(2)]
    read = (*statistics, affine.weight, affine.bias)
    with on_device_of(x):
        if layout.whole:
            norm_kernels.gradients_whole[layout.grid(1)](
                x, dout, out, *read, dx, dresidual, *sums, *sizes, affine.slope, **options
            )
        else:
            parts = [layout.room(x, layout.parts, layout.slots) for _ in range(2)]
            norm_kernels.gradient_sums[layout.grid(layout.parts)](
                x, dout, out, *read, dresidual, *parts, *sizes, affine.slope, layout.tiles, layout.slots, **options
            )
            norm_kernels.join_sums[(pieces(layout.slots, JOIN["SLOTS"]),)](
                *parts, *sums, layout.parts, layout.slots, **JOIN
            )
            if dresidual is not None:
                options["ACTIVATE"] = False
            norm_kernels.gradients[layout.grid(layout.all_tiles)](
                x, dout if dresidual is None else dresidual, *read, dx, *sums, *sizes, affine.slope, **options
            )
    dbias, dweight = (t.view(-1, layout.channels).sum(0) for t in sums)
    return dx, dresidual, dweight, dbias
