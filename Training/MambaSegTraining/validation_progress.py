"""Scores of a validation in progress, a line per case, so that a killed one goes on with the next case."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from MambaSegLib.errors import BundleError
from MambaSegLib.schema import from_json, to_json
from MambaSegTraining.files import write_text
from MambaSegTraining.metrics import LabelScore

PARTIAL_FILE = "scores.partial.jsonl"


@dataclass(frozen=True)
class _Start:
    """First line: what the scores depend on, as one hash."""

    identity: str


@dataclass(frozen=True)
class _CaseScores:
    """Any other line."""

    case: str
    scores: tuple[LabelScore, ...]


class PartialScores:
    """The file scores.partial.jsonl of a fold's validation."""

    def __init__(self, folder: Path, identity: str) -> None:
        """Open the file and take over what an interrupted validation left.

        Args:
            folder: Folder of the fold's validation.
            identity: What the scores depend on, as one hash. Scores that depend on something else are dropped.
        """
        self._path, self._cases = folder / PARTIAL_FILE, _read(folder / PARTIAL_FILE, identity)
        lines = [to_json(_Start(identity)), *(to_json(_CaseScores(*item)) for item in self._cases.items())]
        write_text(self._path, "".join(json.dumps(line) + "\n" for line in lines))

    def of(self, case: str) -> tuple[LabelScore, ...] | None:
        """Scores of a case; None if it was not measured yet."""
        return self._cases.get(case)

    def add(self, case: str, scores: tuple[LabelScore, ...]) -> None:
        """Append a case; when this returns, a kill or power cut cannot take it back."""
        self._cases[case] = scores
        with self._path.open("a", encoding="utf-8", newline="\n") as stream:
            stream.write(json.dumps(to_json(_CaseScores(case, scores))) + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def remove(self) -> None:
        """Remove the file: the scores are complete and stored elsewhere."""
        self._path.unlink(missing_ok=True)


def _read(path: Path, identity: str) -> dict[str, tuple[LabelScore, ...]]:
    """Whole lines up to the first that is not: a kill may have cut the last one short."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    cases: dict[str, tuple[LabelScore, ...]] = {}
    try:
        if not lines or from_json(_Start, json.loads(lines[0])).identity != identity:
            return {}
        for line in lines[1:]:
            entry = from_json(_CaseScores, json.loads(line))
            cases[entry.case] = entry.scores
    except (json.JSONDecodeError, BundleError):
        pass
    return cases
