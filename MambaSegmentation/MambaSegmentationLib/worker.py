"""A process that works for Slicer: it can be watched, and killed with everything it started.

Nothing here needs Slicer or Qt; only the texts are in Slicer's language where there is Slicer. The caller asks `poll()` now and then (from a timer in the window, from a loop in a
script); callbacks run in there, never in another thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from MambaSegmentationLib.translation import tr as _

Event = Mapping[str, Any]
"""One event as described in MambaSegLib/commands/reporting.py."""

GRACE_S = 1.0
"""How long a cancelled process may clean up before it is killed."""

LOG_LINES = 200
SHOWN_LINES = 8
_OUT_OF_MEMORY_HINT = _("The system may have run out of memory: close other programs, or segment a region only.")


def pythonExecutable() -> str:
    """Python that starts outside the application: Slicer's PythonSlicer, else the one that runs."""
    return shutil.which("PythonSlicer") or sys.executable


def libraryCommand(*words: str) -> list[str]:
    """Command line of `mambaseg` with this Python."""
    # -u: what was said before a crash must not be lost in a buffer.
    return [pythonExecutable(), "-u", "-m", "MambaSegLib", *words]


def libraryEnvironment() -> dict[str, str]:
    """This process's environment, with the folder that holds MambaSegLib in front of Python's search path."""
    import MambaSegLib

    parent = str(Path(MambaSegLib.__file__).resolve().parent.parent)
    others = [part for part in (os.environ.get("PYTHONPATH", ""),) if part]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([parent, *others])}


class Worker:
    """A running process that tells how far it is.

    Attributes:
        cancelled: Whether `cancel` was called.
        returnCode: Exit code; None while it runs. Negative: the signal that ended it.
        result: The result event; None until there is one.
        error: The error event; None unless there is one.
        log: The last lines it wrote, oldest first.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        onEvent: Callable[[Event], None] = lambda event: None,
        onLog: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Start the process.

        Raises:
            OSError: If it cannot be started.
        """
        self.cancelled = False
        self.returnCode: int | None = None
        self.result: Event | None = None
        self.error: Event | None = None
        self.log: deque[str] = deque(maxlen=LOG_LINES)
        self._onEvent, self._onLog = onEvent, onLog
        self._deadline = float("inf")
        self._lines: queue.SimpleQueue[tuple[bool, str]] = queue.SimpleQueue()
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environment) if environment is not None else None,
            **_ownGroup(),
        )
        self._readers = [self._reader(self._process.stdout, True), self._reader(self._process.stderr, False)]

    @property
    def pid(self) -> int:
        """Number of the process; on POSIX also of its group."""
        return self._process.pid

    def poll(self) -> bool:
        """Hand on what the process has said since the last call.

        Returns:
            Whether it has ended and everything it said was handed on.
        """
        if self.returnCode is not None:
            return True
        code = self._process.poll()
        if code is not None:
            # Children left behind would hold the pipes open for ever: they get the same time to end.
            self._deadline = min(self._deadline, time.monotonic() + (0.0 if self.cancelled else GRACE_S))
        if time.monotonic() > self._deadline:
            self._kill()
        ended = code is not None and not any(reader.is_alive() for reader in self._readers)
        self._drain()
        if ended:
            self.returnCode = code
        return ended

    def wait(self, timeout_s: float | None = None, idle: Callable[[], None] = lambda: time.sleep(0.02)) -> bool:
        """Poll until the process has ended or the time is over; returns whether it has ended."""
        end = float("inf") if timeout_s is None else time.monotonic() + timeout_s
        while not self.poll():
            if time.monotonic() > end:
                return False
            idle()
        return True

    def cancel(self) -> None:
        """Ask the process and all it started to end; `poll` kills what is still there after `GRACE_S`."""
        if self.cancelled or self.returnCode is not None:
            return
        self.cancelled = True
        self._deadline = time.monotonic() + GRACE_S
        if sys.platform == "win32":
            # Windows knows no polite request to a process without a window: the tree ends at once.
            self._kill()
        else:
            self._signal(signal.SIGTERM)

    def failure(self) -> str:
        """Why the process failed, with its last lines; "" if it has not."""
        if not self.returnCode:
            return ""
        if self.error is not None:
            return str(self.error.get("message", ""))
        lines = list(self.log)[-SHOWN_LINES:]
        said = "\n" + _("Its last lines:") + "\n" + "\n".join(lines) if lines else ""
        ending = _("The segmentation process ended unexpectedly ({reason}).").format(reason=_ending(self.returnCode))
        return ending + said

    def _reader(self, stream: IO[bytes] | None, isOutput: bool) -> threading.Thread:
        def read() -> None:
            assert stream is not None
            with stream, contextlib.suppress(ValueError, OSError):
                for line in stream:
                    self._lines.put((isOutput, line.decode("utf-8", errors="replace").rstrip("\r\n")))

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        return thread

    def _drain(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                isOutput, line = self._lines.get_nowait()
                event = _parsed(line) if isOutput else None
                if event is None:
                    self.log.append(line)
                    self._onLog(line)
                else:
                    self._take(event)

    def _take(self, event: Event) -> None:
        if event["event"] == "result":
            self.result = event
        elif event["event"] == "error":
            self.error = event
        elif event["event"] == "log":
            self.log.append(str(event.get("message", "")))
        self._onEvent(event)

    def _kill(self) -> None:
        self._deadline = float("inf")
        if sys.platform == "win32":
            # /T takes the children along: PythonSlicer is only a launcher of the Python that works.
            subprocess.run(
                ["taskkill", "/F", "/T", "/PID", str(self.pid)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                creationflags=subprocess.CREATE_NO_WINDOW,
                check=False,
            )
        else:
            self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


def _ownGroup() -> dict[str, Any]:
    """What makes the process the head of a group, so that it and its children can be ended together."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    return {"start_new_session": True}


def _parsed(line: str) -> Event | None:
    """The event a line holds; None if it is plain text."""
    if not line.startswith("{"):
        return None
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def _ending(code: int) -> str:
    if code in (-9, 137):
        return _("killed. {hint}").format(hint=_OUT_OF_MEMORY_HINT)
    if code < 0:
        return _("signal {number}").format(number=-code)
    return _("exit code {number}").format(number=f"{code:#x}" if code > 255 else code)
