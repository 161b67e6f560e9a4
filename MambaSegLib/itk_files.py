"""SimpleITK, for what is left to it: decoding DICOM and resampling. Imported when first used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from MambaSegLib.errors import EnvironmentProblemError, InputError


def import_simpleitk() -> Any:
    """SimpleITK, or what to do where it is missing."""
    try:
        import SimpleITK
    except ImportError as error:
        msg = "this file format needs the package SimpleITK: python -m pip install 'SimpleITK>=2.5.3'"
        raise EnvironmentProblemError(msg) from error
    return SimpleITK


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
