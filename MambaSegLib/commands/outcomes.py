"""The table a batch leaves behind, one row per case and attempt, written as it goes: what a second run resumes from."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

OUTCOMES_FILE = "outcomes.csv"
Status = Literal["done", "skipped", "failed"]
_ANY_NAME = "surrogateescape"
"""File names need not be text: bytes that are none, from another system's disk, are kept as they are."""
_COLUMNS = ("case", "status", "message", "seconds", "output", "key")


@dataclass(frozen=True)
class Outcome:
    """What became of one case.

    Attributes:
        case: Its name.
        status: "done", "skipped" (done before) or "failed".
        message: Why it failed, or what to know about the result.
        seconds: From reading to writing.
        output: File name of the segmentation, in the output folder.
        key: Hash of everything the output depends on: model, input, settings.
        volumes_ml: Volume per label.
    """

    case: str
    status: Status
    message: str
    seconds: float
    output: str
    key: str
    volumes_ml: Mapping[str, float]


class OutcomeTable:
    """Appends to outcomes.csv; the last row of a case counts."""

    def __init__(self, folder: Path, labels: Sequence[str]) -> None:
        """Read what an earlier run left, and set a table with other columns (of another model) aside.

        Args:
            folder: Output folder of the batch.
            labels: Names of the model's labels: a volume column each.
        """
        self.path = folder / OUTCOMES_FILE
        self._labels = tuple(labels)
        self._columns = [*_COLUMNS, *(f"{name} [ml]" for name in labels)]
        self._done: dict[str, str] = {}
        if self.path.exists():
            self._resume()
        if not self.path.exists():
            self._append(self._columns)

    def is_done(self, case: str, key: str, output: Path) -> bool:
        """Whether an earlier run finished this very case: same model, input and settings, and its output is there."""
        return self._done.get(case) == key and output.is_file()

    def add(self, outcome: Outcome) -> None:
        """Append a row; it is on its way to the disk when this returns."""
        volumes = [f"{outcome.volumes_ml[name]:.6g}" if name in outcome.volumes_ml else "" for name in self._labels]
        message = " ".join(outcome.message.split())
        seconds = f"{outcome.seconds:.2f}"
        self._append([outcome.case, outcome.status, message, seconds, outcome.output, outcome.key, *volumes])
        if outcome.status == "done":
            self._done[outcome.case] = outcome.key

    def _resume(self) -> None:
        with self.path.open(encoding="utf-8", errors=_ANY_NAME, newline="") as stream:
            rows = list(csv.reader(stream))
        if not rows or rows[0] != self._columns:
            self.path.rename(_free_name(self.path))
            return
        for row in rows[1:]:
            if len(row) < len(self._columns):  # a kill cut the last row off
                continue
            entry = dict(zip(self._columns, row, strict=False))
            if entry["status"] == "done":
                self._done[entry["case"]] = entry["key"]
            elif entry["status"] == "failed":
                self._done.pop(entry["case"], None)
        self._end_last_row()

    def _append(self, row: Sequence[str]) -> None:
        with self.path.open("a", encoding="utf-8", errors=_ANY_NAME, newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerow(row)
            stream.flush()
            os.fsync(stream.fileno())

    def _end_last_row(self) -> None:
        with self.path.open("rb+") as stream:
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":
                stream.write(b"\n")


def _free_name(path: Path) -> Path:
    number = 1
    while (candidate := path.with_name(f"{path.stem}-{number}{path.suffix}")).exists():
        number += 1
    return candidate
