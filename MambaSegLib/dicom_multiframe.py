"""Enhanced CT, MR and PET objects: one DICOM file with all slices, each with its own position."""

from __future__ import annotations

import re

import numpy as np

from MambaSegLib.dicom_files import PIXEL_DATA, DicomFile
from MambaSegLib.dicom_spacing import SAME_PLACE_MM, even_step
from MambaSegLib.errors import InputError
from MambaSegLib.geometry import Array
from MambaSegLib.itk_files import import_simpleitk, read_with_itk
from MambaSegLib.raw_image import RawImage, choose_frame

_POSITION = b"\x20\x00\x32\x00"
_ORIENTATION = b"\x20\x00\x37\x00"
_PIXEL_SPACING = b"\x28\x00\x30\x00"
_DECIMAL = re.compile(rb"[-+0-9.eE \\\0]+")


def read_multiframe(file: DicomFile, notices: tuple[str, ...], frame: int | None) -> RawImage:
    """Read a multi-frame file, its slices sorted by their positions.

    GDCM delivers the frames in the order they are stored in, which may be any; so positions are taken from the
    per-frame functional groups.

    Raises:
        InputError: If frames have no positions of their own, differ in orientation, or stand at uneven steps.
    """
    positions, row, column, spacing = _frame_grid(file)
    normal = np.cross(row, column)
    along = positions @ normal
    order = np.argsort(along, kind="stable")
    fresh = np.concatenate([[True], np.diff(along[order]) >= SAME_PLACE_MM])
    places = int(fresh.sum())
    repeats = len(order) // places
    if repeats * places != len(order) or not fresh[::repeats].all():
        msg = f"{file.path}: {len(order)} frames do not spread evenly over {places} slice positions; export it again"
        raise InputError(msg)
    chosen = choose_frame(file.path, repeats, frame, "images at each slice position (time points or echoes)")
    frames = order.reshape(places, repeats)[:, chosen]
    names = [f"frame {k + 1}" for k in frames]
    origin, step = even_step(file.path, positions[frames], normal, file.spacing_mm[2], names)
    voxels = import_simpleitk().GetArrayFromImage(read_with_itk(file.path))[frames]
    axes = np.column_stack([step, column * spacing[0], row * spacing[1]])
    return RawImage(voxels, axes, origin, file.description or file.path.stem, notices)


def _frame_grid(file: DicomFile) -> tuple[Array, Array, Array, Array]:
    """Position of each frame, row and column direction, and pixel spacing (between rows, between columns)."""
    head, found, _ = file.path.read_bytes().rpartition(PIXEL_DATA)
    positions = _values(head, _POSITION, 3)
    orientations = _values(head, _ORIENTATION, 6)
    spacings = _values(head, _PIXEL_SPACING, 2)
    if not found or len(positions) != file.size[2] or not len(orientations) or not len(spacings):
        msg = (
            f"{file.path} has {file.size[2]} frames but {len(positions)} positions in the patient, "
            f"{len(orientations)} orientations and {len(spacings)} pixel spacings: where its slices lie is unknown. "
            "Convert it with a DICOM tool (dcm2niix, 3D Slicer) and check the result."
        )
        raise InputError(msg)
    if np.abs(orientations - orientations[0]).max() > 1e-4 or np.abs(spacings - spacings[0]).max() > 1e-4:
        msg = f"{file.path}: its frames differ in orientation or pixel spacing (a localizer?); choose another series"
        raise InputError(msg)
    return positions, orientations[0, :3], orientations[0, 3:], spacings[0]


def _values(head: bytes, tag: bytes, count: int) -> Array:
    """All values of a decimal-string element of little-endian DICOM, in the order of the file, at any depth.

    Searching for the tag's bytes finds the elements of nested sequences without reading the sequences. A match counts
    if a plausible length (explicit VR "DS" or implicit) and the right number of decimals follow.
    """
    found = []
    for match in re.finditer(re.escape(tag), head):
        at = match.end()
        explicit = head[at : at + 2] == b"DS"
        length = int.from_bytes(head[at + 2 : at + 4] if explicit else head[at : at + 4], "little")
        text = head[at + 4 : at + 4 + length]
        if length <= 17 * count and _DECIMAL.fullmatch(text):
            try:
                values = [float(part) for part in text.rstrip(b"\0 ").split(b"\\")]
            except ValueError:
                continue
            if len(values) == count and np.isfinite(values).all():
                found.append(values)
    return np.array(found, dtype=np.float64).reshape(-1, count)
