"""What a person is asked before Apply starts anything: the license, packages to install, images that leave the computer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from MambaSegmentationLib import dependencies
from MambaSegmentationLib.translation import tr as _
from MambaSegmentationLib.widgets import Dialogs


class Consents:
    """Asks as rarely as possible."""

    def __init__(self, dialogs: Dialogs, say: Callable[[str], None]) -> None:
        """Nothing has been asked yet.

        Args:
            dialogs: How to ask.
            say: Shows one sentence.
        """
        self._dialogs, self._say = dialogs, say
        self._agreed: set[str] = set()

    def mayInstall(self, wheelFolder: str, host: str) -> bool:
        """Ask for and install what is missing; returns whether segmenting can start.

        Raises:
            EnvironmentProblemError: If something could not be installed.
        """
        missing = dependencies.missingPackages()
        if not missing or host:  # another computer has packages of its own
            return True
        folder = Path(wheelFolder) if wheelFolder else None
        question = dependencies.consent(missing, folder)
        if not self._dialogs.confirm(question.title, question.text):
            self._say(_("Nothing was installed, so nothing was computed."))
            return False
        self._say(_("Installing packages..."))
        dependencies.install(missing, wheelFolder=folder)
        self._say(_("The packages are installed."))
        return True

    def maySend(self, host: str) -> bool:
        """Images leave this computer only after the person has agreed, once per computer they go to."""
        question = _("The images and the model are sent to {host} over SSH and deleted there in the end. Send them?")
        if not host or host in self._agreed:
            return True
        if not self._dialogs.confirm(_("Another computer computes"), question.format(host=host)):
            self._say(_("Nothing was sent, so nothing was segmented."))
            return False
        self._agreed.add(host)
        return True
