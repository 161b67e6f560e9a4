"""`mambaseg remote-job`: the far end of `mambaseg remote`; takes one job from standard input and answers on standard output.

Everything happens in a temporary folder that is gone afterwards, also when the near end goes away in the middle.
"""

from __future__ import annotations

import _thread
import argparse
import os
import sys
import tempfile
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from MambaSegLib import __version__
from MambaSegLib.commands.reporting import Level, Reporter
from MambaSegLib.commands.wire import PROTOCOL, Wire, safe_name
from MambaSegLib.errors import InputError
from MambaSegLib.progress import Progress

OUT = "out"
"""Folder, in the temporary one, whose files are sent back."""


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    # Without help it is not listed: no person calls it.
    parser = subparsers.add_parser("remote-job", description=__doc__)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, reporter: Reporter) -> int:
    """Take a job, run it, send back what it says and writes."""
    from MambaSegLib.commands.failures import guarded

    sys.stdout.flush()
    # The pipe is for the wire alone: what libraries print goes to standard error.
    private = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    wire = Wire(sys.stdin.buffer, private)
    with tempfile.TemporaryDirectory(prefix="mambaseg-remote-") as folder:
        answer = _Answer(wire, Path(folder))
        code = guarded(lambda: _run(wire, Path(folder), answer), answer)
    wire.send({"event": "end", "code": code})  # last of all: the near end need not wait for anything
    return code


def _run(wire: Wire, folder: Path, answer: _Answer) -> int:
    from MambaSegLib.__main__ import build_parser
    from MambaSegLib.commands.reporting import library_log

    words = _receive(wire, folder)
    _stop_with_the_near_end()
    os.chdir(folder)
    parsed = build_parser().parse_args(words)
    if parsed.command not in ("segment", "batch", "doctor"):
        message = f"`mambaseg {parsed.command}` is not run for another computer."
        raise InputError(message)
    with library_log(answer):
        code: int = parsed.run(parsed, answer)
    return code


def _receive(wire: Wire, folder: Path) -> list[str]:
    (folder / OUT).mkdir()
    while (message := wire.receive()) is not None:
        if "file" in message:
            wire.receive_file(message, folder / safe_name(message["file"]))
        elif message.get("protocol") != PROTOCOL:
            error = f"The two computers have different versions of MambaSegmentation: {__version__} here. Update both."
            raise InputError(error)
        else:
            return [str(word) for word in message["words"]]
    error = "The connection ended before there was anything to do."
    raise InputError(error)


def _stop_with_the_near_end() -> None:
    """The near end writes nothing more; when it goes away, reading ends, and so does the work."""

    def wait() -> None:
        os.read(sys.stdin.fileno(), 1)  # past the buffer, whose lock would keep Python from ending
        _thread.interrupt_main()

    threading.Thread(target=wait, daemon=True).start()


class _Answer:
    """A reporter that sends what it is told over the wire, files first: when a result arrives, its files are there."""

    def __init__(self, wire: Wire, folder: Path) -> None:
        self._wire, self._folder = wire, folder
        self._sent: dict[str, tuple[int, int]] = {}

    def progress(self, progress: Progress, **details: object) -> None:
        self._wire.send({"event": "progress", "progress": asdict(progress), "details": details})

    def log(self, level: Level, message: str) -> None:
        self._wire.send({"event": "log", "level": level, "message": message})

    def result(self, text: str, **details: object) -> None:
        for path in sorted((self._folder / OUT).rglob("*")):
            name, stat = path.relative_to(self._folder).as_posix(), path.stat()
            if path.is_file() and self._sent.get(name) != (stat.st_size, stat.st_mtime_ns):
                self._sent[name] = (stat.st_size, stat.st_mtime_ns)
                self._wire.send_file(name, path)
        self._wire.send({"event": "result", "text": text, "details": details})

    def error(self, code: int, kind: str, message: str) -> None:
        self._wire.send({"event": "error", "code": code, "message": message})
