"""What the scores of a validation depend on: a case is measured again only where something else could come out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from MambaSegTraining.case_sources import known_content_hash
from MambaSegTraining.dataset import Case
from MambaSegTraining.metrics import DEFINITIONS
from MambaSegTraining.run_folder import RunFolder
from MambaSegTraining.scores import ScoresBasis, structures

PREDICTION_VERSION = 1
"""Counts up when the same model predicts something else; a measure that changes gets a new id instead."""
UNKNOWN = "an earlier version of the program did not keep what its scores depend on"


def basis_of(run: RunFolder, weights_file: Path, weights: str, cases: Sequence[Case], mirroring: bool) -> ScoresBasis:
    """What the scores of some cases depend on.

    Args:
        run: The run.
        weights_file: The weights of the network that is validated.
        weights: "final" or "best".
        cases: What is measured.
        mirroring: Whether the predictions are means over mirrored images.
    """
    plan = run.read_plan()
    return ScoresBasis(
        weights=hashlib.sha256(weights_file.read_bytes()).hexdigest(),
        plan=_hash(_relevant(run.plan_file)),
        structures=_hash([[one.name, one.values, one.tolerance_mm] for one in structures(run)]),
        files=_hash([[case.name, known_content_hash(run.store, case, plan)] for case in cases]),
        manner=f"{weights} weights, {'with' if mirroring else 'without'} mirroring",
        program=f"{PREDICTION_VERSION}: {', '.join(metric.id for metric in DEFINITIONS)}",
    )


def difference(before: ScoresBasis | None, now: ScoresBasis) -> str:
    """What changed since scores were measured, in words; "" if they would come out the same."""
    if before is None:
        return UNKNOWN
    names = [item.name for item in fields(ScoresBasis) if getattr(before, item.name) != getattr(now, item.name)]
    return ", ".join(_WORDS.get(name, f"{getattr(before, name)} then, {getattr(now, name)} now") for name in names)


_WORDS = {
    "weights": "other weights", "plan": "another plan", "structures": "other structures or tolerances",
    "files": "other images or label maps", "program": "another version of prediction or measures",
}  # fmt: skip


def _relevant(plan_file: Path) -> object:
    """The part of a plan that decides which voxels come out, as it is in the file: a later version may know more fields."""
    plan = json.loads(plan_file.read_text(encoding="utf-8"))
    plan.pop("fingerprint", None)
    plan["labels"] = [label["value"] for label in plan["labels"]]
    for channel in plan["channels"]:
        channel.pop("modality", None)
    return plan


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
