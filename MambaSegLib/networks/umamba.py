"""U-Mamba: a residual U-Net with one Mamba layer on the bottleneck (Bot) or one after every encoder stage (Enc).

Source: Ma, Li & Wang, U-Mamba, arXiv 2401.04722, and its released UMambaBot_3d.py and UMambaEnc_3d.py (bowang-lab/U-Mamba
at 530739b), which is followed where the paper says less: a Mamba layer's output replaces the features (no residual), a
stage with no more voxels than channels takes channels as tokens (Enc only), and the number of blocks is the plan's in the
first half of the stages and 1 in the others, whatever the plan says.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from MambaSegLib.networks.contract import SegmentationNetwork, require_divisible, stride_product
from MambaSegLib.networks.conv_norm import NEGATIVE_SLOPE, ConvNorm, ConvNormActivation, activation
from MambaSegLib.networks.options import refuse_options
from MambaSegLib.networks.token_mamba import TokenMamba
from MambaSegLib.networks.unet import ResidualBlock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from MambaSegLib.plan import IntTriple, NetworkPlan, StagePlan


def build_bot(plan: NetworkPlan) -> UMamba:
    """Mamba on the bottleneck, voxels as tokens."""
    plan = refuse_options(plan)
    sizes = _stage_sizes(plan)
    layers: list[nn.Module] = [nn.Identity() for _ in sizes[1:]]
    return UMamba(plan, [*layers, TokenMamba(plan.stages[-1].features, sizes[-1], channel_tokens=False)])


def build_enc(plan: NetworkPlan) -> UMamba:
    """Mamba after every encoder stage; the network fits the plan's patch only if some stage has channels as tokens."""
    plan = refuse_options(plan)
    return UMamba(
        plan,
        [
            TokenMamba(stage.features, size, channel_tokens=size[0] * size[1] * size[2] <= stage.features)
            for stage, size in zip(plan.stages, _stage_sizes(plan), strict=True)
        ],
    )


def _stage_sizes(plan: NetworkPlan) -> list[IntTriple]:
    sizes: list[IntTriple] = []
    z, y, x = plan.patch_size
    for stage in plan.stages:
        z, y, x = z // stage.stride[0], y // stage.stride[1], x // stage.stride[2]
        sizes.append((z, y, x))
    return sizes


def released_blocks(stages: Sequence[StagePlan]) -> tuple[StagePlan, ...]:
    """The stages with one block in the encoder's coarser and the decoder's finer half, as the released code sets it."""
    count = len(stages)
    halved = []
    for index, stage in enumerate(stages):
        # Rounded up halves of `count` stages, and of the count - 1 decoder stages, which run from coarse to fine.
        blocks = 1 if index >= (count + 1) // 2 else stage.blocks
        decoder_blocks = 1 if count - 2 - index >= (count + 1) // 2 else stage.decoder_blocks
        halved.append(replace(stage, blocks=blocks, decoder_blocks=decoder_blocks))
    return tuple(halved)


class ProjectedBlock(nn.Module):
    """Two convolutions with norms, and a shortcut that is always a (strided) 1x1x1 convolution without norm."""

    def __init__(self, in_channels: int, out_channels: int, kernel: IntTriple, stride: IntTriple) -> None:
        """Build the block."""
        super().__init__()
        self.first = ConvNormActivation(in_channels, out_channels, kernel, stride)
        self.second = ConvNorm(out_channels, out_channels, kernel, (1, 1, 1), bias=True)
        self.shortcut = nn.Conv3d(in_channels, out_channels, 1, stride)
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, Z, Y, X) -> (B, C', Z', Y', X')."""
        y: Tensor = self.second(self.first(x), self.shortcut(x), self.activation)
        return y


def _blocks(in_channels: int, out_channels: int, kernel: IntTriple, stride: IntTriple, blocks: int) -> nn.Sequential:
    rest = [ResidualBlock(out_channels, out_channels, kernel) for _ in range(blocks - 1)]
    return nn.Sequential(ProjectedBlock(in_channels, out_channels, kernel, stride), *rest)


class _DecoderStage(nn.Module):
    """Nearest-neighbor upsampling, a 1x1x1 convolution to the skip's width, concatenation, blocks."""

    def __init__(self, below: StagePlan, skip: StagePlan) -> None:
        super().__init__()
        factors = tuple(float(step) for step in below.stride)
        self.upsample = nn.Sequential(nn.Upsample(scale_factor=factors), nn.Conv3d(below.features, skip.features, 1))
        self.blocks = _blocks(2 * skip.features, skip.features, skip.kernel, (1, 1, 1), skip.decoder_blocks)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        joined: Tensor = self.blocks(torch.cat((self.upsample(x), skip), dim=1))
        return joined


class UMamba(SegmentationNetwork):
    """U-Mamba with one module (identity or a Mamba layer) after each encoder stage."""

    def __init__(self, plan: NetworkPlan, after_stage: Sequence[nn.Module]) -> None:
        """Build with He initialization for convolutions, as released."""
        super().__init__()
        self.deep_supervision = plan.deep_supervision
        self.divisor = stride_product(plan)
        stages = released_blocks(plan.stages)
        first = stages[0]
        self.stem = _blocks(plan.in_channels, first.features, first.kernel, (1, 1, 1), first.blocks)
        inputs = [first.features, *(stage.features for stage in stages[:-1])]
        self.encoder = nn.ModuleList(
            _blocks(channels, stage.features, stage.kernel, stage.stride, stage.blocks)
            for channels, stage in zip(inputs, stages, strict=True)
        )
        self.after_stage = nn.ModuleList(after_stage)
        pairs = [(stages[i + 1], stages[i]) for i in reversed(range(len(stages) - 1))]
        self.decoder = nn.ModuleList(_DecoderStage(below, skip) for below, skip in pairs)
        headed = pairs if plan.deep_supervision else pairs[-1:]
        self.heads = nn.ModuleList(nn.Conv3d(skip.features, plan.out_channels, 1) for _, skip in headed)
        self.apply(_initialize)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """See `SegmentationNetwork.forward`."""
        require_divisible(tuple(image.shape[2:]), self.divisor)
        x = self.stem(image)
        skips = []
        for stage, after in zip(self.encoder, self.after_stage, strict=True):
            x = after(stage(x))
            skips.append(x)
        decoded = []
        for stage, skip in zip(self.decoder, reversed(skips[:-1]), strict=True):
            x = stage(x, skip)
            decoded.append(x)
        if not self.deep_supervision:
            return (self.heads[-1](x),)
        return tuple(head(y) for head, y in zip(self.heads, decoded, strict=True))[::-1]


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, a=NEGATIVE_SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
