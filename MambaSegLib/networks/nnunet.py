"""nnU-Net's two networks: the plain U-Net and the one with a residual encoder.

Sources: Isensee et al., nnU-Net, Nature Methods 2021, and nnU-Net Revisited, MICCAI 2024 (the residual encoder presets);
`PlainConvUNet` and `ResidualEncoderUNet` of dynamic-network-architectures 0.4. Neither has options: everything about them
is in the plan's stages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from MambaSegLib.networks.options import refuse_options
from MambaSegLib.networks.unet import PlainEncoder, ResidualEncoder, UNet, UNetDecoder, plain_blocks

if TYPE_CHECKING:
    from MambaSegLib.plan import NetworkPlan


def build_plain(plan: NetworkPlan) -> UNet:
    """Plain convolutions in encoder and decoder."""
    plan = refuse_options(plan)
    return UNet(plan, PlainEncoder(plan.in_channels, plan.stages), _plain_decoder(plan))


def build_residual_encoder(plan: NetworkPlan) -> UNet:
    """Stem and residual blocks in the encoder, plain convolutions in the decoder."""
    plan = refuse_options(plan)
    no_layers = [nn.Identity() for _ in plan.stages]
    return UNet(plan, ResidualEncoder(plan.in_channels, plan.stages, no_layers), _plain_decoder(plan))


def _plain_decoder(plan: NetworkPlan) -> UNetDecoder:
    return UNetDecoder(plan.stages, plan.out_channels, plan.deep_supervision, plain_blocks)
