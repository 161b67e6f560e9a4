"""What a file reader hands over before frames, grids and voxel values are checked, and the checks all readers share."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from MambaSegLib.errors import EnvironmentProblemError, InputError
from MambaSegLib.geometry import Array

GZIP_RATIO = 1032
"""Deflate cannot shrink more: 258 bytes take at least 2 bits."""

MAX_AXIS = 1 << 20
"""Longest axis believed, in voxels; no scanner comes near."""

MIN_SPACING_MM, MAX_SPACING_MM = 1e-3, 1e3
"""Voxel edges outside 1 micrometer to 1 meter are damage or a wrong unit, not a scan."""


NO_SPACING = "the header gives no voxel size; 1 mm is assumed, as 3D Slicer does; check it"
"""Notice for images of which nobody knows how large they are."""


@dataclass(frozen=True)
class RawImage:
    """One scalar 3D image as found in a file.

    Attributes:
        array: (Z, Y, X).
        axes_mm: 3 x 3, column k is the LPS step in mm along array axis k; may be sheared.
        origin_mm: LPS position of voxel (0, 0, 0).
        name: What to call the image.
        notices: What a person should know about how it was read.
    """

    array: Array
    axes_mm: Array
    origin_mm: Sequence[float] | Array
    name: str
    notices: tuple[str, ...] = ()


def check_readable(path: Path, *, empty: bool = False) -> int:
    """Size of a file in bytes.

    Args:
        path: The file.
        empty: Whether it may be empty.

    Raises:
        InputError: If it does not exist, may not be read, is a special file or empty.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        msg = f"{path} does not exist; check the name"
        raise InputError(msg) from None
    except (OSError, ValueError) as error:
        msg = f"{path} cannot be read: {error}"
        raise InputError(msg) from None
    if not os.access(path, os.R_OK):
        msg = f"{path} may not be read by this user: change its permissions or copy it to a folder of yours"
        raise InputError(msg)
    if not path.is_file():
        msg = f"{path} is not a file"
        raise InputError(msg)
    if size == 0 and not empty:
        msg = f"{path} is empty: the copy or download was cut off; get it again"
        raise InputError(msg)
    return size


def every_file(folder: Path) -> Iterator[Path]:
    """The files of a folder and of the folders in it, in no order.

    Raises:
        InputError: If a folder may not be read: it could hold the rest of an image. `Path.rglob` passes over it.
    """
    for place, _, names in os.walk(folder, onerror=_refuse):
        if not os.access(place, os.X_OK):  # its names may be listed, but what they name may not be opened
            _refuse(PermissionError(errno.EACCES, os.strerror(errno.EACCES), place))
        yield from (path for path in (Path(place, name) for name in names) if path.is_file())


def _refuse(error: OSError) -> None:
    msg = f"{error.filename} cannot be read: {error.strerror}; change its permissions or copy it"
    raise InputError(msg)


def check_size(path: Path, shape: Sequence[int], item_bytes: int, bound_bytes: int) -> None:
    """Refuse a header that promises more voxels than its file can hold, before memory is asked for.

    Args:
        path: For the message.
        shape: All axes, in any order.
        item_bytes: Bytes of one voxel.
        bound_bytes: Most bytes the file can hold, decompressed.

    Raises:
        InputError: If the shape is not believable or the bytes do not suffice.
    """
    if not shape or min(shape) < 1 or max(shape) > MAX_AXIS:
        msg = f"{path} claims a size of {' x '.join(map(str, shape))} voxels: its header is damaged"
        raise InputError(msg)
    needed = item_bytes
    for n in shape:
        needed *= int(n)
    if needed > bound_bytes:
        msg = (
            f"{path} is damaged or cut off: its header promises {' x '.join(map(str, shape))} voxels "
            f"({needed} bytes), the file holds at most {bound_bytes}. Get it again."
        )
        raise InputError(msg)


def allocate(path: Path, shape: Sequence[int], dtype: np.dtype[np.generic]) -> Array:
    """Memory for an image, or an error that says how much was asked for."""
    try:
        return np.empty(tuple(shape), dtype)
    except MemoryError:
        gib = np.prod([float(n) for n in shape]) * dtype.itemsize / 2**30
        msg = f"{path} needs {gib:.1f} GiB of memory, more than this computer has free; crop or downsample it first"
        raise EnvironmentProblemError(msg) from None


def choose_frame(path: Path, frames: int, frame: int | None, what: str = "frames") -> int:
    """Index of the frame to read.

    Raises:
        InputError: If there are several and none was chosen, or the chosen one does not exist.
    """
    if frame is None:
        if frames == 1:
            return 0
        msg = (
            f"{path} holds {frames} {what}; one 3D image is needed. Choose one by its number, 0 to {frames - 1}: "
            "--frame 0 on the command line, frame=0 in Python."
        )
        raise InputError(msg)
    if not 0 <= frame < frames:
        msg = f"{path} has no frame {frame}: it holds {frames}, numbered 0 to {frames - 1}"
        raise InputError(msg)
    return frame


def stem_of(path: Path) -> str:
    """File name without the suffixes of image files."""
    name = path.name
    for suffix in (".seg.nrrd", ".nii.gz"):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return path.stem
