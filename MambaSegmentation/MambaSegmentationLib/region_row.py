"""A row of the window in which a region is chosen, with a word about it where one is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import slicer
import vtk

from MambaSegLib.model_zoo import ListedModel
from MambaSegmentationLib.region import fitRegion, regionNote, trainedExtent


class RegionRow:
    """Selector and note; watches the region that is chosen, since a person may drag it."""

    def __init__(self, selector: Any, noteLabel: Any, imageOf: Callable[[], Any], onChange: Callable[[], None]) -> None:
        """Connect the widgets.

        Args:
            selector: Chooses a markups ROI.
            noteLabel: Says what to know about the region.
            imageOf: Gives the image the region is for; None if there is none.
            onChange: Called when another region is chosen, or this one is moved.
        """
        self._selector, self._label = selector, noteLabel
        self._imageOf, self._onChange = imageOf, onChange
        self._largest_mm: Any = None
        self._node: Any = None
        self._tag = 0
        selector.setMRMLScene(slicer.mrmlScene)
        selector.nodeAddedByUser.connect(lambda node: self._place(node))
        selector.currentNodeIDChanged.connect(lambda *_: self._onRegion())
        self.show()

    def setModel(self, model: ListedModel | None) -> None:
        """A new region is no larger than the images a model knows."""
        self._largest_mm = trainedExtent(model.manifest.plan) if model and model.manifest else None

    def node(self) -> Any:
        """The region; None for whole images."""
        return self._selector.currentNode()

    def show(self) -> None:
        """Say what to know about the region and the image there are now."""
        note = regionNote(self.node(), self._imageOf())
        self._label.setText(f"<small>{note}</small>")
        self._label.setVisible(bool(note))

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
        self._onRegionMoved()

    def _onRegionMoved(self) -> None:
        self.show()
        self._onChange()

    def _watch(self, node: Any) -> None:
        if self._node is not None:
            self._node.RemoveObserver(self._tag)
        self._node = node
        if node is not None:
            self._tag = node.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: self._onRegionMoved())
