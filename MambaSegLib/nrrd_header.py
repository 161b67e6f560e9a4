"""The text header of NRRD files: parsed to check it and to get at its key/value pairs, and written.

Source: the format definition at https://teem.sourceforge.net/nrrd/format.html.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from MambaSegLib.errors import InputError
from MambaSegLib.geometry import Array, Geometry
from MambaSegLib.raw_image import GZIP_RATIO, check_readable, check_size

MAX_HEADER_BYTES = 1 << 22
"""Longest header read: 3D Slicer's grow by about 400 bytes a segment."""

BZIP2_RATIO = 50_000
"""A bzip2 block of 900 kB of equal bytes takes some 40 bytes."""

_ITEM_BYTES = {
    "signed char": 1, "int8": 1, "int8_t": 1, "uchar": 1, "unsigned char": 1, "uint8": 1, "uint8_t": 1,
    "short": 2, "short int": 2, "signed short": 2, "signed short int": 2, "int16": 2, "int16_t": 2,
    "ushort": 2, "unsigned short": 2, "unsigned short int": 2, "uint16": 2, "uint16_t": 2,
    "int": 4, "signed int": 4, "int32": 4, "int32_t": 4, "uint": 4, "unsigned int": 4, "uint32": 4, "uint32_t": 4,
    "longlong": 8, "long long": 8, "long long int": 8, "signed long long": 8, "signed long long int": 8,
    "int64": 8, "int64_t": 8, "ulonglong": 8, "unsigned long long": 8, "unsigned long long int": 8,
    "uint64": 8, "uint64_t": 8, "float": 4, "double": 8,
}  # fmt: skip

_NRRD_TYPES = {"u1": "uint8", "i1": "int8", "u2": "uint16", "i2": "int16", "u4": "uint32", "i4": "int32",
               "u8": "uint64", "i8": "int64", "f4": "float", "f8": "double"}  # fmt: skip


@dataclass(frozen=True)
class NrrdHeader:
    """The header of one NRRD file.

    Attributes:
        fields: `name: value` lines; names in small letters.
        pairs: `key:=value` lines, escapes resolved.
        header_bytes: Where attached data start.
    """

    fields: dict[str, str]
    pairs: dict[str, str]
    header_bytes: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """Samples along each axis, fastest first."""
        return tuple(int(n) for n in self.fields["sizes"].split())

    @property
    def kinds(self) -> tuple[str, ...]:
        """What each axis is: "domain", "list", "RGB-color", ..."""
        return tuple(self.fields.get("kinds", "").lower().split())


def read_nrrd_header(path: Path) -> NrrdHeader:
    """Parse a header and check that the file can hold what it promises.

    Raises:
        InputError: If it is not a NRRD header, or promises more than there is.
    """
    file_bytes = check_readable(path)
    fields: dict[str, str] = {}
    pairs: dict[str, str] = {}
    try:
        with path.open("rb") as stream:
            if not stream.readline(16).startswith(b"NRRD000"):
                msg = f"{path} is no NRRD file (it does not begin with NRRD000); check the name or get it again"
                raise InputError(msg)
            while line := stream.readline(MAX_HEADER_BYTES):
                text = line.rstrip(b"\r\n").decode("utf-8", "replace")
                if not text:
                    break
                _parse_line(text, fields, pairs)
                if stream.tell() > MAX_HEADER_BYTES:
                    msg = f"{path} has a header of more than {MAX_HEADER_BYTES} bytes: it is damaged"
                    raise InputError(msg)
            header = NrrdHeader(fields, pairs, stream.tell())
    except OSError as error:
        msg = f"{path} cannot be read: {error}"
        raise InputError(msg) from None
    _check(path, header, file_bytes)
    return header


def _parse_line(text: str, fields: dict[str, str], pairs: dict[str, str]) -> None:
    if text.startswith("#"):
        return
    key, found, value = text.partition(":=")
    if found and ": " not in key:
        pairs[key] = value.replace("\\\\", "\0").replace("\\n", "\n").replace("\0", "\\")
        return
    name, found, value = text.partition(":")
    if found:
        fields[name.strip().lower()] = value.strip()


def _check(path: Path, header: NrrdHeader, file_bytes: int) -> None:
    fields = header.fields
    item_bytes = _ITEM_BYTES.get(fields.get("type", "").lower())
    if item_bytes is None:
        msg = f"{path} holds voxels of type {fields.get('type', 'nothing')!r}; numbers are needed"
        raise InputError(msg)
    try:
        sizes = header.sizes
        dimension = int(fields["dimension"])
    except (KeyError, ValueError):
        msg = f"{path} has a damaged header: its size cannot be read; get it again"
        raise InputError(msg) from None
    if len(sizes) != dimension or (header.kinds and len(header.kinds) != dimension):
        msg = f"{path} has a damaged header: {dimension} axes but {len(sizes)} sizes, kinds {header.kinds}"
        raise InputError(msg)
    detached = fields.get("data file") or fields.get("datafile")
    stored = _detached_bytes(path, detached) if detached else file_bytes - header.header_bytes
    encoding = fields.get("encoding", "").lower()
    ratio = {"gzip": GZIP_RATIO, "gz": GZIP_RATIO, "bzip2": BZIP2_RATIO, "bz2": BZIP2_RATIO}.get(encoding, 1)
    # Written as text or hexadecimal digits, a sample takes at least one byte ("0") or two digits a byte.
    item = 1 if encoding in ("ascii", "text", "txt", "hex") else item_bytes
    check_size(path, sizes, item, stored * ratio)


def _detached_bytes(path: Path, value: str) -> int:
    if value.upper().startswith("LIST") or "%" in value:
        # ITK finds and checks the single files itself; together they are not larger than their folder.
        return sum(f.stat().st_size for f in path.parent.iterdir() if f.is_file())
    data = path.parent / value
    return check_readable(data)


def nrrd_header_bytes(array: Array, geometry: Geometry, pairs: Sequence[tuple[str, str]] = ()) -> bytes:
    """Header of a gzip-encoded NRRD file with the data attached; numbers in full precision (17 digits).

    Args:
        array: (Z, Y, X); for its shape and type.
        geometry: Its grid.
        pairs: Key and value pairs to store.
    """
    axes = geometry.index_to_world[:3, 2::-1].T
    vectors = " ".join("(" + ",".join(repr(float(v)) for v in axis) + ")" for axis in axes)
    lines = [
        "NRRD0004",
        "# Complete NRRD file format specification at:",
        "# http://teem.sourceforge.net/nrrd/format.html",
        f"type: {_NRRD_TYPES[array.dtype.str[1:]]}",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(str(n) for n in array.shape[::-1])}",
        f"space directions: {vectors}",
        "kinds: domain domain domain",
        "endian: little",
        "encoding: gzip",
        "space origin: (" + ",".join(repr(float(v)) for v in geometry.origin_mm) + ")",
        *(f"{_one_line(key).replace(':=', ':')}:={_escaped(value)}" for key, value in pairs),
    ]
    return ("\n".join(lines) + "\n\n").encode()


def _escaped(value: str) -> str:
    return value.replace("\r", "").replace("\\", "\\\\").replace("\n", "\\n")


def _one_line(text: str) -> str:
    return " ".join(text.split())
