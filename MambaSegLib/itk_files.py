"""NRRD and MetaImage files, through SimpleITK."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from MambaSegLib.errors import EnvironmentProblemError, InputError
from MambaSegLib.raw_image import RawImage, check_readable, choose_frame, stem_of


def import_simpleitk() -> Any:
    """SimpleITK, or what to do where it is missing."""
    try:
        import SimpleITK  # noqa: N813
    except ImportError as error:
        msg = "this file format needs the package SimpleITK: python -m pip install 'SimpleITK>=2.5.3'"
        raise EnvironmentProblemError(msg) from error
    return SimpleITK


def read_itk(path: Path, frame: int | None = None) -> RawImage:
    """Read one 3D image of a .nrrd, .nhdr, .mha or .mhd file.

    Raises:
        InputError: For anything that is not a complete, real-valued, scalar image of 3 axes or, with `frame`, 4.
    """
    sitk = import_simpleitk()
    check_readable(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        image = reader.Execute()
    except RuntimeError as error:
        msg = f"{path} cannot be read: {str(error).strip().splitlines()[-1]}"
        raise InputError(msg) from None
    return raw_from_sitk(path, image, frame)


def raw_from_sitk(path: Path, image: Any, frame: int | None) -> RawImage:
    """Take a SimpleITK image apart."""
    sitk = import_simpleitk()
    if image.GetNumberOfComponentsPerPixel() > 1:
        msg = f"{path} holds {image.GetNumberOfComponentsPerPixel()} values per voxel; a scalar image is needed"
        raise InputError(msg)
    if image.GetDimension() == 4:
        chosen = choose_frame(path, image.GetSize()[3], frame)
        image = image[:, :, :, chosen]
    elif image.GetDimension() == 3:
        choose_frame(path, 1, frame)
    else:
        msg = f"{path} is a {image.GetDimension()}D image; a 3D volume is needed"
        raise InputError(msg)
    axes = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    tags = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    return RawImage(sitk.GetArrayFromImage(image), axes[:, ::-1], image.GetOrigin(), stem_of(path), (), tags)
