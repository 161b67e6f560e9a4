"""Part of the window: many images at once, from a folder, the scene or the DICOM database."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import qt
import slicer

from MambaSegLib.commands.reporting import duration
from MambaSegLib.model_zoo import ListedModel
from MambaSegmentationLib.batch_run import BatchRun, CaseOutcome
from MambaSegmentationLib.channels import activeImage, isImage, sceneCases
from MambaSegmentationLib.choices import Choices
from MambaSegmentationLib.dicom_series import databaseSeries
from MambaSegmentationLib.outcomes_file import earlierOutcomes
from MambaSegmentationLib.region import regionNote
from MambaSegmentationLib.region_row import RegionRow
from MambaSegmentationLib.translation import tr as _
from MambaSegmentationLib.widgets import Dialogs, choose, chooseInto, chosen, fill, setText

FORMATS = (".seg.nrrd", ".nii.gz", ".nrrd", ".mha")
_ROW_PIXELS = 22


class BatchSection:
    """Source, destination and table of outcomes.

    Attributes:
        onChange: Called when something else is chosen.
    """

    def __init__(self, ui: Any, segmenter: Any, choices: Choices, dialogs: Dialogs) -> None:
        """Fill and connect the widgets."""
        self.onChange: Callable[[], None] = lambda: None
        self._ui, self._segmenter, self._choices, self._dialogs = ui, segmenter, choices, dialogs
        self._model: ListedModel | None = None
        self._items: list[Any] = []
        self._listed = ""
        sources = [("folder", _("A folder of files")), ("scene", _("Images in the scene"))]
        sources += [("dicom", _("DICOM database"))] if _database() is not None else []
        fill(ui.sourceSelector, sources, "folder")
        fill(ui.fileFormatSelector, [(name, name) for name in FORMATS], FORMATS[0])
        self._region = RegionRow(ui.batchRoiSelector, activeImage, self._onRegion)
        self._makeTable()
        self._connect()

    def labels(self) -> list[Any]:
        """Labels of the rows, to be aligned."""
        ui = self._ui
        return [ui.sourceLabel, ui.inputFolderLabel, ui.batchRoiLabel, ui.outputFolderLabel, ui.fileFormatLabel]

    def setModel(self, model: ListedModel | None) -> None:
        """The model decides which images there are to choose from."""
        self._model = model
        self._region.setModel(model)
        self._list()

    def show(self) -> None:
        """Show the stored choices."""
        choose(self._ui.sourceSelector, self._choices.get("batchSource", "folder"))
        choose(self._ui.fileFormatSelector, self._choices.get("fileFormat", FORMATS[0]))
        setText(self._ui.inputFolderEdit, self._choices.get("inputFolder"))
        setText(self._ui.outputFolderEdit, self._choices.get("outputFolder"))
        self._showSource()

    def close(self) -> None:
        """Watch nothing any more."""
        self._region.close()

    def missing(self) -> str:
        """What is left to be chosen, for a person; "" if nothing is."""
        source = chosen(self._ui.sourceSelector)
        if source == "folder" and not self._choices.get("inputFolder"):
            return _("Choose a folder of images")
        if source != "folder" and not self._marked():
            return _("Mark at least one image")
        if source != "scene" and not self._choices.get("outputFolder"):
            return _("Choose an output folder")
        return ""

    def start(self, model: str, options: dict[str, Any]) -> BatchRun:
        """Start what is chosen.

        Raises:
            MambaSegError: As `Segmenter.startMany` and its sisters.
        """
        source, marked = chosen(self._ui.sourceSelector), self._marked()
        words = {"model": model, "roiNode": self._region.node(), **options}
        if source == "scene":
            nodes = [slicer.mrmlScene.GetNodeByID(nodeId) for nodeId in marked]
            assert self._model is not None
            assert self._model.manifest is not None
            cases = sceneCases(self._model.manifest.plan.channels, [node for node in nodes if node is not None])
            run: BatchRun = self._segmenter.startMany(cases, **words)
            return run
        words |= {"fileFormat": chosen(self._ui.fileFormatSelector)}
        target = self._choices.get("outputFolder")
        if source == "dicom":
            run = self._segmenter.startDicom(marked, target, **words)
        else:
            run = self._segmenter.startFolder(self._choices.get("inputFolder"), target, **words)
        return run

    def showOutcomes(self, outcomes: Sequence[CaseOutcome]) -> None:
        """Fill the table."""
        words = {"done": _("Done"), "skipped": _("Done before"), "failed": _("Failed")}
        table = self._ui.outcomeTable
        table.setRowCount(len(outcomes))
        for row, outcome in enumerate(outcomes):
            time = duration(outcome.seconds) if outcome.status != "skipped" else ""
            cells = (outcome.case, words.get(outcome.status, outcome.status), time, outcome.message)
            for column, text in enumerate(cells):
                item = qt.QTableWidgetItem(text)
                item.setToolTip(text)
                table.setItem(row, column, item)
        for column in range(3):  # the notes take what is left; they can be read in full as a tooltip
            table.resizeColumnToContents(column)
        table.setVisible(bool(outcomes))

    def _connect(self) -> None:
        ui, choices, dialogs = self._ui, self._choices, self._dialogs
        ui.sourceSelector.currentIndexChanged.connect(lambda *_: self._onSource())
        ui.fileFormatSelector.currentIndexChanged.connect(
            lambda *_: choices.store("fileFormat", chosen(ui.fileFormatSelector))
        )
        ui.inputFolderEdit.textChanged.connect(lambda text: self._onFolder("inputFolder", str(text)))
        ui.outputFolderEdit.textChanged.connect(lambda text: self._onFolder("outputFolder", str(text)))
        ui.inputFolderButton.clicked.connect(
            lambda *_args: chooseInto(ui.inputFolderEdit, dialogs.chooseFolder(_("Folder of images")))
        )
        ui.outputFolderButton.clicked.connect(
            lambda *_args: chooseInto(ui.outputFolderEdit, dialogs.chooseFolder(_("Folder for the segmentations")))
        )
        ui.caseList.itemChanged.connect(lambda *_: self._onRegion())
        ui.openOutputButton.clicked.connect(lambda *_: dialogs.openFolder(Path(choices.get("outputFolder"))))

    def _onSource(self) -> None:
        self._choices.store("batchSource", chosen(self._ui.sourceSelector))
        self._showSource()
        self.onChange()

    def _onRegion(self) -> None:
        """The region is another one, or lies otherwise in the images that are marked now."""
        self._showHint()
        self.onChange()

    def _onFolder(self, name: str, text: str) -> None:
        self._choices.store(name, text.strip())
        if name == "outputFolder":
            self.showOutcomes(earlierOutcomes(Path(text.strip())) if text.strip() else ())
        self._showSource()
        self.onChange()

    def _showSource(self) -> None:
        ui, source = self._ui, chosen(self._ui.sourceSelector)
        shown = {
            (ui.inputFolderLabel, ui.inputFolderArea): source == "folder",
            (ui.caseList,): source != "folder",
            (ui.outputFolderLabel, ui.outputFolderArea, ui.fileFormatLabel, ui.fileFormatSelector): source != "scene",
            (ui.openOutputButton,): source != "scene" and bool(self._choices.get("outputFolder")),
        }
        for widgets, visible in shown.items():
            for widget in widgets:
                widget.setVisible(visible)
        self._showHint()
        # Looking through a large DICOM database takes seconds: not whenever anything is chosen.
        if source == "scene" or (source == "dicom" and self._listed != source):
            self._list()

    def _showHint(self) -> None:
        hints, roiNode = [self._hint(chosen(self._ui.sourceSelector))], self._region.node()
        if roiNode is not None:
            outside = _("Images outside the region fail, and the others are segmented.")
            hints += [outside, regionNote(roiNode, self._firstImage())]
        self._ui.batchHintLabel.setText(f"<small>{' '.join(filter(None, hints))}</small>")

    def _firstImage(self) -> Any:
        """The first marked image of the scene; None if there is none, or files are segmented."""
        marked = self._marked() if chosen(self._ui.sourceSelector) == "scene" else []
        return slicer.mrmlScene.GetNodeByID(marked[0]) if marked else None

    def _hint(self, source: str) -> str:
        if source == "scene":
            return _("Each result appears in the scene beside its image.")
        if source == "dicom":
            return _("Started again with the same folders, the work goes on where it stopped.")
        channels = self._model.manifest.plan.channels if self._model and self._model.manifest else ()
        if len(channels) > 1:
            names = ", ".join(f"CASE_{number:04d}.nii.gz ({channel.name})" for number, channel in enumerate(channels))
            return _("Expected: {names}. Started again, the work goes on where it stopped.").format(names=names)
        return _("NIfTI, NRRD, MetaImage, or folders of DICOM files. Started again, the work goes on where it stopped.")

    def _list(self) -> None:
        """List the images again, and mark those that were marked."""
        source, marked = chosen(self._ui.sourceSelector), set(self._marked())
        self._listed = source
        entries: list[tuple[Any, str]] = []
        if source == "scene":
            images = [node for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode") if isImage(node)]
            entries = [(node.GetID(), node.GetName()) for node in images]
        elif source == "dicom":
            entries = [(series, series.title) for series in databaseSeries(_database(), self._modalities())]
        if [value for value, _title in entries] == self._items:
            return
        self._items = [value for value, _title in entries]
        items = self._ui.caseList
        items.blockSignals(True)
        items.clear()
        for number, (value, title) in enumerate(entries):
            items.addItem(title)
            items.item(number).setCheckState(qt.Qt.Checked if value in marked else qt.Qt.Unchecked)
        items.blockSignals(False)

    def _marked(self) -> list[Any]:
        items = self._ui.caseList
        count = min(len(self._items), int(items.property("count")))
        return [self._items[number] for number in range(count) if items.item(number).checkState() == qt.Qt.Checked]

    def _modalities(self) -> tuple[str, ...]:
        channels = self._model.manifest.plan.channels if self._model and self._model.manifest else ()
        return tuple({channel.modality for channel in channels if channel.modality})

    def _makeTable(self) -> None:
        table = self._ui.outcomeTable
        table.setColumnCount(4)
        table.setHorizontalHeaderLabels([_("Case"), _("Outcome"), _("Time"), _("Notes")])
        table.setEditTriggers(qt.QAbstractItemView.NoEditTriggers)
        table.setSelectionBehavior(qt.QAbstractItemView.SelectRows)
        table.verticalHeader().setVisible(False)
        table.verticalHeader().setDefaultSectionSize(_ROW_PIXELS)
        table.horizontalHeader().setStretchLastSection(True)
        table.setVisible(False)


def _database() -> Any:
    """Slicer's DICOM database; None where there is none."""
    return getattr(slicer, "dicomDatabase", None)
