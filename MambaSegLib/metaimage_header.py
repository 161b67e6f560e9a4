"""The text header of MetaImage files (.mha, .mhd), checked before ITK reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from MambaSegLib.errors import InputError
from MambaSegLib.raw_image import GZIP_RATIO, check_readable, check_size

_ITEM_BYTES = {
    "MET_UCHAR": 1, "MET_CHAR": 1, "MET_USHORT": 2, "MET_SHORT": 2, "MET_UINT": 4, "MET_INT": 4, "MET_FLOAT": 4,
    "MET_ULONG": 4, "MET_LONG": 4, "MET_DOUBLE": 8, "MET_ULONG_LONG": 8, "MET_LONG_LONG": 8,
}  # fmt: skip
_MAX_LINES = 200


def check_metaimage(path: Path) -> int:
    """Check that a header is complete and its file can hold what it promises.

    Returns:
        Values per voxel.

    Raises:
        InputError: If it is damaged, promises more than there is, or its spacing or axes cannot be.
    """
    file_bytes = check_readable(path)
    fields = _read_fields(path)
    try:
        sizes = [int(n) for n in fields["DimSize"].split()]
        dimensions = int(fields["NDims"])
        channels = int(fields.get("ElementNumberOfChannels", "1"))
        item_bytes = _ITEM_BYTES[fields["ElementType"]]
        spacing = [float(v) for v in fields.get("ElementSpacing", "1 " * dimensions).split()]
        matrix = [float(v) for name in ("TransformMatrix", "Rotation") for v in fields.get(name, "").split()]
        offset = [float(v) for name in ("Offset", "Position", "Origin") for v in fields.get(name, "").split()]
    except KeyError as error:
        msg = f"{path} has a damaged header: field or type {error} is missing or unknown; get it again"
        raise InputError(msg) from None
    except ValueError as error:
        msg = f"{path} has a damaged header ({error}); get it again"
        raise InputError(msg) from None
    if len(sizes) != dimensions or not 1 <= channels <= 1024:
        msg = f"{path} has a damaged header: NDims {dimensions}, DimSize {sizes}, {channels} channels; get it again"
        raise InputError(msg)
    # ITK would take the absolute value of a negative spacing and mirror nothing.
    if len(spacing) != dimensions or not all(0 < s < np.inf for s in spacing):
        msg = f"{path} has voxel spacing {spacing} mm (x, y, z); it must be positive: correct the header"
        raise InputError(msg)
    if not np.isfinite([*matrix, *offset]).all():
        msg = f"{path} has a damaged header: axes {matrix} or origin {offset} are not finite; correct it"
        raise InputError(msg)
    compressed = fields.get("CompressedData", "False").lower() in ("true", "1")
    bound = _data_bytes(path, fields["ElementDataFile"], file_bytes) * (GZIP_RATIO if compressed else 1)
    check_size(path, sizes, item_bytes * channels, bound)
    return channels


def _read_fields(path: Path) -> dict[str, str]:
    fields: dict[str, str] = {}
    try:
        with path.open("rb") as stream:
            for _ in range(_MAX_LINES):
                name, found, value = stream.readline(4096).decode("utf-8", "replace").partition("=")
                if not found:
                    break
                fields[name.strip()] = value.strip()
                if name.strip() == "ElementDataFile":
                    break
    except OSError as error:
        msg = f"{path} cannot be read: {error}"
        raise InputError(msg) from None
    if "ElementDataFile" not in fields:
        msg = f"{path} is no complete MetaImage file (its header has no ElementDataFile); check it or get it again"
        raise InputError(msg)
    return fields


def _data_bytes(path: Path, value: str, file_bytes: int) -> int:
    if value.upper() == "LOCAL":
        return file_bytes
    if value.upper().startswith("LIST") or "%" in value:
        return sum(f.stat().st_size for f in path.parent.iterdir() if f.is_file())
    return check_readable(path.parent / value)
