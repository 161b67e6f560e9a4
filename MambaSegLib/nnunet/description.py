"""What a converted model says about itself: what nnU-Net's files know, and plainly what they do not."""

from __future__ import annotations

import re
from collections.abc import Mapping

from MambaSegLib import __version__
from MambaSegLib.manifest import SCHEMA_VERSION, BundleManifest, Provenance, not_measured, utc_now
from MambaSegLib.nnunet.files import ALL_CASES, PLANS, checkpoint_name
from MambaSegLib.nnunet.plans import Content
from MambaSegLib.nnunet.weights import Checkpoint
from MambaSegLib.plan import Plan

NOT_STATED = "not stated"
_MAX_TEXT = 500
_REFERENCE = (
    "Isensee, F., Jaeger, P. F., Kohl, S. A. A., Petersen, J., Maier-Hein, K. H.: nnU-Net: a self-configuring method for deep "
    "learning-based biomedical image segmentation. Nature Methods 18 (2021)."
)


def describe(
    plans: Content, description: Content, plan: Plan, checkpoints: Mapping[str, Checkpoint], weights_license: str
) -> BundleManifest:
    """The manifest, but for the weight files.

    Args:
        plans: Content of plans.json.
        description: Content of dataset.json.
        plan: What was read from them.
        checkpoints: By file name, in the order of the folds; their weights are not looked at.
        weights_license: As a person stated it; "" becomes "not stated".
    """
    first = next(iter(checkpoints.values()))
    dataset = _text(plans.get("dataset_name")) or "unnamed"
    listed = ", ".join(plan.structure_names[:6]) + (", ..." if len(plan.structure_names) > 6 else "")
    return BundleManifest(
        schema_version=SCHEMA_VERSION,
        name=f"{plan.network.name}.{_slug(dataset, first.configuration)}",
        version="1.0.0",
        description=f"Converted from nnU-Net: {listed} ({dataset}).",
        plan=plan,
        folds=(),
        provenance=Provenance(
            dataset=dataset,
            dataset_license=_text(description.get("licence") or description.get("license")) or NOT_STATED,
            weights_license=weights_license or NOT_STATED,
            splits_sha256="",
            recipe=f"nnU-Net v2: {first.trainer}, {_text(plans.get('plans_name'))}, {first.configuration}",
            code_version=f"nnU-Net v2; converted by MambaSegmentation {__version__}",
            seeds=(),
            created=utc_now(),
            dataset_attribution=_text(description.get("reference")),
            training_cases=_training_cases(description, tuple(checkpoints)),
            epochs=first.epochs if len({one.epochs for one in checkpoints.values()}) == 1 else 0,
            software=tuple(f"{file} with SHA-256 {one.sha256}" for file, one in checkpoints.items()),
        ),
        metrics=(not_measured("Not measured here; those who trained the model may have published its quality."),),
        intended_use="What those who trained it intend; converting it here adds nothing to that.",
        limits=(
            f"Nobody has tested this conversion on this model's images. The network is the one {PLANS} describes, which the "
            f"weights fit; if {first.trainer} changed it in a way that weights do not show, results are wrong. nnU-Net averages "
            "and resamples logits, this program probabilities: edges may differ by a voxel. nnU-Net's postprocessing is left out."
        ),
        references=(_REFERENCE,),
    )


def _training_cases(description: Content, files: tuple[str, ...]) -> int:
    """Cases trained on; a single numbered fold left some out, and nobody says how many."""
    count = description.get("numTraining")
    return count if isinstance(count, int) and (len(files) > 1 or checkpoint_name(ALL_CASES) in files) else 0


def _slug(dataset: str, configuration: str) -> str:
    """Second part of a bundle's name."""
    short = re.sub(r"^Dataset\d+_", "", dataset) + ("" if configuration == "3d_fullres" else f"_{configuration}")
    return re.sub(r"[^a-z0-9_-]+", "_", short.lower()).strip("_-") or "unnamed"


def _text(value: object) -> str:
    """One line of what a file says, without what a terminal would obey."""
    words = "".join(letter if letter.isprintable() else " " for letter in value) if isinstance(value, str) else ""
    return " ".join(words.split())[:_MAX_TEXT]
