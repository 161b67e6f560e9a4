"""Weights that may not be used for everything, and who has agreed to that."""

from __future__ import annotations

import json
from pathlib import Path

from MambaSegLib.atomic import new_file
from MambaSegLib.model_zoo import ListedModel
from MambaSegmentationLib.translation import tr as _

OPEN_LICENSES = ("Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "CC-BY-4.0", "CC-BY-SA-4.0")
"""Licenses of weights that allow any use, commercial use too."""

_FILE = "accepted-licenses.json"


def licenseQuestion(model: ListedModel) -> str:
    """What to ask a person before a model is used whose weights may not be used for everything; "" if they may."""
    if model.manifest is None or model.manifest.provenance.weights_license in OPEN_LICENSES:
        return ""
    found = model.manifest.provenance.weights_license
    return _(
        'The weights of {name} are under the license "{found}", which may forbid some uses, such as '
        "commercial ones. Do you accept it?"
    ).format(name=model.name, found=found)


def isAccepted(model: ListedModel, modelsFolder: Path) -> bool:
    """Whether the license needs no question, or a person on this computer has accepted it for this model."""
    return not licenseQuestion(model) or _accepted(modelsFolder).get(model.name) == _license(model)


def accept(model: ListedModel, modelsFolder: Path) -> None:
    """Remember that a person has accepted the license of a model."""
    modelsFolder.mkdir(parents=True, exist_ok=True)
    content = {**_accepted(modelsFolder), model.name: _license(model)}
    with new_file(modelsFolder / _FILE) as work:
        work.write_text(json.dumps(content, indent=2), encoding="utf-8")


def _license(model: ListedModel) -> str:
    return model.manifest.provenance.weights_license if model.manifest is not None else ""


def _accepted(modelsFolder: Path) -> dict[str, str]:
    try:
        content = json.loads((modelsFolder / _FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
