"""Self- and cross-attention inside the windows of a volume, shifted or not, with a bias per relative position.

Source: Liu et al., Swin Transformer, ICCV 2021, in 3D as in Zhou et al., nnFormer, IEEE TIP 2023. Volumes are
(B, Z, Y, X, C) here.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from MambaSegLib.plan import IntTriple

FAR = -100.0
"""Added to the attention between voxels that only the cyclic shift brought into one window."""


class WindowAttention(nn.Module):
    """Attention of every voxel to those in its window.

    Queries may come from another volume than keys and values; then they are taken as they are, without a projection.
    """

    def __init__(self, width: int, heads: int, window: IntTriple, shift: IntTriple, crossed: bool = False) -> None:
        """Build it.

        Args:
            width: Channels.
            heads: Attention heads; they divide `width`.
            window: Voxels of a window per axis.
            shift: By how much windows are shifted per axis.
            crossed: Whether queries come from another volume.
        """
        super().__init__()
        self.heads, self.window, self.shift, self.crossed = heads, window, shift, crossed
        self.project_in = nn.Linear(width, (2 if crossed else 3) * width)
        self.project_out = nn.Linear(width, width)
        self.position_bias = nn.Parameter(torch.empty(prod(2 * size - 1 for size in window), heads))
        nn.init.trunc_normal_(self.position_bias, std=0.02)
        self.register_buffer("position_index", relative_positions(window), persistent=False)

    def forward(self, volume: Tensor, queries: Tensor | None = None) -> Tensor:
        """Attend to `volume`, from itself or from `queries`; both (B, Z, Y, X, C)."""
        batch, *size, _ = volume.shape
        shifted = any(self.shift)
        projected = list(self.project_in(self._windows(volume)).chunk(2 if self.crossed else 3, dim=-1))
        if queries is not None:
            projected.insert(0, self._windows(queries).to(projected[0].dtype))
        query, key, value = (self._split_heads(part) for part in projected)
        index: Tensor = self.position_index  # type: ignore[assignment]
        bias = self.position_bias[index.flatten()].reshape(*index.shape, self.heads).permute(2, 0, 1)
        if shifted:
            bias = bias + self._shift_mask(size, volume.device)[:, None]  # (windows, heads, N, N)
            bias = bias.repeat(batch, 1, 1, 1)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        result: Tensor = self._volume(self.project_out(mixed.transpose(1, 2).flatten(2)), batch, size)
        return result

    def _split_heads(self, tokens: Tensor) -> Tensor:
        return tokens.reshape(*tokens.shape[:2], self.heads, -1).transpose(1, 2)

    def _windows(self, volume: Tensor) -> Tensor:
        """(B, Z, Y, X, C) -> (B windows, N, C); zeros fill the last windows."""
        lacking = [-length % step for length, step in zip(volume.shape[1:4], self.window, strict=True)]
        volume = F.pad(volume, (0, 0, 0, lacking[2], 0, lacking[1], 0, lacking[0]))
        if any(self.shift):
            volume = volume.roll([-step for step in self.shift], dims=(1, 2, 3))
        return cut_windows(volume, self.window)

    def _volume(self, windows: Tensor, batch: int, size: list[int]) -> Tensor:
        """The way back."""
        a, b, c = self.window
        z, y, x = (-(-length // step) for length, step in zip(size, self.window, strict=True))
        split = windows.reshape(batch, z, y, x, a, b, c, -1).permute(0, 1, 4, 2, 5, 3, 6, 7)
        volume = split.reshape(batch, z * a, y * b, x * c, -1)
        if any(self.shift):
            volume = volume.roll(self.shift, dims=(1, 2, 3))
        return volume[:, : size[0], : size[1], : size[2]]

    def _shift_mask(self, size: list[int], device: torch.device) -> Tensor:
        """(windows, N, N): 0 between voxels that are neighbors in the volume, `FAR` between others."""
        region = torch.zeros((), device=device)
        for axis, (length, window, shift) in enumerate(zip(size, self.window, self.shift, strict=True)):
            padded = -(-length // window) * window
            place = torch.arange(padded, device=device)
            # After the shift the last window holds what was last and, behind it, what was first.
            part = (place >= padded - window).float() + (place >= padded - shift).float() if shift else place * 0.0
            region = 3 * region + part.reshape([padded if other == axis else 1 for other in range(3)])
        tokens = cut_windows(region[None, ..., None], self.window)[..., 0]
        return (tokens[:, :, None] != tokens[:, None]).float() * FAR


def cut_windows(volume: Tensor, window: IntTriple) -> Tensor:
    """(B, Z, Y, X, C) with sizes the windows divide -> (B windows, N, C), N voxels in memory order."""
    batch, z, y, x, channels = volume.shape
    a, b, c = window
    split = volume.reshape(batch, z // a, a, y // b, b, x // c, c, channels)
    return split.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, a * b * c, channels)


def relative_positions(window: IntTriple) -> Tensor:
    """For each pair of voxels of a window the number of their relative position, (N, N), from 0."""
    axes = torch.meshgrid(*(torch.arange(size) for size in window), indexing="ij")
    places = torch.stack([axis.flatten() for axis in axes], dim=-1)
    relative = places[:, None] - places[None]  # (N, N, 3)
    number = relative[..., 0] * 0
    for axis, size in enumerate(window):
        number = number * (2 * size - 1) + relative[..., axis] + size - 1
    return number
