"""A row of the window in which a region is chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import slicer
import vtk

from MambaSegLib.model_zoo import ListedModel
from MambaSegmentationLib.region import fitRegion, trainedExtent


class RegionRow:
    """Watches the region that is chosen, since a person may drag it."""

    def __init__(self, selector: Any, imageOf: Callable[[], Any], onChange: Callable[[], None]) -> None:
        """Connect the widget.

        Args:
            selector: Chooses a markups ROI.
            imageOf: Gives the image the region is for; None if there is none.
            onChange: Called when another region is chosen, or this one is moved.
        """
        self._selector, self._imageOf, self._onChange = selector, imageOf, onChange
        self._largest_mm: Any = None
        self._node: Any = None
        self._tag = 0
        selector.setMRMLScene(slicer.mrmlScene)
        selector.nodeAddedByUser.connect(lambda node: self._place(node))
        selector.currentNodeIDChanged.connect(lambda *_: self._onRegion())

    def setModel(self, model: ListedModel | None) -> None:
        """A new region is no larger than the images a model knows."""
        self._largest_mm = trainedExtent(model.manifest.plan) if model and model.manifest else None

    def node(self) -> Any:
        """The region; None for whole images."""
        return self._selector.currentNode()

    def close(self) -> None:
        """Watch nothing any more."""
        self._watch(None)

    def _place(self, node: Any) -> None:
        """A new region is as large as the images the model knows, or holds all of a smaller one; its handles move it."""
        image = self._imageOf()
        if image is not None:
            fitRegion(node, image, self._largest_mm)

    def _onRegion(self) -> None:
        self._watch(self.node())
        self._onChange()

    def _watch(self, node: Any) -> None:
        if self._node is not None:
            self._node.RemoveObserver(self._tag)
        self._node = node
        if node is not None:
            self._tag = node.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: self._onChange())
