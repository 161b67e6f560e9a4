"""How two `mambaseg` processes talk over a pipe: lines of JSON, and files between them.

A file is a line {"file": name, "bytes": n} followed by n bytes. Names are relative with forward slashes; anything else is
refused, since the other side may be somebody else's computer.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path, PurePosixPath
from typing import IO, Any

from MambaSegLib.atomic import new_file
from MambaSegLib.errors import InputError

PROTOCOL = 1
"""Raised when the two sides would no longer understand each other."""

_MAX_LINE_BYTES = 16 * 1024**2
_CHUNK_BYTES = 1024**2
_PART = re.compile(r"[^/\0]{1,255}")
_WINDOWS_PART = re.compile(r"[^/\\:\0]{1,255}")
"""On Windows C: is a drive, a:b a stream inside the file a, and a backslash begins another folder."""


class Wire:
    """One end of the pipe."""

    def __init__(self, source: IO[bytes], target: IO[bytes]) -> None:
        """Read from one stream, write to the other."""
        self._source, self._target = source, target

    def send(self, message: dict[str, Any]) -> None:
        """Write a line."""
        self._target.write(json.dumps(message, default=str).encode("ascii") + b"\n")
        self._target.flush()

    def send_file(self, name: str, path: Path) -> None:
        """Write a file."""
        self.send({"file": name, "bytes": path.stat().st_size})
        with path.open("rb") as stream:
            shutil.copyfileobj(stream, self._target, _CHUNK_BYTES)
        self._target.flush()

    def receive(self) -> dict[str, Any] | None:
        """Read the next line that holds an object; None at the end. What a login script prints is passed over."""
        while line := self._source.readline(_MAX_LINE_BYTES):
            try:
                message = json.loads(line)
            except ValueError:
                continue
            if isinstance(message, dict):
                return message
        return None

    def receive_file(self, message: dict[str, Any], path: Path) -> None:
        """Write the bytes that follow a {"file": ...} line to a file, whole or not at all.

        Raises:
            InputError: If the other side ends in the middle.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        left = int(message["bytes"])
        with new_file(path) as work, work.open("wb") as stream:
            while left:
                data = self._source.read(min(left, _CHUNK_BYTES))
                if not data:
                    error = f"The connection ended in the middle of {message['file']}."
                    raise InputError(error)
                stream.write(data)
                left -= len(data)


def safe_name(name: object, *, windows: bool = sys.platform == "win32") -> PurePosixPath:
    """A name from the other side that cannot lead out of a folder.

    Args:
        name: With forward slashes.
        windows: Whether this is a Windows, where more letters have a meaning of their own.

    Raises:
        InputError: If it could.
    """
    parts = str(name).split("/")
    letters = _WINDOWS_PART if windows else _PART
    if not all(letters.fullmatch(part) and part not in (".", "..") for part in parts):
        cure = r" Windows takes no : or \ in a name; give the file another." if windows else ""
        message = f"The other computer sent a file with a name that is not accepted: {str(name)[:100]!r}.{cure}"
        raise InputError(message)
    return PurePosixPath(*parts)
