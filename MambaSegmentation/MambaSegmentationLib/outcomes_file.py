"""The table `mambaseg batch` leaves in its output folder, read for a person who comes back to it."""

from __future__ import annotations

import csv
from pathlib import Path

from MambaSegLib.commands.outcomes import OUTCOMES_FILE
from MambaSegmentationLib.batch_run import CaseOutcome


def earlierOutcomes(folder: Path) -> tuple[CaseOutcome, ...]:
    """What became of the cases of earlier runs, the last attempt of each; () if there is no table."""
    try:
        with (folder / OUTCOMES_FILE).open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, csv.Error, UnicodeDecodeError):
        return ()
    # "skipped" only says that an earlier row counts.
    last = {row["case"]: row for row in rows if row.get("case") and row.get("status") in ("done", "failed")}
    return tuple(
        CaseOutcome(name, row["status"], row.get("message") or "", _seconds(row), folder / (row.get("output") or ""))
        for name, row in last.items()
    )


def _seconds(row: dict[str, str]) -> float:
    try:
        return float(row.get("seconds") or 0)
    except ValueError:
        return 0.0
