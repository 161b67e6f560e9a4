"""The course of a training, a line per epoch, as JSON Lines and as CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from MambaSegLib.schema import from_json, to_json
from MambaSegTraining.files import write_text


@dataclass(frozen=True)
class EpochRecord:
    """One line of the log.

    Attributes:
        epoch: From 0.
        iteration: Steps done at its end.
        learning_rate: Of its last step.
        train_loss: Mean over its steps.
        patch_dice: Pooled Dice on patches of the validation cases, per structure; None for one that is neither in them nor
            predicted; () where none was taken.
        mean_patch_dice: Their mean; None where none was taken.
        gradient_norm: Mean over its steps, before clipping.
        seconds: Time of the epoch, the check on the validation cases included.
        wait_share: Share of that time spent waiting for batches.
        recoveries: How often the training went back to good weights until then.
    """

    epoch: int
    iteration: int
    learning_rate: float
    train_loss: float
    patch_dice: tuple[float | None, ...]
    mean_patch_dice: float | None
    gradient_norm: float
    seconds: float
    wait_share: float
    recoveries: int = 0


class TrainingLog:
    """log.jsonl and log.csv of one fold; both are written anew after every epoch, which keeps them whole."""

    def __init__(self, folder: Path, labels: Sequence[str], keep_epochs: int) -> None:
        """Open the log.

        Args:
            folder: Folder of the fold.
            labels: Names of the structures.
            keep_epochs: Lines of earlier epochs are kept; later ones come from a run that is continued before them.
        """
        self._folder, self._labels = folder, tuple(labels)
        self._jsonl = folder / "log.jsonl"
        lines = self._jsonl.read_text(encoding="utf-8").splitlines() if self._jsonl.is_file() else []
        records = [from_json(EpochRecord, json.loads(line), str(self._jsonl)) for line in lines]
        self.records = [record for record in records if record.epoch < keep_epochs]

    def add(self, record: EpochRecord) -> None:
        """Append a line."""
        self.records.append(record)
        write_text(self._jsonl, "".join(json.dumps(to_json(entry)) + "\n" for entry in self.records))
        rows = [[*self._numbers(entry), *entry.patch_dice] for entry in self.records]
        head = [*self._numbers(None), *(f"patch_dice_{label}" for label in self._labels)]
        write_text(self._folder / "log.csv", _csv_text([head, *rows]))

    @staticmethod
    def _numbers(record: EpochRecord | None) -> list[object]:
        names = [name for name in EpochRecord.__dataclass_fields__ if name != "patch_dice"]
        return [getattr(record, name) for name in names] if record else list(names)


def _csv_text(rows: Sequence[Sequence[object]]) -> str:
    import io

    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
