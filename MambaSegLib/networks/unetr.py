"""UNETR: a vision transformer as encoder, whose layers 3, 6, 9 and 12 feed a convolutional decoder. Built on MONAI.

Source: Hatamizadeh et al., UNETR, WACV 2022; MONAI's UNETR (1.5 or newer). One output, no deep supervision, as published.
Widths are options, so the plan's stages are not used. Tokens are cubes of 16 voxels with learned positions: the patch
must be a multiple of 16, and only patches of the planned size can be segmented.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from MambaSegLib.errors import InputError
from MambaSegLib.networks.contract import SegmentationNetwork, next_multiple, require_shape
from MambaSegLib.networks.monai_parts import monai_network
from MambaSegLib.networks.options import read_options, with_options

if TYPE_CHECKING:
    from MambaSegLib.plan import IntTriple, NetworkPlan

TOKEN = (16, 16, 16)


@dataclass(frozen=True)
class UNETROptions:
    """What may be changed.

    Attributes:
        feature_size: Channels of the decoder at full resolution; they double at each level.
        hidden_size: Width of the transformer.
        mlp_size: Width of its feed-forward layers.
        heads: Attention heads; they divide `hidden_size`.
        conv_block: Convolutions after each upsampling on the way from the transformer. On in the authors' training code
            and in MONAI; the 92.49 M parameters many papers print for UNETR are those of the network without.
    """

    feature_size: int = 16
    hidden_size: int = 768
    mlp_size: int = 3072
    heads: int = 12
    conv_block: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if min(self.feature_size, self.hidden_size, self.mlp_size, self.heads) < 1 or self.hidden_size % self.heads:
            msg = f"widths must be at least 1 and heads must divide hidden_size, got {self}"
            raise InputError(msg)


def resolve(plan: NetworkPlan) -> NetworkPlan:
    """The plan with its options written out."""
    return with_options(plan, read_options(plan.options, UNETROptions()))


def fit(plan: NetworkPlan) -> IntTriple:
    """The next larger multiple of 16 per axis."""
    return next_multiple(plan.patch_size, TOKEN)


def build(plan: NetworkPlan) -> UNETR:
    """Build with MONAI's initialization."""
    return UNETR(plan, read_options(plan.options, UNETROptions()))


class UNETR(SegmentationNetwork):
    """MONAI's UNETR under this package's contract."""

    def __init__(self, plan: NetworkPlan, options: UNETROptions) -> None:
        """Build it for the plan's patch."""
        super().__init__()
        self.deep_supervision = plan.deep_supervision
        self.patch_size = plan.patch_size
        self.body = monai_network("unetr", "UNETR", plan.name)(
            in_channels=plan.in_channels,
            out_channels=plan.out_channels,
            img_size=plan.patch_size,
            feature_size=options.feature_size,
            hidden_size=options.hidden_size,
            mlp_dim=options.mlp_size,
            num_heads=options.heads,
            conv_block=options.conv_block,
        )
        for block in self.body.vit.blocks:
            # MONAI's transformer blocks hold a norm for cross-attention, which an encoder has not: weights without use.
            block.norm_cross_attn = nn.Identity()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """See `SegmentationNetwork.forward`."""
        require_shape(tuple(image.shape[2:]), self.patch_size, "its learned positions")
        return (self.body(image),)
