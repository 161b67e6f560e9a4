"""A CT is segmented in the box of the body; what lies around it is nothing but air below the window.

The rule. It applies where every channel is clipped from below to a known value (scheme "ct"): a voxel at that value says
nothing but "less than the window shows". Kept is the bounding box of all other voxels, grown on each side by a quarter of a
tile, where the weight of a tile's voxels falls below 0.14, and to a tile's size. So no voxel that shows anything is left
out, a speck of noise or the patient table included, and what lies at the edge of the body is still seen well inside a tile.

What is left out would have been predicted from tiles that are blank, or blank but for their outer quarter. The network is
shown one blank tile: if it calls background all of it, what is left out is background too, with the probabilities
(and so the uncertainty) of that tile's mean. If it finds anything in a blank tile, nothing is cropped: what a network makes
of air is for the person to see, not for a shortcut to hide.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from MambaSegLib.devices import place
from MambaSegLib.geometry import Array, Box
from MambaSegLib.normalization import normalize
from MambaSegLib.preprocessing import bounding_box
from MambaSegLib.sliding_window import Ensemble, Slab, count_tiles, importance_map

if TYPE_CHECKING:
    from MambaSegLib.memory_ladder import MemoryLadder, Placement
    from MambaSegLib.plan import Channel, IntTriple, Plan

MARGIN = 0.25
"""Of a tile, on each side of the body."""
FAINT = 1e-4
"""Of the window: a voxel that differs by less from its lower end is at it. A tenth of a Hounsfield unit in the widest of
windows; resampling leaves that much of an edge seven voxels away from it."""
SLICES = 8
"""Slices handed on at a time."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Air:
    """What a network says of a blank tile, on average.

    Attributes:
        probabilities: (K,) of each output.
        disagreement: See `sliding_window.predict_probabilities`; None if not asked for.
    """

    probabilities: Tensor
    disagreement: float | None


def body_box(image: Array, plan: Plan) -> Box:
    """The part of a preprocessed image that has to be predicted by the rule above; the whole for other schemes.

    Args:
        image: (C, Z, Y, X), see `preprocessing.Preprocessed`.
        plan: What the image was preprocessed by.
    """
    whole = Box((0, 0, 0), image.shape[1:])
    if any(channel.normalization.scheme != "ct" for channel in plan.channels):
        return whole
    limits = np.array([_limit(lower, upper) for lower, upper in map(_window, plan.channels)], np.float32)
    body = bounding_box(whole.shape, lambda z: np.any(image[:, z] > limits[:, None, None], axis=0))
    sides = [_grown(*side) for side in zip(body.start, body.stop, whole.shape, plan.patch_size, strict=True)]
    (z0, z1), (y0, y1), (x0, x1) = sides
    return Box((z0, y0, x0), (z1, y1, x1))


def box_to_predict(
    ensemble: Ensemble, image: Array, plan: Plan, ladder: MemoryLadder, overlap: float, disagreement: bool
) -> tuple[Box, Air | None]:
    """The part of an image to be predicted, and what the rest is; None if there is no rest.

    Where cropping saves no more tiles than the blank one it needs, it is left.
    """
    whole, body = Box((0, 0, 0), image.shape[1:]), body_box(image, plan)
    tiles, fewer = (count_tiles(box.shape, ensemble.patch_size, overlap) for box in (whole, body))
    if tiles - fewer < 2:
        return whole, None
    air = _air(ensemble, [_window(channel)[0] for channel in plan.channels], ladder, disagreement)
    if air is None:
        _log.info("the network finds something in a blank tile: the air around the body is predicted, too")
        return whole, None
    _log.info("%d of %d tiles: the rest is air around the body", fewer, tiles)
    return body, air


def surrounded(slabs: Iterable[Slab], box: Box, shape: IntTriple, air: Air) -> Iterator[Slab]:
    """Slabs of a box as slabs of the whole grid, with air around it.

    Args:
        slabs: From the box's first slice on, without gaps.
        box: Where they lie.
        shape: (Z, Y, X) of the whole grid.
        air: What lies around.

    Yields:
        Slabs from Z = 0 on, each overwritten by the next.
    """
    start, stop = box.start[0], box.stop[0]
    yield from _blank_slabs(0, start, shape, air)
    for slab in slabs:
        for first in range(0, len(slab.probabilities), SLICES):
            inside = slice(first, first + SLICES)
            around = _blank_slab(start + slab.start + first, len(slab.probabilities[inside]), shape, air, slab)
            around.probabilities[(..., *box.slices[1:])] = slab.probabilities[inside]
            if around.disagreement is not None and slab.disagreement is not None:
                around.disagreement[(..., *box.slices[1:])] = slab.disagreement[inside]
            yield around
    yield from _blank_slabs(stop, shape[0], shape, air)


def _blank_slabs(start: int, stop: int, shape: IntTriple, air: Air) -> Iterator[Slab]:
    for first in range(start, stop, SLICES):
        yield _blank_slab(first, min(SLICES, stop - first), shape, air)


def _blank_slab(start: int, count: int, shape: IntTriple, air: Air, like: Slab | None = None) -> Slab:
    device = air.probabilities.device if like is None else like.probabilities.device
    values = air.probabilities.to(device)[:, None, None]
    probabilities = values.expand(count, -1, *shape[1:]).clone()
    if air.disagreement is None:
        return Slab(start, probabilities)
    return Slab(start, probabilities, torch.full((count, *shape[1:]), air.disagreement, device=device))


@torch.inference_mode()
def _air(ensemble: Ensemble, values: list[float], ladder: MemoryLadder, disagreement: bool) -> Air | None:
    """What the ensemble says of a blank tile; None if it is not background all over."""
    tile = torch.tensor(values, dtype=torch.float32)[None, :, None, None, None].expand(-1, -1, *ensemble.patch_size)

    def compute(placement: Placement) -> Air | None:
        for network in ensemble.networks:
            place(network, placement.device)
        found, entropy = ensemble.tile_probabilities(tile.to(placement.device).contiguous(), disagreement)
        if bool((ensemble.readout.classes(found) != 0).any()):
            return None
        weights = importance_map(ensemble.patch_size).to(placement.device)
        weights = weights / weights.sum()
        differing = None
        if entropy is not None:
            differing = float(((ensemble.readout.uncertainty(found)[0] - entropy[0]) * weights).sum().clamp(min=0))
        return Air((found[0] * weights).sum((1, 2, 3)).to(placement.accumulator), differing)

    return ladder.run(compute)


def _window(channel: Channel) -> tuple[float, float]:
    """Both ends of a channel's window after normalization."""
    how = channel.normalization
    ends = np.array([[[how.lower, how.upper]]], np.float32)
    normalize(ends, how)
    return float(ends[0, 0, 0]), float(ends[0, 0, 1])


def _limit(lower: float, upper: float) -> float:
    return lower + FAINT * (upper - lower)


def _grown(start: int, stop: int, size: int, patch: int) -> tuple[int, int]:
    """A side with its margin, at least a tile long where the image is."""
    margin = round(MARGIN * patch)
    start, stop = max(0, start - margin), min(size, stop + margin)
    if stop - start < patch:
        start = max(0, min((start + stop - patch) // 2, size - patch))
        stop = min(size, start + patch)
    return start, stop
