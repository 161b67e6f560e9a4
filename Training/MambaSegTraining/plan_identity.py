"""The part of a plan that decides what a network learns and predicts: names, colors and notes do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from MambaSegTraining.json_hash import json_hash

_LATER = {"thick_slices": "interpolated"}
"""Fields that came after hashes were kept, and what plans without them mean: planning anew adds them and changes nothing."""


def deciding_part(stated: dict[str, Any]) -> dict[str, Any]:
    """A plan, as its file has it, without fingerprint, modalities, and names, colors and codes of labels.

    Args:
        stated: The plan as JSON values; not as a `Plan`, for a later version may know more fields, at their defaults.
    """
    kept = {name: value for name, value in stated.items() if name != "fingerprint"}
    channels = [
        {name: value for name, value in channel.items() if name != "modality"} for channel in stated["channels"]
    ]
    return {**kept, "channels": channels, "labels": [label["value"] for label in stated["labels"]]}


def plan_hash(path: Path) -> str:
    """Hash of the deciding part of a plan's file, the same whether an earlier or a later version wrote it."""
    part = deciding_part(json.loads(path.read_text(encoding="utf-8")))
    return json_hash({name: value for name, value in part.items() if name not in _LATER or value != _LATER[name]})
