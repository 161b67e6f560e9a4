"""Part of the window: how long the image will take on this computer, and how much memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from MambaSegLib.commands.reporting import duration
from MambaSegmentationLib import conversion
from MambaSegmentationLib.computer import Computer, ComputerRun, Estimate
from MambaSegmentationLib.region import regionBounds, regionBox
from MambaSegmentationLib.translation import tr as _


class NeedSection:
    """One line and one button; what was measured once is shown again at once.

    Attributes:
        onComputer: Called when it is known what this computer has.
        run: The measurement under way; None while there is none.
    """

    def __init__(self, ui: Any) -> None:
        """Nothing is measured yet."""
        self.onComputer: Callable[[Computer], None] = lambda computer: None
        self.run: ComputerRun | None = None
        self._ui = ui
        self._known: dict[Any, Estimate] = {}
        self._key: Any = None
        self._runKey: Any = None

    def show(self, key: Any, missing: str = "") -> None:
        """Show what is known about a choice, see `needKey`; or what is `missing`, while nothing can be estimated."""
        self._key = key
        if self.run is not None:
            return
        self._ui.estimateButton.setEnabled(key is not None)
        need = self._known.get(key)
        unknown = missing or _("Time and memory: not estimated yet.")
        self._say(needText(need) if need is not None else unknown)

    def begin(self, run: ComputerRun, text: str) -> None:
        """Watch a measurement for the choice that is shown, saying `text` meanwhile."""
        self.run, self._runKey = run, self._key
        self._ui.estimateButton.setEnabled(False)
        self._say(text)

    def poll(self) -> bool:
        """Take news; returns whether nothing is being measured."""
        run = self.run
        if run is None:
            return True
        if not run.poll():
            return False
        self.run = None
        if run.estimate is not None:
            self._known[self._runKey] = run.estimate
        if run.computer is not None:
            self.onComputer(run.computer)
        self.show(self._key)
        if run.computer is not None and run.estimate is None and run.host:
            words = _("{computer} answers. It computes on: {devices}.")
            self._say(words.format(computer=run.host, devices=", ".join(run.computer.devices)))
        if run.error is not None and run.state == "failed":
            self._say(_("No answer: {reason}").format(reason=run.error))
        return True

    def stop(self) -> None:
        """Stop measuring: the real work begins."""
        if self.run is not None:
            self.run.cancel()

    def _say(self, text: str) -> None:
        self._ui.needLabel.setText(text)


def needKey(nodes: Any, model: str, options: dict[str, Any], roiNode: Any, frames: int) -> Any:
    """What an estimate depends on: the grid, the region, the model and how it is computed."""
    node = next(iter(nodes), None)
    if node is None or node.GetImageData() is None:
        return None
    box: Any = ()
    try:
        geometry = conversion.volumeGeometry(node)
        if roiNode is not None:
            box = regionBox(regionBounds(roiNode, node), geometry).slices
    except ValueError:
        return None  # what is wrong is said when the person presses Apply
    how = tuple(options[name] for name in ("device", "scan", "folds", "quality", "host"))
    return (geometry.shape, geometry.spacing_mm, str(box), model, how, frames)


def needText(need: Estimate) -> str:
    """E.g. "On this computer: about 12 s, 0.9 GiB of memory (20.3 GiB free)."."""
    text = _("On {computer}: about {time}, {memory:.1f} GiB of memory").format(
        computer=need.host or _("this computer"), time=duration(need.seconds), memory=need.memoryBytes / 2**30
    )
    free = _(" ({free:.1f} GiB free)").format(free=need.freeBytes / 2**30) if need.freeBytes else ""
    if need.freeBytes and need.memoryBytes > need.freeBytes:
        return f"{text}{free}. <b>{_('More than is free: choose a region or a smaller model.')}</b>"
    return f"{text}{free}."
