"""Which DICOM images a folder holds: one record per file, from its header, through SimpleITK (GDCM)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from MambaSegLib.errors import InputError
from MambaSegLib.itk_files import import_simpleitk
from MambaSegLib.plan import Triple
from MambaSegLib.raw_image import check_readable, every_file

MAX_FILES = 50_000
"""More files than any study has: a folder like a home directory was given by mistake."""

NOT_IMAGES = ("SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "PR", "SR", "KO", "REG", "AU", "DOC")
"""Modalities of objects that lie beside images and are none to segment."""


PIXEL_DATA = b"\xe0\x7f\x10\x00"
"""Tag (7FE0,0010), little endian."""

_SEQUENCE_END = b"\xfe\xff\xdd\xe0"
_UNDEFINED_LENGTH = 0xFFFFFFFF


@dataclass(frozen=True)
class DicomFile:
    """What the header of one DICOM file with pixels says.

    Attributes:
        path: The file.
        series_uid: Series Instance UID; "" in files stripped of it.
        instance_uid: SOP Instance UID; "" likewise.
        class_uid: SOP Class UID; "" likewise.
        description: Series Description.
        modality: "CT", "MR", ...
        size: Columns, rows, frames.
        components: Values per pixel: 3 for color.
        pixel_type: SimpleITK's pixel type after rescaling to modality values.
        position_mm: LPS position of the first pixel; None where it is not given.
        row_and_column: LPS unit vectors along rows (x) and along columns (y); None where not given.
        spacing_mm: Distance between columns, between rows and between slices; 0 where not given.
        order: What tells frames at the same place apart, most important first.
        photometric: Photometric interpretation.
        bits: Stored bits of each value, padding included.
    """

    path: Path
    series_uid: str
    instance_uid: str
    class_uid: str
    description: str
    modality: str
    size: tuple[int, int, int]
    components: int
    pixel_type: int
    position_mm: Triple | None
    row_and_column: tuple[float, ...] | None
    spacing_mm: Triple
    order: tuple[float, ...]
    photometric: str
    bits: int

    @property
    def kind(self) -> tuple[object, ...]:
        """What files of one stack share: series, size, orientation and pixel size."""
        turned = tuple(round(v, 3) + 0.0 for v in self.row_and_column or ())
        return (self.series_uid, self.size, turned, tuple(round(s, 4) for s in self.spacing_mm[:2]), self.components)


def scan_folder(folder: Path) -> tuple[list[DicomFile], list[Path]]:
    """All DICOM images in a folder and the folders in it.

    Returns:
        The images, and the DICOM files that hold none or cannot be read.

    Raises:
        InputError: If the folder may not be read or holds a believable study's files many times over.
    """
    images, others = [], []
    for path in files_in(folder):
        found = read_header(path)
        if found is not None:
            images.append(found)
        elif has_dicom_magic(path) or path.suffix.lower() in (".dcm", ".ima"):
            others.append(path)
    return images, others


def files_in(folder: Path) -> list[Path]:
    """The files of a folder and the folders in it that may be DICOM, sorted.

    Raises:
        InputError: As `scan_folder`.
    """
    files: list[Path] = []
    for path in every_file(folder):
        if path.name != "DICOMDIR" and not path.name.startswith("."):
            files.append(path)
        if len(files) > MAX_FILES:
            msg = f"{folder} holds more than {MAX_FILES} files; give the folder of one patient's study"
            raise InputError(msg)
    for path in files:
        check_readable(path, empty=True)
    return sorted(files)


def has_dicom_magic(path: Path) -> bool:
    """Whether a file begins as DICOM files on disk do."""
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


@contextmanager
def quiet_itk() -> Iterator[None]:
    """Keep ITK's warnings off the standard error stream: what they warn of is checked here and told in plain words."""
    process = import_simpleitk().ProcessObject
    before = process.GetGlobalWarningDisplay()
    process.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        process.SetGlobalWarningDisplay(before)


def read_header(path: Path) -> DicomFile | None:
    """Header of one file; None if it is not a DICOM file with pixels."""
    sitk = import_simpleitk()
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        with quiet_itk():
            reader.ReadImageInformation()
    except RuntimeError:
        return None
    tags = _Tags(reader)
    size = [int(n) for n in reader.GetSize()]
    row_spacing, column_spacing = tags.numbers("0028|0030", 2) or tags.numbers("0018|1164", 2) or (0.0, 0.0)
    between = tags.numbers("0018|0088", 1) or tags.numbers("0018|0050", 1) or (0.0,)
    position = tags.numbers("0020|0032", 3)
    order_tags = ("0020|0100", "0018|0086", "0018|0081", "0020|0012", "0020|0013")
    return DicomFile(
        path=path,
        series_uid=tags.text("0020|000e"),
        instance_uid=tags.text("0008|0018"),
        class_uid=tags.text("0008|0016"),
        description=tags.text("0008|103e"),
        modality=tags.text("0008|0060"),
        size=(size[0], size[1], size[2] if len(size) > 2 else 1),
        components=int(reader.GetNumberOfComponents()),
        pixel_type=int(reader.GetPixelIDValue()),
        position_mm=(position[0], position[1], position[2]) if position else None,
        row_and_column=tags.numbers("0020|0037", 6),
        spacing_mm=(column_spacing, row_spacing, between[0]),
        order=tuple((tags.numbers(tag, 1) or (0.0,))[0] for tag in order_tags),
        photometric=tags.text("0028|0004"),
        bits=int((tags.numbers("0028|0100", 1) or (1.0,))[0]),
    )


def has_all_pixels(file: DicomFile) -> bool:
    """Whether the pixels a header promises are in the file; GDCM fills what a cut-off copy lacks without a word.

    Looks at each occurrence of the tag of pixel data in little-endian files: one must be followed by enough bytes or,
    if compressed, by the delimiter that ends it. Files without an occurrence (deflated, big endian) are believed.
    """
    data = file.path.read_bytes()
    columns, rows, frames = file.size
    promised = columns * rows * frames * file.components * file.bits // 8
    at = data.find(PIXEL_DATA)
    if at < 0:
        return True
    while at >= 0:
        explicit = data[at + 4 : at + 6] in (b"OW", b"OB")
        start = at + 12 if explicit else at + 8
        length = int.from_bytes(data[start - 4 : start], "little")
        ended = data.find(_SEQUENCE_END, start) >= 0 if length == _UNDEFINED_LENGTH else start + length <= len(data)
        if ended and length >= promised:
            return True
        at = data.find(PIXEL_DATA, at + 4)
    return False


def is_damaged_member(path: Path, member: DicomFile) -> bool:
    """Whether an unreadable file belongs to the series of a readable one: same SOP class and series in its bytes.

    Other objects name the series they refer to as well, but are of another class.
    """
    data = path.read_bytes()
    same_class = re.search(re.escape(member.class_uid.encode()) + rb"(?![0-9.])", data[:1024]) is not None
    same_series = member.series_uid.encode() in data
    return same_class and same_series and (bool(member.class_uid) or PIXEL_DATA in data)


class _Tags:
    """Values of a header by tag, "" or None where a tag is missing, empty or unreadable."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def text(self, tag: str) -> str:
        if not self._reader.HasMetaDataKey(tag):
            return ""
        try:
            value = str(self._reader.GetMetaData(tag))
        except UnicodeDecodeError:
            return ""
        readable = "".join(c for c in value.encode("utf-8", "replace").decode("utf-8") if c.isprintable()).strip()
        return "" if readable == "None" else readable

    def numbers(self, tag: str, count: int) -> tuple[float, ...] | None:
        parts = self.text(tag).split("\\")
        try:
            values = tuple(float(part) for part in parts)
        except ValueError:
            return None
        return values if len(values) == count and np.isfinite(values).all() else None
