"""What a run did to the scene, so that it can be undone.

Slicer's own undo is off by default and covers only nodes that have it switched on. Where it is on, these nodes have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import slicer

_SURFACE, _LABELMAP = "Closed surface", "Binary labelmap"


class SceneChange:
    """Remembers, for the time of a `with` block, what is added; an exception in it takes everything back at once.

    Attributes:
        undone: Whether it has been taken back.
    """

    def __init__(self, scene: Any, outputNode: Any = None) -> None:
        """Look at the scene as it is now.

        Args:
            scene: The scene.
            outputNode: Segmentation that exists and gets more segments; None if there is none.
        """
        self.undone = False
        self._scene = scene
        if scene.GetUndoFlag():
            scene.SaveStateForUndo()
        self._before = _nodeIds(scene)
        self._added: list[Any] = []
        self._voxels: dict[str, int] = {}
        self._output = _OutputState(outputNode) if outputNode is not None else None

    def __enter__(self) -> None:
        """Nothing to do: the scene was looked at before."""

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        """Note what is new, or take it back if something went wrong."""
        before = set(self._before)
        # The nodes themselves: after the scene is closed, another node may have the name one of them had.
        added = [self._scene.GetNodeByID(nodeId) for nodeId in _nodeIds(self._scene) if nodeId not in before]
        # Slicer makes the tree of all data when it is first asked for; it is nobody's to remove.
        self._added = [node for node in added if not node.IsA("vtkMRMLSubjectHierarchyNode")]
        for node in self._added:
            node.SetUndoEnabled(bool(self._scene.GetUndoFlag()))
        if self._output is not None:
            self._output.noteAdded()
        self._voxels = self._voxelTimes()
        if kind is not None:
            self.undo()

    @property
    def canBeUndone(self) -> bool:
        """Whether there is something left to take back."""
        nodes = [*self._added, *([self._output.node] if self._output is not None else [])]
        return not self.undone and any(self._scene.IsNodePresent(node) for node in nodes)

    @property
    def isEdited(self) -> bool:
        """Whether somebody has changed the segments since, which would be lost with them."""
        return not self.undone and self._voxelTimes() != self._voxels

    def _voxelTimes(self) -> dict[str, int]:
        """When the voxels of each segment were changed last; how they are shown plays no part."""
        times = {}
        for node in self._added:
            if node.IsA("vtkMRMLSegmentationNode") and self._scene.IsNodePresent(node):
                times |= _voxelTimes(node, _segmentIds(node.GetSegmentation()))
        if self._output is not None:
            times |= _voxelTimes(self._output.node, self._output.added)
        return times

    def undo(self) -> None:
        """Take back what was added; what has gone already is passed over."""
        if self.undone:
            return
        self.undone = True
        nodes = [node for node in reversed(self._added) if self._scene.IsNodePresent(node)]
        for node in nodes:
            if node.IsA("vtkMRMLSequenceNode"):
                _leaveBrowsers(self._scene, node)
        for node in nodes:
            if self._scene.IsNodePresent(node):
                _remove(self._scene, node)
        if self._output is not None:
            self._output.restore(self._scene)


class _OutputState:
    """What a segmentation node was like, and which segments it got."""

    def __init__(self, node: Any) -> None:
        segmentation = node.GetSegmentation()
        self.node = node
        self.added: list[str] = []
        self._segments = _segmentIds(segmentation)
        self._source = segmentation.GetSourceRepresentationName()
        self._surface = segmentation.ContainsRepresentation(_SURFACE)
        self._reference = node.GetNodeReferenceID(_referenceRole(node))
        self._transform = node.GetTransformNodeID()

    def noteAdded(self) -> None:
        """What is new now was added by the run; what comes later is a person's."""
        self.added = [name for name in _segmentIds(self.node.GetSegmentation()) if name not in self._segments]

    def restore(self, scene: Any) -> None:
        node, segmentation = self.node, self.node.GetSegmentation()
        if not scene.IsNodePresent(node):
            return
        for segmentId in self.added:
            segmentation.RemoveSegment(segmentId)
        if not self._surface and segmentation.ContainsRepresentation(_SURFACE):
            segmentation.RemoveRepresentation(_SURFACE)
        if segmentation.GetNumberOfSegments() == 0:
            segmentation.SetSourceRepresentationName(self._source)
            node.SetNodeReferenceID(_referenceRole(node), self._reference)
            node.SetAndObserveTransformNodeID(self._transform)


def _nodeIds(scene: Any) -> list[str]:
    return [scene.GetNthNode(number).GetID() for number in range(scene.GetNumberOfNodes())]


def _segmentIds(segmentation: Any) -> list[str]:
    return [segmentation.GetNthSegmentID(number) for number in range(segmentation.GetNumberOfSegments())]


def _voxelTimes(node: Any, segmentIds: Sequence[str]) -> dict[str, int]:
    times = {}
    for segmentId in segmentIds:
        segment = node.GetSegmentation().GetSegment(segmentId)
        image = segment.GetRepresentation(_LABELMAP) if segment is not None else None
        times[f"{node.GetID()} {segmentId}"] = image.GetMTime() if image is not None else 0
    return times


def _referenceRole(node: Any) -> str:
    role: str = node.GetReferenceImageGeometryReferenceRole()
    return role


def _leaveBrowsers(scene: Any, sequence: Any) -> None:
    browsers = scene.GetNodesByClass("vtkMRMLSequenceBrowserNode")
    browsers.UnRegister(None)
    for number in range(browsers.GetNumberOfItems()):
        browser = browsers.GetItemAsObject(number)
        if browser.IsSynchronizedSequenceNode(sequence, True):
            browser.RemoveSynchronizedSequenceNode(sequence.GetID())


def _remove(scene: Any, node: Any) -> None:
    """Take a node away with its place in the subject hierarchy, which Slicer's window would keep empty."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    item = hierarchy.GetItemByDataNode(node) if hierarchy is not None else 0
    if item:
        hierarchy.RemoveItem(item, False, False)
    scene.RemoveNode(node)
