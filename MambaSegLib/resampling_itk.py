"""Linear resampling between physical grids, through SimpleITK: for sheared grids and channels on other grids.

Only used where a person asked for it, because it changes voxels.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from MambaSegLib.geometry import Array, Geometry
from MambaSegLib.itk_files import import_simpleitk
from MambaSegLib.raw_image import RawImage
from MambaSegLib.volume import Volume


def resample_onto(volume: Volume, geometry: Geometry) -> Volume:
    """Bring every channel onto another grid; outside the volume its voxels are 0, or its smallest value below 0: air in CT."""
    axes, origin = volume.geometry.index_to_world[:3, :3], volume.geometry.origin_mm
    moved = [_resampled(part, axes, origin, geometry, min(0.0, float(part.min()))) for part in volume.array]
    return replace(volume, array=np.stack(moved), geometry=geometry)


def resample_sheared(raw: RawImage) -> tuple[Array, Geometry]:
    """Bring an image on a sheared grid onto a straight one that covers it, with the same voxel size.

    In-plane axes stay; the slice axis becomes their normal. Outside the image its smallest value is filled in: air in
    CT, 0 in most MR.
    """
    geometry = _straight_cover(raw)
    fill = float(raw.array.min())
    return _resampled(raw.array, raw.axes_mm, raw.origin_mm, geometry, fill), geometry


def _straight_cover(raw: RawImage) -> Geometry:
    y, x = raw.axes_mm[:, 1], raw.axes_mm[:, 2]
    x_unit = x / np.linalg.norm(x)
    y_unit = y - x_unit * (x_unit @ y)
    y_unit /= np.linalg.norm(y_unit)
    normal = np.cross(x_unit, y_unit)
    z_unit = normal * np.sign(normal @ raw.axes_mm[:, 0])
    direction = np.column_stack([z_unit, y_unit, x_unit])
    # Steps between slices shrink to their part along the normal, so slices stay slices.
    spacing = np.abs(np.einsum("ij,ij->j", direction, raw.axes_mm))
    corners = np.array(list(product(*((0, n - 1) for n in raw.array.shape))))
    along = (corners @ raw.axes_mm.T) @ direction
    low = along.min(axis=0)
    shape = np.ceil((along.max(axis=0) - low) / spacing - 1e-6).astype(int) + 1
    matrix = np.eye(4)
    matrix[:3, :3] = direction * spacing
    matrix[:3, 3] = np.asarray(raw.origin_mm) + direction @ low
    return Geometry.from_matrix(matrix, shape.tolist())


def _resampled(array: Array, axes_mm: Array, origin_mm: Any, target: Geometry, fill: float) -> Array:
    sitk = import_simpleitk()
    image = sitk.GetImageFromArray(array)
    spacing = np.linalg.norm(axes_mm, axis=0)
    image.SetSpacing(spacing[::-1].tolist())
    image.SetDirection((axes_mm / spacing)[:, ::-1].ravel().tolist())
    image.SetOrigin([float(v) for v in origin_mm])
    moved = sitk.Resample(
        image,
        [int(n) for n in target.shape[::-1]],
        sitk.Transform(3, sitk.sitkIdentity),
        sitk.sitkLinear,
        [float(v) for v in target.origin_mm],
        [float(v) for v in target.spacing_mm[::-1]],
        np.asarray(target.direction)[:, ::-1].ravel().tolist(),
        fill,
        sitk.sitkFloat64 if array.dtype == np.float64 else sitk.sitkFloat32,
    )
    return np.asarray(sitk.GetArrayFromImage(moved))
