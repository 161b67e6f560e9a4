"""The paper's three networks: a residual U-Net with a Mamba layer after each encoder stage.

Source: Lumetti et al., ISBI 2025, Fig. 2. The layers sit before each strided convolution and on the bottleneck; their
output goes both into the skip connection and on to the next stage. As in the released code, encoder and decoder are
residual.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from MambaSegLib.networks.mamba import MambaLayer3d
from MambaSegLib.networks.mamba_options import resolve_mamba_options
from MambaSegLib.networks.unet import ResidualEncoder, UNet, UNetDecoder, residual_blocks

if TYPE_CHECKING:
    from MambaSegLib.plan import NetworkPlan


def _build(plan: NetworkPlan) -> UNet:
    plan, options = resolve_mamba_options(plan)
    placed = options.mamba_stages or range(len(plan.stages))
    layers: list[nn.Module] = [
        MambaLayer3d(
            stage.features,
            options.paths(),
            min(stage.features, options.d_state_max),
            options.outer_norm,
            options.head,
        )
        if index in placed
        else nn.Identity()
        for index, stage in enumerate(plan.stages)
    ]
    return UNet(
        plan,
        ResidualEncoder(plan.in_channels, plan.stages, layers),
        UNetDecoder(plan.stages, plan.out_channels, plan.deep_supervision, residual_blocks),
    )


def build_unidirectional(plan: NetworkPlan) -> UNet:
    """Unidirectional: every layer scans in memory order, once."""
    return _build(plan)


def build_bidirectional(plan: NetworkPlan) -> UNet:
    """Bidirectional: memory order, forward and backward, with weights of their own."""
    return _build(plan)


def build_multidirectional(plan: NetworkPlan) -> UNet:
    """Multidirectional: several axis permutations, averaged."""
    return _build(plan)
