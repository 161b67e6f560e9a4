"""Soft Dice plus cross-entropy, summed over the resolutions of a network with deep supervision."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

SMOOTH = 1e-5

Total = Callable[[Tensor], Tensor]
"""Sum over the processes that share a batch, see `ranks.Ranks.total`."""


def no_total(value: Tensor) -> Tensor:
    """The sum over one process."""
    return value


def dice_and_cross_entropy(logits: Tensor, labels: Tensor, batch_dice: bool = False, total: Total = no_total) -> Tensor:
    """One minus the mean soft Dice of the structures, plus the mean cross-entropy of the voxels.

    Args:
        logits: (B, K, Z, Y, X); class 0 is background.
        labels: (B, Z, Y, X), integers below K.
        batch_dice: Pool the voxels of the batch before the ratio, as if it were one image.
        total: With `batch_dice`, sums over the processes that share the batch.

    Returns:
        A scalar: 0 for a perfect and certain prediction.

    Source:
        nnU-Net v2's DC_and_CE_loss (background left out of the Dice, smoothing 1e-5 in numerator and denominator); its
        value is ours minus 1.
    """
    logits, labels = logits.float(), labels.long()
    dice = soft_dice(logits.softmax(1), labels, batch_dice, total).mean()
    return 1 - dice + F.cross_entropy(logits, labels)


def soft_dice(probabilities: Tensor, labels: Tensor, batch_dice: bool = False, total: Total = no_total) -> Tensor:
    """Soft Dice per structure, (B, K - 1), or (K - 1,) with `batch_dice`: (2 |p g| + s) / (|p| + |g| + s)."""
    one_hot = torch.zeros_like(probabilities).scatter_(1, labels[:, None], 1.0)
    axes = (0, 2, 3, 4) if batch_dice else (2, 3, 4)
    terms = torch.stack([term.sum(axes)[..., 1:] for term in (probabilities * one_hot, probabilities, one_hot)])
    overlap, predicted, true = total(terms) if batch_dice else terms
    dice: Tensor = (2 * overlap + SMOOTH) / (predicted + true + SMOOTH)
    return dice


def deep_supervision_weights(outputs: int) -> tuple[float, ...]:
    """1, 1/2, 1/4, ... with the coarsest output off, scaled to a sum of 1; (1,) for a single output."""
    if outputs == 1:
        return (1.0,)
    weights = [0.5**level for level in range(outputs - 1)]
    return (*(weight / sum(weights) for weight in weights), 0.0)


def deep_supervision_loss(
    outputs: tuple[Tensor, ...], labels: Tensor, batch_dice: bool = False, total: Total = no_total
) -> Tensor:
    """`dice_and_cross_entropy` of each output against the labels at its resolution, weighted.

    Args:
        outputs: Logits, finest first, (B, K, z, y, x) each.
        labels: (B, Z, Y, X) at the resolution of the finest.
        batch_dice: See `dice_and_cross_entropy`.
        total: See `dice_and_cross_entropy`.
    """
    loss = torch.zeros((), device=labels.device)
    for logits, weight in zip(outputs, deep_supervision_weights(len(outputs)), strict=True):
        if weight:
            target = shrink_labels(labels, logits.shape[2:])
            loss = loss + weight * dice_and_cross_entropy(logits, target, batch_dice, total)
    return loss


def shrink_labels(labels: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Labels (B, Z, Y, X) at a coarser shape, each voxel that of the nearest center."""
    if labels.shape[1:] == shape:
        return labels
    return F.interpolate(labels[:, None].float(), list(shape), mode="nearest-exact")[:, 0].to(labels.dtype)
