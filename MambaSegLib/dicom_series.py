"""From a folder of DICOM files to one 3D image: the series is chosen by a person, the slices by their positions."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from MambaSegLib.dicom_files import (
    NOT_IMAGES,
    DicomFile,
    has_all_pixels,
    has_dicom_magic,
    is_damaged_member,
    quiet_itk,
    read_header,
    scan_folder,
)
from MambaSegLib.dicom_spacing import SAME_PLACE_MM, even_step
from MambaSegLib.errors import InputError
from MambaSegLib.geometry import Array
from MambaSegLib.itk_files import import_simpleitk, itk_cause
from MambaSegLib.raw_image import RawImage, check_readable, choose_frame

POSITIONED_MULTIFRAME = {
    "1.2.840.10008.5.1.4.1.1.2.1": "Enhanced CT",
    "1.2.840.10008.5.1.4.1.1.2.2": "Legacy Converted Enhanced CT",
    "1.2.840.10008.5.1.4.1.1.4.1": "Enhanced MR",
    "1.2.840.10008.5.1.4.1.1.4.4": "Legacy Converted Enhanced MR",
    "1.2.840.10008.5.1.4.1.1.130": "Enhanced PET",
    "1.2.840.10008.5.1.4.1.1.128.1": "Legacy Converted Enhanced PET",
}
"""Multi-frame objects that say where each frame lies; others (ultrasound, angiography) are films."""


@dataclass(frozen=True)
class Stack:
    """Files of one series that fit together: same size, orientation and pixel size.

    Attributes:
        files: Unsorted.
    """

    files: tuple[DicomFile, ...]

    @property
    def first(self) -> DicomFile:
        """Any of the files: they share all that identifies the stack."""
        return self.files[0]

    @property
    def slices(self) -> int:
        """Slices, those of multi-frame files counted."""
        return sum(file.size[2] for file in self.files)

    def line(self, number: int) -> str:
        """One line of the listing a person chooses from."""
        file = self.first
        x, y, z = file.spacing_mm
        spacing = f"{x:.3g} x {y:.3g}" + (f" x {z:.3g}" if z > 0 else "") + " mm"
        size = f"{file.size[0]} x {file.size[1]} x {self.slices}"
        uid = file.series_uid or "no UID"
        return f"  {number}: {file.description or '(no description)'} [{file.modality}], {size}, {spacing}, {uid}"


def read_dicom(path: Path, frame: int | None = None, series: str | None = None) -> RawImage:
    """Read one series of a folder, or the series that a file belongs to.

    Args:
        path: A folder (searched with the folders in it) or one DICOM file.
        frame: Which of several images at the same places (time points, echoes), from 0.
        series: Number in the listing (from 1), description, UID or its beginning; needed where there are several.

    Raises:
        InputError: If there is no image, the choice is open, or slices are missing, uneven or do not fit together.
    """
    folder = path if path.is_dir() else _folder_of(path)
    images, others = scan_folder(folder)
    left_out = [*others, *(file.path for file in images if file.modality in NOT_IMAGES)]
    stacks = _stacks([file for file in images if file.modality not in NOT_IMAGES])
    if not stacks:
        what = f"{len(left_out)} DICOM files without an image to segment" if left_out else "no DICOM file"
        msg = f"the folder {folder} holds {what}; give an image file or the folder of a DICOM image series"
        raise InputError(msg)
    own = [stack for stack in stacks if any(file.path == path for file in stack.files)]
    stack = own[0] if own and series is None else _chosen(folder, stacks, series)
    notices = []
    if left_out:
        names = ", ".join(file.name for file in left_out[:3]) + (", ..." if len(left_out) > 3 else "")
        files = "1 DICOM file" if len(left_out) == 1 else f"{len(left_out)} DICOM files"
        notices.append(f"left out {files} without an image to segment or not readable ({names})")
    if stack.first.photometric == "MONOCHROME1":
        notices.append("intensities are inverted (MONOCHROME1): low values are bright")
    _check_complete(stack, others)
    if stack.first.size[2] > 1:
        return _multiframe(stack, notices, frame)
    return _stacked(folder, stack, notices, frame)


def _folder_of(path: Path) -> Path:
    check_readable(path)
    file = read_header(path)
    if file is None or file.modality in NOT_IMAGES:
        if not has_dicom_magic(path) and file is None:
            msg = f"{path} is no readable DICOM file; check it or get it again"
        else:
            what = file.modality if file else "for example a plan, a structure set or a report"
            msg = f"{path} is a DICOM object that holds no image to segment ({what}); give the image series"
        raise InputError(msg)
    return path.parent


def _stacks(files: Sequence[DicomFile]) -> list[Stack]:
    groups: dict[tuple[object, ...], list[DicomFile]] = defaultdict(list)
    for file in files:
        # Each multi-frame file is an image of its own.
        groups[(*file.kind, file.path if file.size[2] > 1 else "")].append(file)
    return [Stack(tuple(group)) for group in groups.values()]


def _chosen(folder: Path, stacks: list[Stack], series: str | None) -> Stack:
    listing = "\n".join(stack.line(k) for k, stack in enumerate(stacks, start=1))
    how = "Choose one by number, description or UID: --series 1 on the command line, series='1' in Python."
    if series is None:
        if len(stacks) == 1:
            return stacks[0]
        msg = f"{folder} holds {len(stacks)} image series:\n{listing}\n{how}"
        raise InputError(msg)
    matches = _matches(stacks, series.strip())
    if len(matches) == 1:
        return matches[0]
    problem = f"{len(matches)} series fit" if matches else "no series fits"
    msg = f"{problem} {series!r} in {folder}. It holds:\n{listing}\n{how}"
    raise InputError(msg)


def _matches(stacks: list[Stack], series: str) -> list[Stack]:
    """The most exact way of naming that fits anything counts: UID, description, number, beginning of a UID."""
    uids = [stack.first.series_uid for stack in stacks]
    names = [stack.first.description.casefold() for stack in stacks]
    ways = (
        [uid == series for uid in uids],
        [name == series.casefold() for name in names],
        [str(k) == series for k in range(1, len(stacks) + 1)],
        [uid.startswith(series) for uid in uids],
    )
    for fits in ways:
        if series and any(fits):
            return [stack for stack, fit in zip(stacks, fits, strict=True) if fit]
    return []


def _check_complete(stack: Stack, others: Sequence[Path]) -> None:
    damaged = [path for path in others if is_damaged_member(path, stack.first)]
    cut = damaged + [file.path for file in stack.files if not has_all_pixels(file)]
    if cut:
        msg = f"{len(cut)} of {len(stack.files) + len(damaged)} files are cut off, for example {cut[0]}; copy the series again"
        raise InputError(msg)


def _stacked(folder: Path, stack: Stack, notices: list[str], frame: int | None) -> RawImage:
    files, repeated = _without_copies(stack.files)
    if repeated:
        notices.append(f"{repeated} files are copies of others (same instance UID) and were left out")
    _check_scalar(folder, stack.first)
    missing = [file for file in files if file.position_mm is None or file.row_and_column is None]
    if missing or min(stack.first.spacing_mm[:2]) <= 0:
        named = (missing or files)[0].path.name
        msg = f"{folder}: {named} does not say where it lies (position, orientation or pixel spacing is missing)"
        raise InputError(msg + "; export the original series, or choose another one")
    row, column = np.array(stack.first.row_and_column).reshape(2, 3)
    normal = np.cross(row, column)
    places = _by_place(files, normal)
    counts = Counter(len(place) for place in places)
    if len(counts) > 1:
        msg = (
            f"{folder}: the series has {max(counts)} images at some slice positions and {min(counts)} at others: it is "
            "incomplete or mixes acquisitions. Export it again, or separate the acquisitions into folders."
        )
        raise InputError(msg)
    chosen = choose_frame(folder, len(places[0]), frame, "images at each slice position (time points or echoes)")
    slices = [place[chosen] for place in places]
    positions = np.array([file.position_mm for file in slices], dtype=np.float64)
    origin, step = even_step(folder, positions, normal, slices[0].spacing_mm[2], [file.path.name for file in slices])
    dx, dy, _ = stack.first.spacing_mm
    axes = np.column_stack([step, column * dy, row * dx])
    return RawImage(_voxels(folder, slices), axes, origin, stack.first.description or folder.name, tuple(notices))


def _without_copies(files: Sequence[DicomFile]) -> tuple[list[DicomFile], int]:
    kept: dict[object, DicomFile] = {}
    for file in files:
        kept.setdefault(file.instance_uid or file.path, file)
    return list(kept.values()), len(files) - len(kept)


def _check_scalar(folder: Path, file: DicomFile) -> None:
    if file.components > 1:
        msg = f"{folder}: {file.path.name} is a color image ({file.photometric}); a scalar image is needed"
        raise InputError(msg)


def _by_place(files: Sequence[DicomFile], normal: Array) -> list[list[DicomFile]]:
    """Files sorted along the normal, those at one place together and in their own order."""
    along = {file.path: float(np.asarray(file.position_mm) @ normal) for file in files}
    places: list[list[DicomFile]] = []
    for file in sorted(files, key=lambda file: along[file.path]):
        if places and along[file.path] - along[places[-1][0].path] < SAME_PLACE_MM:
            places[-1].append(file)
        else:
            places.append([file])
    return [sorted(place, key=lambda file: (file.order, file.path)) for place in places]


def _voxels(folder: Path, slices: Sequence[DicomFile]) -> Array:
    sitk = import_simpleitk()
    reader = sitk.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames([str(file.path) for file in slices])
    types = {file.pixel_type for file in slices}
    if len(types) > 1:
        # The series reader takes the first slice's type for all; with a rescale slope per slice (PET) that rounds.
        wide = sitk.sitkFloat64 if sitk.sitkFloat64 in types else sitk.sitkFloat32
        reader.SetOutputPixelType(wide)
    try:
        with quiet_itk():
            image = reader.Execute()
    except RuntimeError as error:
        msg = f"{folder}: a slice cannot be decoded ({itk_cause(error)}); get the series again, uncompressed if need be"
        raise InputError(msg) from None
    array = np.asarray(sitk.GetArrayFromImage(image))
    return array.reshape(-1, *array.shape[-2:])


def _multiframe(stack: Stack, notices: list[str], frame: int | None) -> RawImage:
    file = stack.first
    _check_scalar(file.path.parent, file)
    if file.class_uid not in POSITIONED_MULTIFRAME:
        msg = (
            f"{file.path} is a film of {file.size[2]} frames without positions in the patient (SOP class "
            f"{file.class_uid or 'missing'}); a CT, MR or PET volume is needed"
        )
        raise InputError(msg)
    from MambaSegLib.dicom_multiframe import read_multiframe

    return read_multiframe(file, tuple(notices), frame)
