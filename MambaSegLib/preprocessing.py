"""From a volume to what a network takes, and the record of how to get back. Training and prediction share it.

Steps, in nnU-Net's order: [region of interest] -> anatomical orientation by axis swaps and flips -> crop to the nonzero
region -> normalize each channel -> resample to the plan's spacing. Oblique volumes stay on their own axes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from MambaSegLib.errors import EnvironmentProblemError, InputError
from MambaSegLib.geometry import Array, Box, Geometry, Reorientation
from MambaSegLib.machine import memory_bytes
from MambaSegLib.normalization import normalize
from MambaSegLib.plan import IntTriple, Plan
from MambaSegLib.resampling import LINEAR, NEAREST, coarse_axis, resample_classes, resample_image, resampled_shape
from MambaSegLib.volume import Labels, Volume

LARGEST = 1e37
"""Intensities beyond it would overflow float32 in normalization or resampling; no scanner comes near."""


@dataclass(frozen=True)
class Undo:
    """How a preprocessed array came about: enough to put each of its voxels back.

    Attributes:
        source: The volume's own grid.
        roi: Part of it that was used; the whole grid if no region was asked for.
        reorientation: Turn applied to that part.
        crop: Part kept of the turned array: the nonzero region.
        cropped: Grid of that part: the input's voxels, the plan's orientation.
        working: Grid of the preprocessed array: the same field of view at the plan's spacing.
    """

    source: Geometry
    roi: Box
    reorientation: Reorientation
    crop: Box
    cropped: Geometry
    working: Geometry

    def view(self, full: Array) -> Array:
        """Part of an array on the input's grid that was preprocessed, in the plan's orientation but at input spacing.

        It is a view of shape (..., *cropped.shape): what is written to it arrives on the right input voxels.
        """
        turned = self.reorientation.apply(full[(..., *self.roi.slices)])
        return turned[(..., *self.crop.slices)]


@dataclass(frozen=True)
class Preprocessed:
    """Network input.

    Attributes:
        array: (C, Z, Y, X) float32, C-contiguous, at the plan's spacing in the plan's orientation.
        undo: The way back.
    """

    array: Array
    undo: Undo


def preprocess(volume: Volume, plan: Plan, *, roi: Box | None = None) -> Preprocessed:
    """Make network input of a volume.

    Args:
        volume: Channels by name in any order, or without names in the plan's order; any real dtype. Not changed.
        plan: What the network expects.
        roi: Use this part only (indices on the volume's own grid); statistics of the normalization are taken in it.

    Raises:
        InputError: If channels are missing, voxels are not finite, or `roi` reaches beyond the volume.
        EnvironmentProblemError: If the volume has more voxels at the plan's spacing than this computer's memory holds.
    """
    volume = select_channels(volume, plan)
    undo = _plan_undo(volume, plan, roi)
    _check_fits(volume.name, undo, plan)
    # A copy of the cropped part only: normalization works in place. What overflows is refused below.
    with np.errstate(over="ignore", invalid="ignore"):
        image = np.array(undo.view(volume.array), dtype=np.float32, order="C")
        low, high = float(image.min()), float(image.max())
    if not (low >= -LARGEST and high <= LARGEST):  # also where one is NaN
        msg = (
            f"{volume.name}: values from {low:g} to {high:g} are no intensities that can be computed with. Correct the "
            "image; in Python, read_volume(path, replace_nonfinite=0) replaces NaN and infinite voxels."
        )
        raise InputError(msg)
    _normalize_channels(image, plan)
    return Preprocessed(_resample_channels(image, undo, plan), undo)


def preprocess_with_labels(volume: Volume, labels: Labels, plan: Plan) -> tuple[Preprocessed, Array]:
    """Make a training pair; the image goes through exactly what `preprocess` does.

    Returns:
        The network input, and the class of each of its voxels: (Z, Y, X) uint8 (uint16 above 256 classes); class k is
        the k-th label of the plan, 0 background, and the class after the last label is where nobody labelled.

    Raises:
        InputError: As `preprocess`; and if the two grids differ or a label value is not in the plan.
    """
    difference = volume.geometry.differences(labels.geometry)
    if difference:
        msg = f"{volume.name}: the label map is not on the image's grid ({difference}); resample it to the image"
        raise InputError(msg)
    classes = classes_of_values(labels.array, plan)
    preprocessed = preprocess(volume, plan)
    undo = preprocessed.undo
    resampled = resample_classes(undo.view(classes), len(_class_values(plan)), undo.working.shape)
    return preprocessed, np.ascontiguousarray(resampled)


def select_channels(volume: Volume, plan: Plan) -> Volume:
    """Volume with its channels in the plan's order, found by name (upper or lower case) where they have names.

    Raises:
        InputError: If the number differs or a name is missing; the message lists what the model expects.
    """
    expected = [channel.name for channel in plan.channels]
    found = len(volume.array)
    if found != len(expected):
        names = f" ({', '.join(volume.channels)})" if volume.channels else ""
        msg = f"{volume.name}: the model expects {_channels(expected)}, got {found}{names}. "
        raise InputError(msg + "Add or leave out images, or choose another model.")
    if not volume.channels:
        return volume
    position = {name.lower(): k for k, name in enumerate(volume.channels)}
    if sorted(position) != sorted(name.lower() for name in expected):
        msg = f"{volume.name}: the model expects {_channels(expected)}, got {', '.join(volume.channels)}. "
        raise InputError(msg + "Name each image as the model does, e.g. " + f"{expected[0]}=image.nii.gz.")
    order = [position[name.lower()] for name in expected]
    if order == sorted(order):
        return volume
    return replace(volume, array=volume.array[order], channels=tuple(volume.channels[k] for k in order))


def classes_of_values(array: Array, plan: Plan) -> Array:
    """Class indices 0, 1, 2, ... of label values.

    Raises:
        InputError: If a value is neither 0 nor in the plan.
    """
    values = _class_values(plan)
    # Counting per slice: sorting a whole CT takes many seconds.
    found = np.unique(np.concatenate([np.flatnonzero(np.bincount(part.ravel())) for part in array]))
    unknown = np.setdiff1d(found, values)
    if unknown.size:
        msg = f"the label map holds the values {unknown.tolist()}, which the plan does not know (it has {values})"
        raise InputError(msg)
    table = np.zeros(int(found.max()) + 1, dtype=label_type(len(values) - 1))
    for index, value in enumerate(values):
        if value < table.size:
            table[value] = index
    return np.asarray(table[array])


def _class_values(plan: Plan) -> list[int]:
    """Value of each class of training data; what nobody labelled comes last, see `readout`."""
    values = [0, *(label.value for label in plan.labels)]
    return values if plan.ignore_value is None else [*values, plan.ignore_value]


def label_type(largest: int) -> np.dtype[np.unsignedinteger]:
    """Smallest unsigned type that holds a value: uint8 up to 255, else uint16."""
    return np.dtype(np.uint8) if largest <= 255 else np.dtype(np.uint16)


def nonzero_box(array: Array) -> Box:
    """Bounding box of the voxels that are not 0 in every channel; the whole grid if all are 0.

    Args:
        array: (C, Z, Y, X).
    """
    return bounding_box(array.shape[1:], lambda index: (array[:, index] != 0).any(axis=0))


def bounding_box(shape: IntTriple, used_in_slice: Callable[[int], Array]) -> Box:
    """Bounding box of the voxels in use; the whole grid if there is none.

    Args:
        shape: Of the grid.
        used_in_slice: (Y, X) mask of a slice. One at a time, so that no mask of the whole volume is needed.
    """
    used = [np.zeros(n, dtype=bool) for n in shape]
    for index in range(shape[0]):
        mask = used_in_slice(index)
        used[0][index] = mask.any()
        used[1] |= mask.any(axis=1)
        used[2] |= mask.any(axis=0)
    if not used[0].any():
        return Box((0, 0, 0), shape)
    bounds = [(int(line.argmax()), len(line) - int(line[::-1].argmax())) for line in used]
    (z0, z1), (y0, y1), (x0, x1) = bounds
    return Box((z0, y0, x0), (z1, y1, x1))


def _plan_undo(volume: Volume, plan: Plan, roi: Box | None) -> Undo:
    roi = roi or Box((0, 0, 0), volume.geometry.shape)
    part = volume.geometry.cropped(roi)
    turn = part.reorientation_to(plan.orientation)
    turned = part.reoriented(turn)
    crop = Box((0, 0, 0), turned.shape)
    if plan.crop_to_nonzero:
        crop = nonzero_box(turn.apply(volume.array[(..., *roi.slices)]))
    cropped = turned.cropped(crop)
    shape = resampled_shape(cropped.shape, cropped.spacing_mm, plan.spacing_mm)
    working = cropped if shape == cropped.shape else cropped.resampled(shape)
    return Undo(volume.geometry, roi, turn, crop, cropped, working)


def _check_fits(name: str, undo: Undo, plan: Plan) -> None:
    """Refuse what no memory of this computer can hold, before the system ends the process for trying."""
    needed, (memory, _) = 4 * len(plan.channels) * prod(undo.working.shape), memory_bytes()
    if memory and needed > memory:
        size = " x ".join(map(str, undo.working.shape))
        wanted, found = (
            " x ".join(f"{s:.3g}" for s in spacing) for spacing in (plan.spacing_mm, undo.cropped.spacing_mm)
        )
        msg = (
            f"{name}: at the model's voxel size of {wanted} mm (Z, Y, X) the image has {size} voxels, which take "
            f"{needed / 2**30:.3g} GiB; there are {memory / 2**30:.3g}. Its own voxels are {found} mm large: check that, "
            "segment a region of interest, or choose a model for such images."
        )
        raise EnvironmentProblemError(msg)


def _normalize_channels(image: Array, plan: Plan) -> None:
    inside = None
    if any(channel.normalization.masked for channel in plan.channels):
        from scipy import ndimage

        inside = ndimage.binary_fill_holes((image != 0).any(axis=0))
    for array, channel in zip(image, plan.channels, strict=True):
        normalize(array, channel.normalization, inside)


def _resample_channels(image: Array, undo: Undo, plan: Plan) -> Array:
    shape: IntTriple = undo.working.shape
    if image.shape[1:] == shape:
        return image
    coarse = coarse_axis(undo.cropped.spacing_mm, plan.spacing_mm)
    order = NEAREST if plan.thick_slices == "repeated" else LINEAR
    result = np.empty((len(image), *shape), dtype=np.float32)
    for channel, array in enumerate(image):
        result[channel] = resample_image(array, shape, coarse, coarse_order=order)
    return result


def _channels(names: list[str]) -> str:
    return f"{len(names)} channel{'s' if len(names) > 1 else ''} ({', '.join(names)})"
