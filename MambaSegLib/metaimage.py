"""MetaImage files: .mha, or .mhd with the voxels in a file beside it.

Source: https://itk.org/Wiki/ITK/MetaIO/Documentation; as ITK, CenterOfRotation and AnatomicalOrientation are ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from MambaSegLib.errors import InputError
from MambaSegLib.geometry import Array
from MambaSegLib.raw_image import GZIP_RATIO, NO_SPACING, RawImage, check_readable, check_size, choose_frame, stem_of
from MambaSegLib.voxel_data import read_voxels

_DTYPES = {
    "MET_UCHAR": "u1", "MET_CHAR": "i1", "MET_USHORT": "u2", "MET_SHORT": "i2", "MET_UINT": "u4", "MET_INT": "i4",
    "MET_ULONG": "u4", "MET_LONG": "i4", "MET_ULONG_LONG": "u8", "MET_LONG_LONG": "i8", "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}  # fmt: skip
_MAX_LINES = 200
_SPACING_FIELDS = ("ElementSpacing", "ElementSize")
"""Where a voxel's edges are given; ITK takes the second where the first is missing."""


@dataclass(frozen=True)
class _Header:
    """Axes in the file's order (x, y, z, frame); matrix rows are the directions of x, y, z."""

    sizes: tuple[int, ...]
    dtype: np.dtype[Any]
    spacing: tuple[float, ...]
    matrix: Array
    offset: tuple[float, ...]
    compressed: bool
    data: Path
    data_start: int


def read_metaimage(path: Path, frame: int | None = None) -> RawImage:
    """Read one 3D image of a .mha or .mhd file.

    Raises:
        InputError: For anything that is not a complete, real-valued, scalar image of 3 axes or, with `frame`, 4.
    """
    file_bytes = check_readable(path)
    fields, header_bytes = _read_fields(path)
    header = _parsed(path, fields, header_bytes)
    held = (file_bytes if header.data == path else check_readable(header.data)) - max(0, header.data_start)
    check_size(path, header.sizes, header.dtype.itemsize, held * (GZIP_RATIO if header.compressed else 1))
    chosen = choose_frame(path, header.sizes[3] if len(header.sizes) == 4 else 1, frame)
    encoding = "zlib" if header.compressed else "raw"
    array = read_voxels(header.data, header.data_start, encoding, header.sizes[::-1], header.dtype)
    axes = (header.matrix[:3, :3] * np.array(header.spacing[:3])[:, None])[::-1].T
    voxels = np.ascontiguousarray(array[chosen]) if array.ndim == 4 else array
    notices = () if any(name in fields for name in _SPACING_FIELDS) else (NO_SPACING,)
    return RawImage(voxels, axes, header.offset[:3], stem_of(path), notices)


def data_file_of(path: Path) -> Path:
    """The file that holds the voxels: a .mha itself, another one beside a .mhd.

    Raises:
        InputError: If the header is damaged.
    """
    fields, header_bytes = _read_fields(path)
    return _data_file(path, fields, header_bytes, 0)[0]


def _read_fields(path: Path) -> tuple[dict[str, str], int]:
    fields: dict[str, str] = {}
    try:
        with path.open("rb") as stream:
            for _ in range(_MAX_LINES):
                name, found, value = stream.readline(4096).decode("utf-8", "replace").partition("=")
                if not found:
                    break
                fields[name.strip()] = value.strip()
                if name.strip() == "ElementDataFile":
                    return fields, stream.tell()
    except OSError as error:
        msg = f"{path} cannot be read: {error}"
        raise InputError(msg) from None
    msg = f"{path} is no complete MetaImage file (its header has no ElementDataFile); check it or get it again"
    raise InputError(msg)


def _parsed(path: Path, fields: dict[str, str], header_bytes: int) -> _Header:
    try:
        count = int(fields["NDims"])
        sizes = tuple(int(n) for n in fields["DimSize"].split())
        channels = int(fields.get("ElementNumberOfChannels", "1"))
        kind = _DTYPES[fields["ElementType"]]
        spacing = _numbers(fields, _SPACING_FIELDS, "1 " * count)
        matrix = _numbers(
            fields, ("TransformMatrix", "Rotation", "Orientation"), " ".join(map(str, np.eye(count).flat))
        )
        offset = _numbers(fields, ("Offset", "Position", "Origin"), "0 " * count)
        skip = int(fields.get("HeaderSize", "0"))
    except KeyError as error:
        msg = f"{path} has a damaged header: field or type {error} is missing or unknown; get it again"
        raise InputError(msg) from None
    except ValueError as error:
        msg = f"{path} has a damaged header ({error}); get it again"
        raise InputError(msg) from None
    if channels != 1:
        msg = f"{path} holds {channels} values per voxel; a scalar image is needed: convert it first"
        raise InputError(msg)
    _check(path, count, sizes, spacing, matrix, offset)
    big_endian = _true(fields, "BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False"))
    data, start = _data_file(path, fields, header_bytes, skip)
    return _Header(
        sizes=sizes,
        dtype=np.dtype((">" if big_endian else "<") + kind),
        spacing=spacing,
        matrix=np.array(matrix).reshape(count, count),
        offset=offset,
        compressed=_true(fields, "CompressedData"),
        data=data,
        data_start=start,
    )


def _check(
    path: Path,
    count: int,
    sizes: tuple[int, ...],
    spacing: tuple[float, ...],
    matrix: tuple[float, ...],
    offset: tuple[float, ...],
) -> None:
    if len(sizes) != count or len(matrix) != count * count or len(offset) != count:
        msg = f"{path} has a damaged header: NDims {count}, DimSize {sizes}, axes {matrix}, origin {offset}"
        raise InputError(msg + "; get it again")
    # ITK would take the absolute value of a negative spacing and mirror nothing.
    if len(spacing) != count or not all(0 < s < np.inf for s in spacing):
        msg = f"{path} has voxel spacing {spacing} mm (x, y, z); it must be positive: correct the header"
        raise InputError(msg)
    if not np.isfinite([*matrix, *offset]).all():
        msg = f"{path} has a damaged header: axes {matrix} or origin {offset} are not finite; correct it"
        raise InputError(msg)
    if count not in (3, 4):
        msg = f"{path} is a {count}D image; a 3D volume is needed"
        raise InputError(msg)


def _data_file(path: Path, fields: dict[str, str], header_bytes: int, skip: int) -> tuple[Path, int]:
    name = fields["ElementDataFile"]
    if name.upper().startswith("LIST") or "%" in name or not _true(fields, "BinaryData", "True") or skip < -1:
        msg = f"{path} has its voxels in several files or as text; save it as one .mha file"
        raise InputError(msg)
    if name.upper() == "LOCAL":
        return path, header_bytes
    # Looked for beside the header, wherever it says the file is: no header may point elsewhere.
    return path.parent / Path(name.replace("\\", "/")).name, skip


def _numbers(fields: dict[str, str], names: tuple[str, ...], default: str) -> tuple[float, ...]:
    text = next((fields[name] for name in names if name in fields), default)
    return tuple(float(part) for part in text.split())


def _true(fields: dict[str, str], name: str, default: str = "False") -> bool:
    return fields.get(name, default).lower() in ("true", "1", "t")
