"""The measures of the 2025 paper's evaluation scripts, flaws included: only to compare with its Table 1.

They take no voxel size, and give a missed structure a perfect distance of 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from MambaSegLib.volume import Array, Labels
from MambaSegTraining.metrics.overlap import check_masks, dice
from MambaSegTraining.metrics.scores import Structure, check_one_grid, mask_of, structures_of, unlabelled


@dataclass(frozen=True)
class LegacyScore:
    """One structure in one case, by the legacy convention.

    Attributes:
        case: The case.
        fold: The fold that predicted it.
        label: Name of the structure.
        dice: Dice; 1 if both masks are empty.
        hd95_voxels: Pooled 95th percentile in voxels; 0 if either mask is empty.
    """

    case: str
    fold: int
    label: str
    dice: float
    hd95_voxels: float


def score_case_legacy(
    prediction: Labels,
    reference: Labels,
    case: str,
    fold: int,
    structures: Sequence[Structure] = (),
    ignore_value: int | None = None,
) -> tuple[LegacyScore, ...]:
    """Compare two label maps as the paper's scripts do; arguments as for `score_case`."""
    check_one_grid(prediction, reference, case)
    scores, unknown = [], unlabelled(reference, ignore_value)
    for structure in structures or structures_of(reference.table):
        found, true = mask_of(prediction, structure, unknown), mask_of(reference, structure)
        overlap = 1.0 if not (found.any() or true.any()) else dice(found, true)
        scores.append(LegacyScore(case, fold, structure.name, overlap, legacy_hd95_voxels(found, true)))
    return tuple(scores)


def legacy_hd95_voxels(prediction: Array, reference: Array) -> float:
    """95th percentile of the distances between two sets of surface voxels, both directions pooled, in voxels.

    Source:
        Convention of MedPy's `hd95` without voxel spacing: surface voxels have a face neighbor outside the mask.
    """
    from scipy.spatial import cKDTree

    check_masks(prediction, reference)
    if not (prediction.any() and reference.any()):
        return 0.0
    first, second = _surface_voxels(prediction), _surface_voxels(reference)
    distances = [cKDTree(second).query(first)[0], cKDTree(first).query(second)[0]]
    return float(np.percentile(np.concatenate(distances), 95))


def _surface_voxels(mask: Array) -> Array:
    from scipy.ndimage import binary_erosion

    return np.argwhere(mask & ~binary_erosion(mask))
