"""What the scores of a validation depend on: a case is measured again only where something else could come out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from MambaSegLib.download import sha256_of
from MambaSegTraining.case_sources import known_content_hash
from MambaSegTraining.dataset import Case
from MambaSegTraining.json_hash import json_hash
from MambaSegTraining.metrics import DEFINITIONS
from MambaSegTraining.plan_identity import plan_hash
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
        weights=sha256_of(weights_file),
        plan=plan_hash(run.plan_file),
        structures=json_hash([[one.name, one.values, one.tolerance_mm] for one in structures(run)]),
        files=json_hash([[case.name, known_content_hash(run.store, case, plan)] for case in cases]),
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
