"""What this program found out about this computer, so that it need not find it out again: small files anyone may delete."""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from pathlib import Path

from MambaSegLib.atomic import new_file

_log = logging.getLogger(__name__)


def home_folder() -> Path:
    """The user's home; the folder of temporary files where a user has none, as a bare number in a container."""
    try:
        return Path.home()
    except RuntimeError:
        return Path(tempfile.gettempdir())


def cache_folder() -> Path:
    """The place this system keeps what a program can find out again."""
    home = home_folder()
    if sys.platform == "win32":
        folder = home / "AppData" / "Local"
    elif sys.platform == "darwin":
        folder = home / "Library" / "Caches"
    else:
        folder = home / ".cache"
    return folder / "MambaSegmentation"


def recall(file: Path) -> dict[str, object]:
    """What a file holds; nothing if it is missing, damaged or cannot be read."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        _log.debug("nothing is remembered: %s", problem)
        return {}
    return content if isinstance(content, dict) else {}


def remember(file: Path, key: str, value: object) -> None:
    """Add or replace an entry; a file that cannot be written is left, as everything works without it."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with new_file(file) as work:
            work.write_text(json.dumps({**recall(file), key: value}, indent=1), encoding="utf-8")
    except OSError as problem:
        _log.debug("this is not remembered: %s", problem)
