"""NIfTI-1 and NIfTI-2 files, read and written with NumPy alone.

Why not through SimpleITK: ITK refuses every sform that is a little off the perpendicular, mixes pixdim and sform where
they disagree, rounds the grid through a quaternion, cannot read NIfTI-2, and its NIfTI reader trusts header sizes.
Source: the header layouts in nifti1.h and nifti2.h (https://nifti.nimh.nih.gov).
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from MambaSegLib.errors import InputError
from MambaSegLib.geometry import GRID_TOLERANCE, Array, Geometry
from MambaSegLib.raw_image import (
    GZIP_RATIO,
    RawImage,
    allocate,
    check_readable,
    check_size,
    choose_frame,
    stem_of,
)

_FIELDS_1: dict[str, tuple[str, int]] = {
    "sizeof_hdr": ("i4", 0),
    "dim": ("(8,)i2", 40),
    "datatype": ("i2", 70),
    "bitpix": ("i2", 72),
    "pixdim": ("(8,)f4", 76),
    "vox_offset": ("f4", 108),
    "scl_slope": ("f4", 112),
    "scl_inter": ("f4", 116),
    "xyzt_units": ("u1", 123),
    "descrip": ("S80", 148),
    "qform_code": ("i2", 252),
    "sform_code": ("i2", 254),
    "quatern": ("(3,)f4", 256),
    "qoffset": ("(3,)f4", 268),
    "srow": ("(3,4)f4", 280),
    "magic": ("S4", 344),
}
_FIELDS_2: dict[str, tuple[str, int]] = {
    "sizeof_hdr": ("i4", 0),
    "magic": ("S8", 4),
    "datatype": ("i2", 12),
    "bitpix": ("i2", 14),
    "dim": ("(8,)i8", 16),
    "pixdim": ("(8,)f8", 104),
    "vox_offset": ("i8", 168),
    "scl_slope": ("f8", 176),
    "scl_inter": ("f8", 184),
    "descrip": ("S80", 240),
    "qform_code": ("i4", 344),
    "sform_code": ("i4", 348),
    "quatern": ("(3,)f8", 352),
    "qoffset": ("(3,)f8", 376),
    "srow": ("(3,4)f8", 400),
    "xyzt_units": ("i4", 500),
}
_DTYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
_REFUSED_TYPES = {
    1: "one bit per voxel",
    32: "complex numbers",
    128: "RGB color",
    1536: "128-bit floats",
    1792: "complex numbers",
    2048: "complex numbers",
    2304: "RGBA color",
}
_MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
_RAS_TO_LPS = np.array([-1.0, -1.0, 1.0])
_SAME_SPACING = 1e-2
"""Relative difference up to which sform and pixdim count as the same voxel size; ITK and 3D Slicer use pixdim."""

Header = Any


def _layout(version: int, order: str) -> np.dtype[Any]:
    fields = _FIELDS_1 if version == 1 else _FIELDS_2
    return np.dtype(
        {
            "names": list(fields),
            "formats": [_with_order(kind, order) for kind, _ in fields.values()],
            "offsets": [offset for _, offset in fields.values()],
            "itemsize": 348 if version == 1 else 540,
        }
    )


def _with_order(kind: str, order: str) -> str:
    return kind.replace(")", ")" + order) if kind.startswith("(") else order + kind


def read_nifti(path: Path, frame: int | None = None) -> RawImage:
    """Read one 3D image of a .nii or .nii.gz file, intensities scaled as the header says.

    Where sform and qform disagree, the choice is ITK's and 3D Slicer's, and a notice tells of it.

    Raises:
        InputError: For anything that is not a complete, real-valued, scalar NIfTI image of 3 axes or, with `frame`, 4.
    """
    size = check_readable(path)
    with path.open("rb") as probe:
        compressed = probe.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path, "rb") if compressed else path.open("rb") as stream:
            bound = size * GZIP_RATIO if compressed else size
            return _read(path, stream, size, bound, frame)  # type: ignore[arg-type]
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        msg = f"{path} is damaged or cut off ({error}); get it again"
        raise InputError(msg) from None
    except OSError as error:
        msg = f"{path} cannot be read: {error}"
        raise InputError(msg) from None


def _read(path: Path, stream: BinaryIO, size: int, bound: int, frame: int | None) -> RawImage:
    header, order = _parse_header(path, stream.read(540))
    shape = _shape(path, header)
    dtype = np.dtype(order + _dtype_code(path, header))
    offset = _voxel_offset(path, header)
    check_size(path, shape, dtype.itemsize, bound - offset)
    chosen = choose_frame(path, shape[3], frame)
    spatial = (shape[2], shape[1], shape[0])
    stored = allocate(path, spatial, dtype)
    stream.seek(offset + chosen * stored.nbytes)
    _fill(path, stream, stored)
    if bound > size:
        _check_rest(stream, (shape[3] - chosen - 1) * stored.nbytes)
    axes_ras, origin_ras, notices = _grid(path, header, spatial)
    return RawImage(
        _scaled(path, header, stored),
        (axes_ras * _RAS_TO_LPS[:, None])[:, ::-1] + 0.0,
        origin_ras * _RAS_TO_LPS + 0.0,
        stem_of(path),
        notices,
    )


def _parse_header(path: Path, raw: bytes) -> tuple[Header, str]:
    for version, order in ((1, "<"), (1, ">"), (2, "<"), (2, ">")):
        layout = _layout(version, order)
        if len(raw) < layout.itemsize:
            continue
        header = np.frombuffer(raw, layout, count=1)[0]
        magic = b"n+%d" % version
        if int(header["sizeof_hdr"]) == layout.itemsize and header["magic"][:3] == magic:
            return header, order
    if raw[344:347] == b"ni1" or raw[4:7] == b"ni2":
        msg = f"{path} is the header half of a .hdr/.img pair; convert the pair to one .nii.gz file"
    elif len(raw) < 348:
        msg = f"{path} is damaged or cut off: {len(raw)} bytes are no NIfTI header; get it again"
    else:
        msg = f"{path} is no NIfTI file (its first bytes are not a NIfTI header); check the name or get it again"
    raise InputError(msg)


def _shape(path: Path, header: Header) -> tuple[int, int, int, int]:
    """Size along (x, y, z, frame)."""
    dim = [int(n) for n in header["dim"]]
    if not 1 <= dim[0] <= 7 or any(n < 1 for n in dim[1 : dim[0] + 1]):
        msg = f"{path} has a damaged header: axes {dim}; get it again"
        raise InputError(msg)
    axes = dim[1 : dim[0] + 1]
    if len(axes) < 3:
        msg = f"{path} is a {len(axes)}D image of {axes} pixels; a 3D volume is needed"
        raise InputError(msg)
    if any(n > 1 for n in axes[4:]):
        msg = f"{path} holds {axes[4:]} values per voxel (a vector or tensor image); a scalar image is needed"
        raise InputError(msg)
    return axes[0], axes[1], axes[2], axes[3] if len(axes) > 3 else 1


def _dtype_code(path: Path, header: Header) -> str:
    datatype = int(header["datatype"])
    if datatype not in _DTYPES:
        what = _REFUSED_TYPES.get(datatype, f"an unknown type (code {datatype})")
        msg = f"{path} holds voxels of {what}; a scalar image of integers or floats is needed: convert it first"
        raise InputError(msg)
    return _DTYPES[datatype]


def _voxel_offset(path: Path, header: Header) -> int:
    smallest = 352 if int(header["sizeof_hdr"]) == 348 else 544
    offset = float(header["vox_offset"])
    if offset == 0:
        return smallest
    if not smallest <= offset < 2**62 or offset != int(offset):
        msg = f"{path} has a damaged header: voxels are said to start at byte {offset:g}; get it again"
        raise InputError(msg)
    return int(offset)


def _fill(path: Path, stream: BinaryIO, array: Array) -> None:
    target = array.reshape(-1).view(np.uint8).data
    done = 0
    while done < len(target):
        step = stream.readinto(target[done : done + (1 << 24)])  # type: ignore[attr-defined]
        if not step:
            msg = f"{path} is cut off: {done} of {len(target)} bytes of voxels are there; get it again"
            raise InputError(msg)
        done += step


def _check_rest(stream: BinaryIO, rest: int) -> None:
    """Decompress what follows, up to `rest` bytes and the end: gzip then compares its checksum and raises if it fails."""
    left = rest + (1 << 16)
    while left > 0 and (step := len(stream.read(1 << 20))):
        left -= step


def _scaled(path: Path, header: Header, stored: Array) -> Array:
    """Voxels times scl_slope plus scl_inter; 0 or not finite means no scaling, as nifti1.h says."""
    native = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not np.isfinite(slope):
        return native
    if not np.isfinite(inter):
        msg = f"{path} has a damaged header: intensities are shifted by {inter} (scl_inter); correct it"
        raise InputError(msg)
    if (slope, inter) == (1.0, 0.0):
        return native
    # 32-bit floats hold every 16-bit integer; wider stored types keep their digits in 64 bits.
    wide = native.dtype.itemsize > 2 and native.dtype != np.float32
    scaled = np.empty(native.shape, np.float64 if wide else np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for z, part in enumerate(native):  # a CT in 64-bit floats would take gigabytes
            scaled[z] = part.astype(np.float64) * slope + inter
    return scaled


def _grid(path: Path, header: Header, shape: tuple[int, int, int]) -> tuple[Array, Array, tuple[str, ...]]:
    """Voxel axes (columns i, j, k) and origin in RAS mm, and what to tell about the choice."""
    pixdim = _doubles(header["pixdim"])
    if not (np.isfinite(pixdim[1:4]).all() and (pixdim[1:4] > 0).all()):
        msg = f"{path} has voxel spacing {pixdim[1:4].tolist()} mm (x, y, z); it must be positive: correct the header"
        raise InputError(msg)
    unit = int(header["xyzt_units"]) & 7
    if unit not in _MM_PER_UNIT:
        msg = f"{path} has a damaged header: its unit of length has the unknown code {unit}; correct it"
        raise InputError(msg)
    axes, origin, notices = _chosen_form(path, header, pixdim, shape)
    return axes * _MM_PER_UNIT[unit], origin * _MM_PER_UNIT[unit], notices


def _doubles(values: Array) -> Array:
    with np.errstate(invalid="ignore"):  # signaling NaN of damaged bytes; what is not finite is refused afterwards
        return values.astype(np.float64)


def _chosen_form(
    path: Path, header: Header, pixdim: Array, shape: tuple[int, int, int]
) -> tuple[Array, Array, tuple[str, ...]]:
    qform, sform = int(header["qform_code"]) > 0, int(header["sform_code"]) > 0
    if not qform and not sform:
        notice = (
            "the header says nothing about the position in the patient (qform and sform codes are 0): left, right, "
            "front, back, top and bottom are assumed as 3D Slicer does; check them"
        )
        return np.diag(pixdim[1:4]) * _RAS_TO_LPS[:, None], np.zeros(3), (notice,)
    if not sform:
        return *_qform(path, header, pixdim), ()
    srow = _doubles(header["srow"])
    if not np.isfinite(srow).all():
        msg = f"{path} has a damaged header: its sform is {srow.tolist()}; correct it"
        raise InputError(msg)
    spacing = np.sqrt((srow[:, :3] ** 2).sum(axis=0))
    if not np.allclose(spacing, pixdim[1:4], rtol=_SAME_SPACING, atol=0):
        msg = (
            f"{path} gives two voxel sizes: {spacing.round(5).tolist()} mm in its sform and "
            f"{pixdim[1:4].round(5).tolist()} mm in pixdim. Programs differ in which they believe: correct the header."
        )
        raise InputError(msg)
    if not qform:
        return srow[:, :3], srow[:, 3], ()
    return _of_two(path, header, pixdim, srow, shape)


def _of_two(
    path: Path, header: Header, pixdim: Array, srow: Array, shape: tuple[int, int, int]
) -> tuple[Array, Array, tuple[str, ...]]:
    axes, origin = _qform(path, header, pixdim)
    far = np.array([[0, 0, 0], *(np.diag(shape[::-1]) - np.diag([1, 1, 1])), np.subtract(shape[::-1], 1)])
    apart = np.abs(far @ (srow[:, :3] - axes).T + srow[:, 3] - origin).max()
    # The sform holds more digits than the quaternion, so it is taken wherever both mean the same grid.
    if apart <= 10 * GRID_TOLERANCE * pixdim[1:4].min():
        return srow[:, :3], srow[:, 3], ()
    chosen = "sform" if int(header["sform_code"]) == 1 else "qform"
    notice = (
        f"the header gives two positions in the patient, up to {apart:.3g} mm apart (sform code "
        f"{int(header['sform_code'])}, qform code {int(header['qform_code'])}); the {chosen} is used, as in 3D Slicer"
    )
    return (srow[:, :3], srow[:, 3], (notice,)) if chosen == "sform" else (axes, origin, (notice,))


def _qform(path: Path, header: Header, pixdim: Array) -> tuple[Array, Array]:
    """Axes and origin of the quaternion form (nifti1.h, method 2)."""
    quaternion, origin = _doubles(header["quatern"]), _doubles(header["qoffset"])
    norm = float((quaternion**2).sum())
    if not (np.isfinite(origin).all() and norm <= 1 + 1e-3):  # also false for NaN
        msg = f"{path} has a damaged header: its qform is {quaternion.tolist()}, {origin.tolist()}; correct it"
        raise InputError(msg)
    # Half turns: b, c, d are 32-bit floats, so a square this small is rounding and would turn the grid (nifti1_io.c).
    half_turn = 1.0 - norm < 1e-7
    a = 0.0 if half_turn else np.sqrt(1.0 - norm)
    b, c, d = quaternion / (np.sqrt(norm) if half_turn else 1.0)
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    handedness = -1.0 if pixdim[0] < 0 else 1.0
    return rotation * pixdim[1:4] * [1.0, 1.0, handedness], origin


def nifti_bytes(array: Array, geometry: Geometry, description: str = "") -> tuple[bytes, Array]:
    """Header (352 bytes, NIfTI-1, little endian) and voxels to write after it.

    sform and qform both hold the grid. The sform's numbers are the 32-bit floats nearest to the grid's; a grid read
    from a NIfTI-1 sform is written with the same bits.

    Raises:
        InputError: If an axis is longer than NIfTI-1 can say (32767) or the type is not one of its types.
    """
    code = {kind: number for number, kind in _DTYPES.items()}.get(array.dtype.str[1:])
    if code is None or max(array.shape) > 32767:
        msg = f"NIfTI cannot hold {array.shape} voxels of {array.dtype}: write .nrrd or .mha instead"
        raise InputError(msg)
    header = np.zeros((), _layout(1, "<"))
    axes = np.asarray(geometry.index_to_world)[:3, 2::-1] * _RAS_TO_LPS[:, None] + 0.0  # no negative zeros
    origin = np.multiply(geometry.origin_mm, _RAS_TO_LPS) + 0.0
    quaternion, handedness = _quaternion(axes / np.asarray(geometry.spacing_mm)[::-1])
    header["sizeof_hdr"], header["magic"], header["vox_offset"] = 348, b"n+1", 352
    header["dim"] = [3, *array.shape[::-1], 1, 1, 1, 1]
    header["datatype"], header["bitpix"] = code, 8 * array.dtype.itemsize
    header["pixdim"] = [handedness, *geometry.spacing_mm[::-1], 1, 1, 1, 1]
    header["scl_slope"], header["xyzt_units"] = 1, 2
    header["descrip"] = description.encode("ascii", "replace")[:79]
    header["qform_code"] = header["sform_code"] = 1
    header["quatern"] = quaternion
    header["qoffset"] = origin
    header["srow"][:, :3], header["srow"][:, 3] = axes, origin
    voxels = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return header.tobytes() + bytes(4), voxels


def _quaternion(rotation: Array) -> tuple[Array, float]:
    """Parts b, c, d of the unit quaternion of a rotation (columns i, j, k), and -1 where k is mirrored.

    The quaternion is the eigenvector of a symmetric 4 x 4 matrix to its largest eigenvalue (Bar-Itzhack 2000), stable
    for every angle.
    """
    handedness = 1.0 if np.linalg.det(rotation) > 0 else -1.0
    r = rotation * [1.0, 1.0, handedness]
    symmetric = np.array(
        [
            [r[0, 0] + r[1, 1] + r[2, 2], r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]],
            [r[2, 1] - r[1, 2], r[0, 0] - r[1, 1] - r[2, 2], r[0, 1] + r[1, 0], r[0, 2] + r[2, 0]],
            [r[0, 2] - r[2, 0], r[0, 1] + r[1, 0], r[1, 1] - r[0, 0] - r[2, 2], r[1, 2] + r[2, 1]],
            [r[1, 0] - r[0, 1], r[0, 2] + r[2, 0], r[1, 2] + r[2, 1], r[2, 2] - r[0, 0] - r[1, 1]],
        ]
    )
    q = np.linalg.eigh(symmetric)[1][:, -1]
    return np.asarray(q[1:] * (1.0 if q[0] >= 0 else -1.0)), handedness
