"""The text header of NRRD files: parsed to check it and to get at its key/value pairs, and written.

Source: the format definition at https://teem.sourceforge.net/nrrd/format.html.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from MambaSegLib.errors import InputError
from MambaSegLib.geometry import Array, Geometry
from MambaSegLib.raw_image import GZIP_RATIO, check_readable, check_size

MAX_HEADER_BYTES = 1 << 22
"""Longest header read: 3D Slicer's grow by about 400 bytes a segment."""

BZIP2_RATIO = 50_000
"""A bzip2 block of 900 kB of equal bytes takes some 40 bytes."""

_DTYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
_ENCODINGS = {
    "raw": "raw",
    "gzip": "gzip",
    "gz": "gzip",
    "bzip2": "bzip2",
    "bz2": "bzip2",
    "ascii": "ascii",
    "text": "ascii",
    "txt": "ascii",
}

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

    def numbers(self, name: str) -> tuple[float, ...]:
        """Numbers of a field like "(1,2,3)" or "1 2 3"; () where it is missing."""
        return tuple(float(part) for part in re.split(r"[\s(),]+", self.fields.get(name, "")) if part)

    def directions(self) -> tuple[tuple[float, ...] | None, ...]:
        """Step along each axis in the file's own space; None for axes that are not in space; () where missing."""
        found = re.findall(r"none|\([^()]*\)", self.fields.get("space directions", "").lower())
        return tuple(None if text == "none" else tuple(float(v) for v in text[1:-1].split(",")) for text in found)

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
    dtype = dtype_of(path, header)
    try:
        sizes = header.sizes
        dimension = int(fields["dimension"])
        for name in ("space origin", "spacings"):
            header.numbers(name)
        directions = header.directions()
    except (KeyError, ValueError) as error:
        msg = f"{path} has a damaged header ({error}); get it again"
        raise InputError(msg) from None
    lengths = {len(sizes), *(len(found) for found in (header.kinds, directions) if found)}
    if lengths != {dimension} or len(header.numbers("spacings") or sizes) != dimension:
        msg = f"{path} has a damaged header: {dimension} axes but {len(sizes)} sizes, kinds {header.kinds}"
        raise InputError(msg)
    encoding = encoding_of(path, header)
    data, offset = data_file(path, header)
    stored = (file_bytes if data == path else check_readable(data)) - max(0, offset)
    ratio = {"gzip": GZIP_RATIO, "bzip2": BZIP2_RATIO}.get(encoding, 1)
    # Written as text, a sample takes two bytes at least, the last one without its separator one.
    check_size(path, sizes, 1 if encoding == "ascii" else dtype.itemsize, stored * ratio)


def dtype_of(path: Path, header: NrrdHeader) -> np.dtype[Any]:
    """NumPy type of the samples, byte order included.

    Raises:
        InputError: If they are not numbers.
    """
    name = header.fields.get("type", "")
    for code, names in _DTYPES.items():
        if name.lower() in names:
            return np.dtype((">" if header.fields.get("endian", "").lower() == "big" else "<") + code)
    msg = f"{path} holds voxels of type {name or 'nothing'!r}; numbers are needed"
    raise InputError(msg)


def encoding_of(path: Path, header: NrrdHeader) -> str:
    """Encoding of the voxels: "raw", "gzip", "bzip2" or "ascii".

    Raises:
        InputError: For another one.
    """
    encoding = _ENCODINGS.get(header.fields.get("encoding", "").lower())
    if encoding is None:
        msg = f"{path} has the encoding {header.fields.get('encoding')!r}; save it as raw or gzip"
        raise InputError(msg)
    return encoding


def data_file(path: Path, header: NrrdHeader) -> tuple[Path, int]:
    """The file with the data and where they start in it; -1 for raw data that end with the file.

    Raises:
        InputError: If the data are spread over several files or lines are to be skipped.
    """
    fields = header.fields
    name = fields.get("data file") or fields.get("datafile") or ""
    skip = fields.get("byte skip") or fields.get("byteskip") or "0"
    lines = fields.get("line skip") or fields.get("lineskip") or "0"
    if name.upper().startswith("LIST") or "%" in name or lines != "0" or not re.fullmatch(r"-1|\d{1,12}", skip):
        msg = f"{path} has its data in several files or behind lines to skip; save it as one .nrrd file"
        raise InputError(msg)
    # Other files are looked for beside the header, wherever it says they are: no header may point elsewhere.
    data = path.parent / Path(name.replace("\\", "/")).name if name else path
    start = 0 if name else header.header_bytes
    return data, -1 if skip == "-1" else start + int(skip)


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
    # "replace": a file name that is no valid text (from another system's disk) may be among the values.
    return ("\n".join(lines) + "\n\n").encode(errors="replace")


def _escaped(value: str) -> str:
    return value.replace("\r", "").replace("\\", "\\\\").replace("\n", "\\n")


def _one_line(text: str) -> str:
    return " ".join(text.split())
