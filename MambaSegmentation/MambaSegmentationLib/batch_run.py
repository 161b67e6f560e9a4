"""Many cases, one after the other, in one worker process: `mambaseg batch`, watched."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from MambaSegLib.bundle import Bundle
from MambaSegLib.errors import InputError
from MambaSegLib.progress import Progress
from MambaSegmentationLib.job import Job, shareDone
from MambaSegmentationLib.region import regionBounds, regionWords
from MambaSegmentationLib.request import Options, predictionWords, regionNotices
from MambaSegmentationLib.translation import tr as _
from MambaSegmentationLib.worker import Event, Worker


@dataclass(frozen=True)
class CaseOutcome:
    """What became of one case.

    Attributes:
        case: Its name.
        status: "done", "skipped" (done by an earlier run) or "failed".
        message: Why it failed, or what to know about the result.
        seconds: From reading to writing.
        output: File of the segmentation; None if there is none.
    """

    case: str
    status: str
    message: str
    seconds: float
    output: Path | None


class BatchRun(Job):
    """Cases under way.

    Attributes:
        outcomes: What became of the cases so far, in the order they ended.
        cases: How many there are; 0 while unknown.
    """

    def __init__(self, name: str) -> None:
        """Remember the name."""
        super().__init__(name)
        self.outcomes: list[CaseOutcome] = []
        self.cases = 0
        self._within = 0.0
        self._clock: tuple[float, float] | None = None

    @property
    def fraction(self) -> float:
        """How much is done, 0 to 1."""
        return min(1.0, (len(self.outcomes) + self._within) / max(1, self.cases))

    def counts(self) -> dict[str, int]:
        """Number of cases per status."""
        statuses = [outcome.status for outcome in self.outcomes]
        return {status: statuses.count(status) for status in ("done", "skipped", "failed")}

    def _hear(self, event: Event) -> None:
        if event["event"] == "result" and "case" in event:
            self._case(event)
        elif event["event"] == "progress" and "cases" in event:
            self._caseProgress(event)
        else:
            super()._hear(event)

    def _case(self, event: Event) -> None:
        output = event.get("output")
        outcome = CaseOutcome(
            self._caseName(str(event["case"])),
            str(event.get("status", "")),
            self._readable(str(event.get("message", ""))),
            float(event.get("seconds", 0.0)),
            Path(output) if output else None,
        )
        self._within = 0.0
        self.outcomes.append(outcome)
        if outcome.status == "failed":
            self.log.append(f"{outcome.case}: {outcome.message}")

    def _caseProgress(self, event: Event) -> None:
        self.cases = int(event["cases"])
        done, total = int(event.get("done", 0)), int(event.get("total", 1))
        stage = str(event.get("stage", ""))
        self._within = shareDone(stage, done, total)
        name = self._caseName(str(event.get("case", "")))
        self.progress = Progress(f"{name}: {stage}", len(self.outcomes), self.cases, self._timeLeft())

    def _timeLeft(self) -> float | None:
        """From the time the cases took that were computed in this run."""
        computed = sum(outcome.status != "skipped" for outcome in self.outcomes) + self._within
        now = time.monotonic()
        if self._clock is None:
            self._clock = (now, computed)
        start, before = self._clock
        if computed <= before or not any(outcome.status == "done" for outcome in self.outcomes):
            return None
        return (now - start) / (computed - before) * (self.cases - len(self.outcomes) - self._within)

    def _caseName(self, name: str) -> str:
        """What a person calls a case the worker names so."""
        return name

    def _succeeded(self, worker: Worker) -> bool:
        # A case that failed gives an exit code, but is no failure of the whole.
        return worker.result is not None and "cases" in worker.result

    def _bringIn(self, result: Event) -> None:
        self.cases = int(result["cases"])


class FolderRun(BatchRun):
    """From a folder of images to a folder of segmentations; started again, it goes on where it was stopped.

    Attributes:
        outputFolder: Where the segmentations and the table of outcomes are.
    """

    def __init__(
        self,
        bundle: Bundle,
        inputFolder: Path,
        outputFolder: Path,
        options: Options,
        *,
        fileFormat: str = ".seg.nrrd",
        patterns: dict[str, str] | None = None,
        roiNode: Any = None,
        command: tuple[str, ...] = (),
    ) -> None:
        """Start the worker.

        Args:
            bundle: The model.
            inputFolder: Image files, or folders of DICOM files.
            outputFolder: Made where it is missing.
            options: How; frames and surfaces play no part.
            fileFormat: ".seg.nrrd", ".nii.gz", ".nrrd" or ".mha".
            patterns: Channel -> path below the input folder with {case} in it; None takes numbered files.
            roiNode: Only this region of each image, where the world of the scene has it; an image outside it fails.
            command: First words of the worker's command line; () takes this Python and library.

        Raises:
            InputError: If the input folder does not exist, or is the output folder; or as `regionBounds`.
            EnvironmentProblemError: If the worker cannot be started.
        """
        super().__init__(inputFolder.name)
        self.outputFolder = outputFolder
        self._inputFolder, self._bundle, self._options = inputFolder, bundle, options
        self._format, self._patterns = fileFormat, patterns or {}
        self._region = regionBounds(roiNode) if roiNode is not None else None
        self.notices += regionNotices(roiNode)
        self._begin(command, options.host)

    def _words(self) -> list[str]:
        if not self._inputFolder.is_dir():
            message = _("The folder {inputFolder} does not exist. Choose the folder with the images.").format(
                inputFolder=self._inputFolder
            )
            raise InputError(message)
        if self._inputFolder.resolve() == self.outputFolder.resolve():
            message = _(
                "The output folder is the input folder. Choose another, so that results are not taken for images."
            )
            raise InputError(message)
        words = ["batch", str(self._inputFolder), "-o", str(self.outputFolder), "--format", self._format]
        words += [*predictionWords(self._bundle, self._options), *regionWords(self._region)]
        for channel, pattern in self._patterns.items():
            words += ["--pattern", f"{channel}={pattern}"]
        words += ["--uncertainty"] if self._options.uncertainty else []
        return words + (["--statistics"] if self._options.statistics else [])

    def _cancelled(self) -> str:
        done = self.counts()["done"] + self.counts()["skipped"]
        return _(
            "Cancelled. {done} case(s) are done and stay in {outputFolder}. Press Apply again to go on from there."
        ).format(done=done, outputFolder=self.outputFolder)

    def _result(self) -> Any:
        return tuple(self.outcomes)
