"""Soft Dice plus cross-entropy, summed over the resolutions of a network with deep supervision."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from MambaSegLib.readout import Readout

SMOOTH = 1e-5

Total = Callable[[Tensor], Tensor]
"""Sum over the processes that share a batch, see `ranks.Ranks.total`."""


def no_total(value: Tensor) -> Tensor:
    """The sum over one process."""
    return value


def dice_and_cross_entropy(
    logits: Tensor, labels: Tensor, readout: Readout, batch_dice: bool = False, total: Total = no_total
) -> Tensor:
    """One minus the mean soft Dice of the structures, plus the mean cross-entropy of the voxels.

    Voxels that nobody labelled have no share in either, and no gradient.

    Args:
        logits: (B, K, Z, Y, X).
        labels: (B, Z, Y, X), classes.
        readout: What the K outputs stand for.
        batch_dice: Pool the voxels of the batch before the ratio, as if it were one image.
        total: Sums over the processes that share the batch.

    Returns:
        A scalar: 0 for a perfect and certain prediction.

    Source:
        nnU-Net v2's DC_and_CE_loss (background left out of the Dice) and, for regions, DC_and_BCE_loss; smoothing 1e-5 in
        numerator and denominator; their value is ours minus 1. With regions and an ignore label nnU-Net adds up the
        binary cross-entropy of the regions; this is their mean, as without an ignore label.
    """
    logits, labels = logits.float(), labels.long()
    dice = soft_dice(readout.probabilities(logits), labels, readout, batch_dice, total).mean()
    return 1 - dice + cross_entropy(logits, labels, readout, total)


def soft_dice(
    probabilities: Tensor, labels: Tensor, readout: Readout, batch_dice: bool = False, total: Total = no_total
) -> Tensor:
    """Soft Dice per structure, (B, S), or (S,) with `batch_dice`: (2 |p g| + s) / (|p| + |g| + s)."""
    targets = readout.targets(labels).to(probabilities.dtype)
    if readout.ignored is not None:
        probabilities = probabilities * (labels != readout.ignored)[:, None]
    axes = (0, 2, 3, 4) if batch_dice else (2, 3, 4)
    sums = [term.sum(axes) for term in (probabilities * targets, probabilities, targets)]
    terms = torch.stack(sums)[..., readout.first_structure :]
    overlap, predicted, true = total(terms) if batch_dice else terms
    dice: Tensor = (2 * overlap + SMOOTH) / (predicted + true + SMOOTH)
    return dice


def cross_entropy(logits: Tensor, labels: Tensor, readout: Readout, total: Total = no_total) -> Tensor:
    """Mean over the labelled voxels of the categorical, or the regions' mean binary, cross-entropy; 0 if none is."""
    if readout.exclusive:
        ignored = -1 if readout.ignored is None else readout.ignored
        errors = F.cross_entropy(logits, labels, reduction="none", ignore_index=ignored)
    else:
        targets = readout.targets(labels).to(logits.dtype)
        errors = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
    if readout.ignored is None:
        return errors.mean()
    known = labels != readout.ignored
    processes = total(logits.new_ones(()))
    # Processes share the labelled voxels unequally, but their gradients are averaged: each counts by its share.
    return (errors * known).sum() * processes / total(known.sum().to(logits.dtype)).clamp(min=1)


def deep_supervision_weights(outputs: int) -> tuple[float, ...]:
    """1, 1/2, 1/4, ... with the coarsest output off, scaled to a sum of 1; (1,) for a single output."""
    if outputs == 1:
        return (1.0,)
    weights = [0.5**level for level in range(outputs - 1)]
    return (*(weight / sum(weights) for weight in weights), 0.0)


def deep_supervision_loss(
    outputs: tuple[Tensor, ...], labels: Tensor, readout: Readout, batch_dice: bool = False, total: Total = no_total
) -> Tensor:
    """`dice_and_cross_entropy` of each output against the labels at its resolution, weighted.

    Args:
        outputs: Logits, finest first, (B, K, z, y, x) each.
        labels: (B, Z, Y, X) at the resolution of the finest.
        readout: See `dice_and_cross_entropy`.
        batch_dice: See `dice_and_cross_entropy`.
        total: See `dice_and_cross_entropy`.
    """
    loss = torch.zeros((), device=labels.device)
    for logits, weight in zip(outputs, deep_supervision_weights(len(outputs)), strict=True):
        if weight:
            target = shrink_labels(labels, logits.shape[2:])
            loss = loss + weight * dice_and_cross_entropy(logits, target, readout, batch_dice, total)
    return loss


def shrink_labels(labels: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Labels (B, Z, Y, X) at a coarser shape, each voxel that of the nearest center."""
    if labels.shape[1:] == shape:
        return labels
    return F.interpolate(labels[:, None].float(), list(shape), mode="nearest-exact")[:, 0].to(labels.dtype)
