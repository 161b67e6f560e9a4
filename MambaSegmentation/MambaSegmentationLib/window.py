"""The module's window: shows and asks. What is done is in `logic`; what can be said without widgets is in other files.

Each part of the window has a file of its own (`..._section.py`); this one ties them together and runs Apply and Cancel.
"""

from __future__ import annotations

import time
from typing import Any

import qt
import slicer

from MambaSegLib import __version__
from MambaSegLib.commands.failures import explained
from MambaSegLib.commands.reporting import duration
from MambaSegLib.errors import MambaSegError
from MambaSegLib.model_zoo import ListedModel
from MambaSegmentationLib import dependencies
from MambaSegmentationLib.batch_run import BatchRun
from MambaSegmentationLib.batch_section import BatchSection
from MambaSegmentationLib.choices import Choices
from MambaSegmentationLib.compute_section import ComputeSection
from MambaSegmentationLib.computer import ComputerRun
from MambaSegmentationLib.consents import Consents
from MambaSegmentationLib.frames import numberOfFrames
from MambaSegmentationLib.inputs_section import InputsSection
from MambaSegmentationLib.install_run import InstallRun
from MambaSegmentationLib.job import Job
from MambaSegmentationLib.model_section import ModelSection
from MambaSegmentationLib.need_section import NeedSection, needKey
from MambaSegmentationLib.run_section import RunSection
from MambaSegmentationLib.scene_change import SceneChange
from MambaSegmentationLib.translation import tr as _
from MambaSegmentationLib.widgets import Dialogs, alignLabels

POLL_MS = 100
TABS = ("single", "batch")


class Window:
    """Ties the widgets of the .ui file to the logic.

    Attributes:
        run: The segmentation or installation under way or the last one; None before the first.
        dialogs: How the person is asked and told.
    """

    def __init__(self, root: Any, logic: Any, disclaimer: str) -> None:
        """Fill the widgets and connect their signals; nothing is installed or downloaded."""
        self.ui = slicer.util.childWidgetVariables(root)
        self.run: Job | None = None
        self.dialogs = Dialogs()
        self._segmenter = logic.segmenter
        self._choices = Choices()
        self._guiTag: Any = None
        self._began = 0.0
        self._installing = False
        self.models = ModelSection(self.ui, self._segmenter, self._choices, self.dialogs)
        self.inputs = InputsSection(self.ui, self._choices)
        self.batch = BatchSection(self.ui, self._segmenter, self._choices, self.dialogs)
        self.compute = ComputeSection(self.ui, self._choices, self.dialogs)
        self.need = NeedSection(self.ui)
        self.runs = RunSection(self.ui)
        self.consents = Consents(self.dialogs, self.runs.say)
        self._connectSections()
        self._connectButtons(disclaimer)
        self._fitTab()
        self._timer = qt.QTimer()
        self._timer.setInterval(POLL_MS)
        self._timer.timeout.connect(self._onTick)
        self._soon = qt.QTimer()
        self._soon.setSingleShot(True)
        self._soon.timeout.connect(self._onScene)
        scene = slicer.mrmlScene
        events = (scene.NodeAddedEvent, scene.NodeRemovedEvent)
        # Not at once: a node that is added gets its name and its voxels only afterwards.
        self._sceneTags = [scene.AddObserver(event, lambda *_: self._soon.start(0)) for event in events]
        self._update()

    def connect(self, parameters: Any) -> None:
        """Show a scene's stored choices, and store new ones there."""
        self.disconnect()
        self._choices.connect(parameters, self._showChoices)
        # Not `connectGui`: it returns no tag, so that its connections stay (Slicer issue 7547, pull request 8667).
        self._guiTag = parameters.connectParametersToGui(self._boundWidgets())
        self._parameters = parameters
        self.show()

    def _boundWidgets(self) -> dict[str, Any]:
        """Parameter -> widget that shows and changes it by itself."""
        ui = self.ui
        checks = {"show3D": ui.show3DCheck, "uncertainty": ui.uncertaintyCheck, "statistics": ui.statisticsCheck}
        nodes = {"roi": ui.roiSelector, "batchRoi": ui.batchRoiSelector, "output": ui.outputSelector}
        return nodes | checks

    def show(self) -> None:
        """Show the models there are now and the stored choices."""
        self.models.refresh()
        self._showChoices()

    def forget(self) -> None:
        """The scene was closed: what was said of the last run spoke of it."""
        if not self._isBusy():
            self.runs.warn([])
            self.runs.say("")

    def uses(self, node: Any) -> bool:
        """Whether this is the parameter node whose choices are shown."""
        return bool(self._choices) and self._parameters.parameterNode is node

    def disconnect(self) -> None:
        """Store nothing more."""
        if self._guiTag is not None:
            self._parameters.disconnectGui(self._guiTag)
        self._guiTag = None
        self._choices.disconnect()

    def close(self) -> None:
        """Stop what runs; its processes have ended when this returns."""
        self._timer.stop()
        self.disconnect()
        for section in (self.models, self.inputs, self.batch):
            section.close()
        for tag in self._sceneTags:
            slicer.mrmlScene.RemoveObserver(tag)
        self._soon.stop()
        for job in (self.run, self.need.run):
            if job is not None and not job.poll():
                job.cancel()
                while not job.poll():
                    slicer.app.processEvents()

    def _connectSections(self) -> None:
        self.models.onModel = self._onModel
        self.models.onInstallRun = self._begin
        self.models.say = self.runs.say
        for section in (self.inputs, self.batch, self.compute):
            section.onChange = self._update
        self.compute.onOpen = self._look
        self.compute.onTest = self._test
        self.need.onComputer = self.compute.setComputer

    def _connectButtons(self, disclaimer: str) -> None:
        ui = self.ui
        ui.disclaimerLabel.setText(disclaimer)
        ui.modeTabs.currentChanged.connect(lambda *_: self._onTab())
        ui.applyButton.clicked.connect(lambda *_: self._onApply())
        ui.cancelButton.clicked.connect(lambda *_: self._onCancel())
        ui.undoButton.clicked.connect(lambda *_: self._onUndo())
        ui.estimateButton.clicked.connect(lambda *_: self._onEstimate())
        alignLabels([ui.framesLabel, ui.roiLabel, ui.outputLabel, ui.alsoLabel])
        alignLabels(self.batch.labels())
        alignLabels(self.compute.labels())

    def _showChoices(self) -> None:
        """Show what is stored; also called when another window has changed it."""
        tab = TABS.index(self._choices.get("tab", TABS[0])) if self._choices.get("tab") in TABS else 0
        self.ui.modeTabs.setCurrentIndex(tab)
        for section in (self.models, self.inputs, self.batch, self.compute):
            section.show()
        self._update()

    def _onScene(self) -> None:
        """Images have come or gone."""
        if self._choices and not self._isBusy():
            self.inputs.guess()
            self.batch.show()
            self._update()

    def _onTab(self) -> None:
        self._choices.store("tab", TABS[int(self.ui.modeTabs.property("currentIndex"))])
        self._fitTab()
        self._update()

    def _fitTab(self) -> None:
        """Let the page that is shown alone decide the height; Qt would leave room for the tallest."""
        for number, area in enumerate((self.ui.singleArea, self.ui.batchArea)):
            area.setVisible(number == int(self.ui.modeTabs.property("currentIndex")))

    def _onModel(self) -> None:
        for section in (self.inputs, self.batch, self.compute):
            section.setModel(self.models.model())
        alignLabels([*self.inputs.labels(), self.ui.framesLabel, self.ui.roiLabel, self.ui.outputLabel])
        self._update()

    def _isBatch(self) -> bool:
        return bool(self._choices.get("tab") == "batch")

    def _isBusy(self) -> bool:
        return self._installing or self._isRunning()

    def _isRunning(self) -> bool:
        return self.run is not None and self.run.state == "running"

    def _update(self) -> None:
        """Switch on what can be used now."""
        busy, missing = self._isBusy(), self._missing()
        ui = self.ui
        ui.applyButton.setEnabled(not busy and not missing)
        ready = _("Segment the images") if self._isBatch() else _("Segment the image")
        running = _("Packages are being installed") if self._installing else _("A segmentation is running")
        ui.applyButton.setToolTip(running if busy else missing or ready)
        self._showCancel()
        ui.undoButton.setEnabled(not busy and self._canUndo())
        for name in ("modelGroup", "modeTabs", "alsoArea", "advancedGroup"):
            getattr(ui, name).setEnabled(not busy)
        ui.needArea.setVisible(not self._isBatch())
        self.need.show(None if missing or busy else self._needKey(), missing)

    def _showCancel(self) -> None:
        self.ui.cancelButton.setEnabled(self._isRunning() or self.need.run is not None)

    def _onCancel(self) -> None:
        if self.run is not None and self._isRunning():
            self.run.cancel()
        self.need.stop()

    def _missing(self) -> str:
        """What is left to be chosen; "" if nothing is."""
        model = self.models.model()
        if model is None or model.problem:
            return _("Choose a model that can be used")
        if self._isBatch():
            return self.batch.missing()
        without = [name for name, node in self.inputs.nodes().items() if node is None]
        return _("Choose an image for {channels}").format(channels=", ".join(without)) if without else ""

    def _options(self) -> dict[str, Any]:
        names = ("uncertainty", "statistics", "show3D")
        return {**self.compute.options(), **{name: self._choices.get(name, False) for name in names}}

    def _onApply(self) -> None:
        model = self.models.model()
        assert model is not None
        self.need.stop()
        self.runs.clear()
        try:
            if not self.models.accepted(model):
                self.runs.say(_("The license was not accepted, so nothing was segmented."))
            elif self.consents.maySend(self.compute.host()) and self._mayInstall():
                self._begin(self._start(model))
        except Exception as error:  # noqa: BLE001 (a defect must not leave the person without a word)
            self._tell(explained(error))

    def _start(self, model: ListedModel) -> Job:
        version = model.manifest.version if model.manifest is not None else ""
        self.runs.write(f"MambaSegmentation {__version__}, {model.name} {version}")
        if self._isBatch():
            return self.batch.start(model.name, self._options())
        run: Job = self._segmenter.start(
            self.inputs.nodes(),
            model=model.name,
            roiNode=self._choices.get("roi"),
            outputNode=self._choices.get("output"),
            frames=self.inputs.frames(),
            **self._options(),
        )
        return run

    def _mayInstall(self) -> bool:
        # Slicer handles clicks while pip works: a second installation beside the first would break both.
        self._installing = True
        self._update()
        try:
            return self.consents.mayInstall(str(self._choices.get("wheelFolder")).strip(), self.compute.host())
        finally:
            self._installing = False
            self._update()

    def _begin(self, run: Job) -> None:
        self.run, self._began = run, time.monotonic()
        self._update()
        self._timer.start()

    def _onTick(self) -> None:
        if self.need.poll() and not self._isBusy():
            self._timer.stop()
        self._showCancel()
        run = self.run
        if run is None or not self._isRunning():
            return
        over = run.poll()
        self.runs.follow(run)
        if isinstance(run, BatchRun):
            self.batch.showOutcomes(run.outcomes)
        if over:
            self._end(run)
            self._update()

    def _end(self, run: Job) -> None:
        if run.state == "done":
            self.runs.end(self._doneText(run), done=True)
        elif run.state == "cancelled":
            self.runs.end(str(run.error), done=False)
        else:
            self.runs.end("", done=False)
            assert run.error is not None
            self._tell(run.error)
        if run.state == "done" and isinstance(run, InstallRun):
            self.models.finishInstall(run)

    def _doneText(self, run: Job) -> str:
        took = duration(time.monotonic() - self._began)
        if isinstance(run, BatchRun) and not hasattr(run, "sequenceNode"):
            counts = run.counts()
            text = _("Done in {time}: {done} segmented, {skipped} done before, {failed} failed.")
            return text.format(time=took, **counts)
        node = getattr(run, "segmentationNode", None)
        return _("Done in {time}: {name}").format(time=took, name=node.GetName() if node is not None else run.name)

    def _tell(self, error: MambaSegError) -> None:
        self.runs.say(str(error))
        self.runs.write(str(error))
        self.dialogs.showError(str(error))

    def _canUndo(self) -> bool:
        return any(change.canBeUndone for change in self._changes())

    def _changes(self) -> list[SceneChange]:
        changes = [getattr(self.run, "change", None), *getattr(self.run, "changes", ())]
        return [change for change in changes if change is not None]

    def _onUndo(self) -> None:
        undo = getattr(self.run, "undo", None)
        lost = _("The segments have been changed since. Take them out of the scene, and these changes with them?")
        edited = any(change.isEdited for change in self._changes())
        if undo is not None and (not edited or self.dialogs.confirm(_("Undo the segmentation"), lost)):
            undo()
            self.runs.warn([])
            self.runs.say(_("Undone. The scene is as it was before."))
        self._update()

    def _needKey(self) -> Any:
        model = self.models.model()
        if model is None or self._isBatch():
            return None
        nodes = list(self.inputs.nodes().values())
        frames = max(map(numberOfFrames, nodes)) if self.inputs.frames() == "all" else 1
        return needKey(nodes, model.name, self.compute.options(), self._choices.get("roi"), frames)

    def _onEstimate(self) -> None:
        model = self.models.model()
        assert model is not None
        try:
            if not self._mayInstall():
                return
            run = self._segmenter.startEstimate(
                self.inputs.nodes(),
                model=model.name,
                roiNode=self._choices.get("roi"),
                frames=self.inputs.frames(),
                **self.compute.options(),
            )
        except Exception as error:  # noqa: BLE001 (as above)
            self._tell(explained(error))
            return
        self._measure(run, _("Estimating..."))

    def _look(self) -> None:
        """Find out what this computer has, when its owner wants to choose; without PyTorch there is no telling."""
        if not dependencies.missingPackages():
            self._ask("", _("Looking for devices and backends..."))

    def _test(self) -> None:
        """Find out whether another computer answers."""
        host = self.compute.host()
        self._ask(host, _("Asking {host}...").format(host=host))

    def _ask(self, host: str, text: str) -> None:
        if self.need.run is not None:
            return
        try:
            self._measure(self._segmenter.startLook(host), text)
        except MambaSegError as error:
            self._tell(error)

    def _measure(self, run: ComputerRun, text: str) -> None:
        self.need.begin(run, text)
        self._showCancel()
        self._timer.start()
