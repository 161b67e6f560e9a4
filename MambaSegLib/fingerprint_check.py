"""Are an image, and what was found in it, like those the model was trained on? If not, say so in plain words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from MambaSegLib.geometry import Array, Geometry
from MambaSegLib.plan import Fingerprint, IntensityRange, Plan, Triple
from MambaSegLib.volume import Labels, Volume

SPACING_MARGIN = 1.25
"""Voxels may be smaller than the smallest or larger than the largest seen by this factor without a notice."""

EXTENT_MARGIN = 1.5
"""The same for the field of view."""

VOLUME_MARGIN = 1.5
"""The same for what was found of a structure."""

OBLIQUITY_MARGIN_DEG = 20.0
"""How many degrees further than any training image's an axis may be turned against the body's without a notice."""

CT_AIR_HU = -900
"""Values at and below this are air in Hounsfield units; MR images have no such thing."""

FOREGROUND_SHARE = 0.001
"""Share of voxels with intensities of the structures below which a CT is called unlike."""

STORED_OFFSET = 1024
"""What scanners add to Hounsfield units to store them without a sign."""

OFFSET_SHARE = 0.05
"""Share of voxels that would have intensities of the structures without that offset, from which on a CT without
negative values is taken to have it. In Hounsfield units a region inside soft tissue has none below 0 either, but little
of it is as dense as cortical bone."""

_COMPONENT = {"L": 0, "R": 0, "A": 1, "P": 1, "S": 2, "I": 2}
_AXES = {"L": "left-right", "R": "left-right", "A": "front-back", "P": "front-back", "S": "head-foot", "I": "head-foot"}


def notices(volume: Volume, plan: Plan) -> tuple[str, ...]:
    """What is unlike the training images; () if nothing is.

    Args:
        volume: The part of the image that is segmented, channels in the plan's order. How its axes are stored (flipped
            or swapped) does not matter.
        plan: With the training images' fingerprint; without one, only orientation, contrast and what tells a CT from MR are
            checked.

    Returns:
        One sentence each, with what was found and what was expected.
    """
    geometry = volume.geometry.reoriented(volume.geometry.reorientation_to(plan.orientation))
    found = [*_obliquity(geometry, plan.fingerprint), *_contrast(volume, plan), *_modality(volume, plan)]
    if plan.fingerprint is not None:
        found += _spacing(geometry, plan.fingerprint, plan.orientation)
        found += _extent(geometry, plan.fingerprint, plan.orientation)
        found += _intensities(volume, plan, plan.fingerprint.intensities)
    return tuple(found)


def volume_notices(labels: Labels, plan: Plan) -> tuple[str, ...]:
    """Which structures were found larger or smaller than in any training image; () if none was.

    Args:
        labels: What was predicted.
        plan: The model's.

    Returns:
        One sentence each, with the volume found and those seen.
    """
    if plan.fingerprint is None or not plan.fingerprint.volumes:
        return ()
    seen = {label.value: known for label, known in zip(plan.labels, plan.fingerprint.volumes, strict=True)}
    counts = np.sum([np.bincount(plane.ravel(), minlength=max(seen) + 1) for plane in labels.array], axis=0)
    found = []
    for label in plan.predicted_labels:
        volume_ml = counts[label.value] * labels.geometry.voxel_volume_mm3 / 1000
        low, high = seen[label.value].smallest_ml, seen[label.value].largest_ml
        if not low / VOLUME_MARGIN <= volume_ml <= high * VOLUME_MARGIN:
            known = f"in the training images it had {_range(low, high)} ml"
            found.append(f"{label.name} has {volume_ml:.3g} ml; {known}. Look closely before you use it.")
    return tuple(found)


def obliquity_deg(geometry: Geometry) -> float:
    """Largest angle between an axis of the grid and the anatomical direction it is called after."""
    cosines = [abs(geometry.direction[_COMPONENT[letter]][axis]) for axis, letter in enumerate(geometry.orientation)]
    return float(np.degrees(np.arccos(np.clip(min(cosines), 0, 1))))


def _obliquity(geometry: Geometry, fingerprint: Fingerprint | None) -> Iterator[str]:
    angle = obliquity_deg(geometry)
    seen = fingerprint.obliquity_max_deg if fingerprint else None
    if angle <= (seen or 0.0) + OBLIQUITY_MARGIN_DEG:
        return
    known = "the model may only know upright ones" if seen is None else f"those it was trained on by {seen:.0f} at most"
    yield f"The image is turned by {angle:.0f} degrees against the body's axes; {known}. It is segmented along its own axes."


def _contrast(volume: Volume, plan: Plan) -> Iterator[str]:
    for channel, array in zip(plan.channels, volume.array, strict=True):
        if array.min() == array.max():
            yield f"The image {channel.name} has the same value, {array.flat[0]:g}, everywhere: there is nothing to see."


def _modality(volume: Volume, plan: Plan) -> Iterator[str]:
    for channel, array in zip(plan.channels, volume.array, strict=True):
        low = array.min()
        if channel.modality.upper() == "MR" and low <= CT_AIR_HU:
            yield f"The image {channel.name} has values down to {low:g}, as a CT has; the model was trained on MR."


def _spacing(geometry: Geometry, fingerprint: Fingerprint, orientation: str) -> Iterator[str]:
    ranges = fingerprint.spacing_min_mm, fingerprint.spacing_max_mm
    for axis, found in _outside(geometry.spacing_mm, *ranges, SPACING_MARGIN):
        low, high = (bound[axis] for bound in ranges)
        yield (
            f"Voxels are {found:.3g} mm apart {_AXES[orientation[axis]]}; the model was trained on "
            f"{_range(low, high)} mm. Details may be missed or misjudged."
        )


def _extent(geometry: Geometry, fingerprint: Fingerprint, orientation: str) -> Iterator[str]:
    ranges = fingerprint.extent_min_mm, fingerprint.extent_max_mm
    for axis, found in _outside(geometry.extent_mm, *ranges, EXTENT_MARGIN):
        low, high = (bound[axis] for bound in ranges)
        cure = "Choose a region of interest around the structures" if found > high else "Structures may be cut off"
        yield (
            f"The image covers {found:.0f} mm {_AXES[orientation[axis]]}; the model was trained on "
            f"{_range(round(low), round(high))} mm. {cure}."
        )


def _intensities(volume: Volume, plan: Plan, ranges: Sequence[IntensityRange]) -> Iterator[str]:
    for channel, array, known in zip(plan.channels, volume.array, ranges or (), strict=False):
        if channel.normalization.scheme != "ct":
            continue  # Other scales are arbitrary: each image is standardized by itself.
        low, high = float(array.min()), float(array.max())
        expected = f"structures of {known.percentile_00_5:.0f} to {known.percentile_99_5:.0f} Hounsfield units"
        if low >= 0 and _share_inside(array, known, STORED_OFFSET) > OFFSET_SHARE:
            yield (
                f"The image {channel.name} has values from {low:.0f} to {high:.0f} and none below 0, as if they were not "
                f"Hounsfield units (air is -1000); the model was trained on {expected}. Check the rescale intercept."
            )
        elif _share_inside(array, known) < FOREGROUND_SHARE:
            yield (
                f"Hardly any voxel of {channel.name} (values {low:.0f} to {high:.0f}) has an intensity the model knows: "
                f"it was trained on {expected}."
            )


def _share_inside(array: Array, known: IntensityRange, offset: float = 0.0) -> float:
    low, high = known.percentile_00_5 + offset, known.percentile_99_5 + offset
    # Slice by slice: masks of a whole CT would take 300 MB.
    return sum(np.count_nonzero((part >= low) & (part <= high)) for part in array) / array.size


def _outside(found: Triple, low: Triple, high: Triple, margin: float) -> Iterator[tuple[int, float]]:
    for axis, value in enumerate(found):
        if not low[axis] / margin <= value <= high[axis] * margin:
            yield axis, value


def _range(low: float, high: float) -> str:
    return f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g} to {high:.3g}"
