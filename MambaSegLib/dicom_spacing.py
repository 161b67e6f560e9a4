"""Whether the slices of a DICOM series stand in even steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from MambaSegLib.errors import InputError
from MambaSegLib.geometry import Array
from MambaSegLib.raw_image import MAX_SPACING_MM

UNEVEN_SLICES = 0.1
"""How far a slice may lie from where even spacing puts it, as a fraction of the spacing. Scanners round positions to
0.1 mm at worst; a missing slice gives about one half at least."""

SAME_PLACE_MM = 1e-3
"""Slices closer together lie at one place: repetitions in time, echoes or b-values."""


def even_step(
    path: Path, positions_mm: Array, normal: Array, thickness_mm: float, names: Sequence[str]
) -> tuple[Array, Array]:
    """Position of the first slice and the step to the next one.

    The step need not be along the normal: a tilted CT gantry gives a sheared grid, which is for the caller to refuse.

    Args:
        path: For messages.
        positions_mm: (slices, 3), LPS position of the first pixel of each slice, in order along the normal.
        normal: Unit vector across the slices.
        thickness_mm: Spacing to assume for a single slice; 1 mm where it is not sensible.
        names: What to call each slice.

    Raises:
        InputError: If a slice is more than `UNEVEN_SLICES` of a step from its even place.
    """
    count = len(positions_mm)
    if count == 1:
        return positions_mm[0], normal * (thickness_mm if 0 < thickness_mm < MAX_SPACING_MM else 1.0)
    step = (positions_mm[-1] - positions_mm[0]) / (count - 1)
    expected = positions_mm[0] + np.arange(count)[:, None] * step
    if np.linalg.norm(positions_mm - expected, axis=1).max() > UNEVEN_SLICES * np.linalg.norm(step):
        gaps = np.diff(positions_mm @ normal)
        widest = int(gaps.argmax())
        msg = (
            f"{path}: slices are not evenly spaced: gaps from {gaps.min():.4g} to {gaps.max():.4g} mm, the widest "
            f"between {names[widest]} and {names[widest + 1]}. Slices are missing, or the series was acquired so. "
            "Export the complete series, or resample it to even spacing first (3D Slicer does so on loading)."
        )
        raise InputError(msg)
    return positions_mm[0], step
