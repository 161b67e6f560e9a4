"""Part of the window: which image is which channel, which frames, which region, and where the result goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qt
import slicer

from MambaSegLib.model_zoo import ListedModel
from MambaSegLib.plan import Channel
from MambaSegmentationLib.channels import activeImage, isImage, suggestedNodes
from MambaSegmentationLib.choices import Choices
from MambaSegmentationLib.frames import numberOfFrames
from MambaSegmentationLib.region import regionNote
from MambaSegmentationLib.region_row import RegionRow
from MambaSegmentationLib.translation import tr as _
from MambaSegmentationLib.widgets import choose, chosen, fill


class InputsSection:
    """One selector per channel of the model, and what belongs to it.

    Attributes:
        onChange: Called when another image, region or frame is chosen.
    """

    def __init__(self, ui: Any, choices: Choices) -> None:
        """Connect the widgets; `setModel` shows the selectors."""
        self.onChange: Callable[[], None] = lambda: None
        self._ui, self._choices = ui, choices
        self._channels: tuple[Channel, ...] = ()
        self._rows: list[tuple[Any, Any]] = []
        self._region = RegionRow(ui.roiSelector, self._image, self._onRegion)
        ui.outputSelector.setMRMLScene(slicer.mrmlScene)
        fill(ui.framesSelector, [("current", _("The one that is shown")), ("all", _("All"))], "current")
        ui.framesSelector.currentIndexChanged.connect(lambda *_: self._onFrames())

    def labels(self) -> list[Any]:
        """Labels of the rows, to be aligned."""
        return [label for label, _selector in self._rows]

    def selectors(self) -> dict[str, Any]:
        """Selector per channel that is shown."""
        return {channel.name: self._rows[number][1] for number, channel in enumerate(self._channels)}

    def nodes(self) -> dict[str, Any]:
        """Image per channel; None where none is chosen."""
        return {name: selector.currentNode() for name, selector in self.selectors().items()}

    def frames(self) -> str:
        """Whether the "current" frame is to be segmented, or "all"."""
        return chosen(self._ui.framesSelector) if self._count() > 1 else "current"

    def setModel(self, model: ListedModel | None) -> None:
        """Show a row per channel of a model, with the stored images, else those whose names fit."""
        channels = model.manifest.plan.channels if model and model.manifest else ()
        self._region.setModel(model)
        if channels == self._channels:
            return
        self._channels = tuple(channels)
        while len(self._rows) < len(channels):
            self._addRow()
        # Rows are hidden, not deleted: PythonQt has no way to delete a row that is there in every version.
        for number, (label, selector) in enumerate(self._rows):
            label.setVisible(number < len(channels))
            selector.setVisible(number < len(channels))
            if number < len(channels):
                label.setText(_channelTitle(channels[number]))
                selector.setToolTip(_("The image the model calls {name}").format(name=channels[number].name))
        self.show()
        self.guess()

    def show(self) -> None:
        """Show the stored choices."""
        for name, selector in self.selectors().items():
            node = self._choices.channelNode(name)
            if selector.currentNode() is not node:
                selector.blockSignals(True)
                selector.setCurrentNode(node)
                selector.blockSignals(False)
        choose(self._ui.framesSelector, self._choices.get("frames", "current"))
        self._showFrames()
        self.showRegionNote()

    def showRegionNote(self) -> None:
        """Say what to know about the region and the image there are now."""
        note = regionNote(self._region.node(), self._image())
        self._ui.roiNoteLabel.setText(f"<small>{note}</small>")
        self._ui.roiNoteLabel.setVisible(bool(note))

    def close(self) -> None:
        """Watch nothing any more."""
        self._region.close()

    def _onRegion(self) -> None:
        self.showRegionNote()
        self.onChange()

    def _addRow(self) -> None:
        number = len(self._rows)
        selector = slicer.qMRMLNodeComboBox()
        selector.setProperty("nodeTypes", ["vtkMRMLScalarVolumeNode", "vtkMRMLVectorVolumeNode"])
        for option in ("addEnabled", "removeEnabled", "renameEnabled", "showChildNodeTypes"):
            selector.setProperty(option, False)
        selector.setProperty("noneEnabled", True)
        selector.setMRMLScene(slicer.mrmlScene)
        label = qt.QLabel("")
        self._ui.singleArea.layout().insertRow(number, label, selector)
        self._rows.append((label, selector))
        # currentNodeChanged has two forms in qMRML, of which PythonQt picks one; this signal has one.
        selector.currentNodeIDChanged.connect(lambda *_: self._onImage(number))

    def _onImage(self, number: int) -> None:
        if number < len(self._channels):
            self._choices.storeChannelNode(self._channels[number].name, self._rows[number][1].currentNode())
        self._showFrames()
        self.showRegionNote()
        self.onChange()

    def _image(self) -> Any:
        """The first image that is chosen; None if none is."""
        return next((node for node in self.nodes().values() if node is not None), None)

    def _onFrames(self) -> None:
        self._choices.store("frames", chosen(self._ui.framesSelector))
        self.onChange()

    def guess(self) -> None:
        """Choose images for channels that have none, of those that no other channel has."""
        selectors = self.selectors()
        if not selectors or not self._choices:
            return
        taken = [selector.currentNode() for selector in selectors.values()]
        images = [node for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode") if isImage(node)]
        guesses = suggestedNodes(self._channels, images, activeImage())
        for selector, guess in zip(selectors.values(), guesses, strict=True):
            if selector.currentNode() is None and guess is not None and guess not in taken:
                selector.setCurrentNode(guess)

    def _count(self) -> int:
        return max([numberOfFrames(node) for node in self.nodes().values() if node is not None], default=1)

    def _showFrames(self) -> None:
        count = self._count()
        self._ui.framesSelector.setItemText(1, _("All {count}").format(count=count))
        for widget in (self._ui.framesLabel, self._ui.framesSelector):
            widget.setVisible(count > 1)


def _channelTitle(channel: Channel) -> str:
    known = not channel.modality or channel.modality.lower() in channel.name.lower()
    return f"{channel.name}:" if known else f"{channel.name} ({channel.modality}):"
