"""Writing label maps and images, with NumPy alone, so that a file is there whole or not at all.

What holds of the grid in the file: .nrrd and .mha store it in 64-bit floats with all digits; .mha gives it back to
the bit, .nrrd (which stores spacing times direction) within 1e-15 of it. NIfTI-1 stores 32-bit floats: the sform of a
grid that came from a NIfTI-1 sform is written with the same bits, any other grid rounded to 1 part in 10^7.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from MambaSegLib.atomic import new_file
from MambaSegLib.deflate import gzip_stream, zlib_stream
from MambaSegLib.errors import EnvironmentProblemError, InputError
from MambaSegLib.geometry import Array, Geometry
from MambaSegLib.nifti import nifti_bytes
from MambaSegLib.nrrd_header import nrrd_header_bytes

if TYPE_CHECKING:
    from MambaSegLib.volume import Labels

LABEL_COMPRESSION, IMAGE_COMPRESSION = 6, 1
"""Label maps shrink to a few percent at any level; on images higher levels cost much time for little."""

OUTPUT_SUFFIXES = (".seg.nrrd", ".nii.gz", ".nii", ".nrrd", ".mha")
_META_TYPES = {
    "u1": "MET_UCHAR",
    "i1": "MET_CHAR",
    "u2": "MET_USHORT",
    "i2": "MET_SHORT",
    "u4": "MET_UINT",
    "i4": "MET_INT",
    "u8": "MET_ULONG_LONG",
    "i8": "MET_LONG_LONG",
    "f4": "MET_FLOAT",
    "f8": "MET_DOUBLE",
}


def check_output_path(path: str | Path) -> Path:
    """Refuse an output that could not be written, before any work is done for it.

    Raises:
        InputError: If the suffix is unknown, the folder does not exist or may not be written, or a folder is in the way.
    """
    path = Path(path)
    output_suffix(path)
    folder = path.parent
    if not folder.is_dir():
        msg = f"the folder {folder} of the output {path.name} does not exist; make it or choose another"
        raise InputError(msg)
    if path.is_dir():
        msg = f"the output {path} is a folder; give a file name"
        raise InputError(msg)
    if not os.access(folder, os.W_OK | os.X_OK):
        msg = f"the folder {folder} may not be written by this user; choose another"
        raise InputError(msg)
    return path


def output_suffix(path: Path) -> str:
    """Suffix of `OUTPUT_SUFFIXES` that a path ends with.

    Raises:
        InputError: If it has none of them.
    """
    name = path.name.lower()
    for suffix in OUTPUT_SUFFIXES:
        if name.endswith(suffix) and len(name) > len(suffix):
            return suffix
    msg = f"the output {path.name!r} must end with one of {', '.join(OUTPUT_SUFFIXES)}: the suffix chooses the format"
    raise InputError(msg)


def write_labels(labels: Labels, path: str | Path) -> None:
    """Write a label map by suffix; only .seg.nrrd keeps names, colors, terminology and tags.

    Raises:
        InputError: As `check_output_path`; or values above 65535.
        EnvironmentProblemError: If the disk is full or failed; nothing is left behind then.
    """
    from dataclasses import replace

    from MambaSegLib.seg_nrrd import segmentation_header

    path = check_output_path(path)
    high = int(labels.array.max(initial=0))
    if high > 65535:
        msg = f"label values up to {high} cannot be written; 65535 is the largest"
        raise InputError(msg)
    array = labels.array
    if array.dtype.str[1:] not in ("u1", "u2"):
        array = array.astype(np.uint8 if high < 256 else np.uint16)
    if output_suffix(path) == ".seg.nrrd":
        head = segmentation_header(replace(labels, array=array))
        _write(path, lambda stream: _gzip_after(stream, head, array, LABEL_COMPRESSION))
        return
    _write_array(array, labels.geometry, path, LABEL_COMPRESSION)


def write_volume(array: Array, geometry: Geometry, path: str | Path, *, compression: int = IMAGE_COMPRESSION) -> None:
    """Write one scalar image by suffix: .nii.gz, .nii, .nrrd or .mha.

    Args:
        array: Voxels, (Z, Y, X).
        geometry: Their grid.
        path: Where.
        compression: 0 (none, for files that are read once) to 9 (smallest).

    Raises:
        InputError: As `check_output_path`; or if array and grid do not fit or the type cannot be stored.
        EnvironmentProblemError: If the disk is full or failed; nothing is left behind then.
    """
    path = check_output_path(path)
    if output_suffix(path) == ".seg.nrrd":
        msg = f"{path.name}: .seg.nrrd is for label maps; write an image as .nrrd"
        raise InputError(msg)
    if array.shape != geometry.shape:
        msg = f"an array of shape (Z, Y, X) = {geometry.shape} is needed, found {array.shape}"
        raise InputError(msg)
    stored = {"bool": np.uint8, "float16": np.float32}.get(array.dtype.name)
    array = array.astype(stored) if stored else array
    if array.dtype.str[1:] not in _META_TYPES:
        msg = f"voxels of {array.dtype} cannot be written; convert them to integers or floats first"
        raise InputError(msg)
    _write_array(array, geometry, path, compression)


def _write_array(array: Array, geometry: Geometry, path: Path, level: int) -> None:
    suffix = output_suffix(path)
    if suffix == ".nrrd":
        head = nrrd_header_bytes(array, geometry)
        _write(path, lambda stream: _gzip_after(stream, head, array, level))
    elif suffix == ".mha":
        _write(path, lambda stream: _write_metaimage(stream, array, geometry, level))
    else:
        header, voxels = nifti_bytes(array, geometry)
        _write(path, lambda stream: _write_nifti(stream, header, voxels, level if suffix == ".nii.gz" else None))


def _write(path: Path, fill: Callable[[IO[bytes]], None]) -> None:
    with _disk_errors(path), new_file(path) as work, work.open("wb") as stream:
        fill(stream)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            msg = f"{path} was not written: the disk is full; make room or choose another folder"
        else:
            msg = f"{path} was not written: {error}; choose another folder"
        raise EnvironmentProblemError(msg) from error


def _little_endian(array: Array) -> memoryview:
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data


def _gzip_after(stream: IO[bytes], head: bytes, array: Array, level: int) -> None:
    stream.write(head)
    stream.writelines(gzip_stream([_little_endian(array)], level))


def _write_nifti(stream: IO[bytes], header: bytes, voxels: Array, level: int | None) -> None:
    parts = (header, _little_endian(voxels))
    stream.writelines(parts if level is None else gzip_stream(parts, level))


def _write_metaimage(stream: IO[bytes], array: Array, geometry: Geometry, level: int) -> None:
    """MetaImage with the header in front; TransformMatrix lists the direction of x, then y, then z."""
    packed = b"".join(zlib_stream(_little_endian(array), level))
    direction = np.asarray(geometry.direction, dtype=np.float64)[:, ::-1].T.ravel()
    fields = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "True",
        "CompressedDataSize": str(len(packed)),
        "TransformMatrix": _numbers(direction),
        "Offset": _numbers(geometry.origin_mm),
        "CenterOfRotation": "0 0 0",
        "AnatomicalOrientation": "RAI",
        "ElementSpacing": _numbers(geometry.spacing_mm[::-1]),
        "DimSize": " ".join(str(n) for n in array.shape[::-1]),
        "ElementType": _META_TYPES[array.dtype.str[1:]],
        "ElementDataFile": "LOCAL",
    }
    stream.write("".join(f"{key} = {value}\n" for key, value in fields.items()).encode())
    stream.write(packed)


def _numbers(values: object) -> str:
    return " ".join(repr(float(v)) for v in values)  # type: ignore[attr-defined]
