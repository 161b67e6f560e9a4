"""One 3D image out of a 4D NIfTI file, byte for byte.

The fourth axis varies slowest, so a frame is one run of bytes: neither type, byte order nor scaling of the voxels need to
be touched. Source: the header layout in nifti1.h (https://nifti.nimh.nih.gov).
"""

from __future__ import annotations

import gzip
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from MambaSegLib.errors import InputError

HEADER_BYTES = 348
PIECE = 1 << 24


@dataclass(frozen=True)
class NiftiHead:
    """What the first bytes of a file say.

    Attributes:
        order: "<" or ">" of `struct`.
        shape: Voxels along i, j, k and frames.
        voxel_bytes: Bytes per voxel.
        offset: Where voxels start.
    """

    order: str
    shape: tuple[int, int, int, int]
    voxel_bytes: int
    offset: int

    @property
    def frame_bytes(self) -> int:
        """Bytes of one 3D image."""
        return self.shape[0] * self.shape[1] * self.shape[2] * self.voxel_bytes


def count_frames(path: Path) -> int:
    """How many 3D images a NIfTI file holds.

    Raises:
        InputError: If it is no NIfTI-1 file, or damaged.
    """
    with _opened(path) as stream:
        return _parse(path, _exactly(path, stream, HEADER_BYTES)).shape[3]


def write_frame(path: Path, frame: int | None, target: Path) -> None:
    """Write one 3D image of a file as .nii.gz, header and voxels as they are but for the number of axes.

    Args:
        path: A .nii or .nii.gz file.
        frame: Which 3D image, from 0; None: the file must hold one.
        target: The file to write. Equal input gives equal bytes: no time stamp is stored.

    Raises:
        InputError: If the file is no NIfTI-1, is damaged, or has no such frame.
    """
    try:
        with _opened(path) as stream:
            header = bytearray(_exactly(path, stream, HEADER_BYTES))
            head = _parse(path, bytes(header))
            chosen = _chosen(path, head, frame)
            extensions = _exactly(path, stream, head.offset - HEADER_BYTES)
            _skip(path, stream, chosen * head.frame_bytes)
            struct.pack_into(head.order + "h", header, 40, 3)
            struct.pack_into(head.order + "h", header, 48, 1)
            with target.open("wb") as raw, gzip.GzipFile("", "wb", 1, raw, mtime=0) as out:
                out.write(bytes(header) + extensions)
                _copy(path, stream, out, head.frame_bytes)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        msg = f"{path} is damaged or cut off ({error}); get it again."
        raise InputError(msg) from error


def _opened(path: Path) -> IO[bytes]:
    with path.open("rb") as probe:
        compressed = probe.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if compressed else path.open("rb")  # type: ignore[return-value]


def _parse(path: Path, header: bytes) -> NiftiHead:
    order = next((mark for mark in "<>" if struct.unpack_from(mark + "i", header)[0] == HEADER_BYTES), "")
    if not order or header[344:347] != b"n+1":
        msg = f"{path} is not a NIfTI-1 file in one piece; the download must be left as it is."
        raise InputError(msg)
    dim = struct.unpack_from(order + "8h", header, 40)
    sizes = tuple(max(1, size) if axis <= dim[0] else 1 for axis, size in enumerate(dim))
    bits = struct.unpack_from(order + "h", header, 72)[0]
    offset = int(struct.unpack_from(order + "f", header, 108)[0])
    if dim[0] not in (3, 4, 5) or sizes[5] != 1 or bits <= 0 or bits % 8 or not HEADER_BYTES + 4 <= offset < 1 << 24:
        msg = f"{path} has an unusual NIfTI header (dim {dim}, {bits} bits, voxels at {offset}); get it again."
        raise InputError(msg)
    return NiftiHead(order, (sizes[1], sizes[2], sizes[3], sizes[4]), bits // 8, offset)


def _chosen(path: Path, head: NiftiHead, frame: int | None) -> int:
    if frame is None and head.shape[3] == 1:
        return 0
    if frame is None or not 0 <= frame < head.shape[3]:
        wanted = "one 3D image" if frame is None else f"an image number {frame} (from 0)"
        msg = f"{path} holds {head.shape[3]} images; {wanted} is needed."
        raise InputError(msg)
    return frame


def _exactly(path: Path, stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        msg = f"{path} is cut off: {len(data)} of {count} bytes were there; get it again."
        raise InputError(msg)
    return data


def _skip(path: Path, stream: IO[bytes], count: int) -> None:
    while count:
        count -= len(_exactly(path, stream, min(count, PIECE)))


def _copy(path: Path, stream: IO[bytes], out: gzip.GzipFile, count: int) -> None:
    while count:
        piece = _exactly(path, stream, min(count, PIECE))
        out.write(piece)
        count -= len(piece)
