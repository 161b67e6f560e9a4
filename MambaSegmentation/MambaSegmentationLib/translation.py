"""Texts in the person's language: Slicer's translation, and the texts as they are where there is no Slicer."""

from __future__ import annotations

try:
    from slicer.i18n import tr
except ImportError:

    def tr(text: str) -> str:
        """The text itself."""
        return text


__all__ = ["tr"]
