"""Headers whose axes are a little off the perpendicular: other tools refuse such files, so they are written anew."""

from __future__ import annotations

from pathlib import Path

from MambaSegLib.volume_io import read_labels, read_volume, write_labels, write_volume

REPAIRED = "off the perpendicular"


def straighten(path: Path, target: Path, *, is_label: bool) -> str:
    """Write an image with straight axes if its own are not: same voxel values, the nearest straight grid.

    Args:
        path: A NIfTI file of one 3D image.
        target: The file to write.
        is_label: Whether it is a label map.

    Returns:
        What was repaired; "" if nothing had to be, and nothing was written then.

    Raises:
        InputError: If the image cannot be read, or its axes are too far off to be repaired.
    """
    notices: list[str] = []
    volume = read_volume(path, on_notice=notices.append)
    repairs = [notice for notice in notices if REPAIRED in notice]
    if not repairs:
        return ""
    if is_label:
        write_labels(read_labels(path, on_notice=lambda notice: None), target)
    else:
        write_volume(volume.array[0], volume.geometry, target)
    return repairs[0].removeprefix(f"{path}: ")
