"""Means of blocks of voxels, as strided shortcuts take them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from MambaSegLib.plan import IntTriple


class BlockMean(nn.AvgPool3d):
    """Average pooling without overlap, which can be trained deterministically on a GPU, too.

    PyTorch refuses the gradient of its own pooling there (`torch.use_deterministic_algorithms` lists `AvgPool3d`), although
    blocks that do not overlap need no sums. Where nothing of that is asked for, this is PyTorch's.
    """

    def __init__(self, size: IntTriple) -> None:
        """Blocks of `size` voxels along (Z, Y, X)."""
        super().__init__(size, size)
        self._size = size

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, Z, Y, X) -> (B, C, Z/z, Y/y, X/x); voxels that fill no block are left out."""
        if not (torch.are_deterministic_algorithms_enabled() and image.requires_grad):
            pooled: Tensor = super().forward(image)
            return pooled
        z, y, x = self._size
        counts = [length // step for length, step in zip(image.shape[2:], self._size, strict=True)]
        whole = image[:, :, : counts[0] * z, : counts[1] * y, : counts[2] * x]
        return whole.reshape(*image.shape[:2], counts[0], z, counts[1], y, counts[2], x).mean((3, 5, 7))
