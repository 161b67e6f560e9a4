"""Work in another process that is watched from here: its news, its end, and nothing left behind.

Scripts call `wait`; the window calls `poll` from a timer. Nothing here needs a scene.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import slicer

from MambaSegLib.errors import CancelledError, EnvironmentProblemError, InputError, MambaSegError
from MambaSegLib.progress import Progress
from MambaSegLib.volume_io import NONFINITE_CURE
from MambaSegmentationLib.translation import tr as _
from MambaSegmentationLib.worker import Event, Worker, libraryCommand, libraryEnvironment

State = Literal["running", "done", "failed", "cancelled"]
_HOST = re.compile(r"[\w\[][\w.@:\[\]%-]*")
_KINDS = {2: InputError, 3: EnvironmentProblemError, 130: CancelledError}


class Job:
    """One call of the `mambaseg` command under way; `poll` it until its state is no longer "running".

    A subclass says what is called (`_words`) and what becomes of the result (`_bringIn`).

    Attributes:
        name: What is worked on, for a person.
        state: "running", "done", "failed" or "cancelled".
        progress: The last news.
        notices: What the person should know before trusting the result.
        log: What the worker said, line by line.
        error: Why there is no result; None while running or if there is one.
    """

    def __init__(self, name: str) -> None:
        """Remember the name; `_begin` starts the work."""
        self.name = name
        self.state: State = "running"
        self.progress = Progress("Starting", 0, 1)
        self.notices: list[str] = []
        self.log: list[str] = []
        self.error: MambaSegError | None = None
        self._reason = ""
        self._fileNames: dict[str, str] = {}

    @property
    def fraction(self) -> float:
        """How much is done, 0 to 1; it never goes back."""
        return shareDone(self.progress.stage, self.progress.done, self.progress.total)

    @property
    def secondsLeft(self) -> float | None:
        """Estimate of the time left; None while unknown."""
        return self.progress.seconds_left

    @property
    def workerPid(self) -> int:
        """Number of the worker process."""
        return self._worker.pid

    def poll(self) -> bool:
        """Take news from the worker; when it has ended, bring in its result.

        Returns:
            Whether all is over. It raises nothing: what went wrong is in `error`.
        """
        if self.state != "running":
            return True
        if not self._worker.poll():
            return False
        self._ended()
        try:
            self._finish()
        except MambaSegError as error:
            self._fail(error)
        except Exception as error:  # noqa: BLE001 (a defect must not leave the window waiting for ever)
            self._fail(EnvironmentProblemError(_("The result could not be taken in: {error}").format(error=error)))
        finally:
            self._removeFolder()
        return True

    def cancel(self, reason: str = "") -> None:
        """Stop; the worker and all it started have ended within 2 s. `poll` goes on until then.

        Args:
            reason: Why, for a person, if it was not the person who stopped it.
        """
        if self.state == "running" and not self._worker.cancelled:
            self._reason = reason
            self._worker.cancel()

    def wait(self, timeout_s: float | None = None) -> Any:
        """Wait for the result; the application's window stays alive.

        Raises:
            MambaSegError: Why there is no result.
            TimeoutError: If the time is over; the work goes on.
        """
        end = float("inf") if timeout_s is None else time.monotonic() + timeout_s
        while not self.poll():
            if time.monotonic() > end:
                message = _("{name} is still being worked on after {timeout_s:g} s.").format(
                    name=self.name, timeout_s=timeout_s
                )
                raise TimeoutError(message)
            slicer.app.processEvents()
            time.sleep(0.02)
        if self.error is not None:
            raise self.error
        return self._result()

    def _begin(self, command: Sequence[str] = (), host: str = "") -> None:
        """Start the worker.

        Args:
            command: First words of its command line; () takes this Python and library.
            host: Another computer that computes; "" is this one.

        Raises:
            MambaSegError: What `_words` refuses, or a host that is no name; nothing is left behind then.
            EnvironmentProblemError: If the worker cannot be started.
        """
        far = ["remote", "--", _checkedHost(host)] if host else []
        self._folder = Path(tempfile.mkdtemp(prefix="mambaseg-"))
        try:
            words = [*(command or libraryCommand()), *far, *self._words()]
            self._worker = Worker(words, environment=libraryEnvironment(), onEvent=self._hear, onLog=self.log.append)
        except BaseException as error:
            self._removeFolder()
            if isinstance(error, OSError):
                message = _("The segmentation process could not be started: {error}").format(error=error)
                raise EnvironmentProblemError(message) from error
            raise

    def _words(self) -> list[str]:
        """Words of the command after `mambaseg`; files for it go into `_folder`."""
        raise NotImplementedError

    def _bringIn(self, result: Event) -> None:
        """Take what a result event says; whatever it raises is the job's error."""
        raise NotImplementedError

    def _result(self) -> Any:
        """What `wait` returns."""
        return None

    def _ended(self) -> None:
        """The worker has ended, one way or another."""

    def _call(self, paths: Sequence[Path], names: Sequence[str]) -> None:
        """Give files of `_folder`, which the worker also calls by their stems, the names a person knows them by."""
        for path, name in zip(paths, names, strict=True):
            self._fileNames |= {str(path): name, path.stem: name}

    def _readable(self, text: str) -> str:
        """What the worker said, for a person who sees the scene and not the command line."""
        for words, others in {**self._fileNames, NONFINITE_CURE: _nonfiniteCure()}.items():
            text = text.replace(words, others)
        return text

    def _hear(self, event: Event) -> None:
        if event["event"] == "progress":
            self.progress = _progress(event)
        elif event["event"] == "log":
            message = self._readable(str(event.get("message", "")))
            self.log.append(message)
            if event.get("level") == "warning" and message not in self.notices:
                self.notices.append(message)

    def _finish(self) -> None:
        worker = self._worker
        if worker.cancelled:
            raise CancelledError(self._reason or self._cancelled())
        if not self._succeeded(worker):
            message = worker.failure() or _("The segmentation process ended without a result.")
            raise _KINDS.get(worker.returnCode or 3, EnvironmentProblemError)(self._readable(message))
        assert worker.result is not None
        self._bringIn(worker.result)
        self.notices = list(dict.fromkeys([*self.notices, *map(self._readable, worker.result.get("notices", ()))]))
        self.state = "done"

    def _succeeded(self, worker: Worker) -> bool:
        return not worker.returnCode and worker.result is not None

    def _cancelled(self) -> str:
        """What to say when the person stopped it."""
        return _("Cancelled. The scene is as it was before.")

    def _fail(self, error: MambaSegError) -> None:
        self.error = error
        self.state = "cancelled" if isinstance(error, CancelledError) else "failed"

    def _removeFolder(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def shareDone(stage: str, done: int, total: int) -> float:
    """How much of one image (or download) is done, 0 to 1: what comes before the networks counts as nothing."""
    if stage in ("Predicting", "Downloading"):
        return done / max(1, total)
    return float(stage in ("Postprocessing", "Writing"))


def _nonfiniteCure() -> str:
    """What to do in Slicer about voxels that are NaN or infinite: the window has no switch for it."""
    return _(
        "Repair the image; if it is a file, load it first and save it afterwards. To make these voxels zero, type in Slicer's "
        "Python console, with the name of the image for NAME: import numpy; a = arrayFromVolume(getNode('NAME')); "
        "a[~numpy.isfinite(a)] = 0; arrayFromVolumeModified(getNode('NAME'))"
    )


def _checkedHost(host: str) -> str:
    """The host, which may come from somebody else's scene and must not be taken for an option of a program."""
    if _HOST.fullmatch(host):
        return host
    message = _("{host} is no name of a computer. It looks like ada@gpu-server.").format(host=host)
    raise InputError(message)


def _progress(event: Event) -> Progress:
    return Progress(
        str(event.get("stage", "")),
        int(event.get("done", 0)),
        max(1, int(event.get("total", 1))),
        event.get("seconds_left"),
    )
