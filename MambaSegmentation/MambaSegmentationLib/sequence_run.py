"""All frames of an image that changes over time: the result is a sequence of segmentations, browsed with the image."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import slicer

from MambaSegLib.errors import EnvironmentProblemError, InputError
from MambaSegLib.volume import Labels
from MambaSegLib.volume_io import read_labels, read_volume
from MambaSegmentationLib import conversion
from MambaSegmentationLib.cases_run import CasesRun
from MambaSegmentationLib.frames import Frames, framesOf
from MambaSegmentationLib.region import regionWords
from MambaSegmentationLib.request import Request, checkedRegion, regionNotices
from MambaSegmentationLib.scene_change import SceneChange
from MambaSegmentationLib.scene_nodes import componentNode, tableNodeFromCsv, volumeNodeFromArray
from MambaSegmentationLib.scene_watch import SceneWatch
from MambaSegmentationLib.translation import tr as _
from MambaSegmentationLib.worker import Event


class SequenceRun(CasesRun):
    """Frames under way.

    Attributes:
        segmentationNode: Shows the segments of the frame the browser is at; None until done.
        sequenceNode: The segmentations of all frames; None until done.
        uncertaintyNode: Shows the uncertainty of the frame the browser is at, if asked for.
        statisticsNode: One table for all frames, if asked for.
        change: What was added to the scene; None until done.
    """

    def __init__(self, request: Request) -> None:
        """Copy the frames out of the scene and start the worker.

        Raises:
            InputError: If there is one frame only, the images or the region cannot be used, or the output is in use.
            EnvironmentProblemError: If the images cannot be written or the worker cannot be started.
        """
        super().__init__(request.nodes[0].GetName(), request)
        self.segmentationNode: Any = None
        self.sequenceNode: Any = None
        self.uncertaintyNode: Any = None
        self.statisticsNode: Any = None
        self.change: SceneChange | None = None
        self._frames: Frames = framesOf(request.nodes)
        self.cases = len(self._frames.indexValues)
        _checkOutput(request.outputNode)
        self._begin(request.command, request.options.host)
        nodes = [*request.nodes, *self._frames.sequences, self._frames.browser, request.outputNode]
        needed = [node for node in nodes if node is not None]
        self._watch = SceneWatch(self.name, request.nodes[0].GetScene(), needed, self.cancel)

    def undo(self) -> None:
        """Take the result out of the scene again."""
        if self.change is not None:
            self.change.undo()

    def _writeCases(self, folder: Path) -> list[str]:
        region: list[str] = []
        self.notices += regionNotices(self._request.roiNode, self._request.nodes[0])
        for number in range(self.cases):
            volumes = self._frames.volumes(number)
            region = region or regionWords(checkedRegion(self._request, volumes[0]))
            self._writeCase(volumes, folder, number)
        return region

    def _caseName(self, name: str) -> str:
        return _("Frame {number}").format(number=int(name) + 1)

    def _bringIn(self, result: Event) -> None:
        failed = [outcome for outcome in self.outcomes if outcome.status == "failed"]
        if len(failed) == self.cases:
            raise InputError(failed[0].message)
        sentence = _("{case} was not segmented: {reason}")
        self.notices += [sentence.format(case=outcome.case, reason=outcome.message) for outcome in failed]
        change = SceneChange(self._request.nodes[0].GetScene(), self._request.outputNode)
        with change:
            self._addAll()
        self.change = change

    def _addAll(self) -> None:
        frames = self._frames if self._frames.browser is not None else _asSequence(self._frames)
        reference = frames.nodes[0]
        current = frames.browser.GetSelectedItemNumber()
        segmentation, sequence = self._addSegmentations(frames, reference)
        uncertainty = self._addUncertainties(frames, reference) if self._request.options.uncertainty else None
        statistics = self._addStatistics(reference) if self._request.options.statistics else None
        frames.browser.SetSelectedItemNumber(current)
        slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(frames.browser)
        self.segmentationNode, self.sequenceNode = segmentation, sequence
        self.uncertaintyNode, self.statisticsNode = uncertainty, statistics

    def _addSegmentations(self, frames: Frames, reference: Any) -> tuple[Any, Any]:
        node = self._request.outputNode
        sequence = _newSequence(frames, f"{self.name} segmentations")
        for number, value in enumerate(frames.indexValues):
            if node is not None:
                node.GetSegmentation().RemoveAllSegments()
            labels = conversion.withSource(self._labels(number), f"{self.name}, frame {number + 1}")
            node = conversion.segmentationFromLabels(labels, reference, node, grid=self._grid(number))
            if self._request.options.show3D:
                node.CreateClosedSurfaceRepresentation()
            sequence.SetDataNodeAtValue(node, value)
        frames.browser.AddProxyNode(node, sequence, False)
        frames.browser.SetSaveChanges(sequence, True)  # a person who mends a frame would lose it otherwise
        return node, sequence

    def _addUncertainties(self, frames: Frames, reference: Any) -> Any:
        scene, node = reference.GetScene(), None
        sequence = _newSequence(frames, f"{self.name} uncertainties")
        for number, value in enumerate(frames.indexValues):
            path = self._files(number).uncertainty
            if path.is_file():
                if node is not None:
                    scene.RemoveNode(node)
                array = read_volume(path).array[0]
                name = scene.GetUniqueNameByString(f"{self.name} uncertainty")
                node = volumeNodeFromArray(array, reference, name, grid=self._grid(number))
                sequence.SetDataNodeAtValue(node, value)
        frames.browser.AddProxyNode(node, sequence, False)
        return node

    def _addStatistics(self, reference: Any) -> Any:
        rows: list[list[str]] = []
        for number in range(self.cases):
            path = self._files(number).statistics
            if path.is_file():
                with path.open(newline="", encoding="utf-8") as stream:
                    header, *lines = csv.reader(stream)
                rows += [] if rows else [["frame", *header]]
                rows += [[str(number + 1), *line] for line in lines]
        path = self._folder / "statistics.csv"
        with path.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows(rows)
        name = reference.GetScene().GetUniqueNameByString(f"{self.name} statistics")
        return tableNodeFromCsv(path, reference, name)

    def _grid(self, number: int) -> Any:
        return self._frames.contents(number)[0]

    def _labels(self, number: int) -> Labels:
        """Labels of a frame; none anywhere for a frame that failed, so that the browser shows no other frame's."""
        path = self._files(number).labels
        if path.is_file():
            return read_labels(path)
        table = next(read_labels(path) for k in range(self.cases) if (path := self._files(k).labels).is_file())
        geometry = conversion.volumeGeometry(self._grid(number))
        return Labels(np.zeros(geometry.shape, np.uint8), geometry, table.table, table.tags)

    def _result(self) -> Any:
        return self.segmentationNode


def _checkOutput(node: Any) -> None:
    if node is not None and node.GetSegmentation().GetNumberOfSegments() > 0:
        message = _(
            "The segmentation {name} holds segments, which would be lost between the frames. Choose a new "
            "segmentation for all frames."
        ).format(name=node.GetName())
        raise InputError(message)


def _newSequence(frames: Frames, name: str) -> Any:
    scene = frames.nodes[0].GetScene()
    node = scene.AddNewNodeByClass("vtkMRMLSequenceNode", scene.GetUniqueNameByString(name))
    master = frames.browser.GetMasterSequenceNode()
    node.SetIndexName(master.GetIndexName())
    node.SetIndexUnit(master.GetIndexUnit())
    node.SetIndexType(master.GetIndexType())
    return node


def _asSequence(frames: Frames) -> Frames:
    """Make a sequence of the components of a volume, since nothing else can be browsed."""
    source = frames.nodes[0]
    scene, name = source.GetScene(), source.GetName()
    sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode", scene.GetUniqueNameByString(f"{name} frames"))
    sequence.SetIndexName("frame")
    sequence.SetIndexUnit("")
    for number, value in enumerate(frames.indexValues):
        sequence.SetDataNodeAtValue(componentNode(source, number), value)
    browser = scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", f"{name} browser")
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)
    proxy = browser.GetProxyNode(sequence)
    if proxy is None:
        message = _("Slicer could not make a sequence of {name}. Load the file as a sequence instead.").format(
            name=name
        )
        raise EnvironmentProblemError(message)
    proxy.SetAndObserveTransformNodeID(source.GetTransformNodeID())
    conversion.putBeside(proxy, source)
    return Frames((proxy, *frames.nodes[1:]), frames.sequences, browser, frames.indexValues)
