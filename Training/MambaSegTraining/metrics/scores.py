"""All measures of one case, structure by structure, with one rule for empty masks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from MambaSegLib.errors import InputError
from MambaSegLib.geometry import Geometry
from MambaSegLib.plan import IntTriple, Label, Region
from MambaSegLib.volume import Array, Labels
from MambaSegTraining.metrics.overlap import dice
from MambaSegTraining.metrics.surface import surface_distances

DEFAULT_TOLERANCE_MM = 2.0
"""Tolerance of the NSD where none is given; better state one per structure, from how far two readers differ."""

Empty = Literal["none", "prediction", "reference", "both"]


@dataclass(frozen=True)
class Structure:
    """What is measured: a label, or a region made of several.

    Attributes:
        name: What a person calls it.
        values: Values of the label map that belong to it.
        tolerance_mm: Deviation of the surface that the NSD accepts.
        color: Red, green, blue, 0-255.
    """

    name: str
    values: tuple[int, ...]
    tolerance_mm: float = DEFAULT_TOLERANCE_MM
    color: IntTriple = (128, 128, 128)

    def __post_init__(self) -> None:
        """Refuse a structure without labels, or a tolerance that is no length."""
        if not self.values or any(value < 1 for value in self.values):
            msg = f"{self.name}: label values of 1 or more are needed, found {self.values}"
            raise InputError(msg)
        if not 0 <= self.tolerance_mm < math.inf:
            msg = f"{self.name}: the tolerance must be a length in mm, found {self.tolerance_mm}"
            raise InputError(msg)


@dataclass(frozen=True)
class LabelScore:
    """One structure in one case; what the numbers mean is in `definitions`. None: not defined there.

    Attributes:
        case: The case.
        fold: The fold that predicted it, without having seen it.
        label: Name of the structure.
        empty: Which of the two masks is empty.
        dice: Dice similarity coefficient.
        nsd: Normalized surface distance at `tolerance_mm`.
        hd95_mm: 95th percentile Hausdorff distance.
        assd_mm: Average symmetric surface distance.
        volume_error_ml: Predicted minus reference volume.
        volume_error_relative: The same, divided by the reference volume.
        predicted_ml: Volume of the prediction.
        reference_ml: Volume of the reference.
        tolerance_mm: Tolerance of the NSD.
    """

    case: str
    fold: int
    label: str
    empty: Empty
    dice: float | None
    nsd: float | None
    hd95_mm: float | None
    assd_mm: float | None
    volume_error_ml: float | None
    volume_error_relative: float | None
    predicted_ml: float
    reference_ml: float
    tolerance_mm: float

    @property
    def is_flagged(self) -> bool:
        """Whether the structure was missed or invented: exactly one mask is empty."""
        return self.empty in ("prediction", "reference")


def structures_of(
    table: Sequence[Label],
    tolerances_mm: Mapping[str, float] | None = None,
    default_mm: float = DEFAULT_TOLERANCE_MM,
    regions: Sequence[Region] = (),
) -> tuple[Structure, ...]:
    """One structure per region, or per label where there are no regions.

    Args:
        table: The labels.
        tolerances_mm: NSD tolerance by the structure's name.
        default_mm: For structures not named there.
        regions: What was learned instead of the labels; each has the color of the label it becomes.

    Raises:
        InputError: If a tolerance is given for a structure that is not there.
    """
    given = dict(tolerances_mm or {})
    names = [structure.name for structure in regions or table]
    unknown = sorted(set(given) - set(names))
    if unknown:
        msg = f"there is no structure {unknown[0]!r} to give a tolerance; the structures are {', '.join(names)}"
        raise InputError(msg)
    colors = {label.value: label.color for label in table}
    members = [(region.labels, colors[region.value]) for region in regions]
    members = members or [((label.value,), label.color) for label in table]
    return tuple(
        Structure(name, values, given.get(name, default_mm), color)
        for name, (values, color) in zip(names, members, strict=True)
    )


def score_case(
    prediction: Labels,
    reference: Labels,
    case: str,
    fold: int,
    structures: Sequence[Structure] = (),
    ignore_value: int | None = None,
) -> tuple[LabelScore, ...]:
    """Measure a prediction against its reference.

    Args:
        prediction: Predicted label map.
        reference: Manual label map on the same grid.
        case: Its name.
        fold: The fold that predicted it.
        structures: What to measure; () takes the labels of the reference's table with the default tolerance.
        ignore_value: Value of reference voxels that nobody labelled. They are in neither mask, and pieces of surface that
            touch one are left out; without any other piece the surface distances are not defined.

    Raises:
        InputError: If the grids differ, in shape or in place.
    """
    check_one_grid(prediction, reference, case)
    unknown = unlabelled(reference, ignore_value)
    geometry = reference.geometry
    return tuple(
        _score(
            mask_of(prediction, structure, unknown),
            mask_of(reference, structure),
            unknown,
            geometry,
            structure,
            case,
            fold,
        )
        for structure in structures or structures_of(reference.table)
    )


def check_one_grid(prediction: Labels, reference: Labels, case: str) -> None:
    """Refuse label maps whose voxels are not at the same places; shapes alone say too little."""
    differences = reference.geometry.differences(prediction.geometry)
    if differences:
        msg = f"{case}: the prediction lies on another grid than the reference ({differences}); bring it there first"
        raise InputError(msg)


def unlabelled(reference: Labels, ignore_value: int | None) -> Array | None:
    """Boolean mask of the voxels that nobody labelled; None if there are none."""
    unknown = None if ignore_value is None else np.asarray(reference.array == ignore_value)
    return unknown if unknown is not None and unknown.any() else None


def mask_of(labels: Labels, structure: Structure, unknown: Array | None = None) -> Array:
    """Boolean mask of a structure, without voxels that nobody labelled."""
    if len(structure.values) == 1:
        mask = np.asarray(labels.array == structure.values[0])
    else:
        mask = np.isin(labels.array, structure.values)
    return mask if unknown is None else mask & ~unknown


def image_diagonal_mm(geometry: Geometry) -> float:
    """Distance of opposite corners of the image, voxel edges included: no two points in it are farther apart."""
    return math.hypot(*geometry.extent_mm)


def _score(
    found: Array, true: Array, unknown: Array | None, geometry: Geometry, structure: Structure, case: str, fold: int
) -> LabelScore:
    empty = _which_is_empty(found, true)
    overlap: float | None
    nsd: float | None
    hd95: float | None
    assd: float | None
    if empty == "both":
        overlap = nsd = hd95 = assd = None
    elif empty == "none":
        overlap = dice(found, true)
        distances = surface_distances(found, true, geometry.spacing_mm, unknown)
        nsd = distances.surface_dice(structure.tolerance_mm) if distances else None
        hd95, assd = (distances.hausdorff_mm(95), distances.average_mm()) if distances else (None, None)
    else:
        overlap = nsd = 0.0
        hd95 = assd = image_diagonal_mm(geometry)
    milliliters = geometry.voxel_volume_mm3 / 1000
    predicted_ml, reference_ml = float(found.sum() * milliliters), float(true.sum() * milliliters)
    error = predicted_ml - reference_ml
    return LabelScore(
        case=case,
        fold=fold,
        label=structure.name,
        empty=empty,
        dice=overlap,
        nsd=nsd,
        hd95_mm=hd95,
        assd_mm=assd,
        volume_error_ml=None if empty == "both" else error,
        volume_error_relative=error / reference_ml if reference_ml else None,
        predicted_ml=predicted_ml,
        reference_ml=reference_ml,
        tolerance_mm=structure.tolerance_mm,
    )


def _which_is_empty(found: Array, true: Array) -> Empty:
    if found.any():
        return "none" if true.any() else "reference"
    return "prediction" if true.any() else "both"
