"""3D TransUNet: a U-Net whose bottleneck passes through a vision transformer, or whose output comes from queries, or both.

Source: Chen et al., TransUNet (3D), Medical Image Analysis 2024, arXiv 2310.07781, and the released transunet3d_model.py
and vit_modeling.py (Beckschen/3D-TransUNet at 9f18182), which is followed where the paper says less. Its U-Net is nnU-Net's
first version: transposed convolutions and heads have no bias, and a decoder stage has the kernel of the encoder stage
below it. The transformer starts from random weights here, the authors' from ImageNet's.

Learned positions fit the planned patch only; the decoder variant takes any the strides divide.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from MambaSegLib.errors import InputError
from MambaSegLib.networks.contract import SegmentationNetwork, require_divisible, require_shape, stride_product
from MambaSegLib.networks.options import read_options, with_options
from MambaSegLib.networks.query_decoder import QueryDecoder
from MambaSegLib.networks.unet import PlainEncoder, UNetDecoder, initialize, plain_blocks

if TYPE_CHECKING:
    from MambaSegLib.plan import IntTriple, NetworkPlan

VARIANTS = ("encoder", "decoder", "both")
DECODER_MAPS = 3
DROPOUT = 0.1
NORM_EPS = 1e-6
LAYER_SCALE = 1e-5


@dataclass(frozen=True)
class TransUNetOptions:
    """What may be changed; the defaults are ViT-B's.

    Attributes:
        variant: "encoder" (the transformer on the bottleneck), "decoder" (queries, see `query_decoder`) or "both".
        depth: Transformer layers.
        hidden_size: Their width.
        mlp_size: Width of their feed-forward layers.
        heads: Attention heads; they divide `hidden_size`.
        layer_scale: Multiply each shortcut of the transformer by learned numbers that start at 1e-5. The released Synapse
            configuration does so, on the shortcut and not, as is usual, on the branch.
    """

    variant: str = "encoder"
    depth: int = 12
    hidden_size: int = 768
    mlp_size: int = 3072
    heads: int = 12
    layer_scale: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if self.variant not in VARIANTS:
            msg = f"variant must be one of {', '.join(VARIANTS)}, got {self.variant!r}"
            raise InputError(msg)
        if min(self.depth, self.hidden_size, self.mlp_size, self.heads) < 1 or self.hidden_size % self.heads:
            msg = f"depth and widths must be at least 1 and heads must divide hidden_size, got {self}"
            raise InputError(msg)


def resolve(plan: NetworkPlan) -> NetworkPlan:
    """The plan with its options written out."""
    return with_options(plan, read_options(plan.options, TransUNetOptions()))


def build(plan: NetworkPlan) -> TransUNet:
    """Build on the plan's stages."""
    return TransUNet(plan, read_options(plan.options, TransUNetOptions()))


class TransformerLayer(nn.Module):
    """Self-attention and a feed-forward network, each after a norm and with a shortcut."""

    def __init__(self, options: TransUNetOptions) -> None:
        """Build the layer; `options.heads` heads of equal width."""
        super().__init__()
        width = options.hidden_size
        self.heads = options.heads
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.up = nn.Linear(width, options.mlp_size)
        self.down = nn.Linear(options.mlp_size, width)
        self.scale1 = _shortcut_scale(options)
        self.scale2 = _shortcut_scale(options)
        for linear in (self.up, self.down):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.normal_(linear.bias, std=1e-6)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        tokens = self._attend(self.norm1(tokens)) + (tokens if self.scale1 is None else tokens * self.scale1)
        hidden = F.dropout(F.gelu(self.up(self.norm2(tokens))), DROPOUT, self.training)
        branch = F.dropout(self.down(hidden), DROPOUT, self.training)
        return branch + (tokens if self.scale2 is None else tokens * self.scale2)

    def _attend(self, tokens: Tensor) -> Tensor:
        split = (tokens.shape[0], tokens.shape[1], self.heads, -1)
        query, key, value = (
            linear(tokens).reshape(split).transpose(1, 2) for linear in (self.query, self.key, self.value)
        )
        mixed: Tensor = self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return mixed


def _shortcut_scale(options: TransUNetOptions) -> nn.Parameter | None:
    return nn.Parameter(torch.full((options.hidden_size,), LAYER_SCALE)) if options.layer_scale else None


class BottleneckTransformer(nn.Module):
    """Each voxel of a feature map becomes a token, passes through the transformer, and becomes a voxel again."""

    def __init__(self, channels: int, voxels: int, options: TransUNetOptions) -> None:
        """Build it for maps of `channels` channels and `voxels` voxels."""
        super().__init__()
        self.embed = nn.Conv3d(channels, options.hidden_size, 1)
        self.positions = nn.Parameter(torch.zeros(1, voxels, options.hidden_size))
        self.layers = nn.ModuleList(TransformerLayer(options) for _ in range(options.depth))
        self.norm = nn.LayerNorm(options.hidden_size, eps=NORM_EPS)
        self.project = nn.Conv3d(options.hidden_size, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, Z, Y, X) -> the same shape."""
        tokens = self.embed(features).flatten(2).transpose(1, 2) + self.positions
        tokens = F.dropout(tokens, DROPOUT, self.training)
        for layer in self.layers:
            tokens = layer(tokens)
        tokens = self.norm(tokens).transpose(1, 2)
        mixed: Tensor = self.project(tokens.reshape(*tokens.shape[:2], *features.shape[2:]))
        return mixed


class TransUNet(SegmentationNetwork):
    """Plain U-Net of the plan's stages with a transformer between encoder and decoder, queries behind it, or both."""

    def __init__(self, plan: NetworkPlan, options: TransUNetOptions) -> None:
        """Initialize convolutions as nnU-Net does, the transformers as released."""
        super().__init__()
        self.deep_supervision = plan.deep_supervision
        self.divisor = stride_product(plan)
        stages = plan.stages
        below = [replace(stage, kernel=deeper.kernel) for stage, deeper in pairwise(stages)]
        self.encoder = PlainEncoder(plan.in_channels, stages)
        self.decoder = UNetDecoder(
            (*below, stages[-1]), plan.out_channels, plan.deep_supervision, plain_blocks, bias=False
        )
        self.apply(initialize)
        self.fixed_size: IntTriple | None = None
        self.transformer: nn.Module = nn.Identity()
        if options.variant != "decoder":
            z, y, x = (size // step for size, step in zip(plan.patch_size, self.divisor, strict=True))
            self.fixed_size = plan.patch_size
            self.transformer = BottleneckTransformer(stages[-1].features, z * y * x, options)
        self.query_decoder = None if options.variant == "encoder" else self._with_queries(plan)

    def _with_queries(self, plan: NetworkPlan) -> QueryDecoder:
        if len(plan.stages) <= DECODER_MAPS:
            msg = f"TransUNet's queries look at {DECODER_MAPS} decoder maps; the plan has {len(plan.stages)} stages"
            raise InputError(msg)
        # The finest convolutional head has no use: it is in the released network, but not in its outputs.
        self.decoder.heads = self.decoder.heads[:-1]
        coarse_to_fine = [stage.features for stage in plan.stages[DECODER_MAPS:0:-1]]
        return QueryDecoder(coarse_to_fine, plan.stages[0].features, plan.out_channels)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """See `SegmentationNetwork.forward`."""
        require_divisible(tuple(image.shape[2:]), self.divisor)
        if self.fixed_size is not None:
            require_shape(tuple(image.shape[2:]), self.fixed_size, "its learned positions")
        *skips, deepest = self.encoder(image)
        features = [*skips, self.transformer(deepest)]
        if self.query_decoder is None:
            return self.decoder(features, self.deep_supervision)  # type: ignore[no-any-return]
        decoded = [features[-1], *self.decoder.features(features)]
        finest = self.query_decoder(decoded[-1 - DECODER_MAPS : -1], decoded[-1])
        if not self.deep_supervision:
            return (finest,)
        coarser = [head(y) for head, y in zip(self.decoder.heads, decoded[1:], strict=False)]
        return (finest, *coarser[::-1])
