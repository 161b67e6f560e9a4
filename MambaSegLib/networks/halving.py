"""Strides of published networks that halve every axis, for patches that cannot be halved that often."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from MambaSegLib.plan import IntTriple


def halving_strides(patch_size: IntTriple, published: Sequence[IntTriple], smallest: int = 2) -> list[IntTriple]:
    """The published strides, all of them 1 or 2; an axis that runs out of halves is left alone at the finer levels.

    So thick slices are halved late, as nnU-Net does it.

    Args:
        patch_size: Voxels.
        published: Strides per level, finest first.
        smallest: Voxels that must be left of an axis that is halved.
    """
    strides = [list(stride) for stride in published]
    for axis, size in enumerate(patch_size):
        halvings = 0
        while size % 2 ** (halvings + 1) == 0 and size // 2 ** (halvings + 1) >= smallest:
            halvings += 1
        for stride in reversed(strides):
            stride[axis] = min(stride[axis], 2 if halvings > 0 else 1)
            halvings -= stride[axis] == 2
    return [(z, y, x) for z, y, x in strides]


def total_stride(strides: Sequence[IntTriple]) -> IntTriple:
    """Product of strides per axis."""
    z, y, x = 1, 1, 1
    for stride in strides:
        z, y, x = z * stride[0], y * stride[1], x * stride[2]
    return z, y, x
