"""Data sets in nnU-Net v2's raw layout, and everything that may be wrong with one, listed at once.

Layout: dataset.json beside imagesTr/<case>_<channel, four digits><file ending> and labelsTr/<case><file ending>.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from MambaSegLib.errors import InputError
from MambaSegLib.label_table import LabelTable, parse_labels
from MambaSegLib.plan import Region


@dataclass(frozen=True)
class Case:
    """One image with its label map.

    Attributes:
        name: Name without channel and suffix.
        images: One file per channel.
        labels: The label map.
    """

    name: str
    images: tuple[Path, ...]
    labels: Path


@dataclass(frozen=True)
class Dataset:
    """A training data set on disk.

    Attributes:
        folder: Where it is.
        name: Short name.
        channels: Name per channel; "CT" and a few others choose the normalization, as in nnU-Net.
        labels: Name per value of the label maps, background and ignore left out.
        cases: By name.
        license: As dataset.json states it; may be empty.
        regions: What is to be learned instead of the labels; () for the labels.
        ignore_value: Value of voxels that nobody labelled; None where there are none.
    """

    folder: Path
    name: str
    channels: tuple[str, ...]
    labels: Mapping[int, str]
    cases: tuple[Case, ...]
    license: str = ""
    regions: tuple[Region, ...] = ()
    ignore_value: int | None = None


class DatasetError(InputError):
    """A data set that cannot be trained on; the message lists all problems."""

    def __init__(self, folder: Path, problems: Sequence[str]) -> None:
        """List the problems, one a line."""
        self.problems = tuple(problems)
        listed = "\n  ".join(problems)
        super().__init__(f"{folder} has {len(problems)} problem(s):\n  {listed}")


def read_dataset(folder: Path) -> Dataset:
    """Read dataset.json and find the files of each case.

    Raises:
        DatasetError: Listing what is missing, superfluous or of an unknown form.
    """
    description = _read_description(folder)
    channels = _read_channels(folder, description)
    table = _read_labels(folder, description)
    ending = description["file_ending"]
    found = sorted(path.name for path in (folder / "labelsTr").glob(f"*{ending}") if not path.name.startswith("."))
    cases = tuple(_case(folder, name.removesuffix(ending), len(channels), ending) for name in found)
    problems = [*_missing_files(cases), *_orphans(folder, cases, ending)]
    stated = description.get("numTraining")
    if isinstance(stated, int) and stated != len(cases):
        problems.append(f"dataset.json says numTraining {stated}, labelsTr holds {len(cases)} label maps (*{ending})")
    if not cases:
        problems.append(f"there is no label map (*{ending}) in labelsTr")
    if problems:
        raise DatasetError(folder, problems)
    license_text = description.get("licence") or description.get("license") or ""
    name = str(description.get("name") or folder.name)
    return Dataset(folder, name, channels, table.labels, cases, str(license_text), table.regions, table.ignore_value)


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / "dataset.json"
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DatasetError(
            folder, ["there is no dataset.json; the folder must be in nnU-Net v2's raw layout"]
        ) from error
    except ValueError as error:
        raise DatasetError(folder, [f"dataset.json is not JSON: {error}"]) from error
    if not isinstance(description, dict):
        raise DatasetError(folder, ["dataset.json must be an object"])
    expected = {"channel_names": dict, "labels": dict, "file_ending": str}
    problems = [
        f"dataset.json lacks {name}, or it is no {kind.__name__}"
        for name, kind in expected.items()
        if not isinstance(description.get(name), kind)
    ]
    if problems:
        raise DatasetError(folder, problems)
    return description


def _read_channels(folder: Path, description: dict[str, Any]) -> tuple[str, ...]:
    names = description["channel_names"]
    if sorted(names) != sorted(map(str, range(len(names)))) or not names:
        raise DatasetError(folder, [f"channel_names must have the keys 0, 1, ...; found {', '.join(names) or 'none'}"])
    return tuple(str(names[str(index)]) for index in range(len(names)))


def _read_labels(folder: Path, description: dict[str, Any]) -> LabelTable:
    try:
        return parse_labels(description)
    except InputError as error:
        raise DatasetError(folder, [str(error)]) from error


def _case(folder: Path, name: str, channels: int, ending: str) -> Case:
    images = tuple(folder / "imagesTr" / f"{name}_{channel:04d}{ending}" for channel in range(channels))
    return Case(name, images, folder / "labelsTr" / f"{name}{ending}")


def _missing_files(cases: Sequence[Case]) -> list[str]:
    return [f"{case.name}: {path.name} is missing" for case in cases for path in case.images if not path.is_file()]


def _orphans(folder: Path, cases: Sequence[Case], ending: str) -> list[str]:
    expected = {path.name for case in cases for path in case.images}
    images = sorted(path.name for path in (folder / "imagesTr").glob(f"*{ending}") if not path.name.startswith("."))
    channel = re.compile(rf"_\d{{4}}{re.escape(ending)}$")
    return [
        f"imagesTr/{name} has no label map"
        if channel.search(name)
        else f"imagesTr/{name} does not end in a channel number such as _0000{ending}"
        for name in images
        if name not in expected
    ]
