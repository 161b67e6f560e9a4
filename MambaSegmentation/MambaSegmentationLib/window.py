"""The module's window: shows and asks. What is done is in `logic`; what can be said without widgets is in other files.

Qt is used in the way that Slicer's PythonQt and PySide6 share: set methods, `signal.connect`, and `property` to read.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from MambaSegLib.commands.reporting import progress_line
from MambaSegLib.errors import MambaSegError
from MambaSegLib.model_folders import default_models_folder
from MambaSegLib.model_zoo import ListedModel
from MambaSegLib.scan import BACKENDS
from MambaSegmentationLib import dependencies
from MambaSegmentationLib.logic import suggestedNodes
from MambaSegmentationLib.model_details import licenseQuestion, matches, modelHtml, modelTitle
from MambaSegmentationLib.segmentation_run import SegmentationRun

POLL_MS = 100


class Window:
    """Ties the widgets of the .ui file to the logic.

    Attributes:
        run: The segmentation under way or the last one; None before the first.
        confirm: Function (title, text) -> bool that asks the person.
        showError: Function (text) that tells the person.
        chooseFile: Function () -> path of a model to install, "" if none was chosen.
    """

    def __init__(self, root: Any, logic: Any, disclaimer: str) -> None:
        """Fill the widgets and connect their signals; nothing is installed or downloaded."""
        self.ui = slicer.util.childWidgetVariables(root)
        self.run: SegmentationRun | None = None
        self.confirm, self.showError, self.chooseFile = _confirm, slicer.util.errorDisplay, _chooseFile
        self._root = root
        self._logic = logic
        self._parameters: Any = None
        self._guiTag: Any = None
        self._channelSelectors: dict[str, Any] = {}
        self._models: tuple[ListedModel, ...] = ()
        self._shown: list[ListedModel] = []
        self._logged = 0
        self.ui.disclaimerLabel.setText(f"<b>{disclaimer}</b>")
        self._fillChoices()
        self._connectSignals()
        self._timer = qt.QTimer()
        self._timer.setInterval(POLL_MS)
        self._timer.timeout.connect(self._onTick)
        self._setBusy(False)

    def connect(self, parameters: Any) -> None:
        """Show a scene's stored choices, and store new ones there."""
        self.disconnect()
        self._parameters = parameters
        self._guiTag = parameters.connectGui(self._root)
        _choose(self.ui.deviceSelector, parameters.device)
        _choose(self.ui.backendSelector, parameters.backend)
        self.ui.wheelFolderEdit.setText(parameters.wheelFolder)
        self.refreshModels()

    def disconnect(self) -> None:
        """Store nothing more."""
        if self._parameters is not None and self._guiTag is not None:
            self._parameters.disconnectGui(self._guiTag)
        self._parameters, self._guiTag = None, None

    def close(self) -> None:
        """Stop what runs; its processes have ended when this returns."""
        self._timer.stop()
        self.disconnect()
        if self.run is not None and not self.run.poll():
            self.run.cancel()
            while not self.run.poll():
                slicer.app.processEvents()

    def refreshModels(self) -> None:
        """List the models anew, after one was installed or removed."""
        self._models = self._logic.models()
        self._onSearch()

    def _fillChoices(self) -> None:
        for name in ("auto", "cpu", "cuda", *(["mps"] if sys.platform == "darwin" else [])):
            self.ui.deviceSelector.addItem(name, name)
        self.ui.backendSelector.addItem("auto", "auto")
        for name in BACKENDS:
            reason = whyUnavailable(name)
            self.ui.backendSelector.addItem(f"{name} ({reason})" if reason else name, name)

    def _connectSignals(self) -> None:
        ui = self.ui
        ui.modelSearch.textChanged.connect(lambda *_: self._onSearch())
        ui.modelSelector.currentIndexChanged.connect(lambda *_: self._onModel())
        ui.deviceSelector.currentIndexChanged.connect(lambda *_: self._store("device", _chosen(ui.deviceSelector)))
        ui.backendSelector.currentIndexChanged.connect(lambda *_: self._store("backend", _chosen(ui.backendSelector)))
        ui.wheelFolderEdit.textChanged.connect(lambda text: self._store("wheelFolder", str(text)))
        ui.applyButton.clicked.connect(lambda *_: self._onApply())
        ui.cancelButton.clicked.connect(lambda *_: self.run and self.run.cancel())
        ui.installButton.clicked.connect(lambda *_: self._guarded(self._onInstall))
        ui.removeButton.clicked.connect(lambda *_: self._guarded(self._onRemove))
        ui.folderButton.clicked.connect(lambda *_: self._openFolder())
        ui.copyLogButton.clicked.connect(lambda *_: self._copyLog())

    def _store(self, name: str, value: str) -> None:
        if self._parameters is not None:
            setattr(self._parameters, name, value)

    def _onSearch(self) -> None:
        """Show the models that fit the search, the stored one chosen if it is among them."""
        self._shown = [model for model in self._models if matches(model, self.ui.modelSearch.property("text"))]
        selector = self.ui.modelSelector
        selector.blockSignals(True)
        selector.clear()
        for model in self._shown:
            selector.addItem(modelTitle(model), model.name)
        names = [model.name for model in self._shown]
        stored = self._parameters.model if self._parameters is not None else ""
        selector.setCurrentIndex(names.index(stored) if stored in names else 0 if names else -1)
        selector.blockSignals(False)
        self._onModel()

    def _model(self) -> ListedModel | None:
        number = self.ui.modelSelector.property("currentIndex")
        return self._shown[number] if 0 <= number < len(self._shown) else None

    def _onModel(self) -> None:
        model = self._model()
        none = _("No model fits. Clear the search, or install a model from a file.")
        self.ui.modelDetails.setHtml(modelHtml(model) if model else none)
        self.ui.removeButton.setEnabled(model is not None and model.origin == "installed")
        if model is not None:
            self._store("model", model.name)
        self._makeChannelSelectors(model)
        self._setBusy(self._isBusy())

    def _makeChannelSelectors(self, model: ListedModel | None) -> None:
        layout = self.ui.channelArea.layout()
        for selector in self._channelSelectors.values():
            layout.removeRow(selector)
        channels = model.manifest.plan.channels if model and model.manifest else ()
        self._channelSelectors = {}
        for channel in channels:
            selector = slicer.qMRMLNodeComboBox()
            selector.setProperty("nodeTypes", ["vtkMRMLScalarVolumeNode"])
            for option in ("addEnabled", "removeEnabled", "renameEnabled", "showChildNodeTypes"):
                selector.setProperty(option, False)
            selector.setProperty("noneEnabled", True)
            selector.setMRMLScene(slicer.mrmlScene)
            layout.addRow(f"{channel.name} {channel.modality}:", selector)
            self._channelSelectors[channel.name] = selector
            # currentNodeChanged has two forms in qMRML, of which PythonQt picks one; this signal has one.
            selector.currentNodeIDChanged.connect(lambda *_, name=channel.name: self._storeImage(name))
        self._showImages(channels)

    def _showImages(self, channels: Any) -> None:
        """Stored images first; else those whose names fit."""
        nodes = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
        images = [node for node in nodes if not node.IsA("vtkMRMLLabelMapVolumeNode")]
        for channel, guess in zip(channels, suggestedNodes(channels, images) if channels else (), strict=True):
            stored = (
                self._parameters.parameterNode.GetNodeReference(f"channel_{channel.name}") if self._parameters else None
            )
            self._channelSelectors[channel.name].setCurrentNode(stored or guess)

    def _storeImage(self, channel: str) -> None:
        node = self._channelSelectors[channel].currentNode()
        if self._parameters is not None:
            self._parameters.parameterNode.SetNodeReferenceID(f"channel_{channel}", node.GetID() if node else None)
        self._setBusy(self._isBusy())

    def _isBusy(self) -> bool:
        return self.run is not None and self.run.state == "running"

    def _setBusy(self, busy: bool) -> None:
        model = self._model()
        images = [selector.currentNode() for selector in self._channelSelectors.values()]
        ready = model is not None and not model.problem and bool(images) and all(images)
        self.ui.applyButton.setEnabled(ready and not busy)
        reason = _("Segment the image") if ready else _("Choose a model and an image for each of its channels")
        self.ui.applyButton.setToolTip(_("A segmentation is running") if busy else reason)
        self.ui.cancelButton.setEnabled(busy)
        for name in ("modelGroup", "inputGroup", "advancedGroup"):
            getattr(self.ui, name).setEnabled(not busy)

    def _onApply(self) -> None:
        self.ui.warningLabel.setText("")
        self.ui.logText.clear()
        self.ui.progressBar.setValue(0)
        self._logged = 0
        try:
            if not self._installMissing():
                self.ui.statusLabel.setText(_("Nothing was installed, so nothing was segmented."))
                return
            self.run = self._start()
        except MambaSegError as error:
            self._tell(error)
            return
        self._setBusy(True)
        self._timer.start()

    def _installMissing(self) -> bool:
        """Ask for and install what is missing; returns whether segmenting can start."""
        missing = dependencies.missingPackages()
        if not missing:
            return True
        text = str(self._parameters.wheelFolder).strip()
        folder = Path(text) if text else None
        question = dependencies.consent(missing, folder)
        if not self.confirm(question.title, question.text):
            return False
        self.ui.statusLabel.setText(_("Installing packages..."))
        dependencies.install(missing, wheelFolder=folder)
        return True

    def _start(self) -> SegmentationRun:
        parameters = self._parameters
        model = self._model()
        assert model is not None
        run: SegmentationRun = self._logic.segment(
            {name: selector.currentNode() for name, selector in self._channelSelectors.items()},
            model=model.name,
            device=parameters.device,
            scan=parameters.backend,
            roiNode=parameters.roi,
            outputNode=parameters.output,
            wait=False,
            **{name: getattr(parameters, name) for name in ("mirroring", "uncertainty", "statistics", "show3D")},
        )
        return run

    def _onTick(self) -> None:
        run = self.run
        assert run is not None
        over = run.poll()
        for line in run.log[self._logged :]:
            self.ui.logText.appendPlainText(line)
        self._logged = len(run.log)
        self.ui.progressBar.setValue(100 * run.progress.done // max(1, run.progress.total))
        self.ui.statusLabel.setText(progress_line(run.progress))
        self.ui.warningLabel.setText("<br>".join(f"<b>{_('Notice:')}</b> {notice}" for notice in run.notices))
        if over:
            self._timer.stop()
            self._setBusy(False)
            self._showEnd(run)

    def _showEnd(self, run: SegmentationRun) -> None:
        if run.error is None:
            assert run.segmentationNode is not None
            self.ui.progressBar.setValue(100)
            self.ui.statusLabel.setText(_("Done: {name}").format(name=run.segmentationNode.GetName()))
            return
        self.ui.progressBar.setValue(0)
        if run.state == "cancelled":
            self.ui.statusLabel.setText(str(run.error))
        else:
            self._tell(run.error)

    def _tell(self, error: MambaSegError) -> None:
        self.ui.statusLabel.setText(str(error))
        self.ui.logText.appendPlainText(str(error))
        self.showError(str(error))

    def _guarded(self, action: Any) -> None:
        try:
            action()
        except MambaSegError as error:
            self._tell(error)

    def _onInstall(self) -> None:
        path = self.chooseFile()
        if path:
            model = self._logic.installModel(path)
            question = licenseQuestion(model)
            if question and not self.confirm(_("License of the model"), question):
                self._logic.removeModel(model.name)
                self.refreshModels()
                self.ui.statusLabel.setText(_("{name} was not kept.").format(name=model.name))
                return
            self._store("model", model.name)
            self.ui.modelSearch.setText("")
            self.refreshModels()
            self.ui.statusLabel.setText(_("Installed {name}").format(name=model.name))

    def _onRemove(self) -> None:
        model = self._model()
        if model and self.confirm(_("Remove model"), _("Delete {name} from this computer?").format(name=model.name)):
            self._logic.removeModel(model.name)
            self.refreshModels()

    def _openFolder(self) -> None:
        folder = self._logic.segmenter.modelsFolder or default_models_folder()
        folder.mkdir(parents=True, exist_ok=True)
        qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(folder)))

    def _copyLog(self) -> None:
        qt.QApplication.clipboard().setText(self.ui.logText.property("plainText"))


def whyUnavailable(backend: str) -> str:
    """Why a scan backend cannot be there, as far as can be told without loading PyTorch; "" if nothing speaks against."""
    needed = {"mamba_ssm": "mamba_ssm", "triton": "triton", "numba": "numba"}.get(backend)
    if needed and importlib.util.find_spec(needed) is None:
        return _("not available: package {name} is not installed").format(name=needed)
    return _("needs an NVIDIA GPU") if backend in ("mamba_ssm", "triton") else ""


def _chosen(selector: Any) -> str:
    return str(selector.itemData(selector.property("currentIndex")))


def _choose(selector: Any, value: str) -> None:
    selector.setCurrentIndex(max(0, selector.findData(value)))


def _confirm(title: str, text: str) -> bool:
    return bool(slicer.util.confirmOkCancelDisplay(text, windowTitle=title))


def _chooseFile() -> str:
    chosen = qt.QFileDialog.getOpenFileName(None, _("Install a model"), "", _("Model (*.zip bundle.json)"))
    # PythonQt gives the path, PySide6 the path and the filter.
    path = Path(chosen if isinstance(chosen, str) else chosen[0])
    return str(path.parent if path.name == "bundle.json" else path) if path.name else ""
