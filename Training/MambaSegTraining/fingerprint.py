"""What the images of a data set are like: read once, case by case, and checked on the way."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from MambaSegLib.errors import MambaSegError
from MambaSegLib.fingerprint_check import obliquity_deg
from MambaSegLib.limits import usable_processors
from MambaSegLib.plan import IntTriple, Triple
from MambaSegLib.preprocessing import nonzero_box
from MambaSegLib.volume import Array, Labels, Volume
from MambaSegLib.volume_io import read_channels, read_labels
from MambaSegTraining.case_pool import map_cases
from MambaSegTraining.dataset import Case, Dataset, DatasetError, read_dataset
from MambaSegTraining.files import read_json
from MambaSegTraining.leakage import CaseContent, case_content
from MambaSegTraining.run_folder import RunFolder

SAMPLES_PER_CASE = 10_000


@dataclass(frozen=True)
class CaseFacts:
    """What planning needs to know about one case.

    Attributes:
        name: The case.
        orientation: Direction in which its axes (Z, Y, X) grow, e.g. "SPL".
        spacing_mm: Its voxel size.
        shape: Its voxels.
        cropped_shape: Its voxels after the zero margin is cropped.
        label_voxels: Voxels of each structure, by value.
        content_sha256: Hash of the voxels of its first channel: equal for copies.
        obliquity_deg: Largest angle between its axes and the body's; None where unknown.
    """

    name: str
    orientation: str
    spacing_mm: Triple
    shape: IntTriple
    cropped_shape: IntTriple
    label_voxels: tuple[int, ...]
    content_sha256: str
    obliquity_deg: float | None = None


@dataclass(frozen=True)
class ChannelFacts:
    """Intensities of one channel inside the structures, over all cases but those held out from the folds.

    Attributes:
        mean: Mean.
        std: Standard deviation.
        minimum: Smallest.
        percentile_00_5: 0.5th percentile.
        median: Median.
        percentile_99_5: 99.5th percentile.
        maximum: Largest.
    """

    mean: float
    std: float
    minimum: float
    percentile_00_5: float
    median: float
    percentile_99_5: float
    maximum: float


@dataclass(frozen=True)
class DatasetFingerprint:
    """All of it.

    Attributes:
        dataset: Name of the data set.
        folder: Where it was.
        channels: Name per channel.
        cases: By name.
        intensities: Per channel.
    """

    dataset: str
    folder: str
    channels: tuple[str, ...]
    cases: tuple[CaseFacts, ...]
    intensities: tuple[ChannelFacts, ...]


def take_fingerprint(
    dataset: Dataset,
    workers: int = 0,
    on_case: Callable[[str], None] = lambda name: None,
    on_content: Callable[[CaseContent], None] = lambda content: None,
    held_out: Sequence[str] = (),
) -> DatasetFingerprint:
    """Read every case, check it, and gather what planning needs.

    Args:
        dataset: The data set.
        workers: Processes to read with; 0 reads here.
        on_case: Called with the name of each case that was read.
        on_content: Called with what the leakage check needs of each case without problems.
        held_out: Cases whose intensities do not count.

    Raises:
        DatasetError: Listing everything that is wrong in any case.
    """
    results = []
    for result in map_cases(partial(inspect_case, dataset), dataset.cases, workers, at_a_time=4):
        results.append(result)
        on_case(result.case.name)
        if result.content:
            on_content(result.content)
    problems = [problem for result in results for problem in result.problems]
    facts = [result.facts for result in results if result.facts]
    problems += [*_copies(facts), *_unused_labels(dataset, facts)]
    if problems:
        raise DatasetError(dataset.folder, problems)
    samples = np.concatenate([result.samples for result in results if result.case.name not in held_out], axis=1)
    intensities = tuple(_channel_facts(channel) for channel in samples)
    return DatasetFingerprint(dataset.name, str(dataset.folder), dataset.channels, tuple(facts), intensities)


def dataset_of(run: RunFolder) -> Dataset:
    """The data set a run was planned on, where it was then.

    Raises:
        DatasetError: As `read_dataset`.
    """
    folder = Path(read_json(DatasetFingerprint, run.fingerprint_file).folder)
    if not folder.is_dir():
        problem = (
            f"it is not there any more. If it was moved, run mambaseg-train plan with its new place, {run.path} and the same "
            "configuration: what is finished stays valid"
        )
        raise DatasetError(folder, [problem])
    return read_dataset(folder)


@dataclass(frozen=True)
class Inspection:
    """What was found in one case.

    Attributes:
        case: The case.
        problems: What is wrong with it, for a person.
        facts: None if it could not be read.
        samples: (C, N) intensities of voxels inside the structures.
        content: For the leakage check; None where there are problems.
    """

    case: Case
    problems: tuple[str, ...]
    facts: CaseFacts | None
    samples: Array
    content: CaseContent | None = None


def inspect_case(dataset: Dataset, case: Case) -> Inspection:
    """Read one case and check it against dataset.json."""
    none = np.empty((len(dataset.channels), 0))
    try:
        volume = read_channels(dict(zip(dataset.channels, case.images, strict=True)))
        labels = read_labels(case.labels)
    except (MambaSegError, OSError, RuntimeError) as error:
        return Inspection(case, (f"{case.name}: {error}",), None, none)
    problems = _case_problems(dataset, volume, labels)
    if problems:
        return Inspection(case, tuple(f"{case.name}: {problem}" for problem in problems), None, none)
    facts, content = _case_facts(dataset, case, volume, labels), case_content(case.name, volume)
    return Inspection(case, (), facts, _samples(volume, labels, dataset.ignore_value), content)


def _case_problems(dataset: Dataset, volume: Volume, labels: Labels) -> list[str]:
    problems = []
    difference = volume.geometry.differences(labels.geometry)
    if difference:
        problems.append(f"image and label map are not on one grid: {difference}")
    found, ignored = set(np.unique(labels.array).tolist()), dataset.ignore_value
    unknown = sorted(found - {0, *dataset.labels, ignored})
    if unknown:
        highest = len(dataset.labels) if ignored is None else ignored
        problems.append(f"the label map holds the values {unknown}, dataset.json has 0 to {highest}")
    if found == {ignored}:
        problems.append("every voxel has the label ignore, so there is nothing to learn or measure; leave the case out")
    if not np.isfinite(volume.array).all():
        problems.append("the image holds voxels that are not finite numbers")
    elif volume.array.min() == volume.array.max():
        problems.append("all voxels of the image are equal")
    return problems


def _case_facts(dataset: Dataset, case: Case, volume: Volume, labels: Labels) -> CaseFacts:
    counts = np.bincount(labels.array.ravel(), minlength=len(dataset.labels) + 1)
    return CaseFacts(
        name=case.name,
        orientation=volume.geometry.orientation,
        spacing_mm=volume.geometry.spacing_mm,
        shape=volume.geometry.shape,
        cropped_shape=nonzero_box(volume.array).shape,
        label_voxels=tuple(int(count) for count in counts[1 : len(dataset.labels) + 1]),
        content_sha256=hashlib.sha256(np.ascontiguousarray(volume.array[0]).tobytes()).hexdigest(),
        obliquity_deg=obliquity_deg(volume.geometry),
    )


def _samples(volume: Volume, labels: Labels, ignore_value: int | None) -> Array:
    """Intensities of the structures; nnU-Net takes those of ignored voxels, too, where they may be anything."""
    array = labels.array
    inside = np.flatnonzero(array if ignore_value is None else (array > 0) & (array != ignore_value))
    chosen = inside[np.linspace(0, len(inside) - 1, min(len(inside), SAMPLES_PER_CASE)).round().astype(int)]
    return volume.array.reshape(len(volume.array), -1)[:, chosen].astype(np.float64)


def _channel_facts(values: Array) -> ChannelFacts:
    if not values.size:
        return ChannelFacts(0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    low, median, high = np.percentile(values, (0.5, 50, 99.5))
    spread = (values.min(), low, median, high, values.max())
    return ChannelFacts(float(values.mean()), float(values.std()), *(float(value) for value in spread))


def _copies(facts: Sequence[CaseFacts]) -> list[str]:
    first: dict[str, str] = {}
    problems = []
    for case in facts:
        original = first.setdefault(case.content_sha256, case.name)
        if original != case.name:
            problems.append(f"{case.name} is a copy of {original}: the same voxels")
    return problems


def _unused_labels(dataset: Dataset, facts: Sequence[CaseFacts]) -> list[str]:
    if not facts:
        return []
    totals = np.sum([case.label_voxels for case in facts], axis=0)
    if dataset.regions:
        return [f"no case has a voxel of the region {region.name}" for region in dataset.regions
                if not totals[[value - 1 for value in region.labels]].any()]  # fmt: skip
    return [f"no case has a voxel of label {value} ({name})" for value, name in dataset.labels.items()
            if not totals[value - 1]]  # fmt: skip


def default_workers() -> int:
    """Processes for reading and preprocessing: the processors this one may use, at most 8."""
    return min(usable_processors(), 8)
