"""What a command does when it is interrupted or fails: a message for the person who can act, and an exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from MambaSegLib.commands.reporting import Reporter
from MambaSegLib.errors import CancelledError, EnvironmentProblemError, InputError, MambaSegError

CANCELLED = 130
_INSTALLABLE = {
    "torch": "pip install torch",
    "SimpleITK": "pip install SimpleITK",
    "numba": "pip install numba",
    "scipy": "pip install scipy",
    "safetensors": "pip install safetensors",
    "monai": "pip install monai einops",
}


def guarded(work: Callable[[], int], reporter: Reporter) -> int:
    """Run a command's work; every failure becomes one message and an exit code.

    Returns:
        0 done, 2 bad input or usage, 3 environment, 130 cancelled, 1 a defect (its traceback is in a file).
    """
    try:
        with interruptible():
            return work()
    except BrokenPipeError:
        _close_stdout()
        return CANCELLED
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 (the one place where everything is caught)
        failure = explained(error)
        with contextlib.suppress(BrokenPipeError):
            reporter.error(failure.exit_code, type(failure).__name__, str(failure))
        return failure.exit_code


def explained(error: BaseException) -> MambaSegError:
    """The error as one with a message for the person who can act and an exit code."""
    if isinstance(error, MambaSegError):
        return error if str(error) else type(error)("Cancelled." if isinstance(error, CancelledError) else repr(error))
    if isinstance(error, KeyboardInterrupt):
        return CancelledError("Cancelled.")
    if isinstance(error, MemoryError):
        return EnvironmentProblemError("Not enough memory. Close other programs, or segment a region only (--roi).")
    if isinstance(error, ImportError):
        return _missing_module(error)
    if isinstance(error, OSError):
        return _system_error(error)
    return _defect(error)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C, a closed terminal and a request to terminate end the work in order: cleaning up first, then code 130.

    The second signal ends the process at once, for work that does not come back. A signal that this process was started
    to ignore, as `nohup` and shells do for work in the background, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # SIGBREAK: Ctrl-Break, what Windows can send to another process
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: handler for number in numbers if (handler := signal.getsignal(number)) != signal.SIG_IGN}

    def interrupt(number: int, frame: FrameType | None) -> None:
        for other in before:
            signal.signal(other, signal.SIG_DFL)
        raise KeyboardInterrupt

    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _missing_module(error: ImportError) -> MambaSegError:
    named = (error.name or "").partition(".")[0]
    # What the loader refuses need have no name: then it is for the package whose code asked for it.
    asking = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    packages = (named, *(name.partition(".")[0] for name in reversed(asking)))
    package = next((name for name in packages if name in _INSTALLABLE), None)
    if package is None:
        return _defect(error)
    absent = isinstance(error, ModuleNotFoundError) and package == named
    found = "is not installed" if absent else f"cannot be loaded ({_first_line(error)})"
    return EnvironmentProblemError(
        f"This needs the package {package}, which {found} here. Install it: {_INSTALLABLE[package]}. "
        "`mambaseg doctor` shows what else is missing."
    )


def _system_error(error: OSError) -> MambaSegError:
    where = f"{error.filename}: " if error.filename else ""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return EnvironmentProblemError(f"{where}the disk is full. Free some space and start again.")
    named_wrongly = error.errno in (errno.ENAMETOOLONG, errno.ELOOP)
    if named_wrongly or isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return InputError(f"{where}{reason}.")
    if isinstance(error, PermissionError):
        return EnvironmentProblemError(f"{where}{reason}. Choose a place this user may read and write.")
    return EnvironmentProblemError(f"{where}{reason}.")


def _defect(error: BaseException) -> MambaSegError:
    text = "".join(traceback.format_exception(error))
    return MambaSegError(
        f"Something went wrong in the program itself ({type(error).__name__}: {_first_line(error)}). "
        f"{_write_log(text)} Please report it with that text."
    )


def _write_log(text: str) -> str:
    path = Path(tempfile.gettempdir()) / f"mambaseg-error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    try:
        path.write_text(text, encoding="utf-8")
    except OSError:
        print(text, file=sys.stderr)
        return "The details are above."
    return f"The details are in {path}."


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0][:200] if lines else "no message"


def _close_stdout() -> None:
    """The reader is gone: keep Python from failing once more when it flushes at exit."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
