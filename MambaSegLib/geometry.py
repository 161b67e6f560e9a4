"""Where voxels lie in the patient: grids, boxes on them, and turning grids to another anatomical orientation.

World coordinates are LPS in mm (x grows to the patient's left, y to posterior, z to superior), as in DICOM and
SimpleITK. Triples of array axes are in array order (Z, Y, X); triples of world components are (x, y, z).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import permutations, product
from typing import Any

import numpy as np

from MambaSegLib.errors import InputError
from MambaSegLib.plan import IntTriple, Triple

Array = np.ndarray[Any, np.dtype[Any]]
Matrix = tuple[Triple, Triple, Triple]

ORTHONORMAL_TOLERANCE = 1e-4
"""Largest entry of |DᵀD - 1| a direction matrix may have. Cosines stored as 32-bit floats or with six decimals stay
below 1e-5; at 1e-4 a voxel 200 mm from the center is misplaced by at most 0.02 mm."""

REPAIRED_SHEAR = 5e-3
"""Largest shear that `straightened` repairs, about 0.3 degrees: cosines rounded to two or three decimals reach it.
Beyond it a shear is meant (a tilted CT gantry starts at about 0.5 degrees, an affine registration anywhere)."""

SINGULAR_VOLUME = 1e-2
"""Smallest volume spanned by the three unit axes: below it they lie nearly in one plane."""

GRID_TOLERANCE = 1e-3
"""How far, as a fraction of the smallest voxel edge, two grids may lie apart at any corner and still count as one."""

POSITIVE_LETTERS = "LPS"
NEGATIVE_LETTERS = "RAI"


class ShearedGridError(InputError):
    """Axes too far from perpendicular to be a rounding error."""

    def __init__(self, shear: float) -> None:
        """Say how large the shear is and what to do."""
        angle = np.degrees(np.arcsin(min(1.0, shear)))
        super().__init__(
            f"the grid is sheared by {angle:.1f} degrees (a CT with tilted gantry, or a header changed by an affine "
            "registration). Resample it onto a straight grid: option --resample-sheared, in Python "
            "resample_sheared=True, or 3D Slicer's Resample Scalar/Vector/DWI Volume module."
        )


@dataclass(frozen=True)
class Box:
    """A block of voxels on a grid.

    Attributes:
        start: First index along (Z, Y, X).
        stop: Index after the last one.
    """

    start: IntTriple
    stop: IntTriple

    def __post_init__(self) -> None:
        """Refuse a box without voxels or with negative indices."""
        if any(a < 0 or b <= a for a, b in zip(self.start, self.stop, strict=True)):
            msg = f"the region {self.start} to {self.stop} (Z, Y, X) holds no voxel; give start >= 0 and stop > start"
            raise InputError(msg)

    @property
    def shape(self) -> IntTriple:
        """Voxels along (Z, Y, X)."""
        z, y, x = (int(b - a) for a, b in zip(self.start, self.stop, strict=True))
        return z, y, x

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Index of the box in a (Z, Y, X) array; put `...` before it for a (C, Z, Y, X) array."""
        z, y, x = (slice(int(a), int(b)) for a, b in zip(self.start, self.stop, strict=True))
        return z, y, x


@dataclass(frozen=True)
class Geometry:
    """Where the voxels of an array lie.

    Attributes:
        shape: Voxels along (Z, Y, X).
        spacing_mm: Distance between voxel centers along (Z, Y, X).
        origin_mm: LPS position (x, y, z) of the center of voxel (0, 0, 0).
        direction: 3 x 3, row = LPS component (x, y, z), column = array axis (Z, Y, X): column k is the unit vector
            along which array axis k grows. Left-handed systems are allowed, sheared ones are not.
    """

    shape: IntTriple
    spacing_mm: Triple
    origin_mm: Triple
    direction: Matrix

    def __post_init__(self) -> None:
        """Refuse grids on which positions would be undefined.

        Raises:
            InputError: For an empty shape, spacing that is not positive, positions that are not finite, or axes
                that are not perpendicular unit vectors within `ORTHONORMAL_TOLERANCE`.
        """
        if len(self.shape) != 3 or any(int(n) < 1 for n in self.shape):
            msg = f"a volume needs three axes of at least one voxel, found shape {tuple(self.shape)}"
            raise InputError(msg)
        if not all(np.isfinite(s) and s > 0 for s in self.spacing_mm) or len(self.spacing_mm) != 3:
            msg = f"voxel spacing must be positive, found {_numbers(self.spacing_mm)} mm (Z, Y, X); correct the header"
            raise InputError(msg)
        if len(self.origin_mm) != 3 or not np.isfinite(self.origin_mm).all():
            msg = f"the origin is not a position: {_numbers(self.origin_mm)} mm; correct the header"
            raise InputError(msg)
        matrix = np.asarray(self.direction, dtype=np.float64)
        if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or shear_of(matrix) > ORTHONORMAL_TOLERANCE:
            msg = (
                f"the axes of the volume are not perpendicular unit vectors: {matrix.tolist()}. "
                "Resample the volume onto a straight grid first."
            )
            raise InputError(msg)

    @classmethod
    def from_matrix(cls, index_to_world: Array, shape: Sequence[int]) -> Geometry:
        """Grid of a 4 x 4 matrix that maps (z, y, x, 1) to LPS mm; the counterpart of `index_to_world`.

        Raises:
            InputError: As for a Geometry; nothing is repaired here.
        """
        axes = np.asarray(index_to_world, dtype=np.float64)[:3, :3]
        spacing = np.sqrt((axes**2).sum(axis=0))
        if not np.isfinite(axes).all() or (spacing == 0).any():
            msg = f"the volume's axes have no direction: {axes.tolist()}; correct the header"
            raise InputError(msg)
        origin = np.asarray(index_to_world, dtype=np.float64)[:3, 3]
        return cls(_ints(shape), _triple(spacing), _triple(origin), _matrix(axes / spacing))

    @cached_property
    def index_to_world(self) -> Array:
        """4 x 4 matrix that maps a (z, y, x, 1) index to an LPS (x, y, z, 1) position in mm; read-only."""
        matrix = np.eye(4)
        matrix[:3, :3] = np.asarray(self.direction) * np.asarray(self.spacing_mm)
        matrix[:3, 3] = self.origin_mm
        matrix.setflags(write=False)
        return matrix

    @property
    def voxel_volume_mm3(self) -> float:
        """Volume of one voxel."""
        return float(np.prod(self.spacing_mm))

    @property
    def extent_mm(self) -> Triple:
        """Field of view along (Z, Y, X), voxel edges included."""
        return _triple(np.multiply(self.shape, self.spacing_mm))

    @property
    def orientation(self) -> str:
        """Anatomical direction in which (Z, Y, X) grow, e.g. "SPL"; the nearest one where the grid is oblique."""
        return orientation_of(self.direction)

    def to_world(self, index: Sequence[float] | Array) -> Array:
        """LPS positions in mm of (..., 3) indices (z, y, x); fractions are allowed."""
        matrix = self.index_to_world
        return np.asarray(np.asarray(index, dtype=np.float64) @ matrix[:3, :3].T + matrix[:3, 3])

    def to_index(self, position_mm: Sequence[float] | Array) -> Array:
        """Indices (z, y, x) with fractions of (..., 3) LPS positions in mm."""
        matrix = self.index_to_world
        offset = np.asarray(position_mm, dtype=np.float64) - matrix[:3, 3]
        return np.asarray(offset @ np.linalg.inv(matrix[:3, :3]).T)

    def cropped(self, box: Box) -> Geometry:
        """Grid of the voxels in `box`.

        Raises:
            InputError: If the box reaches beyond the grid.
        """
        if any(b > n for b, n in zip(box.stop, self.shape, strict=True)):
            msg = f"the region {box.start} to {box.stop} reaches beyond the volume's shape {self.shape}"
            raise InputError(msg)
        return replace(self, shape=box.shape, origin_mm=_triple(self.to_world(box.start)))

    def resampled(self, shape: Sequence[int]) -> Geometry:
        """Grid with another number of voxels over the same field of view; voxel edges, not centers, coincide."""
        factor = np.divide(self.shape, shape)
        origin = self.to_world((factor - 1) / 2)
        spacing = np.multiply(self.spacing_mm, factor)
        return Geometry(_ints(shape), _triple(spacing), _triple(origin), self.direction)

    def reorientation_to(self, orientation: str) -> Reorientation:
        """Axis order and flips that bring an array on this grid to `orientation`, e.g. "SPL"."""
        return Reorientation.between(self.orientation, orientation)

    def reoriented(self, how: Reorientation) -> Geometry:
        """Grid of `how.apply(array)`: the same voxels at the same places, indexed along other axes.

        Going back with `how.inverse` gives this grid within rounding (1e-12); keep the original record where it must
        be the same to the bit.
        """
        corner = [n - 1 if axis in how.flipped else 0 for axis, n in enumerate(self.shape)]
        signs = [-1.0 if axis in how.flipped else 1.0 for axis in range(3)]
        direction = (np.asarray(self.direction) * signs)[:, how.axes] + 0.0  # + 0.0: no negative zeros
        z, y, x = how.axes
        return Geometry(
            (self.shape[z], self.shape[y], self.shape[x]),
            (self.spacing_mm[z], self.spacing_mm[y], self.spacing_mm[x]),
            _triple(self.to_world(corner)) if any(corner) else self.origin_mm,
            _matrix(direction),
        )

    def is_close(self, other: Geometry, tolerance: float = GRID_TOLERANCE) -> bool:
        """Whether both grids have the same shape and their voxels the same places.

        Args:
            other: The grid to compare with.
            tolerance: Largest distance of corresponding corners, as a fraction of the smallest voxel edge.
        """
        return self.shape == other.shape and self._corner_distance(other) <= tolerance * min(self.spacing_mm)

    def differences(self, other: Geometry, tolerance: float = GRID_TOLERANCE) -> str:
        """Say for a person how `other` differs from this grid; "" where it is the same within the tolerance."""
        if self.is_close(other, tolerance):
            return ""
        found = []
        if self.shape != other.shape:
            found.append(f"size {_size(other.shape)} instead of {_size(self.shape)} voxels")
        if not np.allclose(self.spacing_mm, other.spacing_mm, rtol=1e-4, atol=0):
            found.append(f"spacing {_numbers(other.spacing_mm)} instead of {_numbers(self.spacing_mm)} mm")
        if not np.allclose(self.direction, other.direction, rtol=0, atol=1e-4):
            found.append(f"axes {other.orientation} instead of {self.orientation}, or turned by an angle")
        if not np.allclose(self.origin_mm, other.origin_mm, rtol=0, atol=tolerance * min(self.spacing_mm)):
            found.append(f"origin {_numbers(other.origin_mm)} instead of {_numbers(self.origin_mm)} mm")
        return ", ".join(found) or f"corners up to {self._corner_distance(other):.3g} mm apart"

    def _corner_distance(self, other: Geometry) -> float:
        corners = np.array(list(product(*((0, n - 1) for n in self.shape))))
        return float(np.linalg.norm(self.to_world(corners) - other.to_world(corners), axis=1).max())


@dataclass(frozen=True)
class Reorientation:
    """An exact turn of an array: axes swapped and flipped, no voxel changed.

    Attributes:
        axes: For each new axis, the old axis (0 Z, 1 Y, 2 X) it comes from.
        flipped: Old axes that run the other way afterwards.
    """

    axes: IntTriple = (0, 1, 2)
    flipped: tuple[int, ...] = ()

    @classmethod
    def between(cls, source: str, target: str) -> Reorientation:
        """Turn from one orientation code to another, e.g. from "SPL" to "RAS"."""
        check_orientation(source)
        check_orientation(target)
        old = [_AXIS_OF_LETTER[letter] for letter in source]
        new = [_AXIS_OF_LETTER[letter] for letter in target]
        z, y, x = (old.index(axis) for axis in new)
        flipped = tuple(k for k, letter in enumerate(source) if letter not in target)
        return cls((z, y, x), flipped)

    @property
    def inverse(self) -> Reorientation:
        """The turn that takes every voxel back."""
        z, y, x = (self.axes.index(axis) for axis in range(3))
        return Reorientation((z, y, x), tuple(sorted(self.axes.index(axis) for axis in self.flipped)))

    def apply(self, array: Array) -> Array:
        """Turn the last three axes (Z, Y, X) of an array; returns a view."""
        lead = array.ndim - 3
        turned: Array = np.flip(array, tuple(lead + axis for axis in self.flipped))
        return np.transpose(turned, [*range(lead), *(lead + axis for axis in self.axes)])


_AXIS_OF_LETTER = {letter: k for letters in (POSITIVE_LETTERS, NEGATIVE_LETTERS) for k, letter in enumerate(letters)}


def check_orientation(code: str) -> None:
    """Refuse text that is not one letter of each pair L/R, A/P, S/I."""
    axes = sorted(_AXIS_OF_LETTER.get(letter, -1) for letter in code)
    if axes != [0, 1, 2]:
        msg = f"{code!r} is no orientation: give one letter of each of L/R, A/P and S/I, e.g. SPL"
        raise InputError(msg)


def orientation_of(direction: Matrix | Array) -> str:
    """Orientation code of a direction matrix (rows x, y, z; columns array axes Z, Y, X).

    Every array axis gets another anatomical axis: of the six assignments, the one whose cosines add up to most. So
    the answer is a proper code at 45 degrees, too, where taking the largest entry per column can name one axis twice.
    """
    matrix = np.asarray(direction, dtype=np.float64)
    best = max(permutations(range(3)), key=lambda axes: sum(abs(matrix[axis, k]) for k, axis in enumerate(axes)))
    letters = ((POSITIVE_LETTERS if matrix[axis, k] > 0 else NEGATIVE_LETTERS)[axis] for k, axis in enumerate(best))
    return "".join(letters)


def shear_of(direction: Array) -> float:
    """Largest entry of |DᵀD - 1|: 0 for perpendicular unit vectors; about the sine of the angle of a shear."""
    matrix = np.asarray(direction, dtype=np.float64)
    return float(np.abs(matrix.T @ matrix - np.eye(3)).max())


def straightened(axes_mm: Array, origin_mm: Sequence[float] | Array, shape: Sequence[int]) -> tuple[Geometry, str]:
    """Grid of a header whose axes may be a little off the perpendicular.

    The nearest rotation (in the least-squares sense: U V of the singular value decomposition) takes the place of the
    axes and the grid's center stays where it is, so voxels near the border move least.

    Args:
        axes_mm: 3 x 3, column k is the step in LPS mm from one voxel to the next along array axis k (Z, Y, X).
        origin_mm: LPS position of voxel (0, 0, 0).
        shape: Voxels along (Z, Y, X).

    Returns:
        The grid, and what was repaired for a person to read; "" if nothing was.

    Raises:
        ShearedGridError: If the shear is above `REPAIRED_SHEAR`.
        InputError: If the axes are not finite, zero or in one plane.
    """
    axes = np.asarray(axes_mm, dtype=np.float64)
    spacing = np.sqrt((axes**2).sum(axis=0))
    if not np.isfinite(axes).all() or (spacing == 0).any():
        msg = f"the header gives no usable voxel axes: {axes.tolist()}. Correct its orientation and spacing fields."
        raise InputError(msg)
    unit = axes / spacing
    if abs(np.linalg.det(unit)) < SINGULAR_VOLUME:
        msg = f"the header's voxel axes lie in one plane: {unit.round(4).tolist()}. Correct its orientation fields."
        raise InputError(msg)
    shear = shear_of(unit)
    if shear > REPAIRED_SHEAR:
        raise ShearedGridError(shear)
    notice = ""
    origin = np.asarray(origin_mm, dtype=np.float64)
    if shear > ORTHONORMAL_TOLERANCE:
        u, _, vt = np.linalg.svd(unit)
        center = (np.asarray(shape) - 1) / 2
        middle = origin + axes @ center
        unit = u @ vt
        origin, old_origin = middle - (unit * spacing) @ center, origin
        notice = (
            f"the header's axes were {np.degrees(np.arcsin(shear)):.2g} degrees off the perpendicular and were replaced "
            f"by the nearest straight ones; voxels moved by up to {np.linalg.norm(origin - old_origin):.2g} mm"
        )
    return Geometry(_ints(shape), _triple(spacing), _triple(origin), _matrix(unit)), notice


def box_from_world(geometry: Geometry, lower_lps_mm: Sequence[float], upper_lps_mm: Sequence[float]) -> Box:
    """Smallest box of voxels that covers a block given by two LPS corners in mm; cut at the volume's border.

    On an oblique grid the box encloses all eight corners of the block. A voxel belongs to the box if any part of it
    lies in the block.

    Raises:
        InputError: If a bound is not finite or no voxel lies in the block.
    """
    bounds = np.array([lower_lps_mm, upper_lps_mm], dtype=np.float64)
    if bounds.shape != (2, 3) or not np.isfinite(bounds).all() or (bounds[0] > bounds[1]).any():
        msg = "a region needs lower (x, y, z) and upper (x, y, z) bounds in LPS mm, lower <= upper; found "
        raise InputError(msg + f"{_numbers(lower_lps_mm)} and {_numbers(upper_lps_mm)}")
    corners = geometry.to_index(np.array(list(product(*bounds.T))))
    # Voxel i covers [i - 0.5, i + 0.5]; 1e-6 keeps rounding from adding a layer at a shared face.
    start = np.clip(np.floor(corners.min(axis=0) + 0.5 + 1e-6), 0, None)
    stop = np.minimum(np.ceil(corners.max(axis=0) + 0.5 - 1e-6), geometry.shape)
    if (start >= stop).any():
        msg = "the region lies outside the volume: it covers index "
        low, high = corners.min(axis=0), corners.max(axis=0)
        msg += f"{_numbers(low)} to {_numbers(high)} (Z, Y, X) of a volume of {_size(geometry.shape)} voxels"
        raise InputError(msg)
    return Box(_ints(start), _ints(stop))


def _triple(values: Sequence[float] | Array) -> Triple:
    a, b, c = (float(v) for v in values)
    return a, b, c


def _ints(values: Sequence[int] | Array) -> IntTriple:
    a, b, c = (int(v) for v in values)
    return a, b, c


def _matrix(values: Array) -> Matrix:
    return _triple(values[0]), _triple(values[1]), _triple(values[2])


def _numbers(values: Sequence[float] | Array) -> str:
    return "(" + ", ".join(f"{float(v):.6g}" for v in values) + ")"


def _size(shape: Sequence[int]) -> str:
    return " x ".join(str(n) for n in shape)
