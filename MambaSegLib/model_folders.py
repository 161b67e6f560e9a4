"""Where trained models are kept: those that come with the program and those a person installed."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from MambaSegLib.manifest_check import is_model_name
from MambaSegLib.remembered import home_folder

BUNDLED_MODELS = Path(__file__).parent / "models"
"""Models that come with the program; never written to."""


def default_models_folder() -> Path:
    """Folder for installed models: the place this system keeps a user's application data in."""
    home = home_folder()
    if sys.platform == "win32":
        return home / "AppData" / "Local" / "MambaSegmentation" / "models"
    if sys.platform == "darwin":
        return home / "Library" / "Application Support" / "MambaSegmentation" / "models"
    return home / ".local" / "share" / "MambaSegmentation" / "models"


def find_model_folder(name: str, models_dir: Path | None = None) -> Path | None:
    """Folder of a bundled or installed model; None if there is none of this name, or none this user may read."""
    if not is_model_name(name):
        return None
    for parent in (BUNDLED_MODELS, models_dir or default_models_folder()):
        with contextlib.suppress(PermissionError):
            if (parent / name / "bundle.json").is_file():
                return parent / name
    return None


def model_names(folder: Path) -> tuple[str, ...]:
    """Names of the models a folder holds, sorted; () if there is no such folder, or it may not be read."""
    return tuple(entry.name for entry in _entries(folder) if _has_name(entry))


def entries_without_name(folder: Path) -> tuple[Path, ...]:
    """What looks like a model in a folder of models, a .zip or a folder, but goes by no model name and is so found by nobody."""
    return tuple(entry for entry in _entries(folder) if not _has_name(entry) and _looks_like_model(entry))


def _has_name(entry: Path) -> bool:
    with contextlib.suppress(PermissionError):  # of a folder that only lists its names
        return is_model_name(entry.name) and entry.is_dir()
    return False


def _looks_like_model(path: Path) -> bool:
    if path.name.startswith("."):  # an installation under way
        return False
    with contextlib.suppress(PermissionError):
        return path.suffix.lower() == ".zip" or (path / "bundle.json").is_file()
    return False


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
