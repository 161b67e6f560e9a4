"""Deformable attention in 3D over feature maps of several sizes: each token looks at a few places that it chooses.

Source: Zhu et al., Deformable DETR, ICLR 2021, eq. 3, in 3D as in Xie et al., CoTr, MICCAI 2021.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Sequence

    from MambaSegLib.plan import IntTriple


class DeformableAttention(nn.Module):
    """Each head of each token samples `points` places per map, linearly between voxels and 0 outside, and weighs them."""

    def __init__(self, width: int, heads: int, levels: int, points: int) -> None:
        """Build as released: offsets start in a direction per head, one to `points` voxels away, all weights equal."""
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.offsets = nn.Linear(width, heads * levels * points * 3)
        self.weights = nn.Linear(width, heads * levels * points)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.initialize()

    def initialize(self) -> None:
        """Draw the weights anew."""
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        directions = torch.stack((angle.cos(), angle.sin() * angle.cos(), angle.sin() ** 2), dim=-1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        distances = torch.arange(1, self.points + 1)
        starts = (directions[:, None, None] * distances[:, None]).expand(-1, self.levels, -1, -1)
        with torch.no_grad():
            self.offsets.bias.copy_(starts.flatten())
        for zeroed in (self.offsets.weight, self.weights.weight, self.weights.bias, self.value.bias, self.out.bias):
            nn.init.zeros_(zeroed)
        nn.init.xavier_uniform_(self.value.weight)
        nn.init.xavier_uniform_(self.out.weight)

    def forward(self, query: Tensor, tokens: Tensor, sizes: Sequence[IntTriple]) -> Tensor:
        """Attend from every voxel of every map to all maps.

        Args:
            query: (B, L, C), the tokens with their positions.
            tokens: (B, L, C), the maps' voxels in memory order, one map after the other.
            sizes: (Z, Y, X) of each map.

        Returns:
            (B, L, C).
        """
        batch, length, width = tokens.shape
        grouped = (batch, length, self.heads, self.levels, self.points)
        weights = self.weights(query).reshape(*grouped[:3], -1).softmax(-1).reshape(grouped)
        offsets = self.offsets(query).float().reshape(*grouped, 3)
        places = voxel_centers(sizes, tokens)[None, :, None, None]  # (1, L, 1, 1, 3)
        mixed = torch.zeros_like(query).reshape(batch, length, self.heads, -1)
        maps = self.value(tokens).split([z * y * x for z, y, x in sizes], dim=1)
        for level, (size, values) in enumerate(zip(sizes, maps, strict=True)):
            # grid_sample takes (x, y, z) from -1 to 1 over the whole map.
            extent = torch.tensor(size[::-1], device=tokens.device, dtype=torch.float32)
            grid = 2 * (places + offsets[:, :, :, level] / extent) - 1
            volume = values.reshape(batch, *size, self.heads, -1).permute(0, 4, 5, 1, 2, 3).flatten(0, 1)
            points = grid.transpose(1, 2).flatten(0, 1)[:, None]  # (B H, 1, L, P, 3)
            # Half precision would misplace the points by a tenth of a voxel.
            sampled = F.grid_sample(volume.float(), points, align_corners=False)[:, :, 0].to(volume.dtype)
            sampled = sampled.reshape(batch, self.heads, -1, length, self.points)  # (B, H, C/H, L, P)
            mixed = mixed + torch.einsum("bhclp,blhp->blhc", sampled, weights[:, :, :, level])
        result: Tensor = self.out(mixed.reshape(batch, length, width))
        return result


def voxel_centers(sizes: Sequence[IntTriple], like: Tensor) -> Tensor:
    """Centers of all voxels of all maps as (x, y, z) from 0 to 1, (L, 3), on the device of `like`."""
    centers = []
    for size in sizes:
        axes = [(torch.arange(length, device=like.device) + 0.5) / length for length in size]
        z, y, x = torch.meshgrid(*axes, indexing="ij")
        centers.append(torch.stack((x, y, z), dim=-1).reshape(-1, 3))
    return torch.cat(centers)
