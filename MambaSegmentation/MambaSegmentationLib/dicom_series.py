"""Series of Slicer's DICOM database as cases of a batch."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from MambaSegLib.bundle import Bundle
from MambaSegLib.errors import InputError
from MambaSegLib.plan import Channel
from MambaSegmentationLib.batch_run import FolderRun
from MambaSegmentationLib.channels import suggestedNames
from MambaSegmentationLib.request import Options
from MambaSegmentationLib.translation import tr as _

_PATIENT_NAME, _STUDY_DATE, _MODALITY, _DESCRIPTION = "0010,0010", "0008,0020", "0008,0060", "0008,103e"


@dataclass(frozen=True)
class Series:
    """One series of the database.

    Attributes:
        uid: Series instance UID.
        study: Study instance UID.
        patient: Name of the patient.
        date: Of the study.
        description: What the scanner calls it.
        modality: "MR", "CT" ...
        files: Where its files are.
    """

    uid: str
    study: str
    patient: str
    date: str
    description: str
    modality: str
    files: tuple[str, ...]

    @property
    def title(self) -> str:
        """For a person."""
        return f"{self.patient or '?'}, {self.date or '?'}, {self.description or '?'} ({self.modality}, {len(self.files)} files)"


def databaseSeries(database: Any, modalities: Sequence[str] = ()) -> tuple[Series, ...]:
    """All series with files.

    Args:
        database: `slicer.dicomDatabase`; None gives none.
        modalities: Only these; () takes all.
    """
    if database is None or not database.isOpen:
        return ()
    found = []
    for patient in database.patients():
        for study in database.studiesForPatient(patient):
            for uid in database.seriesForStudy(study):
                series = _series(database, study, uid)
                if series is not None and (not modalities or series.modality in modalities):
                    found.append(series)
    return tuple(found)


class DicomRun(FolderRun):
    """Series of the database, as `FolderRun`; their files stay where they are."""

    def __init__(
        self,
        bundle: Bundle,
        series: Sequence[Series],
        outputFolder: Path,
        options: Options,
        *,
        fileFormat: str = ".seg.nrrd",
        roiNode: Any = None,
        command: tuple[str, ...] = (),
    ) -> None:
        """Start the worker; arguments and errors as of `FolderRun`."""
        self._series = tuple(series)
        channels = [channel.name for channel in bundle.manifest.plan.channels]
        patterns = {channel: f"{{case}}/{number}" for number, channel in enumerate(channels)}
        super().__init__(
            bundle,
            Path("DICOM"),
            outputFolder,
            options,
            fileFormat=fileFormat,
            patterns=patterns,
            roiNode=roiNode,
            command=command,
        )

    def _words(self) -> list[str]:
        self._inputFolder = self._folder / "dicom"
        for name, channels in dicomCases(self._bundle.manifest.plan.channels, self._series).items():
            for number, series in enumerate(channels):
                _link(series, self._inputFolder / name / str(number))
        return super()._words()


def dicomCases(channels: Sequence[Channel], series: Sequence[Series]) -> dict[str, tuple[Series, ...]]:
    """Cases by name: each series for one channel, else each study, its series told apart by their descriptions.

    Raises:
        InputError: If none was chosen, or a study lacks a series for a channel.
    """
    if not series:
        message = _("No series was chosen. Mark the series to be segmented.")
        raise InputError(message)
    if len(channels) == 1:
        return {_fileName(one): (one,) for one in series}
    studies: dict[str, list[Series]] = {}
    for one in series:
        studies.setdefault(one.study, []).append(one)
    return {_fileName(group[0]): _complete(channels, group) for group in studies.values()}


def _complete(channels: Sequence[Channel], group: Sequence[Series]) -> tuple[Series, ...]:
    found = suggestedNames(channels, [one.description for one in group])
    missing = [channel.name for channel, place in zip(channels, found, strict=True) if place is None]
    if missing:
        names = ", ".join(one.description or "?" for one in group)
        message = _(
            "{patient}, {date}: of {names}, none could be told to be {missing}. Leave the study out, or load "
            "its images and choose them by hand."
        ).format(patient=group[0].patient, date=group[0].date, names=names, missing=", ".join(missing))
        raise InputError(message)
    return tuple(group[place] for place in found if place is not None)


def _series(database: Any, study: str, uid: str) -> Series | None:
    files = tuple(str(file) for file in database.filesForSeries(uid))
    if not files:
        return None
    patient, date, modality, description = (
        str(database.fileValue(files[0], tag)).strip() for tag in (_PATIENT_NAME, _STUDY_DATE, _MODALITY, _DESCRIPTION)
    )
    return Series(str(uid), str(study), patient, date, description, modality, files)


def _fileName(series: Series) -> str:
    """The same in every run, so that a batch can be resumed, and different for every series."""
    words = re.sub(r"[^0-9A-Za-z]+", "_", f"{series.patient}_{series.date}_{series.description}").strip("_")
    return f"{words[:60] or 'series'}_{series.uid[-12:].replace('.', '_')}"


def _link(series: Series, folder: Path) -> None:
    """Links cost no disk space; where the system allows none, the files are copied."""
    folder.mkdir(parents=True)
    for number, file in enumerate(series.files):
        target = folder / f"{number:06d}.dcm"
        for make in (os.link, os.symlink, shutil.copyfile):
            with suppress(OSError):
                make(file, target)
                break
        else:
            message = _("{file} cannot be read. Import the series into the DICOM database again.").format(file=file)
            raise InputError(message)
