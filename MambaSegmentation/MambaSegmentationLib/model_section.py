"""Part of the window: which model, what it is, and adding and removing models."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import qt

from MambaSegLib.commands.failures import explained
from MambaSegLib.errors import InputError
from MambaSegLib.model_folders import model_names
from MambaSegLib.model_zoo import ListedModel
from MambaSegmentationLib import licenses
from MambaSegmentationLib.choices import Choices
from MambaSegmentationLib.install_run import InstallRun
from MambaSegmentationLib.model_details import matches, modelHtml, modelTitle
from MambaSegmentationLib.translation import tr as _
from MambaSegmentationLib.widgets import Dialogs


class ModelSection:
    """Search, picker, details, and the models on this computer.

    Attributes:
        onModel: Called when another model is shown.
        onInstallRun: Called with an installation that has been started, to be watched.
        say: Called with what was done.
    """

    def __init__(self, ui: Any, segmenter: Any, choices: Choices, dialogs: Dialogs) -> None:
        """Connect the widgets; `refresh` fills them."""
        self.onModel: Callable[[], None] = _nothing
        self.onInstallRun: Callable[[InstallRun], None] = _nothing
        self.say: Callable[[str], None] = _nothing
        self._ui, self._segmenter, self._choices, self._dialogs = ui, segmenter, choices, dialogs
        self._models: tuple[ListedModel, ...] = ()
        self._shown: list[ListedModel] = []
        self._drops = _ModelDrops(self._installDropped)
        for widget in (ui.modelGroup, ui.modelDetails):
            widget.setAcceptDrops(True)
        for widget in self._dropTargets():
            widget.installEventFilter(self._drops)
        ui.modelSearch.textChanged.connect(lambda *_: self._onSearch())
        ui.modelSelector.currentIndexChanged.connect(lambda *_: self._onModel())
        ui.installButton.clicked.connect(lambda *_: self._guarded(lambda: self._install(dialogs.chooseFile())))
        ui.addressButton.clicked.connect(lambda *_: self._guarded(self._installFromWeb))
        ui.removeButton.clicked.connect(lambda *_: self._guarded(self._remove))
        ui.folderButton.clicked.connect(lambda *_: self._openFolder())

    def model(self) -> ListedModel | None:
        """The model that is shown; None if no model fits the search."""
        number = self._ui.modelSelector.property("currentIndex")
        return self._shown[number] if 0 <= number < len(self._shown) else None

    def refresh(self) -> None:
        """List the models anew, after one was installed or removed."""
        self._models = self._segmenter.models()
        installed = [model for model in self._models if self._isInstalled(model)]
        size = sum(path.stat().st_size for model in installed for path in model.path.rglob("*") if path.is_file())
        text = _("{count} model(s), of which {installed} installed ({size:.1f} MB on disk).")
        self._ui.modelDiskLabel.setText(
            _small(text.format(count=len(self._models), installed=len(installed), size=size / 1e6))
        )
        self._ui.modelDiskLabel.setToolTip(str(self._segmenter.folder()))
        self._onSearch()

    def show(self) -> None:
        """Show the stored choice."""
        model = self.model()
        stored = self._choices.get("model")
        if model is None or model.name != stored:
            self._onSearch()

    def close(self) -> None:
        """Take no more drops: Qt would ask a filter whose Python may be gone."""
        for widget in self._dropTargets():
            widget.removeEventFilter(self._drops)

    def accepted(self, model: ListedModel) -> bool:
        """Whether the license of a model is accepted, asking if need be."""
        folder = self._segmenter.folder()
        if licenses.isAccepted(model, folder):
            return True
        if not self._dialogs.confirm(_("License of the model"), licenses.licenseQuestion(model)):
            return False
        licenses.accept(model, folder)
        return True

    def finishInstall(self, run: InstallRun) -> None:
        """An installation from the web has ended well: ask for the license and show the model."""
        model = next(model for model in self._segmenter.models() if model.name == run.modelName)
        self._keep(model)

    def _dropTargets(self) -> tuple[Any, ...]:
        return self._ui.modelGroup, self._ui.modelDetails, self._ui.modelDetails.viewport()

    def _onSearch(self) -> None:
        """Show the models that fit the search, the stored one chosen if it is among them."""
        self._shown = [model for model in self._models if matches(model, self._ui.modelSearch.property("text"))]
        selector = self._ui.modelSelector
        selector.blockSignals(True)
        selector.clear()
        for model in self._shown:
            selector.addItem(modelTitle(model), model.name)
        names = [model.name for model in self._shown]
        stored = self._choices.get("model")
        # A scene from another computer is not to be segmented with whatever model comes first here.
        first = -1 if self._isGone(stored) or not names else 0
        selector.setCurrentIndex(names.index(stored) if stored in names else first)
        selector.blockSignals(False)
        self._onModel()

    def _onModel(self) -> None:
        model = self.model()
        stored = self._choices.get("model")
        none = _("No model fits. Clear the search, or add a model.")
        gone = _("The model {name} was chosen, but is not on this computer. Add it, or choose another.")
        without = gone.format(name=escape(stored)) if self._isGone(stored) else none
        self._ui.modelDetails.setHtml(modelHtml(model) if model else without)
        self._ui.modelSelector.setToolTip(model.name if model else "")  # a narrow window cuts names off
        self._ui.removeButton.setEnabled(model is not None and self._isInstalled(model))
        if model is not None:
            self._choices.store("model", model.name)
        self.onModel()

    def _isInstalled(self, model: ListedModel) -> bool:
        """Not so: what came with the program, and what was only copied into the folder."""
        return model.origin == "installed" and model.name in model_names(self._segmenter.folder())

    def _isGone(self, name: str) -> bool:
        return bool(name) and all(model.name != name for model in self._models)

    def _install(self, path: str) -> None:
        if path:
            self._keep(self._segmenter.install(path))

    def _installDropped(self, paths: list[str]) -> None:
        for path in paths:
            self._guarded(lambda path=path: self._install(path))

    def _installFromWeb(self) -> None:
        text = self._dialogs.askText(
            _("Add a model from the web"), _("https address of a model's .zip; a space and its SHA-256 may follow:")
        )
        if not text:
            return
        address, _space, sha256 = text.partition(" ")
        if not address.lower().startswith(("https://", "http://")):
            message = _("{address} is no web address. It begins with https://").format(address=address)
            raise InputError(message)
        self.onInstallRun(self._segmenter.startInstall(address, sha256=sha256.strip()))

    def _keep(self, model: ListedModel) -> None:
        if not self.accepted(model):
            self._segmenter.remove(model.name)
            self.refresh()
            self.say(_("{name} was not kept.").format(name=model.name))
            return
        self._ui.modelSearch.setText("")
        self.refresh()  # first, since a choice that is stored is shown at once
        self._choices.store("model", model.name)
        self.say(_("Installed {name}").format(name=model.name))

    def _remove(self) -> None:
        model = self.model()
        question = _("Delete {name} from this computer?")
        if model and self._dialogs.confirm(_("Remove model"), question.format(name=model.name)):
            self._segmenter.remove(model.name)
            self.refresh()
            self.say(_("Removed {name}").format(name=model.name))

    def _openFolder(self) -> None:
        folder = self._segmenter.folder()
        folder.mkdir(parents=True, exist_ok=True)
        self._dialogs.openFolder(folder)

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 (a defect must not leave the person without a word)
            message = str(explained(error))
            self.say(message)
            self._dialogs.showError(message)


class _ModelDrops(qt.QObject):
    """Takes models that are dropped onto a widget."""

    def __init__(self, onDrop: Callable[[list[str]], None]) -> None:
        super().__init__()
        self._onDrop = onDrop

    def eventFilter(self, target: Any, event: Any) -> bool:
        """Qt's hook: whether the event was used up."""
        if event.type() not in (qt.QEvent.DragEnter, qt.QEvent.DragMove, qt.QEvent.Drop):
            return False
        paths = [str(url.toLocalFile()) for url in event.mimeData().urls()]
        models = [path for path in paths if path.lower().endswith(".zip") or (Path(path) / "bundle.json").is_file()]
        if not models:
            return False
        event.acceptProposedAction()
        if event.type() == qt.QEvent.Drop:
            self._onDrop(models)
        return True


def _small(text: str) -> str:
    return f"<small>{text}</small>"


def _nothing(*_arguments: object) -> None:
    """Nobody listens yet."""
