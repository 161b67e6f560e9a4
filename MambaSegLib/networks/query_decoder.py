"""Mask2Former's decoder in 3D: a few learned queries look at feature maps and each becomes a class and a mask.

Source: Cheng et al., Mask2Former, CVPR 2022, as in 3D TransUNet's mask2former_transformer_decoder3d.py
(Beckschen/3D-TransUNet at 9601170), with its learned scales, which multiply the branch of self-attention, but the whole
sum of the feed-forward network.

Its authors train it by matching queries to structures (Hungarian loss). Here the queries' classes and masks are put
together to logits of classes, as its authors do for prediction, and trained by the loss all networks share. That it learns
well this way has not been shown: a few hundred steps on a toy did not do, where the other networks need a few dozen.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from MambaSegLib.networks.sine_positions import sine_positions

if TYPE_CHECKING:
    from collections.abc import Sequence

LAYER_SCALE = 1e-5
GROUPS = 32
SMALLEST = 1e-6
"""Least probability a class is given, so that its logarithm stays finite."""


class QueryLayer(nn.Module):
    """Cross-attention to a map, self-attention among queries, a feed-forward network; norms after the shortcuts."""

    def __init__(self, width: int, heads: int) -> None:
        """Build and initialize as released."""
        super().__init__()
        self.cross = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm1 = nn.LayerNorm(width)
        self.among = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 8 * width), nn.ReLU(), nn.Linear(8 * width, width))
        self.norm3 = nn.LayerNorm(width)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        self.scale_among = nn.Parameter(torch.full((width,), LAYER_SCALE))
        self.scale_sum = nn.Parameter(torch.full((width,), LAYER_SCALE))

    def forward(self, queries: Tensor, names: Tensor, keys: Tensor, values: Tensor, blocked: Tensor) -> Tensor:
        """Update the queries.

        Args:
            queries: (B, Q, C).
            names: The queries' own learned positions, (B, Q, C).
            keys: Voxels of a map with their positions, (B, L, C).
            values: Without, (B, L, C).
            blocked: Which voxels a query must not look at, (B heads, Q, L).
        """
        seen, _ = self.cross(queries + names, keys, values, attn_mask=blocked, need_weights=False)
        queries = self.norm1(queries + seen)
        named = queries + names
        told, _ = self.among(named, named, queries, need_weights=False)
        queries = self.norm2(queries + self.scale_among * told)
        result: Tensor = self.norm3(self.scale_sum * (queries + self.feed_forward(queries)))
        return result


class QueryDecoder(nn.Module):
    """Queries that look at one map after the other, coarse to fine and again, only where their own mask is so far."""

    def __init__(
        self,
        channels: Sequence[int],
        mask_channels: int,
        classes: int,
        width: int = 192,
        queries: int = 20,
        heads: int = 8,
        layers: int = 3,
    ) -> None:
        """Build it.

        Args:
            channels: Of the maps that are looked at.
            mask_channels: Of the map at full resolution.
            classes: Background included.
            width: Of the queries.
            queries: How many.
            heads: Attention heads.
            layers: How many.
        """
        super().__init__()
        self.heads = heads
        groups = math.gcd(GROUPS, width)
        self.enter = nn.ModuleList(
            nn.Sequential(nn.Conv3d(count, width, 1), nn.GroupNorm(groups, width)) for count in channels
        )
        self.enter_mask = nn.Conv3d(mask_channels, width, 1)
        self.levels = nn.Embedding(len(channels), width)
        self.queries = nn.Embedding(queries, width)
        self.names = nn.Embedding(queries, width)
        self.layers = nn.ModuleList(QueryLayer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.classes = nn.Linear(width, classes + 1)  # the last one: no structure
        self.masks = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)
        )

    def forward(self, maps: Sequence[Tensor], finest: Tensor) -> Tensor:
        """Logits of classes at full resolution.

        Args:
            maps: (B, C, Z, Y, X) each, those that are looked at.
            finest: (B, C, Z, Y, X), which masks are made of.

        Returns:
            (B, classes, Z, Y, X), float32.
        """
        # As released, in float32: few queries, so it costs little.
        with torch.autocast(finest.device.type, enabled=False):
            entered = [enter(m.float()) for enter, m in zip(self.enter, maps, strict=True)]
            voxels = self.enter_mask(finest.float())
            values = [
                m.flatten(2).transpose(1, 2) + level for m, level in zip(entered, self.levels.weight, strict=True)
            ]
            keys = [
                value + sine_positions((m.shape[2], m.shape[3], m.shape[4]), value, first=1.0)
                for m, value in zip(entered, values, strict=True)
            ]
            queries = self.queries.weight.expand(len(finest), -1, -1)
            names = self.names.weight.expand(len(finest), -1, -1)
            for number, layer in enumerate(self.layers):
                looked_at = number % len(maps)
                blocked = self._blocked(self._masks(queries, voxels), entered[looked_at])
                queries = layer(queries, names, keys[looked_at], values[looked_at], blocked)
            shares = self.classes(self.norm(queries)).softmax(-1)[..., :-1]
            chances = self._masks(queries, voxels).sigmoid()
            return torch.einsum("bqk,bqzyx->bkzyx", shares, chances).clamp(min=SMALLEST).log()

    def _masks(self, queries: Tensor, voxels: Tensor) -> Tensor:
        return torch.einsum("bqc,bczyx->bqzyx", self.masks(self.norm(queries)), voxels)

    @torch.no_grad()
    def _blocked(self, masks: Tensor, at: Tensor) -> Tensor:
        """(B heads, Q, L): the voxels of a map outside a query's mask; none where the mask is empty."""
        shrunk = F.interpolate(masks, list(at.shape[2:]), mode="trilinear").flatten(2)
        outside = shrunk < 0
        outside = outside & ~outside.all(-1, keepdim=True)
        return outside.repeat_interleave(self.heads, dim=0)
