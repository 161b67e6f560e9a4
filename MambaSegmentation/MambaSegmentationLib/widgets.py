"""Small things done with widgets, in the way that Slicer's PythonQt and PySide6 share.

That is: set methods, `signal.connect`, and `property` to read. In PythonQt `label.text` is a value, in PySide6 a method.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import qt
import slicer

from MambaSegmentationLib.translation import tr as _

_FLAGS_ROLE = int(qt.Qt.UserRole) - 1
"""Role under which Qt keeps whether an entry of a combo box can be chosen."""
_CHOOSABLE = 1 | 32
"""Qt's ItemIsSelectable and ItemIsEnabled, which are numbers in PythonQt and objects in PySide6."""


class Dialogs:
    """Everything the window asks a person; a test or another window may replace any of these.

    Attributes:
        confirm: (title, text) -> whether the person agrees.
        showError: (text) tells what went wrong.
        chooseFile: () -> path of a model to install, "" if none was chosen.
        chooseFolder: (title) -> folder, "" if none was chosen.
        askText: (title, text) -> what was written, "" if nothing.
        openFolder: (folder) shows it in the computer's file manager.
    """

    def __init__(self) -> None:
        """The real ones."""
        self.confirm: Callable[[str, str], bool] = _confirm
        self.showError: Callable[[str], Any] = slicer.util.errorDisplay
        self.chooseFile: Callable[[], str] = _chooseFile
        self.chooseFolder: Callable[[str], str] = _chooseFolder
        self.askText: Callable[[str, str], str] = _askText
        self.openFolder: Callable[[Path], None] = _openFolder


def chosen(selector: Any) -> str:
    """Value of the entry a combo box shows; "" if it shows none."""
    value = selector.itemData(selector.property("currentIndex"))
    return "" if value is None else str(value)


def choose(selector: Any, value: str) -> None:
    """Show the entry of a value; the first one if there is no such entry."""
    number = max(0, selector.findData(value))
    if selector.property("currentIndex") != number:
        selector.setCurrentIndex(number)


def fill(selector: Any, entries: Sequence[tuple[str, str]], value: str) -> None:
    """Replace the entries (value, text) of a combo box without telling anybody, and show the one of `value`."""
    selector.blockSignals(True)
    selector.clear()
    for entry, text in entries:
        selector.addItem(text, entry)
    choose(selector, value)
    selector.blockSignals(False)


def explain(selector: Any, name: str, title: str, problem: str) -> None:
    """Write beside an entry why it cannot be chosen, and switch it off; "" switches it on."""
    number = selector.findData(name)
    selector.setItemText(number, f"{title} ({problem})" if problem else title)
    selector.setItemData(number, problem, int(qt.Qt.ToolTipRole))
    selector.setItemData(number, 0 if problem else _CHOOSABLE, _FLAGS_ROLE)


def setText(edit: Any, text: str) -> None:
    """Write into a line unless it says so already, which would move the cursor."""
    if str(edit.property("text")) != text:
        edit.setText(text)


def chooseInto(edit: Any, folder: str) -> None:
    """Write a folder that was chosen into a line; "" means that none was."""
    if folder:
        setText(edit, folder)


def alignLabels(labels: Sequence[Any]) -> None:
    """Give labels of several forms one width, so that all fields begin on one line."""
    width = max(label.property("sizeHint").width() for label in labels)
    for label in labels:
        label.setMinimumWidth(width)


def _confirm(title: str, text: str) -> bool:
    return bool(slicer.util.confirmOkCancelDisplay(text, windowTitle=title))


def _chooseFile() -> str:
    found = qt.QFileDialog.getOpenFileName(None, _("Install a model"), "", _("Model (*.zip bundle.json)"))
    # PythonQt gives the path, PySide6 the path and the filter.
    path = Path(found if isinstance(found, str) else found[0])
    return str(path.parent if path.name == "bundle.json" else path) if path.name else ""


def _chooseFolder(title: str) -> str:
    return str(qt.QFileDialog.getExistingDirectory(None, title))


def _askText(title: str, text: str) -> str:
    found = qt.QInputDialog.getText(None, title, text)
    return str(found if isinstance(found, str) else found[0]).strip()


def _openFolder(folder: Path) -> None:
    qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(folder)))
