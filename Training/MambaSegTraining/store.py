"""The preprocessed cases of a data set on disk: arrays that are read by patches, never as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from MambaSegLib.readout import Readout
from MambaSegLib.volume import Array
from MambaSegTraining.files import read_json, whole_file, write_json

POINTS_PER_STRUCTURE = 10_000
LABELLED = 0
"""Key of points among all voxels that somebody labelled, background included."""


@dataclass(frozen=True)
class CaseOrigin:
    """What a case is made from; see `case_sources`.

    Attributes:
        name: Name of the case.
        key: Hash of what tells it at a quick look.
        settings: Hash of the part of the plan that the arrays depend on.
        content: Hash of the contents of the source files.
    """

    name: str
    key: str
    settings: str = ""
    content: str = ""


@dataclass(frozen=True)
class StoredCaseRecord:
    """Written last: a case without it is not finished.

    Attributes:
        name: Name of the case.
        key: See `CaseOrigin`.
        shape: Voxels along (Z, Y, X).
        labels: Keys of its points, see `StoredCase`.
        settings: See `CaseOrigin`; "" in records of earlier versions.
        content: See `CaseOrigin`; "" in records of earlier versions.
    """

    name: str
    key: str
    shape: tuple[int, int, int]
    labels: tuple[int, ...]
    settings: str = ""
    content: str = ""


@dataclass(frozen=True)
class StoredCase:
    """One preprocessed case, memory-mapped.

    Attributes:
        name: Name of the case.
        image: (C, Z, Y, X) float32, normalized.
        labels: (Z, Y, X) uint8 or uint16; classes, see `MambaSegLib.readout`.
        points: Per structure that occurs, counted from 1: voxels (N, 3) of it, a sample where there are many. Structures
            are labels, or regions, which may share voxels. Under `LABELLED`, where some voxels are not, such that are.
    """

    name: str
    image: Array
    labels: Array
    points: dict[int, Array]


def is_stored(folder: Path, name: str) -> bool:
    """Whether this case is there and finished, whatever it was made from."""
    return _record_path(folder, name).is_file()


def read_record(folder: Path, name: str) -> StoredCaseRecord | None:
    """What was noted about a case; None if it is not there or not finished."""
    return read_json(StoredCaseRecord, _record_path(folder, name)) if is_stored(folder, name) else None


def write_record(folder: Path, record: StoredCaseRecord) -> None:
    """Note something about a case; with this it counts as finished."""
    write_json(_record_path(folder, record.name), record)


def store_case(folder: Path, origin: CaseOrigin, image: Array, labels: Array, readout: Readout) -> None:
    """Write one case.

    Args:
        folder: Folder of the store.
        origin: Its name and what it is made from.
        image: (C, Z, Y, X).
        labels: (Z, Y, X), classes.
        readout: Says which classes make up the structures, and which is not labelled.
    """
    name = origin.name
    _record_path(folder, name).unlink(missing_ok=True)
    points = sample_points(labels, readout)
    compact = labels.astype(np.uint8 if labels.max(initial=0) < 256 else np.uint16)
    _write_array(_image_path(folder, name), np.ascontiguousarray(image, dtype=np.float32))
    _write_array(_labels_path(folder, name), compact)
    rows = [np.column_stack((np.full(len(where), value), where)) for value, where in points.items()]
    _write_array(_points_path(folder, name), np.concatenate([np.empty((0, 4)), *rows]).astype(np.int32))
    z, y, x = labels.shape
    record = StoredCaseRecord(name, origin.key, (z, y, x), tuple(points), origin.settings, origin.content)
    write_record(folder, record)


def open_case(folder: Path, name: str) -> StoredCase:
    """Open one case without reading its voxels.

    Raises:
        InputError: If it is missing or unfinished.
    """
    record = read_json(StoredCaseRecord, _record_path(folder, name))
    rows = np.load(_points_path(folder, name))
    points = {value: rows[rows[:, 0] == value, 1:] for value in record.labels}
    image = np.load(_image_path(folder, name), mmap_mode="r")
    return StoredCase(name, image, np.load(_labels_path(folder, name), mmap_mode="r"), points)


def sample_points(labels: Array, readout: Readout) -> dict[int, Array]:
    """Up to `POINTS_PER_STRUCTURE` voxels (N, 3) of each structure that occurs, see `StoredCase`, spread evenly over it.

    Source:
        nnU-Net v2, `DefaultPreprocessor`: points per label or region, and, with an ignore label, of all other voxels.
    """
    points = {}
    for key, members in enumerate(readout.structures, start=1):
        voxels = np.flatnonzero(labels == members[0] if len(members) == 1 else np.isin(labels, members))
        if voxels.size:
            points[key] = _spread(voxels, labels.shape)
    if readout.ignored is not None and (voxels := np.flatnonzero(labels != readout.ignored)).size:
        points[LABELLED] = _spread(voxels, labels.shape)
    return points


def _spread(voxels: Array, shape: tuple[int, ...]) -> Array:
    chosen = voxels[np.linspace(0, len(voxels) - 1, min(len(voxels), POINTS_PER_STRUCTURE)).round().astype(int)]
    return np.column_stack(np.unravel_index(chosen, shape))


def _write_array(path: Path, array: Array) -> None:
    with whole_file(path) as work:
        np.save(work, array)


def _image_path(folder: Path, name: str) -> Path:
    return folder / f"{name}_image.npy"


def _labels_path(folder: Path, name: str) -> Path:
    return folder / f"{name}_labels.npy"


def _points_path(folder: Path, name: str) -> Path:
    return folder / f"{name}_points.npy"


def _record_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"
