"""Which packages the tests of the Slicer module lack here."""

from __future__ import annotations

import importlib.util


def _missing() -> list[str]:
    missing = [] if importlib.util.find_spec("slicer") else ["slicer-core"]
    try:
        import PySide6.QtWidgets  # noqa: F401 - installed is not enough: it needs system libraries such as libEGL
    except ImportError as error:
        missing.append(f"PySide6 ({error})")
    return missing


MISSING = _missing()
