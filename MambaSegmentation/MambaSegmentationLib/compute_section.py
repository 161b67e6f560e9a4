"""Part of the window: where and how the network is computed, with the reason beside whatever is out."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from typing import Any

from MambaSegLib.model_zoo import ListedModel
from MambaSegLib.scan import BACKENDS
from MambaSegmentationLib.choices import Choices
from MambaSegmentationLib.computer import Computer
from MambaSegmentationLib.translation import tr as _
from MambaSegmentationLib.widgets import Dialogs, choose, chooseInto, chosen, explain, fill, setText


class ComputeSection:
    """Device, scan backend, folds, quality, and the folder of wheels.

    Attributes:
        onChange: Called when something else is chosen.
        onOpen: Called when the section is unfolded and it is not known yet what the computer has.
        onTest: Called when the person wants to know whether another computer answers.
    """

    def __init__(self, ui: Any, choices: Choices, dialogs: Dialogs) -> None:
        """Fill and connect the widgets."""
        self.onChange: Callable[[], None] = lambda: None
        self.onOpen: Callable[[], None] = lambda: None
        self.onTest: Callable[[], None] = lambda: None
        self._ui, self._choices = ui, choices
        self._computer: Computer | None = None
        self._folds: tuple[int, ...] = ()
        devices = {"auto": _("Automatic"), "cpu": _("CPU"), "cuda": _("NVIDIA GPU (cuda)")}
        self._devices = devices | ({"mps": _("Apple GPU (mps)")} if sys.platform == "darwin" else {})
        fill(ui.deviceSelector, list(self._devices.items()), "auto")
        fill(ui.backendSelector, [("auto", _("Automatic")), *((name, name) for name in BACKENDS)], "auto")
        fill(ui.qualitySelector, _qualities(), "standard")
        for selector, name in self._stored().items():
            selector.currentIndexChanged.connect(lambda *_, selector=selector, name=name: self._store(selector, name))
        ui.wheelFolderEdit.textChanged.connect(lambda text: choices.store("wheelFolder", str(text)))
        ui.wheelFolderButton.clicked.connect(
            lambda *_args: chooseInto(ui.wheelFolderEdit, dialogs.chooseFolder(_("Folder of wheels")))
        )
        ui.hostEdit.textChanged.connect(lambda text: self._onHost(str(text).strip()))
        ui.hostButton.clicked.connect(lambda *_: self.onTest())
        ui.hostButton.setEnabled(False)
        ui.advancedGroup.contentsCollapsed.connect(lambda collapsed: self._onCollapsed(bool(collapsed)))
        self._explain()

    def labels(self) -> list[Any]:
        """Labels of the rows, to be aligned."""
        ui = self._ui
        return [ui.hostLabel, ui.deviceLabel, ui.backendLabel, ui.foldsLabel, ui.qualityLabel, ui.wheelFolderLabel]

    def host(self) -> str:
        """Another computer that computes; "" is this one."""
        return str(self._choices.get("host")).strip()

    def options(self) -> dict[str, Any]:
        """Words for `Segmenter.start`."""
        folds = chosen(self._ui.foldsSelector)
        return {
            "device": chosen(self._ui.deviceSelector),
            "scan": chosen(self._ui.backendSelector),
            "folds": () if folds in ("all", "") else (int(folds),),
            "quality": chosen(self._ui.qualitySelector),
            "host": self.host(),
        }

    def setModel(self, model: ListedModel | None) -> None:
        """Offer the folds of a model."""
        self._folds = tuple(entry.index for entry in model.manifest.folds) if model and model.manifest else ()
        every = _("All {count}, averaged").format(count=len(self._folds)) if len(self._folds) > 1 else _("All")
        single = [(str(fold), _("Only fold {fold}, faster").format(fold=fold)) for fold in self._folds]
        entries = [("all", every), *(single if len(self._folds) > 1 else [])]
        fill(self._ui.foldsSelector, entries, self._choices.get("folds", "all"))

    def setComputer(self, computer: Computer | None) -> None:
        """Write what is out, and why; None: it is not known."""
        self._computer = computer
        self._explain()

    def _onHost(self, host: str) -> None:
        self._ui.hostButton.setEnabled(bool(host))
        if host != self.host():
            self._choices.store("host", host)
            self.setComputer(None)
            self.onChange()

    def show(self) -> None:
        """Show the stored choices."""
        for selector, name in self._stored().items():
            choose(selector, self._choices.get(name))
        setText(self._ui.wheelFolderEdit, self._choices.get("wheelFolder"))
        setText(self._ui.hostEdit, self._choices.get("host"))
        self._explain()

    def _stored(self) -> dict[Any, str]:
        ui = self._ui
        return {
            ui.deviceSelector: "device",
            ui.backendSelector: "backend",
            ui.foldsSelector: "folds",
            ui.qualitySelector: "quality",
        }

    def _store(self, selector: Any, name: str) -> None:
        self._choices.store(name, chosen(selector))
        self._explain()
        self.onChange()

    def _onCollapsed(self, collapsed: bool) -> None:
        if not collapsed and self._computer is None and not self.host():
            self.onOpen()

    def _explain(self) -> None:
        computer, device = self._computer, chosen(self._ui.deviceSelector)
        out = {}
        for name, title in self._devices.items():
            problem = _sentence(computer.deviceProblem(name)) if computer is not None else ""
            explain(self._ui.deviceSelector, name, title, problem)
            out[title] = problem
        for name in BACKENDS:
            here = "" if self.host() else whyUnavailable(name)
            problem = _sentence(computer.backendProblem(name, device) if computer is not None else here)
            explain(self._ui.backendSelector, name, name, problem)
            out[name] = problem
        # Once more in full: a narrow window cuts the entries off.
        lines = [f"{name}: {problem}" for name, problem in out.items() if problem]
        text = "<br>".join([_("Not available:"), *lines]) if lines else ""
        self._ui.computeNoteLabel.setText(f"<small>{text}</small>")
        self._ui.computeNoteLabel.setVisible(bool(lines))


def _qualities() -> list[tuple[str, str]]:
    """Value and text of each quality."""
    return [
        ("fast", _("Fast: tiles overlap less")),
        ("standard", _("Standard")),
        ("best", _("Best: mirrored images, too, slower")),
    ]


def whyUnavailable(backend: str) -> str:
    """Why a scan backend cannot be there, as far as can be told without loading PyTorch; "" if nothing speaks against."""
    needed = {"mamba_ssm": "mamba_ssm", "triton": "triton", "numba": "numba"}.get(backend)
    if needed and importlib.util.find_spec(needed) is None:
        return _("package {name} is not installed").format(name=needed)
    return ""


def _sentence(problem: str) -> str:
    """The reason without what follows it: advice has no place in an entry."""
    return problem.partition(": ")[2].partition(". ")[0] or problem.partition(". ")[0] if problem else ""
