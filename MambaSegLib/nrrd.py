"""NRRD images, with the data in the same or another file.

Source: the format definition at https://teem.sourceforge.net/nrrd/format.html.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from MambaSegLib.errors import InputError
from MambaSegLib.geometry import Array
from MambaSegLib.nrrd_header import NrrdHeader, data_file, dtype_of, encoding_of, read_nrrd_header
from MambaSegLib.raw_image import NO_SPACING, RawImage, choose_frame, stem_of
from MambaSegLib.voxel_data import read_voxels

FRAME_KINDS = ("list", "time")
"""What NRRD calls an axis of several images; its other kinds that are not space are colors, vectors and tensors."""

SPATIAL_KINDS = ("domain", "space", "none", "???")

_TO_LPS = {
    "left-posterior-superior": (1, 1, 1),
    "lps": (1, 1, 1),
    "right-anterior-superior": (-1, -1, 1),
    "ras": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1),
    "las": (1, -1, 1),
}
_NO_SPACE = (
    "the header does not name an anatomical space; left, right, front, back, top and bottom are assumed as 3D Slicer "
    "does (axes grow to left, back and top); check them"
)


def read_nrrd(path: Path, frame: int | None = None) -> RawImage:
    """Read one 3D image of a .nrrd or .nhdr file.

    Raises:
        InputError: For anything that is not a complete, real-valued, scalar image of 3 axes or, with `frame`, 4.
    """
    header = read_nrrd_header(path)
    axis = frame_axis(path, header)
    if axis is None:
        choose_frame(path, 1, frame)
    elif header.kinds and header.kinds[axis] not in (*FRAME_KINDS, *SPATIAL_KINDS):
        count, kind = header.sizes[axis], header.kinds[axis]
        msg = f"{path} holds {count} values per voxel ({kind}); a scalar image is needed: convert it first"
        raise InputError(msg)
    else:
        choose_frame(path, header.sizes[axis], frame)
    raw, frames = read_components(path)
    return RawImage(np.ascontiguousarray(frames[frame or 0]), raw.axes_mm, raw.origin_mm, raw.name, raw.notices)


def read_components(path: Path) -> tuple[RawImage, Array]:
    """Read all values of each voxel: frames, or the layers of a segmentation.

    Returns:
        The first one with the grid, and all as (C, Z, Y, X).
    """
    header = read_nrrd_header(path)
    axis = frame_axis(path, header)
    axes, origin, notices = _grid(path, header, axis)
    data, offset = data_file(path, header)
    array = read_voxels(data, offset, encoding_of(path, header), header.sizes[::-1], dtype_of(path, header))
    # Files count axes from the fastest, arrays from the slowest.
    frames = array[None] if axis is None else np.moveaxis(array, array.ndim - 1 - axis, 0)
    return RawImage(frames[0], axes, origin, stem_of(path), notices), frames


def frame_axis(path: Path, header: NrrdHeader) -> int | None:
    """Which axis, counted from the fastest, is not one of the three of space; None if all are.

    Raises:
        InputError: If there are not exactly three axes of space.
    """
    count = len(header.sizes)
    kinds = header.kinds or ("domain",) * count
    directions = header.directions()
    odd = [k for k, kind in enumerate(kinds) if kind not in SPATIAL_KINDS]
    odd = odd or [k for k, vector in enumerate(directions) if vector is None]
    if not odd and count == 4:
        odd = [3]  # without any hint, the slowest axis
    if count - len(odd) != 3 or len(odd) > 1:
        msg = f"{path} is a {count}D image with axes {' '.join(kinds)}; a scalar 3D volume is needed"
        raise InputError(msg)
    return odd[0] if odd else None


def _grid(path: Path, header: NrrdHeader, axis: int | None) -> tuple[Array, Array, tuple[str, ...]]:
    """LPS step per array axis (Z, Y, X) as columns, origin, and notices."""
    space = re.sub("[- ]time$", "", header.fields.get("space", "").lower())
    signs = np.array(_TO_LPS.get(space, (1, 1, 1)), dtype=np.float64)
    notices: tuple[str, ...] = () if space in _TO_LPS else (_NO_SPACE,)
    spatial = [k for k in range(len(header.sizes)) if k != axis]
    directions = header.directions()
    if directions:
        vectors = [directions[k] for k in spatial]
    else:
        spacings = header.numbers("spacings")
        notices += () if spacings else (NO_SPACING,)
        spacings = spacings or (1.0,) * len(header.sizes)
        vectors = [tuple(spacings[k] * unit for unit in np.eye(3)[n]) for n, k in enumerate(spatial)]
    origin = header.numbers("space origin") or (0.0, 0.0, 0.0)
    if any(vector is None or len(vector) < 3 for vector in vectors) or len(origin) < 3:
        msg = f"{path} has a damaged header: directions {directions}, origin {origin}; get it again"
        raise InputError(msg)
    axes = np.array([vector[:3] for vector in vectors if vector is not None], dtype=np.float64)
    if not (np.isfinite(axes).all() and np.isfinite(origin).all()):
        msg = f"{path} has axes or an origin that are not finite: {axes.tolist()}, {origin}; correct the header"
        raise InputError(msg)
    return (axes * signs)[::-1].T + 0.0, np.array(origin[:3]) * signs + 0.0, notices
