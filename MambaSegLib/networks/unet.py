"""Building blocks of nnU-Net's U-Nets: plain and residual stages, which any encoder and decoder may be made of.

Written after the description of dynamic-network-architectures' `StackedConvBlocks`, `BasicBlockD`, `PlainConvEncoder`,
`ResidualEncoder`, `UNetDecoder` and `UNetResDecoder` (Isensee et al., nnU-Net); tested against those classes: parameter
counts, and outputs with the same weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from MambaSegLib.networks.block_mean import BlockMean
from MambaSegLib.networks.contract import SegmentationNetwork, require_divisible, stride_product
from MambaSegLib.networks.conv_norm import NEGATIVE_SLOPE, ConvNorm, ConvNormActivation, activation
from MambaSegLib.plan import IntTriple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from MambaSegLib.plan import NetworkPlan, StagePlan

Stack = Callable[[int, int, IntTriple, IntTriple, int], nn.Sequential]
"""Blocks of one resolution from (channels in, channels out, kernel, stride, count)."""


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut; a strided shortcut averages before it projects ("ResNet-D")."""

    def __init__(self, in_channels: int, out_channels: int, kernel: IntTriple, stride: IntTriple = (1, 1, 1)) -> None:
        """Build the block; the shortcut is the identity where shape and channels stay."""
        super().__init__()
        self.first = ConvNormActivation(in_channels, out_channels, kernel, stride)
        self.second = ConvNorm(out_channels, out_channels, kernel, (1, 1, 1), bias=True)
        shortcut: list[nn.Module] = []
        if stride != (1, 1, 1):
            shortcut.append(BlockMean(stride))
        if in_channels != out_channels:
            shortcut.append(ConvNorm(in_channels, out_channels, (1, 1, 1), (1, 1, 1), bias=False))
        self.shortcut = nn.Sequential(*shortcut)
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, Z, Y, X) -> (B, C', Z', Y', X')."""
        y: Tensor = self.second(self.first(x), self.shortcut(x), self.activation)
        return y


def residual_blocks(
    in_channels: int, out_channels: int, kernel: IntTriple, stride: IntTriple, blocks: int
) -> nn.Sequential:
    """Blocks of one resolution; the first takes the stride and the change of channels."""
    rest = [ResidualBlock(out_channels, out_channels, kernel) for _ in range(blocks - 1)]
    return nn.Sequential(ResidualBlock(in_channels, out_channels, kernel, stride), *rest)


def plain_blocks(
    in_channels: int, out_channels: int, kernel: IntTriple, stride: IntTriple, blocks: int
) -> nn.Sequential:
    """Convolution, norm and activation, `blocks` times; the first takes the stride and the change of channels."""
    rest = [ConvNormActivation(out_channels, out_channels, kernel) for _ in range(blocks - 1)]
    return nn.Sequential(ConvNormActivation(in_channels, out_channels, kernel, stride), *rest)


class PlainEncoder(nn.Module):
    """Stages of plain convolutions, without a stem."""

    def __init__(self, in_channels: int, stages: Sequence[StagePlan]) -> None:
        """Build one stage per entry of `stages`."""
        super().__init__()
        inputs = [in_channels, *(stage.features for stage in stages[:-1])]
        self.stages = nn.ModuleList(
            plain_blocks(channels, stage.features, stage.kernel, stage.stride, stage.blocks)
            for channels, stage in zip(inputs, stages, strict=True)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the features of every stage, finest first."""
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class ResidualEncoder(nn.Module):
    """Stem and residual stages; `after_stage[s]` may change a stage's features before they go on and into the skip."""

    def __init__(self, in_channels: int, stages: Sequence[StagePlan], after_stage: Sequence[nn.Module]) -> None:
        """Build one stage per entry of `stages`."""
        super().__init__()
        first = stages[0]
        self.stem = ConvNormActivation(in_channels, first.features, first.kernel)
        inputs = [first.features, *(stage.features for stage in stages[:-1])]
        self.stages = nn.ModuleList(
            residual_blocks(channels, stage.features, stage.kernel, stage.stride, stage.blocks)
            for channels, stage in zip(inputs, stages, strict=True)
        )
        self.after_stage = nn.ModuleList(after_stage)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the features of every stage, finest first."""
        x = self.stem(x)
        features = []
        for stage, after in zip(self.stages, self.after_stage, strict=True):
            x = after(stage(x))
            features.append(x)
        return features


class UNetDecoder(nn.Module):
    """Transposed convolution, concatenation with the skip, blocks, and a head, per resolution."""

    def __init__(
        self, stages: Sequence[StagePlan], out_channels: int, deep_supervision: bool, stack: Stack, bias: bool = True
    ) -> None:
        """Build a decoder stage for every encoder stage but the deepest; lists run from the deepest to the finest.

        Args:
            stages: Of the encoder, finest first.
            out_channels: Classes.
            deep_supervision: Whether the coarser stages have a head, too.
            stack: Makes the blocks of a stage.
            bias: Whether transposed convolutions and heads have one.
        """
        super().__init__()
        pairs = [(stages[i], stages[i + 1]) for i in reversed(range(len(stages) - 1))]
        self.upsample = nn.ModuleList(
            nn.ConvTranspose3d(below.features, skip.features, below.stride, below.stride, bias=bias)
            for skip, below in pairs
        )
        self.stages = nn.ModuleList(
            stack(2 * skip.features, skip.features, skip.kernel, (1, 1, 1), skip.decoder_blocks) for skip, _ in pairs
        )
        headed = pairs if deep_supervision else pairs[-1:]
        self.heads = nn.ModuleList(nn.Conv3d(skip.features, out_channels, 1, bias=bias) for skip, _ in headed)

    def forward(self, features: Sequence[Tensor], deep_supervision: bool) -> tuple[Tensor, ...]:
        """Return logits, finest first; only the finest without deep supervision."""
        decoded = self.features(features)
        if not deep_supervision:
            return (self.heads[-1](decoded[-1]),)
        return tuple(head(y) for head, y in zip(self.heads, decoded, strict=True))[::-1]

    def features(self, features: Sequence[Tensor]) -> list[Tensor]:
        """What the heads see, from the deepest stage to the finest."""
        x = features[-1]
        decoded = []
        for upsample, stage, skip in zip(self.upsample, self.stages, reversed(features[:-1]), strict=True):
            x = stage(torch.cat((upsample(x), skip), dim=1))
            decoded.append(x)
        return decoded


class UNet(SegmentationNetwork):
    """An encoder that returns the features of every stage, and a decoder that turns them into logits."""

    def __init__(self, plan: NetworkPlan, encoder: nn.Module, decoder: UNetDecoder) -> None:
        """Initialize as nnU-Net: He for convolutions, zero for the last norm of each residual block."""
        super().__init__()
        self.deep_supervision = plan.deep_supervision
        self.divisor = stride_product(plan)
        self.encoder = encoder
        self.decoder = decoder
        self.apply(initialize)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """See `SegmentationNetwork.forward`."""
        require_divisible(tuple(image.shape[2:]), self.divisor)
        return self.decoder(self.encoder(image), self.deep_supervision)  # type: ignore[no-any-return]


def initialize(module: nn.Module) -> None:
    """Set one module's weights as nnU-Net does; for `nn.Module.apply`."""
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=NEGATIVE_SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, ResidualBlock):
        # A block starts as its shortcut.
        nn.init.zeros_(module.second[1].weight)  # type: ignore[arg-type]
