"""A tiny model with fresh weights: one MR channel, two structures. It knows nothing, but always the same."""

from __future__ import annotations

import sys
from pathlib import Path

NAME = "mamba_unet_unidirectional.tiny"


def save(folder: Path) -> None:
    """Make the model; needs PyTorch."""
    import torch

    from MambaSegLib.bundle import save_bundle
    from MambaSegLib.manifest import BundleManifest, Metric, Provenance
    from MambaSegLib.networks import create_network
    from MambaSegLib.plan import Channel, Code, Label, NetworkPlan, Normalization, Plan, StagePlan, Terminology

    anatomy = Terminology(Code("SCT", "123037004", "Anatomical Structure"), Code("SCT", "5366008", "Hippocampus"))
    stages = (StagePlan(4, (1, 1, 1), (3, 3, 3), 1), StagePlan(8, (2, 2, 2), (3, 3, 3), 1))
    plan = Plan(
        orientation="SPL",
        spacing_mm=(1.5, 1.0, 1.0),
        channels=(Channel("T1", Normalization("zscore"), "MR"),),
        labels=(Label(1, "Anterior", (220, 60, 40), anatomy), Label(2, "Posterior", (40, 120, 220))),
        network=NetworkPlan("mamba_unet_unidirectional", 1, 3, (16, 16, 16), stages, options={"d_state_max": 4}),
        mirror_axes=(2,),
    )
    provenance = Provenance("Phantoms", "CC0-1.0", "Apache-2.0", "", "none", "0.1.0", (1,), "2026-01-01T00:00:00Z")
    metric = Metric("DSC", "Overlap of two masks; both empty: excluded.", "mean", 0.5, 0.1, 4, excluded=1)
    manifest = BundleManifest(
        1, NAME, "1.0.0", "Two halves of nothing.", plan, (), provenance, (metric,), "Testing.", "Knows nothing."
    )
    torch.manual_seed(0)
    save_bundle(manifest, {0: create_network(plan.network).state_dict()}, folder)


if __name__ == "__main__":
    save(Path(sys.argv[1]))
