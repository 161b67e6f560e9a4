"""Positions of voxels as sines and cosines, for transformers over feature maps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from MambaSegLib.plan import IntTriple


def sine_positions(size: IntTriple, like: Tensor, first: float) -> Tensor:
    """Sines and cosines of each axis' position at growing wavelengths; a third of the channels per axis.

    Source: the 3D position_encoding.py that CoTr and 3D TransUNet share, after DETR's; wavelengths change every third
    channel there, not every second, while sine and cosine alternate.

    Args:
        size: (Z, Y, X) of the map.
        like: Its last axis gives the number of channels, its device and dtype those of the result.
        first: Place of the first voxel, in voxels: 0.5 at CoTr, 1 at TransUNet; the whole axis is one turn.

    Returns:
        (Z Y X, C), in memory order.
    """
    channels = like.shape[-1] // 3
    index = torch.arange(channels, device=like.device, dtype=torch.float32)
    wavelengths = 10_000 ** (3 * (index // 3) / channels)
    axes = []
    for length in size:
        turn = (torch.arange(length, device=like.device) + first) / length * 2 * math.pi
        phase = turn[:, None] / wavelengths
        axes.append(torch.where(index % 2 == 0, phase.sin(), phase.cos()))
    z, y, x = axes
    grid = (*size, channels)
    parts = (z[:, None, None].expand(grid), y[None, :, None].expand(grid), x[None, None].expand(grid))
    return torch.cat(parts, dim=-1).flatten(0, 2).to(like.dtype)
