"""Images and label maps: an array that is never apart from its place in the patient.

World coordinates are LPS in mm; triples are in array order (Z, Y, X). The grids themselves are in `geometry`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from MambaSegLib.errors import InputError
from MambaSegLib.geometry import Array, Box, Geometry, Matrix, Reorientation, box_from_world
from MambaSegLib.plan import Label

__all__ = ["Array", "Box", "Geometry", "Labels", "Matrix", "Reorientation", "Volume", "box_from_world"]


@dataclass(frozen=True)
class Volume:
    """A scalar image with one or more channels on one grid.

    Attributes:
        array: (C, Z, Y, X), any real dtype; finite (readers see to that).
        geometry: Grid of the last three axes.
        channels: Name per channel; () where they have none.
        name: What to call the image in messages and outputs.
    """

    array: Array
    geometry: Geometry
    channels: tuple[str, ...] = ()
    name: str = "volume"

    def __post_init__(self) -> None:
        """Refuse an array that does not fit its grid, is not real numbers, or whose channels are not all named."""
        if self.array.ndim != 4 or self.array.shape[1:] != self.geometry.shape or self.array.shape[0] < 1:
            msg = f"{self.name}: an array of shape (C, Z, Y, X) = (C, *{self.geometry.shape}) is needed, "
            raise InputError(msg + f"found {self.array.shape}")
        if self.array.dtype.kind not in "iufb":
            msg_0 = f"{self.name}: voxels must be real numbers, found {self.array.dtype}"
            raise InputError(msg_0)
        if self.channels and len(self.channels) != self.array.shape[0]:
            msg = f"{self.name}: {self.array.shape[0]} channels but {len(self.channels)} names {self.channels}"
            raise InputError(msg)

    def cropped(self, box: Box) -> Volume:
        """Part of the volume inside `box`; the array is a view."""
        return replace(self, array=self.array[(..., *box.slices)], geometry=self.geometry.cropped(box))

    def reoriented(self, how: Reorientation) -> Volume:
        """Same voxels at the same places, indexed along other axes; the array is a view."""
        return replace(self, array=how.apply(self.array), geometry=self.geometry.reoriented(how))


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

    def __post_init__(self) -> None:
        """Refuse an array that does not fit its grid, is not unsigned, or a table with a value twice."""
        if self.array.shape != self.geometry.shape:
            msg = f"a label map of shape (Z, Y, X) = {self.geometry.shape} is needed, found {self.array.shape}"
            raise InputError(msg)
        if self.array.dtype.kind != "u":
            msg_0 = f"label maps hold unsigned integers, found {self.array.dtype}; convert it first"
            raise InputError(msg_0)
        values = [label.value for label in self.table]
        if len(set(values)) != len(values) or any(value < 1 for value in values):
            msg_0 = f"label values must be 1 or more and differ, found {values}"
            raise InputError(msg_0)

    def write(self, path: str | Path) -> None:
        """Write by suffix: .seg.nrrd (names, colors, terminology inside), .nii.gz, .nii, .nrrd, .mha."""
        from MambaSegLib.volume_io import write_labels

        write_labels(self, path)
