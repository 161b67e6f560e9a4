"""Installing a model in another process, so that a long download can be watched and stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from MambaSegmentationLib.job import Job
from MambaSegmentationLib.translation import tr as _
from MambaSegmentationLib.worker import Event


class InstallRun(Job):
    """An installation under way.

    Attributes:
        modelName: What was installed; "" until done.
    """

    def __init__(self, source: str, *, sha256: str, modelsFolder: Path, command: tuple[str, ...] = ()) -> None:
        """Start the worker.

        Args:
            source: Folder, .zip or address of one.
            sha256: Expected hash of the .zip; "" compares none.
            modelsFolder: Where models are installed.
            command: First words of the worker's command line; () takes this Python and library.

        Raises:
            EnvironmentProblemError: If the worker cannot be started.
        """
        super().__init__(source)
        self.modelName = ""
        self._sha256, self._modelsFolder = sha256, modelsFolder
        self._begin(command)

    def _words(self) -> list[str]:
        words = ["models", "install", self.name, "--events", "--models-dir", str(self._modelsFolder)]
        return words + (["--sha256", self._sha256] if self._sha256 else [])

    def _bringIn(self, result: Event) -> None:
        self.modelName = str(result["name"])

    def _cancelled(self) -> str:
        return _("Cancelled. No model was installed.")

    def _result(self) -> Any:
        return self.modelName
