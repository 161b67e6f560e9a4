"""Resampling between grids that share their axes and their field of view.

Voxel edges coincide, not centers: of n voxels made m, output voxel i has its center at input coordinate
(i + 0.5) * n / m - 0.5 ("align_corners=False"). Beyond the outermost centers the edge value goes on.

Interpolation along an axis is linear in the values, so each axis has one matrix (m x n), and a volume is resampled by
three matrix products: the same result as a tensor-product spline evaluated voxel by voxel, with a fraction of the work.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from MambaSegLib.geometry import Array
from MambaSegLib.plan import IntTriple, Triple

SAME_SPACING = 1e-3
"""Relative difference in spacing below which an axis is not resampled."""

ANISOTROPY_LIMIT = 3.0
"""Ratio of coarsest to finest spacing above which the coarse axis is treated apart, as nnU-Net does."""

NEAREST, LINEAR, CUBIC = 0, 1, 3

TIE = 1e-6
"""Shares of a voxel that differ by less are equal: rounding must not decide."""


def resampled_shape(shape: IntTriple, spacing_mm: Triple, target_mm: Triple) -> IntTriple:
    """Voxels a grid has at another spacing: extent / target, rounded (nnU-Net's rule), at least 1.

    An axis whose spacing is right within `SAME_SPACING` keeps its voxels.
    """
    z, y, x = (
        n if abs(have / want - 1) <= SAME_SPACING else max(1, round(n * have / want))
        for n, have, want in zip(shape, spacing_mm, target_mm, strict=True)
    )
    return z, y, x


def coarse_axis(spacing_mm: Triple, target_mm: Triple) -> int | None:
    """Axis along which images are interpolated linearly (or not at all), not by splines; None if there is none.

    nnU-Net's rule for *when*: if the input's, or else the target's, coarsest spacing is more than 3 times its finest,
    and only one axis is that coarse; a spline there would ring across slices that have little to do with each other.
    *What* is done differs: nnU-Net takes the nearest slice. That moves the image by up to half a slice (5 mm at 10 mm
    slices; always by half when the number of slices is halved), and the labels would come back as far off their
    place. Linear interpolation moves nothing, and is done unless a network was trained by nnU-Net itself
    (`Plan.thick_slices`).
    """
    for spacing in (spacing_mm, target_mm):
        if max(spacing) / min(spacing) > ANISOTROPY_LIMIT:
            # Spacings from headers differ in the last digits: equal within 0.1 % is equally coarse.
            coarsest = [axis for axis in range(3) if spacing[axis] > max(spacing) * (1 - SAME_SPACING)]
            return coarsest[0] if len(coarsest) == 1 else None
    return None


def resample_image(
    image: Array, shape: IntTriple, coarse: int | None = None, order: int = CUBIC, coarse_order: int = LINEAR
) -> Array:
    """Resample one channel.

    Args:
        image: (Z, Y, X), finite; computed in float32.
        shape: New number of voxels over the same field of view.
        coarse: Axis to treat apart, see `coarse_axis`.
        order: Spline order along the others: `CUBIC` for images, as nnU-Net's (no smoothing when it gets coarser),
            or `LINEAR`, which never leaves the range of the values, for probabilities.
        coarse_order: The order along that axis: `LINEAR`, or `NEAREST`.

    Returns:
        float32 array of the new shape; the input itself where nothing changes.
    """
    # Axes that lose most voxels first: the later products are then smaller.
    for axis in sorted(range(3), key=lambda k: shape[k] / image.shape[k]):
        if shape[axis] == image.shape[axis]:
            continue
        degree = coarse_order if axis == coarse else order
        image = apply_along(interpolation_matrix(image.shape[axis], shape[axis], degree), image, axis)
    return image


def resample_classes(classes: Array, count: int, shape: IntTriple) -> Array:
    """Resample class indices: every class's mask linearly, then the class with the most of each new voxel.

    Ties go to the smaller index. Of two classes it is the same as nnU-Net's "more than half"; of several, the largest
    share wins where nnU-Net leaves a voxel without a majority to background.

    Args:
        classes: (Z, Y, X), unsigned integer, below `count`.
        count: Classes, background included.
        shape: As for `resample_image`.
    """
    if tuple(classes.shape) == tuple(shape):
        return classes
    from scipy import ndimage

    result = np.zeros(shape, dtype=classes.dtype)
    best, background = np.zeros(shape, dtype=np.float32), np.ones(shape, dtype=np.float32)
    for index, box in enumerate(ndimage.find_objects(classes, count - 1), start=1):
        if box is None:
            continue
        # A structure's share is 0 beyond the box around it, so only that much is computed.
        parts = [_around(old, new, part) for old, new, part in zip(classes.shape, shape, box, strict=True)]
        if any(not len(part.weight) for part in parts):
            continue  # it lies between the centers of all new voxels
        share = (classes[tuple(part.source for part in parts)] == index).astype(np.float32)
        for axis, part in enumerate(parts):
            share = part.blend(share, axis)
        here = tuple(part.target for part in parts)
        background[here] -= share
        more = share > best[here] + TIE
        result[here][more] = index
        best[here][more] = share[more]
    result[best <= background + TIE] = 0
    return result


@dataclass(frozen=True)
class _Part:
    """Part of one axis of a linear interpolation: which voxels come from which."""

    source: slice
    target: slice
    lower: Array
    upper: Array
    weight: Array

    def blend(self, array: Array, axis: int) -> Array:
        """The target's voxels of this axis from those of the source."""
        along = [1, 1, 1]
        along[axis] = -1
        weight = self.weight.reshape(along)
        result: Array = np.take(array, self.lower, axis) * (1 - weight)
        result += np.take(array, self.upper, axis) * weight
        return result


def _around(source: int, target: int, box: slice) -> _Part:
    """The target's voxels that depend on a box of the source, and the source's voxels they depend on."""
    lower, upper, weight = linear_weights(source, target)
    touched = np.flatnonzero((upper >= box.start) & (lower < box.stop))
    chosen = slice(int(touched[0]), int(touched[-1]) + 1) if touched.size else slice(0, 0)
    lower, upper = lower[chosen], upper[chosen]
    start, stop = (int(lower[0]), int(upper[-1]) + 1) if touched.size else (0, 0)
    return _Part(slice(start, stop), chosen, lower - start, upper - start, weight[chosen])


def source_coordinates(source: int, target: int) -> Array:
    """Where the centers of `target` voxels lie, in indices of `source` voxels over the same extent; float64."""
    return (np.arange(target) + 0.5) * (source / target) - 0.5


def linear_weights(source: int, target: int) -> tuple[Array, Array, Array]:
    """Lower and upper neighbor of each output center and the upper one's weight (float32)."""
    where = np.clip(source_coordinates(source, target), 0, source - 1)
    lower = np.minimum(where.astype(np.intp), max(source - 2, 0))
    return lower, np.minimum(lower + 1, source - 1), (where - lower).astype(np.float32)


def nearest(source: int, target: int) -> Array:
    """Index of the input voxel nearest to each output center; halfway, the later one."""
    where = np.floor(source_coordinates(source, target) + 0.5).astype(np.intp)
    return np.clip(where, 0, source - 1)


def interpolation_matrix(source: int, target: int, order: int) -> Array:
    """Matrix (target, source), float32, that interpolates along one axis; its rows add up to 1."""
    if order == NEAREST:
        return np.eye(source, dtype=np.float32)[nearest(source, target)]
    if order == LINEAR or source == 1:
        lower, upper, weight = linear_weights(source, target)
        matrix = np.zeros((target, source), dtype=np.float32)
        rows = np.arange(target)
        np.add.at(matrix, (rows, lower), 1 - weight)
        np.add.at(matrix, (rows, upper), weight)
        return matrix
    from scipy import ndimage

    # The response to each unit vector, straight from the spline that would be evaluated otherwise.
    coordinates = source_coordinates(source, target)
    columns = [ndimage.map_coordinates(unit, coordinates[None], order=order, mode="nearest") for unit in np.eye(source)]
    return np.stack(columns, axis=1).astype(np.float32)


def apply_along(matrix: Array, image: Array, axis: int) -> Array:
    """Matrix product along one axis of a (Z, Y, X) array; float32."""
    image = np.ascontiguousarray(image, dtype=np.float32)
    if axis == 0:
        flat: Array = matrix @ image.reshape(image.shape[0], -1)
        return flat.reshape(matrix.shape[0], *image.shape[1:])
    product: Array = matrix @ image if axis == 1 else image @ matrix.T
    return product
