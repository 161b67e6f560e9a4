"""nnMamba: a residual U-Net with one Mamba per stage beside its convolutions, walked from both ends of voxels and channels.

Source: Gong et al., nnMamba, ISBI 2025, arXiv 2402.03526, and the released nnMamba.py (lhaof/nnMamba at c0c6730), which is
followed where the paper says less: the blocks of a stage share one Mamba layer, and the last convolution to the classes has
a norm and a ReLU behind it. Deep supervision as in its training code: a head after each coarser decoder stage.

Widths are options, so the plan's stages are not used. The published network halves each axis 4 times; an axis of the patch
that cannot be halved that often is left alone at the first levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from MambaSegLib.errors import InputError
from MambaSegLib.networks.contract import SegmentationNetwork, require_divisible
from MambaSegLib.networks.float32_layer import Float32Layer
from MambaSegLib.networks.halving import halving_strides, total_stride
from MambaSegLib.networks.mamba import MambaBlock
from MambaSegLib.networks.options import read_options, with_options
from MambaSegLib.scan.order import NATURAL_ORDER, ScanOrder

if TYPE_CHECKING:
    from MambaSegLib.plan import IntTriple, NetworkPlan

LEVELS = 4
STATES = 16
REDUCTION = 16
BACKWARD = ScanOrder(backward=True)


@dataclass(frozen=True)
class NNMambaOptions:
    """What may be changed.

    Attributes:
        width: Channels after the first halving; they double at each further level. A multiple of 16 or smaller than it.
        blocks: Residual blocks at each of the three deeper levels; all but the first use the level's Mamba layer.
    """

    width: int = 32
    blocks: int = 3

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if self.width < 1 or self.blocks < 2:
            msg = f"width must be at least 1 and blocks at least 2, got {self.width} and {self.blocks}"
            raise InputError(msg)


def resolve(plan: NetworkPlan) -> NetworkPlan:
    """The plan with its options written out."""
    return with_options(plan, read_options(plan.options, NNMambaOptions()))


def build(plan: NetworkPlan) -> NNMamba:
    """Build for the plan's patch; other patches must have the same halves."""
    return NNMamba(plan, read_options(plan.options, NNMambaOptions()))


def _conv(in_channels: int, out_channels: int, kernel: int, stride: IntTriple = (1, 1, 1)) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False), nn.BatchNorm3d(out_channels)
    )


class SiameseMamba(Float32Layer):
    """One Mamba block reads voxels forward and backward, channels forward and backward; the mean of the four is taken."""

    def __init__(self, channels: int) -> None:
        """Build the layer."""
        super().__init__()
        self.enter = nn.Sequential(_conv(channels, channels, 1), nn.ReLU())
        self.mamba = MambaBlock(channels, STATES)
        self.leave = nn.Sequential(_conv(channels, channels, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, Z, Y, X) -> the same shape."""
        x = self.enter(x)
        left: Tensor = self.leave(self.mix_in_float32(x) + x)
        return left

    def mix(self, features: Tensor) -> Tensor:
        """See `Float32Layer.mix`."""
        grid = (features.shape[2], features.shape[3], features.shape[4])
        tokens = features.flatten(2).transpose(1, 2).contiguous()
        flipped = tokens.flip(-1)
        total = self.mamba(tokens, grid, NATURAL_ORDER) + self.mamba(tokens, grid, BACKWARD)
        total = total + (self.mamba(flipped, grid, NATURAL_ORDER) + self.mamba(flipped, grid, BACKWARD)).flip(-1)
        mean: Tensor = (total / 4).transpose(1, 2).reshape(features.shape)
        return mean


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut; what a Mamba layer makes of the input may be added."""

    def __init__(self, in_channels: int, out_channels: int, stride: IntTriple, project: bool) -> None:
        """Build the block."""
        super().__init__()
        self.convs = nn.Sequential(
            _conv(in_channels, out_channels, 3, stride), nn.ReLU(), _conv(out_channels, out_channels, 3)
        )
        self.shortcut = _conv(in_channels, out_channels, 1, stride) if project else nn.Identity()

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, C, Z, Y, X) -> (B, C', Z', Y', X')."""
        y = self.convs(x) + self.shortcut(x)
        return torch.relu(y if context is None else y + context)


class Stage(nn.Module):
    """Residual blocks; the first takes the stride, the others share a Mamba layer."""

    def __init__(self, channels: int, stride: IntTriple, blocks: int) -> None:
        """Build the stage from `channels` to twice as many."""
        super().__init__()
        self.first = ResidualBlock(channels, 2 * channels, stride, project=True)
        self.mamba = SiameseMamba(2 * channels)
        self.rest = nn.ModuleList(
            ResidualBlock(2 * channels, 2 * channels, (1, 1, 1), project=False) for _ in range(blocks - 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, Z, Y, X) -> (B, 2 C, Z', Y', X')."""
        x = self.first(x)
        for block in self.rest:
            x = block(x, self.mamba(x))
        return x


class ChannelScale(nn.Module):
    """Each channel times a number between 0 and 1 that depends on the means of all channels."""

    def __init__(self, channels: int) -> None:
        """Build it; the means pass through a layer of a sixteenth of the width."""
        super().__init__()
        narrow = max(1, channels // REDUCTION)
        self.layers = nn.Sequential(nn.Linear(channels, narrow), nn.ReLU(), nn.Linear(narrow, channels), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, Z, Y, X) -> the same shape."""
        scaled: Tensor = x * self.layers(x.mean((2, 3, 4)))[:, :, None, None, None]
        return scaled


def _double_conv(in_channels: int, out_channels: int, stride: IntTriple = (1, 1, 1)) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels, step in ((in_channels, stride), (out_channels, (1, 1, 1))):
        layers += [nn.Conv3d(channels, out_channels, 3, step, 1), nn.BatchNorm3d(out_channels), nn.ReLU()]
    return nn.Sequential(*layers)


class NNMamba(SegmentationNetwork):
    """Encoder of one plain and three Mamba stages, decoder by interpolation and convolution."""

    def __init__(self, plan: NetworkPlan, options: NNMambaOptions) -> None:
        """Build with PyTorch's and Mamba's initialization, as released."""
        super().__init__()
        self.deep_supervision = plan.deep_supervision
        strides = halving_strides(plan.patch_size, [(2, 2, 2)] * LEVELS)
        self.divisor = total_stride(strides)
        widths = [options.width * 2**level for level in range(LEVELS)]
        self.stem = _double_conv(plan.in_channels, widths[0], strides[0])
        self.stages = nn.ModuleList(
            Stage(width, stride, options.blocks) for width, stride in zip(widths[:-1], strides[1:], strict=True)
        )
        self.scales = nn.ModuleList(ChannelScale(width) for width in widths[:-1])
        self.up = nn.ModuleList(
            nn.Upsample(scale_factor=tuple(float(step) for step in stride), mode="trilinear")
            for stride in reversed(strides)
        )
        self.decoder = nn.ModuleList(_double_conv(3 * width, width) for width in reversed(widths[:-1]))
        self.last = _double_conv(widths[0], plan.out_channels)
        headed = list(reversed(widths[:-1])) if plan.deep_supervision else []
        self.heads = nn.ModuleList(nn.Conv3d(width, plan.out_channels, 1) for width in headed)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """See `SegmentationNetwork.forward`."""
        require_divisible(tuple(image.shape[2:]), self.divisor)
        x = self.stem(image)
        skips = []
        for stage, scale in zip(self.stages, self.scales, strict=True):
            skips.append(scale(x))
            x = stage(x)
        decoded = []
        for up, block, skip in zip(self.up[:-1], self.decoder, reversed(skips), strict=True):
            x = block(torch.cat((up(x), skip), dim=1))
            decoded.append(x)
        finest = self.last(self.up[-1](x))
        if not self.deep_supervision:
            return (finest,)
        coarser = [head(y) for head, y in zip(self.heads, decoded, strict=True)]
        return (finest, *coarser[::-1])
