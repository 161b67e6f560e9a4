"""A tiny trained model that every test of bundles, models and commands may use."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from MambaSegLib.manifest import BundleManifest, Metric, Provenance
from MambaSegLib.plan import Channel, Code, Label, NetworkPlan, Normalization, Plan, StagePlan, Terminology

if TYPE_CHECKING:
    from MambaSegLib.bundle import Bundle

sys.path.append(str(Path(__file__).parent / "helpers"))

TINY_NAME = "mamba_unet_unidirectional.tiny"


@pytest.fixture
def tiny_plan() -> Plan:
    """One MR channel, two structures, a network of two stages with 4 and 8 features."""
    stages = (
        StagePlan(4, (1, 1, 1), (3, 3, 3), 1),
        StagePlan(8, (2, 2, 2), (3, 3, 3), 1),
    )
    anatomy = Code("SCT", "123037004", "Anatomical Structure")
    return Plan(
        orientation="SPL",
        spacing_mm=(1.5, 1.0, 1.0),
        channels=(Channel("T1", Normalization("zscore"), "MR"),),
        labels=(
            Label(1, "Anterior", (220, 60, 40), Terminology(anatomy, Code("SCT", "5366008", "Hippocampus"))),
            Label(2, "Posterior", (40, 120, 220)),
        ),
        network=NetworkPlan("mamba_unet_unidirectional", 1, 3, (16, 16, 16), stages, options={"d_state_max": 4}),
        mirror_axes=(2,),
    )


@pytest.fixture
def tiny_manifest(tiny_plan: Plan) -> BundleManifest:
    """A complete manifest but for the weight files."""
    return BundleManifest(
        schema_version=1,
        name=TINY_NAME,
        version="1.0.0",
        description="Two halves of nothing, for tests.",
        plan=tiny_plan,
        folds=(),
        provenance=Provenance(
            dataset="Phantoms",
            dataset_license="CC0-1.0",
            weights_license="Apache-2.0",
            splits_sha256="",
            recipe="none",
            code_version="0.1.0",
            seeds=(1, 2),
            created="2026-01-01T00:00:00Z",
        ),
        metrics=(Metric("DSC", "Overlap of two masks; both empty: excluded.", "mean", 0.5, 0.1, 4, excluded=1),),
        intended_use="Testing.",
        limits="Knows nothing.",
    )


@pytest.fixture
def make_bundle(tiny_manifest: BundleManifest) -> Callable[..., Bundle]:
    """Writes the tiny model with freshly initialized weights for two folds."""

    def make(target: Path, manifest: BundleManifest = tiny_manifest, half: bool = False) -> Bundle:
        import torch

        from MambaSegLib.bundle import save_bundle
        from MambaSegLib.networks import create_network

        weights = {}
        for fold in (0, 1):
            torch.manual_seed(fold)
            weights[fold] = create_network(manifest.plan.network).state_dict()
        return save_bundle(manifest, weights, target, half=half)

    return make


@pytest.fixture
def tiny_bundle(tmp_path: Path, make_bundle: Callable[..., Bundle]) -> Bundle:
    """The tiny model in a folder of its own."""
    return make_bundle(tmp_path / "made" / TINY_NAME)
