"""Images and label maps: an array that is never apart from its place in the patient.

World coordinates are LPS in mm; triples are in array order (Z, Y, X).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from MambaSegLib.plan import IntTriple, Label, Triple

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Array = np.ndarray[Any, np.dtype[Any]]
Matrix = tuple[Triple, Triple, Triple]


@dataclass(frozen=True)
class Geometry:
    """Where the voxels of an array lie.

    Attributes:
        shape: Voxels along (Z, Y, X).
        spacing_mm: Distance between voxel centers along (Z, Y, X).
        origin_mm: LPS position (x, y, z) of the center of voxel (0, 0, 0).
        direction: 3 x 3, row = LPS component (x, y, z), column = array axis (Z, Y, X): column k is the unit vector
            along which array axis k grows.
    """

    shape: IntTriple
    spacing_mm: Triple
    origin_mm: Triple
    direction: Matrix

    @property
    def index_to_world(self) -> Array:
        """4 x 4 matrix that maps a (z, y, x, 1) index to an LPS (x, y, z, 1) position in mm."""
        matrix = np.eye(4)
        matrix[:3, :3] = np.asarray(self.direction) * np.asarray(self.spacing_mm)
        matrix[:3, 3] = self.origin_mm
        return matrix


@dataclass(frozen=True)
class Volume:
    """A scalar image with one or more channels on one grid.

    Attributes:
        array: (C, Z, Y, X), any real dtype; finite.
        geometry: Grid of the last three axes.
        channels: Name per channel; () where they have none.
        name: What to call the image in messages and outputs.
    """

    array: Array
    geometry: Geometry
    channels: tuple[str, ...] = ()
    name: str = "volume"


@dataclass(frozen=True)
class Labels:
    """A label map: value 0 is background.

    Attributes:
        array: (Z, Y, X), unsigned integer.
        geometry: Its grid.
        table: What the values mean.
        tags: Text stored with the segmentation (model, source, disclaimer, ...).
    """

    array: Array
    geometry: Geometry
    table: tuple[Label, ...]
    tags: Sequence[tuple[str, str]] = ()

    def write(self, path: str | Path) -> None:
        """Write by suffix: .seg.nrrd (names, colors, terminology inside), .nii.gz, .nii, .nrrd, .mha."""
        from MambaSegLib.volume_io import write_labels

        write_labels(self, path)
