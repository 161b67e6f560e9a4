"""Writing a data set in nnU-Net v2's raw layout, with the subjects and the terms it comes under."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from MambaSegLib.atomic import new_folder
from MambaSegLib.errors import EnvironmentProblemError, InputError
from MambaSegLib.label_table import BACKGROUND
from MambaSegLib.plan import Region
from MambaSegTraining.converters.nifti_frames import write_frame
from MambaSegTraining.converters.straight_headers import straighten
from MambaSegTraining.files import read_json, write_json, write_text

ENDING = ".nii.gz"
RECORD_FILE = "conversion.json"
VERSION = 1
"""Counts up when the same download is converted to something else than before."""


@dataclass(frozen=True)
class RawCase:
    """One case of a download.

    Attributes:
        name: What it will be called.
        subject: The person it is of; cases of one subject never lie on both sides of a fold.
        images: Per channel the file, and which 3D image of a 4D file (None: the file is one 3D image).
        labels: The label map; None for cases published without.
        held_out: Whether it belongs to the publisher's test set, which is kept apart (imagesTs).
    """

    name: str
    subject: str
    images: tuple[tuple[Path, int | None], ...]
    labels: Path | None
    held_out: bool = False


@dataclass(frozen=True)
class Source:
    """Where a data set is from and what may be done with it.

    Attributes:
        title: Its full name.
        url: The official page.
        terms: The license, or what to agree to.
        citation: What to cite.
    """

    title: str
    url: str
    terms: str
    citation: str


@dataclass(frozen=True)
class RawDataset:
    """What was found in a download.

    Attributes:
        name: Short name.
        channels: Name per channel.
        labels: Name of each value but 0.
        cases: All cases.
        source: Its origin.
        regions: Regions that `learn_regions` trains on instead of the labels, where a data set has such.
        learn_regions: Describe the regions in dataset.json, so that a network has one output for each.
        repair_headers: Whether files whose axes are a little off the perpendicular are written anew with straight ones.
    """

    name: str
    channels: tuple[str, ...]
    labels: Mapping[int, str]
    cases: tuple[RawCase, ...]
    source: Source
    regions: tuple[Region, ...] = ()
    learn_regions: bool = False
    repair_headers: bool = False


@dataclass(frozen=True)
class Conversion:
    """What a conversion wrote; kept beside the data.

    Attributes:
        version: See `VERSION`.
        dataset: Short name.
        source_sha256: Hash of names and sizes of all files that went in.
        training_cases: Cases in imagesTr.
        test_cases: Cases in imagesTs.
        subjects: Subjects of the training cases.
        notices: What was repaired.
        was_there: Whether an earlier conversion had made it already.
    """

    version: int
    dataset: str
    source_sha256: str
    training_cases: int
    test_cases: int
    subjects: int
    notices: tuple[str, ...]
    was_there: bool = False


def write_raw_layout(dataset: RawDataset, output: Path, *, link: bool = False) -> Conversion:
    """Write all cases, dataset.json, subjects.csv, ATTRIBUTION.md and conversion.json, whole or not at all.

    Raises:
        InputError: If files are missing or `output` holds anything but an earlier conversion of the same files.
        EnvironmentProblemError: If the disk is full.
    """
    _require_files(dataset)
    identity = _source_sha256(dataset)
    earlier = _earlier_conversion(output, identity)
    if earlier:
        return earlier
    try:
        with new_folder(output) as folder:
            notices = tuple(_write_cases(dataset, folder, link))
            trained = [case for case in dataset.cases if not case.held_out]
            subjects = len({case.subject for case in trained})
            count = len(dataset.cases) - len(trained)
            record = Conversion(VERSION, dataset.name, identity, len(trained), count, subjects, notices)
            _write_descriptions(dataset, trained, record, folder)
    except OSError as error:
        msg = f"{output} could not be written ({error}); nothing was left there. Check space and permissions."
        raise EnvironmentProblemError(msg) from error
    return record


def _require_files(dataset: RawDataset) -> None:
    files = [file for case in dataset.cases for file in (*(path for path, _ in case.images), case.labels) if file]
    missing = sorted({str(file) for file in files if not file.is_file()})
    names = [case.name for case in dataset.cases]
    twice = sorted({name for name in names if names.count(name) > 1})
    problems = [f"{file} is missing" for file in missing] + [f"the case {name} is there twice" for name in twice]
    if not dataset.cases:
        problems.append("no case was found")
    if problems:
        listed = "\n  ".join(problems)
        msg = f"The download of {dataset.name} is not complete; unpack it again. Found:\n  {listed}"
        raise InputError(msg)


def _source_sha256(dataset: RawDataset) -> str:
    rows = [
        [case.name, case.subject, case.held_out, [[path.name, path.stat().st_size, frame] for path, frame in case.images],
         case.labels.stat().st_size if case.labels else None]
        for case in dataset.cases
    ]  # fmt: skip
    parts = [VERSION, dataset.name, dataset.channels, sorted(dataset.labels.items()), rows]
    text = json.dumps([*parts, "regions"] if dataset.learn_regions else parts)
    return hashlib.sha256(text.encode()).hexdigest()


def _earlier_conversion(output: Path, identity: str) -> Conversion | None:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    if not (output / RECORD_FILE).is_file():
        msg = f"{output} is there already and no conversion made it; choose another folder."
        raise InputError(msg)
    earlier = read_json(Conversion, output / RECORD_FILE)
    if earlier.source_sha256 != identity:
        msg = f"{output} was converted from other files or in another way ({earlier.dataset}); remove it or choose another folder."
        raise InputError(msg)
    return Conversion(**{**earlier.__dict__, "was_there": True})


def _write_cases(dataset: RawDataset, folder: Path, link: bool) -> Iterator[str]:
    for case in dataset.cases:
        images, labels = ("imagesTs", "labelsTs") if case.held_out else ("imagesTr", "labelsTr")
        pairs = [
            (path, frame, folder / images / f"{case.name}_{channel:04d}{ENDING}")
            for channel, (path, frame) in enumerate(case.images)
        ]
        if case.labels:
            pairs.append((case.labels, None, folder / labels / f"{case.name}{ENDING}"))
        for path, frame, target in pairs:
            target.parent.mkdir(exist_ok=True)
            if dataset.repair_headers and (notice := straighten(path, target, is_label=path == case.labels)):
                yield f"{case.name}: {notice}"
            elif frame is not None or not path.name.endswith(ENDING):
                write_frame(path, frame, target)
            else:
                _place(path, target, link)


def _place(path: Path, target: Path, link: bool) -> None:
    """Copy a file; or link it, if that is wanted, possible, and we could have written it ourselves."""
    if link and os.access(path, os.W_OK):
        try:
            os.link(path, target)
        except OSError:
            pass  # another disk, or a file system without links
        else:
            return
    shutil.copyfile(path, target)


def _write_descriptions(dataset: RawDataset, trained: Sequence[RawCase], record: Conversion, folder: Path) -> None:
    description = {
        "name": dataset.name,
        "description": dataset.source.title,
        "reference": f"{dataset.source.url}; {dataset.source.citation}",
        "licence": dataset.source.terms,
        "channel_names": {str(index): name for index, name in enumerate(dataset.channels)},
        **_label_description(dataset),
        "numTraining": len(trained),
        "file_ending": ENDING,
    }
    write_text(folder / "dataset.json", json.dumps(description, indent=1) + "\n")
    write_text(folder / "subjects.csv", _subjects_csv(dataset.cases))
    write_text(folder / "ATTRIBUTION.md", _attribution(dataset, record))
    write_json(folder / RECORD_FILE, record)


def _label_description(dataset: RawDataset) -> dict[str, object]:
    if not dataset.learn_regions:
        return {"labels": {BACKGROUND: 0, **{name: value for value, name in sorted(dataset.labels.items())}}}
    return {
        "labels": {BACKGROUND: 0, **{region.name: list(region.labels) for region in dataset.regions}},
        "regions_class_order": [region.value for region in dataset.regions],
        "label_names": {str(value): name for value, name in sorted(dataset.labels.items())},
    }


def _subjects_csv(cases: Sequence[RawCase]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("case", "subject", "set"))
    writer.writerows((case.name, case.subject, "test" if case.held_out else "training") for case in cases)
    return text.getvalue()


def _attribution(dataset: RawDataset, record: Conversion) -> str:
    source = dataset.source
    changes = "\n".join(f"* {notice}" for notice in record.notices) or "* none"
    return (
        f"# {source.title}\n\n"
        f"Official page: {source.url}\n\nTerms: {source.terms}\n\nCite: {source.citation}\n\n"
        "Converted to nnU-Net v2's raw layout by `mambaseg-train convert`. Voxels are those of the download; files were "
        "renamed, and 4D images divided into one file per channel. Headers repaired:\n"
        f"{changes}\n"
    )
