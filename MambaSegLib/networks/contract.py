"""What every network of the table is: the base class that holds the contract."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from MambaSegLib.plan import IntTriple, NetworkPlan


class SegmentationNetwork(nn.Module):
    """Maps an image to class logits.

    Attributes:
        deep_supervision: Compute the coarser outputs, too. Needed for training only.
    """

    deep_supervision: bool

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Segment a batch.

        Args:
            image: (B, C, Z, Y, X), normalized intensities.

        Returns:
            Logits (B, K, Z', Y', X'), finest first; the first has the image's size. One without deep supervision.
        """
        raise NotImplementedError


def stride_product(plan: NetworkPlan) -> IntTriple:
    """By how much the deepest stage of a plan is smaller than the patch, per axis."""
    z, y, x = (prod(axis) for axis in zip(*(stage.stride for stage in plan.stages), strict=True))
    return z, y, x


def next_multiple(shape: IntTriple, divisor: IntTriple) -> IntTriple:
    """The smallest shape, axis by axis, that is no smaller and divisible."""
    z, y, x = (-(-size // step) * step for size, step in zip(shape, divisor, strict=True))
    return z, y, x


def fit_strides(plan: NetworkPlan) -> IntTriple:
    """The next larger patch that the strides of the plan's stages divide."""
    return next_multiple(plan.patch_size, stride_product(plan))


def fit_any(plan: NetworkPlan) -> IntTriple:
    """The plan's own patch, for networks that can take any."""
    return plan.patch_size


def require_divisible(shape: tuple[int, ...], divisor: IntTriple) -> None:
    """Refuse a patch the strides do not divide, in words instead of a size mismatch deep inside.

    Raises:
        ValueError: If an axis is not a multiple of the product of its strides.
    """
    if any(size % step for size, step in zip(shape, divisor, strict=True)):
        msg = (
            f"patch {tuple(shape)} must be a multiple of {divisor} (the product of the network's strides) on each axis"
        )
        raise ValueError(msg)


def require_shape(shape: tuple[int, ...], planned: IntTriple, reason: str) -> None:
    """Refuse a patch of another size than the network was built for.

    Args:
        shape: Of the image.
        planned: The plan's patch.
        reason: What fixes the size, e.g. "its learned positions".

    Raises:
        ValueError: If they differ.
    """
    if tuple(shape) != tuple(planned):
        msg = f"patch {tuple(shape)} must be {tuple(planned)}, the size this network was built for ({reason})"
        raise ValueError(msg)
