"""How the training images lay in nnU-Net's arrays, which its files do not say."""

from __future__ import annotations

from MambaSegLib.errors import InputError
from MambaSegLib.geometry import check_orientation

_READERS = {"SimpleITKIO": "", "NibabelIO": "", "NibabelIOWithReorient": "RAS"}
"""nnU-Net's readers of medical volumes, and what they turn every image to, (x, y, z); the others read pictures."""


def array_orientation(reader: str, given: str) -> str:
    """Orientation of the arrays, (Z, Y, X), from that of the files, (x, y, z).

    Args:
        reader: nnU-Net's, from its plans.
        given: As a person says it, such as "LPS"; "" for what the reader turned the images to.

    Raises:
        InputError: If nobody says it, the two contradict each other, or the reader is not for medical volumes.
    """
    if reader not in _READERS:
        msg = f"nnU-Net's {reader} does not read medical volumes; only {', '.join(_READERS)} can be converted."
        raise InputError(msg)
    fixed = _READERS[reader]
    if not given and not fixed:
        msg = (
            f"nnU-Net's {reader} leaves images as they are stored, and how the training images were stored is not recorded. "
            "Say it with --orientation: name one of them, or the directions of its axes (x, y, z), such as LPS (most DICOM) "
            "or RAS (most NIfTI)."
        )
        raise InputError(msg)
    if given and fixed and given != fixed:
        msg = f"nnU-Net's {reader} turned all images to {fixed}, not {given}. Leave --orientation out."
        raise InputError(msg)
    found = (given or fixed)[::-1]
    check_orientation(found)
    return found
