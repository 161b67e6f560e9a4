"""Tasks of the Medical Segmentation Decathlon: dataset.json beside imagesTr, labelsTr and imagesTs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from MambaSegLib.errors import InputError
from MambaSegLib.plan import Region
from MambaSegTraining.converters.nifti_frames import count_frames
from MambaSegTraining.converters.raw_layout import RawCase, RawDataset, Source

TERMS = "CC BY-SA 4.0"
CITATION = (
    "M. Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 13:4128, 2022, "
    "doi:10.1038/s41467-022-30695-9; A. L. Simpson et al., arXiv:1902.09063"
)
BRAIN_CHANNELS = ("FLAIR", "T1w", "T1gd", "T2w")
BRAIN_LABELS = {1: "edema", 2: "non-enhancing tumor", 3: "enhancing tumor"}
BRAIN_REGIONS = (
    Region("whole tumor", (1, 2, 3), 1),
    Region("tumor core", (2, 3), 2),
    Region("enhancing tumor", (3,), 3),
)
"""What the BraTS challenges score as WT, TC and ET."""


def find_cases(folder: Path) -> RawDataset:
    """List the cases of one task.

    Cases 2k-1 and 2k of the Hippocampus task are the two sides of one head and get one subject; in the other tasks each
    case is a subject of its own.

    Raises:
        InputError: If there is no task, or several, or the description lacks something.
    """
    root = _task_folder(folder)
    description = _read(root / "dataset.json")
    name = str(description["name"])
    channels = _numbered(root, description, "modality")
    labels = {value: text for value, text in _numbered(root, description, "labels").items() if value}
    pairs = [(entry["image"], entry["label"]) for entry in description["training"]]
    cases = [_case(root, name, image, label, len(channels)) for image, label in pairs]
    cases += [_case(root, name, image, None, len(channels)) for image in description.get("test", ())]
    source = Source(
        f"Medical Segmentation Decathlon, {name}", "http://medicaldecathlon.com",
        str(description.get("licence") or TERMS), f"{CITATION}. Data: {description.get('reference', '')}",
    )  # fmt: skip
    return RawDataset(name, tuple(channels[index] for index in sorted(channels)), labels, tuple(cases), source)


def find_brain_tumour_cases(folder: Path) -> RawDataset:
    """Task01_BrainTumour with the names of its channels and labels, and the regions the BraTS challenges score.

    Raises:
        InputError: If it is another task.
    """
    dataset = find_cases(folder)
    if len(dataset.channels) != len(BRAIN_CHANNELS) or sorted(dataset.labels) != sorted(BRAIN_LABELS):
        msg = f"{folder} holds {dataset.name}, not Task01_BrainTumour (4 channels, 3 labels); use `convert msd` for it."
        raise InputError(msg)
    return replace(dataset, name="BrainTumour", channels=BRAIN_CHANNELS, labels=BRAIN_LABELS, regions=BRAIN_REGIONS)


def _task_folder(folder: Path) -> Path:
    found = [
        path.parent for path in (folder / "dataset.json", *sorted(folder.glob("*/dataset.json"))) if path.is_file()
    ]
    if len(found) != 1:
        listed = ", ".join(path.name for path in found) or "none"
        msg = f"{folder} must hold one task with its dataset.json; found {listed}."
        raise InputError(msg)
    return found[0]


def _read(path: Path) -> Mapping[str, Any]:
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        missing = {"name", "modality", "labels", "training"} - set(description)
    except (ValueError, TypeError) as error:
        msg = f"{path} is not the description of a task: {error}."
        raise InputError(msg) from error
    if missing:
        msg = f"{path} lacks {', '.join(sorted(missing))}; is this a task as the Decathlon distributes it?"
        raise InputError(msg)
    return description  # type: ignore[no-any-return]


def _numbered(root: Path, description: Mapping[str, Any], key: str) -> dict[int, str]:
    entries = {int(number): str(text) for number, text in description[key].items()}
    if sorted(entries) != list(range(len(entries))) or not entries:
        msg = f"{root / 'dataset.json'}: {key} must be numbered 0, 1, ...; found {sorted(entries)}."
        raise InputError(msg)
    return entries


def _case(root: Path, task: str, image: str, label: str | None, channels: int) -> RawCase:
    path = _inside(root, image)
    name = path.name.removesuffix(".gz").removesuffix(".nii")
    if path.is_file() and (frames := count_frames(path)) != channels:
        msg = f"{path} holds {frames} images, dataset.json has {channels} modalities."
        raise InputError(msg)
    images = tuple((path, channel if channels > 1 else None) for channel in range(channels))
    return RawCase(name, _subject(task, name), images, _inside(root, label) if label else None, held_out=label is None)


def _inside(root: Path, name: str) -> Path:
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        msg = f"{root / 'dataset.json'} names the file {name!r}, which lies outside the task."
        raise InputError(msg)
    return path


def _subject(task: str, name: str) -> str:
    number = re.search(r"(\d+)$", name)
    if "hippocampus" in task.lower() and number:
        return f"S{(int(number.group(1)) + 1) // 2:03d}"
    return name
