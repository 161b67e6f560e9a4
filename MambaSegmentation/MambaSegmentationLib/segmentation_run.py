"""One segmentation under way: files out of the scene, a worker process, the result into the scene.

The scene is touched only in `start` and, when all went well, at the very end; whatever goes wrong in between leaves it
as it was, and the temporary folder is removed.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import slicer

from MambaSegLib.bundle import Bundle
from MambaSegLib.errors import CancelledError, EnvironmentProblemError, InputError, MambaSegError
from MambaSegLib.progress import Progress
from MambaSegLib.volume_io import read_labels, read_volume, write_volume
from MambaSegmentationLib import conversion
from MambaSegmentationLib.worker import Event, Worker, libraryCommand, libraryEnvironment

State = Literal["running", "done", "failed", "cancelled"]
_KINDS = {2: InputError, 3: EnvironmentProblemError, 130: CancelledError}


@dataclass(frozen=True)
class Options:
    """How to segment.

    Attributes:
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        scan: Scan backend, or "auto".
        folds: Folds to average; () takes all.
        mirroring: Also average over mirrored images.
        uncertainty: Also make a volume of the uncertainty per voxel.
        statistics: Also make a table of volumes and intensities.
        show3D: Make surfaces, so that the segments appear in 3D views.
        frame: Which component of a 4D image, from 0; None if there is one.
    """

    device: str = "auto"
    scan: str = "auto"
    folds: tuple[int, ...] = ()
    mirroring: bool = False
    uncertainty: bool = False
    statistics: bool = False
    show3D: bool = False
    frame: int | None = None


@dataclass(frozen=True)
class Request:
    """What to segment.

    Attributes:
        nodes: Image per channel of the model, in its order.
        bundle: The model.
        options: How.
        roiNode: Only this region, a markups ROI; None for all.
        outputNode: Segmentation the result is added to; None makes one.
        command: First words of the worker's command line; () takes this Python and library.
    """

    nodes: tuple[slicer.vtkMRMLScalarVolumeNode, ...]
    bundle: Bundle
    options: Options = Options()
    roiNode: Any = None
    outputNode: slicer.vtkMRMLSegmentationNode | None = None
    command: tuple[str, ...] = ()


class SegmentationRun:
    """A segmentation that has been started; `poll` it until its state is no longer "running".

    Attributes:
        state: "running", "done", "failed" or "cancelled".
        progress: The last news.
        notices: What the person should know before trusting the result.
        log: What the worker said, line by line.
        error: Why there is no result; None while running or if there is one.
        segmentationNode: The result; None until done.
        uncertaintyNode: Volume of the uncertainty, if asked for.
        statisticsNode: Table of volumes and intensities, if asked for.
    """

    def __init__(self, request: Request) -> None:
        """Copy the images out of the scene and start the worker.

        Raises:
            InputError: If the images, the region or the output node cannot be used.
            EnvironmentProblemError: If the images cannot be written or the worker cannot be started.
        """
        self.state: State = "running"
        self.progress = Progress("Starting", 0, 1)
        self.notices: list[str] = []
        self.log: list[str] = []
        self.error: MambaSegError | None = None
        self.segmentationNode: slicer.vtkMRMLSegmentationNode | None = None
        self.uncertaintyNode: slicer.vtkMRMLScalarVolumeNode | None = None
        self.statisticsNode: slicer.vtkMRMLTableNode | None = None
        self._request = request
        self._reason = ""
        self._name = request.nodes[0].GetName()
        self._folder = Path(tempfile.mkdtemp(prefix="mambaseg-"))
        try:
            words = self._words()
            self._worker = Worker(words, environment=libraryEnvironment(), onEvent=self._hear, onLog=self.log.append)
        except BaseException as error:
            self._removeFolder()
            if isinstance(error, OSError):
                message = f"The segmentation process could not be started: {error}"
                raise EnvironmentProblemError(message) from error
            raise
        self._scene = request.nodes[0].GetScene()
        self._observed = self._observe()

    @property
    def secondsLeft(self) -> float | None:
        """Estimate of the time left; None while unknown."""
        return self.progress.seconds_left

    @property
    def workerPid(self) -> int:
        """Number of the worker process."""
        return self._worker.pid

    def poll(self) -> bool:
        """Take news from the worker; when it has ended, put the result into the scene.

        Returns:
            Whether all is over. It raises nothing: what went wrong is in `error`.
        """
        if self.state != "running":
            return True
        if not self._worker.poll():
            return False
        self._unobserve()
        try:
            self._finish()
        except MambaSegError as error:
            self._fail(error)
        except Exception as error:  # noqa: BLE001 (a defect must not leave the window waiting for ever)
            self._fail(EnvironmentProblemError(f"The result could not be put into the scene: {error}"))
        finally:
            self._removeFolder()
        return True

    def cancel(self, reason: str = "") -> None:
        """Stop; the worker and all it started have ended within 2 s. `poll` goes on until then.

        Args:
            reason: Why, for a person, if it was not the person who stopped it.
        """
        if self.state == "running" and not self._worker.cancelled:
            self._reason = reason
            self._worker.cancel()

    def wait(self, timeout_s: float | None = None) -> slicer.vtkMRMLSegmentationNode:
        """Wait for the result; the application's window stays alive.

        Raises:
            MambaSegError: Why there is no result.
            TimeoutError: If the time is over; the work goes on.
        """
        end = float("inf") if timeout_s is None else time.monotonic() + timeout_s
        while not self.poll():
            if time.monotonic() > end:
                message = f"{self._name} is still being segmented after {timeout_s:g} s."
                raise TimeoutError(message)
            slicer.app.processEvents()
            time.sleep(0.02)
        if self.error is not None:
            raise self.error
        assert self.segmentationNode is not None
        return self.segmentationNode

    def _words(self) -> list[str]:
        request, options = self._request, self._request.options
        volumes = conversion.volumesFromNodes(request.nodes, frame=options.frame)
        if request.outputNode is not None:
            conversion.checkOutput(request.outputNode, request.nodes[0])
        words = []
        channels = request.bundle.manifest.plan.channels
        for number, (channel, volume) in enumerate(zip(channels, volumes, strict=True)):
            path = self._folder / f"channel_{number}.mha"
            write_volume(volume.array[0], volume.geometry, path)
            words.append(f"{channel.name}={path}")
        words += ["-o", str(self._output("labels.seg.nrrd")), "--model", str(request.bundle.path)]
        words += ["--device", options.device, "--scan", options.scan, "--events", "--resample-channels"]
        if request.roiNode is not None:
            bounds = conversion.regionBounds(request.roiNode, request.nodes[0])
            conversion.regionBox(bounds, volumes[0].geometry)  # refuses a region outside before any work is done
            words += ["--roi", *(repr(bound) for bound in bounds)]
        if options.folds:
            words += ["--folds", ",".join(map(str, options.folds))]
        words += ["--mirroring"] if options.mirroring else []
        words += ["--uncertainty", str(self._output("uncertainty.nrrd"))] if options.uncertainty else []
        words += ["--statistics", str(self._output("statistics.csv"))] if options.statistics else []
        return [*(request.command or libraryCommand()), "segment", *words]

    def _output(self, name: str) -> Path:
        return self._folder / name

    def _hear(self, event: Event) -> None:
        if event["event"] == "progress":
            self.progress = Progress(
                str(event.get("stage", "")),
                int(event.get("done", 0)),
                max(1, int(event.get("total", 1))),
                event.get("seconds_left"),
            )
        elif event["event"] == "log":
            self.log.append(str(event.get("message", "")))
            if event.get("level") == "warning":
                self.notices.append(str(event.get("message", "")))

    def _finish(self) -> None:
        worker = self._worker
        if worker.cancelled:
            raise CancelledError(self._reason or "Cancelled. The scene is as it was before.")
        if worker.returnCode or worker.result is None:
            message = worker.failure() or "The segmentation process ended without a result."
            raise _KINDS.get(worker.returnCode or 3, EnvironmentProblemError)(message)
        self._bringIn(worker.result)
        self.state = "done"

    def _bringIn(self, result: Mapping[str, Any]) -> None:
        """Put the files into the scene; everything is read before anything is added."""
        reference, options = self._request.nodes[0], self._request.options
        labels = conversion.withSource(read_labels(self._output("labels.seg.nrrd")), self._name)
        uncertainty = read_volume(self._output("uncertainty.nrrd")).array[0] if options.uncertainty else None
        scene = reference.GetScene()
        self.segmentationNode = conversion.segmentationFromLabels(labels, reference, self._request.outputNode)
        if uncertainty is not None:
            name = scene.GetUniqueNameByString(f"{self._name} uncertainty")
            self.uncertaintyNode = conversion.volumeNodeFromArray(uncertainty, reference, name)
        if options.statistics:
            name = scene.GetUniqueNameByString(f"{self._name} statistics")
            self.statisticsNode = conversion.tableNodeFromCsv(self._output("statistics.csv"), reference, name)
        if options.show3D:
            self.segmentationNode.CreateClosedSurfaceRepresentation()
        self.notices = list(dict.fromkeys([*self.notices, *result.get("notices", ())]))

    def _fail(self, error: MambaSegError) -> None:
        self.error = error
        self.state = "cancelled" if isinstance(error, CancelledError) else "failed"

    def _observe(self) -> list[int]:
        scene = self._scene
        return [
            scene.AddObserver(scene.StartCloseEvent, self._onSceneClose),
            scene.AddObserver(scene.NodeRemovedEvent, self._onNodeRemoved),
        ]

    def _unobserve(self) -> None:
        for tag in self._observed:
            self._scene.RemoveObserver(tag)
        self._observed = []

    def _onSceneClose(self, *_: object) -> None:
        self.cancel(f"The scene was closed while {self._name} was being segmented, so the work was stopped.")

    def _onNodeRemoved(self, *_: object) -> None:
        request = self._request
        wanted = [*request.nodes, *([request.outputNode] if request.outputNode else [])]
        gone = [node.GetName() for node in wanted if not self._scene.IsNodePresent(node)]
        if gone:
            self.cancel(f"{gone[0]} was deleted while it was being used, so the work was stopped.")

    def _removeFolder(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
