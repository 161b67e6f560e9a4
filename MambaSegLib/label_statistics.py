"""What was segmented, in numbers: volume, place and intensities per structure."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite, nan, sqrt
from pathlib import Path
from typing import Any

import numpy as np

from MambaSegLib.atomic import new_file
from MambaSegLib.errors import InputError
from MambaSegLib.geometry import Array
from MambaSegLib.plan import Region, Triple
from MambaSegLib.seg_nrrd import label_extents
from MambaSegLib.volume import Labels, Volume


@dataclass(frozen=True)
class ChannelStatistics:
    """Intensities of one channel inside one structure; nan where the structure is empty.

    Attributes:
        channel: Name, or its number where it has none.
        mean: Mean.
        std: Standard deviation over all voxels (divisor n).
        minimum: Smallest value.
        maximum: Largest value.
    """

    channel: str
    mean: float
    std: float
    minimum: float
    maximum: float


@dataclass(frozen=True)
class LabelStatistics:
    """One structure.

    Attributes:
        value: Its value in the label map; of a region, the values of its labels, e.g. "1+2+3".
        name: Its name.
        voxels: Number of voxels.
        volume_ml: Their volume.
        centroid_lps_mm: Mean of their centers, LPS (x, y, z); nan where there is none.
        channels: Intensities per channel.
    """

    value: int | str
    name: str
    voxels: int
    volume_ml: float
    centroid_lps_mm: Triple
    channels: tuple[ChannelStatistics, ...]


def label_statistics(labels: Labels, volume: Volume, regions: Sequence[Region] = ()) -> tuple[LabelStatistics, ...]:
    """Measure every structure of a label map's table, found or not, in the table's order; then every region.

    Args:
        labels: The label map.
        volume: The image, on the same grid.
        regions: Structures made of several labels, see `Plan.compound_regions`.

    Raises:
        InputError: If the grids differ.
    """
    difference = volume.geometry.differences(labels.geometry)
    if difference:
        msg = f"the segmentation is not on the image's grid: {difference}"
        raise InputError(msg)
    names = volume.channels or tuple(f"channel {k}" for k in range(len(volume.array)))
    structures: list[tuple[int | str, str, tuple[int, ...]]] = [
        (label.value, label.name, (label.value,)) for label in labels.table
    ]
    structures += [("+".join(map(str, region.labels)), region.name, region.labels) for region in regions]
    extents = label_extents(labels.array)
    return tuple(_measure(labels, volume, names, extents, *structure) for structure in structures)


def write_statistics(statistics: Sequence[LabelStatistics], path: str | Path) -> None:
    """Write a table by suffix: .csv (one row per structure) or .json (a list of objects; undefined values are null).

    Raises:
        InputError: For another suffix.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".json"):
        msg = f"{path}: statistics are written as .csv or .json"
        raise InputError(msg)
    with new_file(path) as work, work.open("w", encoding="utf-8", newline="") as stream:
        if suffix == ".json":
            records = [_without_nan(asdict(record)) for record in statistics]
            stream.write(json.dumps(records, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        else:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerows(_table(statistics))


def _measure(
    labels: Labels,
    volume: Volume,
    names: Sequence[str],
    extents: Mapping[int, Sequence[int]],
    value: int | str,
    name: str,
    members: tuple[int, ...],
) -> LabelStatistics:
    box = _box_around(members, extents)  # the rest of a volume need not be looked at for each structure
    part = labels.array[box]
    count, index_sum = 0, np.zeros(3)
    for z, mask in _masks(part, members):
        rows, columns = np.nonzero(mask)
        count += len(rows)
        index_sum += (z * len(rows), rows.sum(), columns.sum())
    corner = [side.start for side in box]
    center = labels.geometry.to_world(index_sum / count + corner) if count else np.full(3, nan)
    x, y, z_mm = (float(component) for component in center)
    return LabelStatistics(
        value=value,
        name=name,
        voxels=count,
        volume_ml=count * labels.geometry.voxel_volume_mm3 / 1000,
        centroid_lps_mm=(x, y, z_mm),
        channels=tuple(
            _intensities(channel, array[box], part, members) for channel, array in zip(names, volume.array, strict=True)
        ),
    )


def _box_around(members: Sequence[int], extents: Mapping[int, Sequence[int]]) -> tuple[slice, slice, slice]:
    """Part of the array that holds every voxel of some labels; nothing where none of them is found."""
    found = [extents[member] for member in members if member in extents]
    if not found:
        return slice(0, 0), slice(0, 0), slice(0, 0)
    x0, _, y0, _, z0, _ = np.min(found, axis=0)
    _, x1, _, y1, _, z1 = np.max(found, axis=0)
    return slice(z0, z1 + 1), slice(y0, y1 + 1), slice(x0, x1 + 1)


def _intensities(name: str, image: Array, labels: Array, members: tuple[int, ...]) -> ChannelStatistics:
    """Two passes, slice by slice: exact also where the mean is large, and little memory also for a large structure."""

    def parts() -> Iterator[Array]:
        return (image[z][mask].astype(np.float64) for z, mask in _masks(labels, members))

    sums = np.array([(part.size, part.sum(), part.min(), part.max()) for part in parts()]).reshape(-1, 4)
    count = sums[:, 0].sum()
    if count == 0:
        return ChannelStatistics(name, nan, nan, nan, nan)
    mean = float(sums[:, 1].sum() / count)
    variance = sum(float(np.square(part - mean).sum()) for part in parts()) / count
    return ChannelStatistics(name, mean, sqrt(variance), float(sums[:, 2].min()), float(sums[:, 3].max()))


def _masks(labels: Array, members: tuple[int, ...]) -> Iterator[tuple[int, Array]]:
    for z, part in enumerate(labels):
        mask = part == members[0] if len(members) == 1 else np.isin(part, members)
        if mask.any():
            yield z, mask


def _table(statistics: Sequence[LabelStatistics]) -> Iterator[list[Any]]:
    names = [channel.channel for channel in statistics[0].channels] if statistics else []
    measures = ("mean", "std", "minimum", "maximum")
    header = ["value", "name", "voxels", "volume_ml", "centroid_x_mm", "centroid_y_mm", "centroid_z_mm"]
    yield [*header, *(f"{name} {measure}" for name in names for measure in measures)]
    for record in statistics:
        intensities = [getattr(channel, measure) for channel in record.channels for measure in measures]
        numbers = [record.volume_ml, *record.centroid_lps_mm, *intensities]
        yield [record.value, record.name, record.voxels, *("" if not isfinite(n) else f"{n:.9g}" for n in numbers)]


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return [_without_nan(item) for item in value] if isinstance(value, list | tuple) else value
