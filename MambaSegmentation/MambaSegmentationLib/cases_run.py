"""Several cases out of the scene, computed by one worker process: all images of a scene, all frames of a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from MambaSegLib.errors import InputError, MambaSegError
from MambaSegLib.volume import Volume
from MambaSegmentationLib import conversion
from MambaSegmentationLib.batch_run import BatchRun
from MambaSegmentationLib.region import Bounds, regionBounds, regionWords
from MambaSegmentationLib.request import Request, VolumeNodes, predictionWords, regionNotices, writeChannels
from MambaSegmentationLib.results import ResultFiles, takeIn
from MambaSegmentationLib.scene_change import SceneChange
from MambaSegmentationLib.scene_watch import SceneWatch
from MambaSegmentationLib.translation import tr as _

_SAME_MM = 1e-3


class CasesRun(BatchRun):
    """A subclass says which cases there are (`_writeCases`); the worker's names for them are numbers."""

    def __init__(self, name: str, request: Request) -> None:
        """Remember what to do; a subclass calls `_begin` when it is ready."""
        super().__init__(name)
        self._request = request
        self._watch: SceneWatch | None = None

    def _writeCases(self, folder: Path) -> list[str]:
        """Write the images of all cases with `_writeCase`; returns words for the region."""
        raise NotImplementedError

    def _writeCase(self, volumes: Sequence[Volume], folder: Path, number: int) -> None:
        self._call(writeChannels(volumes, folder, caseKey(number)), [volume.name for volume in volumes])

    def _words(self) -> list[str]:
        source = self._folder / "images"
        source.mkdir()
        region = self._writeCases(source)
        options = self._request.options
        words = ["batch", str(source), "-o", str(self._folder / "results"), *region]
        words += predictionWords(self._request.bundle, options)
        words += ["--uncertainty"] if options.uncertainty else []
        return words + (["--statistics"] if options.statistics else [])

    def _files(self, number: int) -> ResultFiles:
        stem = self._folder / "results" / caseKey(number)
        return ResultFiles(*(Path(f"{stem}{end}") for end in (".seg.nrrd", ".uncertainty.nii.gz", ".statistics.csv")))

    def _ended(self) -> None:
        if self._watch is not None:
            self._watch.stop()


class SceneBatchRun(CasesRun):
    """All images of a list, each segmented by itself; a result appears in the scene as soon as it is there.

    Attributes:
        segmentationNodes: The results so far, in the order of the cases; None for one that is not (yet) there.
        changes: What was added to the scene, per result.
    """

    def __init__(self, cases: Sequence[VolumeNodes], request: Request) -> None:
        """Copy the images out of the scene and start the worker.

        Args:
            cases: Image per channel, of each case.
            request: What to do with each; its nodes and output play no part. An image outside the region fails.

        Raises:
            InputError: If an image cannot be used, or a transform makes the region another one for some images.
            EnvironmentProblemError: If the images cannot be written or the worker cannot be started.
        """
        super().__init__(_("{count} images").format(count=len(cases)), request)
        self._cases = tuple(cases)
        self._names = [nodes[0].GetName() for nodes in cases]
        self.cases = len(cases)
        self.segmentationNodes: list[Any] = [None] * len(cases)
        self.changes: list[SceneChange] = []
        self._taken = 0
        self._begin(request.command, request.options.host)
        # An image that is deleted meanwhile loses its own result only.
        self._watch = SceneWatch(self.name, cases[0][0].GetScene(), (), self.cancel)

    def poll(self) -> bool:
        """As of any job; results that have come in are put into the scene at once."""
        over = super().poll()
        if not over:
            self._takeResults()
        return over

    def undo(self) -> None:
        """Take the results out of the scene again."""
        for change in reversed(self.changes):
            change.undo()

    def _writeCases(self, folder: Path) -> list[str]:
        for number, nodes in enumerate(self._cases):
            self._writeCase(conversion.volumesFromNodes(nodes), folder, number)
        roiNode, images = self._request.roiNode, [nodes[0] for nodes in self._cases]
        self.notices += regionNotices(roiNode, images[0])
        return regionWords(commonRegion(roiNode, images) if roiNode is not None else None)

    def _caseName(self, name: str) -> str:
        number = int(name)
        return (
            f"{self._names[number]} ({number + 1})"
            if self._names.count(self._names[number]) > 1
            else self._names[number]
        )

    def _takeResults(self) -> None:
        for outcome in self.outcomes[self._taken :]:
            self._taken += 1
            number = next(k for k in range(len(self._cases)) if self._caseName(caseKey(k)) == outcome.case)
            if outcome.status != "done":
                continue
            if self._cases[number][0].GetScene() is None:
                gone = _("{case} was deleted before it was segmented, so there is no result for it.")
                self.notices.append(gone.format(case=outcome.case))
                continue
            try:
                self._take(number)
            except MambaSegError as error:
                self.notices.append(f"{outcome.case}: {error}")

    def _take(self, number: int) -> None:
        reference = self._cases[number][0]
        nodes = takeIn(self._files(number), reference, reference.GetName(), self._request.options)
        self.segmentationNodes[number] = nodes.segmentation
        self.changes.append(nodes.change)

    def _ended(self) -> None:
        super()._ended()
        self._takeResults()

    def _cancelled(self) -> str:
        return _("Cancelled. {done} of {cases} images are segmented; their results stay in the scene.").format(
            done=self.counts()["done"], cases=self.cases
        )

    def _result(self) -> Any:
        return tuple(self.segmentationNodes)


def commonRegion(roiNode: Any, nodes: Sequence[Any]) -> Bounds:
    """Bounds of a region that are the same in the coordinates of all images.

    Raises:
        InputError: If they are not, because the images lie under different transforms; or as `regionBounds`.
    """
    first, *others = [regionBounds(roiNode, node) for node in nodes]
    if all(np.allclose(first, bounds, rtol=0, atol=_SAME_MM) for bounds in others):
        return first
    message = _(
        "The images lie under different transforms, so that {roi} is not one region for all of them. Harden the "
        "transforms, or segment the images one by one."
    )
    raise InputError(message.format(roi=roiNode.GetName()))


def caseKey(number: int) -> str:
    """What the worker calls a case."""
    return f"{number:05d}"
