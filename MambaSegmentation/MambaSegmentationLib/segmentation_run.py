"""One segmentation under way: files out of the scene, a worker process, the result into the scene.

The scene is touched only in `start` and, when all went well, at the very end; whatever goes wrong in between leaves it
as it was, and the temporary folder is removed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from MambaSegmentationLib import conversion, frames
from MambaSegmentationLib.job import Job
from MambaSegmentationLib.region import regionWords
from MambaSegmentationLib.request import Request, checkedRegion, predictionWords, regionNotices, writeChannels
from MambaSegmentationLib.results import ResultFiles, takeIn
from MambaSegmentationLib.scene_change import SceneChange
from MambaSegmentationLib.scene_watch import SceneWatch
from MambaSegmentationLib.translation import tr as _
from MambaSegmentationLib.worker import Event

if TYPE_CHECKING:
    import slicer


class SegmentationRun(Job):
    """A segmentation that has been started; `poll` it until its state is no longer "running".

    Attributes:
        segmentationNode: The result; None until done.
        uncertaintyNode: Volume of the uncertainty, if asked for.
        statisticsNode: Table of volumes and intensities, if asked for.
        change: What was added to the scene; None until done.
    """

    def __init__(self, request: Request) -> None:
        """Copy the images out of the scene and start the worker.

        Raises:
            InputError: If the images, the region or the output node cannot be used.
            EnvironmentProblemError: If the images cannot be written or the worker cannot be started.
        """
        super().__init__(request.nodes[0].GetName())
        self.segmentationNode: slicer.vtkMRMLSegmentationNode | None = None
        self.uncertaintyNode: slicer.vtkMRMLScalarVolumeNode | None = None
        self.statisticsNode: slicer.vtkMRMLTableNode | None = None
        self.change: SceneChange | None = None
        self._request = request
        self._source = frames.sourceName(request.nodes[0], request.options.frame)
        self._begin(request.command, request.options.host)
        output = [request.outputNode] if request.outputNode is not None else []
        scene = request.nodes[0].GetScene()
        self._watch = SceneWatch(self.name, scene, [*request.nodes, *output], self.cancel)

    def undo(self) -> None:
        """Take the result out of the scene again."""
        if self.change is not None:
            self.change.undo()

    def _words(self) -> list[str]:
        request, options = self._request, self._request.options
        volumes = conversion.volumesFromNodes(request.nodes, frame=options.frame)
        if request.outputNode is not None:
            conversion.checkOutput(request.outputNode, request.nodes[0])
        region = regionWords(checkedRegion(request, volumes[0]))
        self.notices += regionNotices(request.roiNode, request.nodes[0])
        paths = writeChannels(volumes, self._folder, "channel")
        self._call(paths, [volume.name for volume in volumes])
        channels = request.bundle.manifest.plan.channels
        words = [f"{channel.name}={path}" for channel, path in zip(channels, paths, strict=True)]
        words += ["-o", str(self._output("labels.seg.nrrd")), *predictionWords(request.bundle, options), *region]
        words += ["--uncertainty", str(self._output("uncertainty.nrrd"))] if options.uncertainty else []
        words += ["--statistics", str(self._output("statistics.csv"))] if options.statistics else []
        return ["segment", *words]

    def _output(self, name: str) -> Path:
        return self._folder / name

    def _ended(self) -> None:
        self._watch.stop()

    def _bringIn(self, result: Event) -> None:
        request = self._request
        files = ResultFiles(*map(self._output, ("labels.seg.nrrd", "uncertainty.nrrd", "statistics.csv")))
        nodes = takeIn(files, request.nodes[0], self._source, request.options, request.outputNode)
        if "device" in result:
            sentence = _("Computed on {device}, scan backend {backend}.")
            self.log.append(sentence.format(device=result["device"], backend=result.get("backend")))
        self.segmentationNode, self.change = nodes.segmentation, nodes.change
        self.uncertaintyNode, self.statisticsNode = nodes.uncertainty, nodes.statistics

    def _result(self) -> slicer.vtkMRMLSegmentationNode | None:
        return self.segmentationNode
