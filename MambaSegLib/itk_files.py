"""NRRD and MetaImage files, through SimpleITK, once their headers are known to be sound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from MambaSegLib.errors import EnvironmentProblemError, InputError
from MambaSegLib.geometry import Array
from MambaSegLib.metaimage_header import check_metaimage
from MambaSegLib.nrrd_header import read_nrrd_header
from MambaSegLib.raw_image import RawImage, choose_frame, stem_of

FRAME_KINDS = ("list", "time")
"""What NRRD calls an axis of several images; its other non-spatial kinds are colors, vectors and tensors."""


def import_simpleitk() -> Any:
    """SimpleITK, or what to do where it is missing."""
    try:
        import SimpleITK
    except ImportError as error:
        msg = "this file format needs the package SimpleITK: python -m pip install 'SimpleITK>=2.5.3'"
        raise EnvironmentProblemError(msg) from error
    return SimpleITK


def read_itk(path: Path, frame: int | None = None) -> RawImage:
    """Read one 3D image of a .nrrd, .nhdr, .mha or .mhd file.

    Raises:
        InputError: For anything that is not a complete, real-valued, scalar image of 3 axes or, with `frame`, 4.
    """
    components, kind = _check_header(path)
    if components > 1 and kind not in FRAME_KINDS:
        msg = f"{path} holds {components} values per voxel ({kind}); a scalar image is needed: convert it first"
        raise InputError(msg)
    if components > 1:
        choose_frame(path, components, frame)
    image = read_with_itk(path)
    if image.GetNumberOfComponentsPerPixel() > 1:
        raw, frames = _taken_apart(path, image)
    elif image.GetDimension() == 4:
        choose_frame(path, image.GetSize()[3], frame)
        frames = import_simpleitk().GetArrayFromImage(image)
        raw, _ = _taken_apart(path, image[:, :, :, 0])
    else:
        raw, frames = _taken_apart(path, image)
    chosen = choose_frame(path, len(frames), frame)
    return RawImage(np.ascontiguousarray(frames[chosen]), raw.axes_mm, raw.origin_mm, raw.name, raw.notices, raw.tags)


def read_components(path: Path) -> tuple[RawImage, Array]:
    """Read a NRRD file with all the values of each voxel; for segmentations, whose layers they are.

    Returns:
        The first one with the grid, and all as (C, Z, Y, X).
    """
    read_nrrd_header(path)
    return _taken_apart(path, read_with_itk(path))


def read_with_itk(path: Path) -> Any:
    """Read a file as a SimpleITK image, its errors in the reader's own words left out but for the cause."""
    sitk = import_simpleitk()
    try:
        return sitk.ReadImage(str(path))
    except (RuntimeError, ValueError) as error:
        msg = f"{path} cannot be read ({itk_cause(error)}); it is damaged or incomplete: get it again"
        raise InputError(msg) from None
    except MemoryError:
        msg = f"{path} needs more memory than this computer has free; crop or downsample it first"
        raise EnvironmentProblemError(msg) from None


def itk_cause(error: Exception) -> str:
    """The last line of an ITK error, which names the cause; the lines before name its source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rpartition("): ")[2][:200] if lines else type(error).__name__


def _check_header(path: Path) -> tuple[int, str]:
    """Values per voxel, and what NRRD calls them."""
    if path.suffix.lower() in (".mha", ".mhd"):
        return check_metaimage(path), "channels"
    header = read_nrrd_header(path)
    spatial = ("domain", "space", "none", "???")
    odd = [k for k, kind in enumerate(header.kinds) if kind not in spatial]
    if not odd:
        return 1, ""
    if len(odd) > 1:
        msg = f"{path} has several axes that are not space: {header.kinds}; a scalar image is needed"
        raise InputError(msg)
    return header.sizes[odd[0]], header.kinds[odd[0]]


def _taken_apart(path: Path, image: Any) -> tuple[RawImage, Array]:
    sitk = import_simpleitk()
    if image.GetDimension() != 3:
        msg = f"{path} is a {image.GetDimension()}D image; a 3D volume is needed"
        raise InputError(msg)
    array = sitk.GetArrayFromImage(image)
    if array.dtype.kind == "c":
        msg = f"{path} holds complex numbers; a real-valued image is needed: take the magnitude first"
        raise InputError(msg)
    frames = np.moveaxis(array, -1, 0) if array.ndim == 4 else array[None]
    axes = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    tags = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    return RawImage(frames[0], axes[:, ::-1], image.GetOrigin(), stem_of(path), (), tags), frames
