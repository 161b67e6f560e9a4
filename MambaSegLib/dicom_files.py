"""Which DICOM images a folder holds: one record per file, from its header, through SimpleITK (GDCM)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from MambaSegLib.errors import InputError
from MambaSegLib.itk_files import import_simpleitk
from MambaSegLib.plan import Triple

MAX_FILES = 50_000
"""More files than any study has: a folder like a home directory was given by mistake."""

NOT_IMAGES = ("SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "PR", "SR", "KO", "REG", "AU", "DOC")
"""Modalities of objects that lie beside images and are none to segment."""


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
        spacing_mm: Distance between columns, between rows and, where given, between slices.
        order: What tells frames at the same place apart, most important first.
        photometric: Photometric interpretation.
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

    @property
    def kind(self) -> tuple[object, ...]:
        """What files of one stack share: series, size, orientation and pixel size."""
        turned = tuple(round(v, 3) + 0.0 for v in self.row_and_column or ())
        return (self.series_uid, self.size, turned, tuple(round(s, 4) for s in self.spacing_mm[:2]), self.components)


def scan_folder(folder: Path) -> tuple[list[DicomFile], list[Path]]:
    """All DICOM images in a folder and the folders in it.

    Returns:
        The images, and the DICOM files that hold none.

    Raises:
        InputError: If the folder may not be read or holds a believable study's files many times over.
    """
    images, others = [], []
    for path in _files(folder):
        found = read_header(path)
        if found is not None:
            images.append(found)
        elif has_dicom_magic(path):
            others.append(path)
    return images, others


def _files(folder: Path) -> list[Path]:
    files = []
    try:
        for path in folder.rglob("*"):
            if path.is_file() and path.name != "DICOMDIR" and not path.name.startswith("."):
                files.append(path)
            if len(files) > MAX_FILES:
                msg = f"{folder} holds more than {MAX_FILES} files; give the folder of one patient's study"
                raise InputError(msg)
    except OSError as error:
        msg = f"{folder} cannot be read: {error}; change its permissions or copy it"
        raise InputError(msg) from None
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
    row_spacing, column_spacing = tags.numbers("0028|0030", 2) or tags.numbers("0018|1164", 2) or (np.nan, np.nan)
    between = tags.numbers("0018|0088", 1) or tags.numbers("0018|0050", 1) or (np.nan,)
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
    )


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
        readable = value.encode("utf-8", "replace").decode("utf-8").replace("\0", "").strip()
        return "" if readable == "None" else readable

    def numbers(self, tag: str, count: int) -> tuple[float, ...] | None:
        parts = self.text(tag).split("\\")
        try:
            values = tuple(float(part) for part in parts)
        except ValueError:
            return None
        return values if len(values) == count and np.isfinite(values).all() else None
