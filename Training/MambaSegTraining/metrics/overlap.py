"""Agreement of two masks counted in voxels."""

from __future__ import annotations

import math

from MambaSegLib.errors import InputError
from MambaSegLib.volume import Array


def dice(prediction: Array, reference: Array) -> float:
    """Dice similarity coefficient of two masks.

    Args:
        prediction: Boolean mask.
        reference: Boolean mask of the same shape.

    Returns:
        0 to 1; nan if both masks are empty.

    Raises:
        InputError: If they are not boolean masks of one shape.
    """
    check_masks(prediction, reference)
    voxels = int(prediction.sum()) + int(reference.sum())
    if not voxels:
        return math.nan
    return 2 * int((prediction & reference).sum()) / voxels


def check_masks(prediction: Array, reference: Array) -> None:
    """Refuse what is no pair of boolean masks on one grid."""
    if prediction.shape != reference.shape:
        msg = f"the masks must have one shape, found {prediction.shape} and {reference.shape}"
        raise InputError(msg)
    if prediction.dtype != bool or reference.dtype != bool:
        msg = f"masks must be boolean, found {prediction.dtype} and {reference.dtype}; compare with a label value first"
        raise InputError(msg)
