"""From probabilities at the network's spacing to a label map on the input's own grid.

Slabs come in along Z and go out as labels at once, so that the probabilities never exist on the whole input grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from MambaSegLib.geometry import Array
from MambaSegLib.plan import IntTriple, Plan
from MambaSegLib.preprocessing import Undo, bounding_box, label_type
from MambaSegLib.readout import readout_of
from MambaSegLib.resampling import coarse_axis, linear_weights, nearest
from MambaSegLib.sliding_window import Slab

CHUNK_BYTES = 16 * 2**20
"""Probabilities on the input's grid made at a time; at least one slice. Larger ones are not faster: above 32 MiB the
allocator asks the system for fresh, zeroed pages each time."""


@dataclass(frozen=True)
class Segmented:
    """Result on the input's grid.

    Voxels that were not looked at, outside the region of interest or cropped away because the image is 0 there, are
    background with uncertainty 0.

    Attributes:
        labels: (Z, Y, X) label values, uint8 or, if one is above 255, uint16.
        uncertainty: (Z, Y, X) float32: entropy of the mean probabilities as a fraction of its largest value; 0 sure, 1
            clueless; see `Readout.uncertainty`.
        disagreement: (Z, Y, X) float32: the part of it that comes from members that differ; see `sliding_window`.
    """

    labels: Array
    uncertainty: Array | None = None
    disagreement: Array | None = None


def to_labels(
    slabs: Iterable[Slab], undo: Undo, plan: Plan, *, uncertainty: bool = False, disagreement: bool = False
) -> Segmented:
    """Resample probabilities linearly to the input's voxels and give each the label its outputs stand for.

    Args:
        slabs: From Z = 0 on, covering the preprocessed array; consumed one at a time.
        undo: From `preprocess`.
        plan: Label values, how outputs become labels, and which labels keep only their largest component.
        uncertainty: Also return the uncertainty.
        disagreement: Also return the disagreement; the slabs must hold it.
    """
    values = np.array([0, *(label.value for label in plan.labels)])
    readout, shape = readout_of(plan), undo.source.shape
    result = Segmented(
        np.zeros(shape, dtype=label_type(int(values.max()))),
        np.zeros(shape, dtype=np.float32) if uncertainty else None,
        np.zeros(shape, dtype=np.float32) if disagreement else None,
    )
    # Writing to these views crops, turns and pads back.
    labels = undo.view(result.labels)
    table = values.astype(result.labels.dtype)
    repeated = coarse_axis(plan.spacing_mm, undo.cropped.spacing_mm) if plan.thick_slices == "repeated" else None
    for chunk in resampled_slabs(slabs, undo.working.shape, undo.cropped.shape, repeated):
        part = slice(chunk.start, chunk.start + len(chunk.probabilities))
        labels[part] = table[readout.classes(chunk.probabilities).cpu().numpy()]
        if result.uncertainty is not None:
            undo.view(result.uncertainty)[part] = readout.uncertainty(chunk.probabilities).cpu().numpy()
        if result.disagreement is not None:
            assert chunk.disagreement is not None, "the slabs were made without the disagreement asked for"
            undo.view(result.disagreement)[part] = chunk.disagreement.cpu().numpy()
    for value in plan.keep_largest:
        keep_largest_component(labels, value)
    return result


def resampled_slabs(
    slabs: Iterable[Slab], source: IntTriple, target: IntTriple, repeated: int | None = None
) -> Iterator[Slab]:
    """Bring slabs of a grid to another number of voxels over the same field of view, linearly.

    Args:
        slabs: Slabs of a grid of shape `source`, in order and without gaps.
        source: Shape of their grid.
        target: Shape wanted.
        repeated: Axis along which the nearest voxel is taken instead.

    Yields:
        Slabs of the grid of shape `target`, of about `CHUNK_BYTES` each.

    Raises:
        ValueError: If the slabs end early.
    """
    lower, upper, weight = _neighbors(source[0], target[0], repeated == 0)
    done = 0
    last: Slab | None = None
    for slab in slabs:
        stop = slab.start + len(slab.probabilities)
        ready = int(np.searchsorted(upper, stop))
        size = max(1, CHUNK_BYTES // (4 * slab.probabilities.shape[1] * target[1] * target[2]))
        for start in range(done, ready, size):
            part = slice(start, min(start + size, ready))
            slices = _slices(last, slab, int(lower[part][0]), int(upper[part][-1]) + 1)
            blend = partial(
                _blend, lower=lower[part] - slices.start, upper=upper[part] - slices.start, weight=weight[part]
            )
            yield replace(
                _map(_map(slices, blend), partial(_in_plane, shape=target[1:], repeated=repeated)), start=start
            )
        done = ready
        # A copy: the next slab overwrites this one.
        last = replace(_map(slab, lambda a: a[-1:].clone()), start=stop - 1)
    if done < target[0]:
        msg = f"the probabilities end before the volume does: slice {done} of {target[0]} is missing"
        raise ValueError(msg)


def keep_largest_component(labels: Array, value: int) -> None:
    """Set all but the largest connected part of one label to background, in place.

    Voxels that share a face, an edge or a corner are connected. Of parts of the same size the first in array order is
    kept.

    Args:
        labels: (Z, Y, X).
        value: The label.
    """
    from scipy import ndimage

    # Only the box around the label is searched: component numbers take 4 bytes a voxel, and time.
    region = labels[bounding_box(labels.shape, lambda z: labels[z] == value).slices]
    mask = region == value
    components, count = ndimage.label(mask, structure=np.ones((3, 3, 3))) if mask.any() else (mask, 0)
    if count > 1:
        sizes = np.bincount(components.ravel())
        sizes[0] = 0
        region[(components > 0) & (components != sizes.argmax())] = 0


def _neighbors(source: int, target: int, repeated: bool) -> tuple[Array, Array, Array]:
    """As `linear_weights`, but where nothing is blended no slice waits for the next one."""
    if source == target or repeated:
        alone = nearest(source, target)
        return alone, alone, np.zeros(target, dtype=np.float32)
    return linear_weights(source, target)


def _map(slab: Slab, change: Callable[[Tensor], Tensor]) -> Slab:
    """Slab with all its tensors changed alike; each is (n, ..., Y, X)."""
    disagreement = None if slab.disagreement is None else change(slab.disagreement[:, None])[:, 0]
    return Slab(slab.start, change(slab.probabilities), disagreement)


def _slices(last: Slab | None, slab: Slab, start: int, stop: int) -> Slab:
    """Slices [start, stop) of a slab, the first of which may be the last one of the slab before."""
    inside = replace(_map(slab, lambda a: a[max(start - slab.start, 0) : stop - slab.start]), start=start)
    if start >= slab.start or last is None:
        return inside
    # Where memory ran out in between, the sums moved to main memory.
    last = _map(last, lambda a: a.to(slab.probabilities.device))
    probabilities = torch.cat([last.probabilities, inside.probabilities])
    if last.disagreement is None or inside.disagreement is None:
        return Slab(start, probabilities)
    return Slab(start, probabilities, torch.cat([last.disagreement, inside.disagreement]))


def _blend(slices: Tensor, lower: Array, upper: Array, weight: Array) -> Tensor:
    """Linear interpolation between slices (n, K, Y, X); a view of them where nothing has to be computed."""
    if not weight.any() and (np.diff(lower) == 1).all():
        return slices[int(lower[0]) : int(lower[-1]) + 1]
    blended = slices.new_empty((len(lower), *slices.shape[1:]))
    # Slice by slice: picking all lower and all upper neighbors first would copy them.
    for out, below, above, share in zip(blended, lower.tolist(), upper.tolist(), weight.tolist(), strict=True):
        torch.lerp(slices[below], slices[above], share, out=out)
    return blended


def _in_plane(slices: Tensor, shape: tuple[int, int], repeated: int | None) -> Tensor:
    """Linear interpolation along Y and X of (n, K, Y, X), but for an axis along which voxels are repeated."""
    if repeated in (1, 2):
        chosen = nearest(slices.shape[repeated + 1], shape[repeated - 1])
        slices = slices.index_select(repeated + 1, torch.from_numpy(chosen).to(slices.device))
    if slices.shape[2:] == shape:
        return slices
    return functional.interpolate(slices, size=shape, mode="bilinear", align_corners=False)
