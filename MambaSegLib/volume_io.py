"""Reading and writing image files: NIfTI, NRRD, MetaImage and DICOM folders in, label maps and images out.

Every refusal is an InputError that says what was found and what to do. Nothing is guessed: no frame of several, no
series of several, no value for NaN, no straight grid for a sheared one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from MambaSegLib.dicom_files import files_in, has_dicom_magic
from MambaSegLib.errors import InputError
from MambaSegLib.geometry import Array, Geometry, ShearedGridError, straightened
from MambaSegLib.label_writing import check_output_path, write_labels, write_volume
from MambaSegLib.metaimage import data_file_of, read_metaimage
from MambaSegLib.nifti import read_nifti
from MambaSegLib.nrrd import read_nrrd
from MambaSegLib.nrrd_header import data_file, read_nrrd_header
from MambaSegLib.plan import Label
from MambaSegLib.raw_image import MAX_SPACING_MM, MIN_SPACING_MM, RawImage, check_readable, every_file
from MambaSegLib.volume import Labels, Volume

__all__ = [
    "check_output_path",
    "files_of",
    "is_dicom",
    "read_channels",
    "read_labels",
    "read_volume",
    "write_labels",
    "write_volume",
]

PathLike = str | Path
Notify = Callable[[str], None]

NIFTI_SUFFIXES = (".nii", ".nii.gz")
NRRD_SUFFIXES = (".nrrd", ".nhdr")
METAIMAGE_SUFFIXES = (".mha", ".mhd")
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
NONFINITE_CURE = "Repair the image, or choose what they become: --replace-nonfinite 0, in Python replace_nonfinite=0."
"""What to do about voxels that are NaN or infinite, on the command line; other programs say their own in its place."""


def log(message: str) -> None:
    """Send a notice to the log: what happens to notices where nobody asks for them."""
    logging.getLogger(__name__).warning(message)


def read_volume(
    path: PathLike,
    *,
    frame: int | None = None,
    series: str | None = None,
    replace_nonfinite: float | None = None,
    resample_sheared: bool = False,
    on_notice: Notify = log,
) -> Volume:
    """Read one scalar 3D image.

    Args:
        path: A .nii, .nii.gz, .nrrd, .nhdr, .mha or .mhd file, a folder of DICOM files, or one DICOM file of a series.
        frame: Which 3D image of a 4D one, from 0.
        series: Which DICOM series of a folder with several: its number in the listing, its description, or its UID or
            the unique beginning of it.
        replace_nonfinite: What NaN and infinite voxels become; None refuses them.
        resample_sheared: Resample a sheared grid (tilted CT gantry) linearly onto a straight one; else it is refused.
        on_notice: Called with what a person should know about how the file was read.

    Returns:
        A one-channel volume without channel name.

    Raises:
        InputError: With what was found and what to do, for everything that is not such an image.
        EnvironmentProblemError: Where memory or SimpleITK is missing.
    """
    path = Path(path)
    raw = _read_raw(path, frame, series)
    for notice in raw.notices:
        on_notice(f"{path}: {notice}")
    array = _finite(path, raw.array, replace_nonfinite, on_notice)
    try:
        geometry, repaired = straightened(raw.axes_mm, raw.origin_mm, array.shape)
    except ShearedGridError as error:
        if not resample_sheared:
            msg = f"{path}: {error}"
            raise InputError(msg) from None
        from MambaSegLib.resampling_itk import resample_sheared as straighten_by_resampling

        array, geometry = straighten_by_resampling(replace(raw, array=array))
        repaired = f"the sheared grid was resampled onto a straight one of {geometry.shape} voxels (Z, Y, X)"
    except InputError as error:
        msg = f"{path}: {error}"
        raise InputError(msg) from None
    _check_spacing(path, geometry)
    if repaired:
        on_notice(f"{path}: {repaired}")
    return Volume(array[None], geometry, (), raw.name)


def read_channels(
    paths: Sequence[PathLike] | Mapping[str, PathLike],
    *,
    resample_to_first: bool = False,
    frame: int | None = None,
    series: str | None = None,
    replace_nonfinite: float | None = None,
    resample_sheared: bool = False,
    on_notice: Notify = log,
) -> Volume:
    """Read several files as the channels of one volume.

    Args:
        paths: One file or folder per channel, in order; with channel names as keys where they are known.
        resample_to_first: Bring channels on other grids onto the first one's, linearly; else they are refused. Outside
            an image are zeros, or its smallest value if that is negative: air in a CT.
        frame: See `read_volume`; the same for each file.
        series: See `read_volume`.
        replace_nonfinite: See `read_volume`.
        resample_sheared: See `read_volume`.
        on_notice: See `read_volume`.

    Returns:
        The volume, named after the first file.

    Raises:
        InputError: As `read_volume`, and where grids differ: which channel, and how.
    """
    names = tuple(paths) if isinstance(paths, Mapping) else ()
    files = [Path(p) for p in (paths.values() if isinstance(paths, Mapping) else paths)]
    if not files:
        msg = "no input image was given"
        raise InputError(msg)
    from MambaSegLib.seg_nrrd import is_segmentation

    for file in files:
        if file.is_file() and is_segmentation(file):
            msg = f"{file} is a segmentation, not an image. Give the image it was made from."
            raise InputError(msg)
    volumes = [
        read_volume(
            file,
            frame=frame,
            series=series,
            replace_nonfinite=replace_nonfinite,
            resample_sheared=resample_sheared,
            on_notice=on_notice,
        )
        for file in files
    ]
    first = volumes[0]
    for k, volume in enumerate(volumes[1:], start=1):
        difference = first.geometry.differences(volume.geometry)
        if not difference:
            continue
        which = f"channel {names[k]} ({files[k]})" if names else f"channel {k} ({files[k]})"
        if not resample_to_first:
            msg = (
                f"{which} lies on another grid than {files[0]}: {difference}. Give images of one grid, or have it "
                "resampled to the first: --resample-channels, in Python resample_to_first=True."
            )
            raise InputError(msg)
        from MambaSegLib.resampling_itk import resample_onto

        volumes[k] = resample_onto(volume, first.geometry)
        on_notice(f"{which} was resampled onto the grid of {files[0]} ({difference})")
    # One image is handed on as it is: joined, it would be copied.
    array = first.array if len(volumes) == 1 else np.concatenate([volume.array for volume in volumes])
    return Volume(array, first.geometry, names, first.name)


def read_labels(path: PathLike, *, on_notice: Notify = log) -> Labels:
    """Read a label map; of a .seg.nrrd with names, colors, terminology and tags.

    Other formats store numbers only: the table then holds each value found as "label 3" in a color of its own.

    Raises:
        InputError: As `read_volume`, and where voxels are no whole numbers of 0 to 65535 or segments overlap.
    """
    path = Path(path)
    from MambaSegLib.seg_nrrd import is_segmentation, labels_from_segmentation

    if is_segmentation(path):
        return labels_from_segmentation(path, on_notice)
    volume = read_volume(path, on_notice=on_notice)
    array = _whole_numbers(path, volume.array[0])
    values = np.unique(array)
    table = tuple(_unnamed(int(value)) for value in values if value)
    return Labels(array, volume.geometry, table)


def files_of(path: PathLike) -> tuple[Path, ...]:
    """The files an image is in: all of a folder, a header and the file its voxels are in, or one file.

    A DICOM file stands for its series: what lies beside it, and in folders there, belongs to it if it is DICOM, too.

    Raises:
        InputError: If a folder may not be read, or a DICOM file lies among more files than a study has.
    """
    path = Path(path)
    if path.is_dir():
        return tuple(sorted(every_file(path)))
    if is_dicom(path):
        return tuple(file for file in files_in(path.parent) if is_dicom(file))
    name = path.name.lower()
    try:
        if name.endswith(NRRD_SUFFIXES):
            return tuple(dict.fromkeys((path, data_file(path, read_nrrd_header(path))[0])))
        if name.endswith(METAIMAGE_SUFFIXES):
            return tuple(dict.fromkeys((path, data_file_of(path))))
    except InputError:  # reading it says what is wrong
        return (path,)
    return (path,)


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its name or its first bytes."""
    return path.is_file() and (path.name.lower().endswith(DICOM_SUFFIXES) or has_dicom_magic(path))


def _unnamed(value: int) -> Label:
    """Label with a color that differs from its neighbors': hues a golden section apart."""
    from colorsys import hsv_to_rgb

    r, g, b = (round(255 * c) for c in hsv_to_rgb(value * 0.618034 % 1.0, 0.7, 0.95))
    return Label(value, f"label {value}", (r, g, b))


def _whole_numbers(path: Path, array: Array) -> Array:
    low, high = array.min(), array.max()
    if low < 0 or high > 65535 or (array.dtype.kind == "f" and not (array == np.rint(array)).all()):
        msg = f"{path} is no label map: it holds values from {low} to {high}; whole numbers from 0 to 65535 are needed"
        raise InputError(msg)
    return array.astype(np.uint8 if high < 256 else np.uint16)


def _read_raw(path: Path, frame: int | None, series: str | None) -> RawImage:
    name = path.name.lower()
    if not path.is_dir():
        check_readable(path)  # first of all: opening a pipe would wait for ever
    if path.is_dir() or is_dicom(path):
        from MambaSegLib.dicom_series import read_dicom

        return read_dicom(path, frame, series)
    if series is not None:
        msg = f"{path} is no DICOM folder, so it has no series to choose; leave the option out"
        raise InputError(msg)
    if name.endswith(NIFTI_SUFFIXES):
        return read_nifti(path, frame)
    if name.endswith(NRRD_SUFFIXES):
        return read_nrrd(path, frame)
    if name.endswith(METAIMAGE_SUFFIXES):
        return read_metaimage(path, frame)
    msg = (
        f"{path} is of no known kind. Readable are {', '.join(NIFTI_SUFFIXES + NRRD_SUFFIXES + METAIMAGE_SUFFIXES)} files and folders of "
        "DICOM files; convert it, for example in 3D Slicer."
    )
    raise InputError(msg)


def _finite(path: Path, array: Array, replacement: float | None, on_notice: Notify) -> Array:
    if array.dtype.kind != "f":
        return array
    bad = ~np.isfinite(array)
    count = int(bad.sum())
    if not count:
        return array
    found = f"{count} of {array.size} voxels are NaN or infinite"
    if replacement is None:
        msg = f"{path}: {found}. {NONFINITE_CURE}"
        raise InputError(msg)
    with np.errstate(over="ignore"):
        value = array.dtype.type(replacement)
    if not np.isfinite(value):
        msg = (
            f"NaN and infinite voxels cannot become {replacement:g} ({array.dtype}); give an ordinary number, such as 0"
        )
        raise InputError(msg)
    on_notice(f"{path}: {found}; they were set to {replacement:g}")
    return np.where(bad, value, array)


def _check_spacing(path: Path, geometry: Geometry) -> None:
    low, high = min(geometry.spacing_mm), max(geometry.spacing_mm)
    if low < MIN_SPACING_MM or high > MAX_SPACING_MM:
        msg = (
            f"{path}: voxel edges from {low:g} to {high:g} mm are not believable (0.001 to 1000 mm are); correct the "
            "spacing in its header"
        )
        raise InputError(msg)
