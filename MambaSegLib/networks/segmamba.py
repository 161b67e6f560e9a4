"""SegMamba: an encoder of tri-oriented Mamba blocks, a convolutional decoder as UNETR's.

Source: Xing et al., SegMamba, MICCAI 2024, arXiv 2401.13560, and the released segmamba.py and mamba_simple.py with
bimamba_type="v3" (ge-xing/SegMamba at 1039e37), which are followed where the paper says less: the three scans (forward,
backward, across slices) share the block's two projections and its gate, and their results are added.

One output, no deep supervision, as published. Widths are options, so the plan's stages are not used. The published network
halves each axis 4 times; an axis of the patch that cannot be halved that often is left alone at the first levels. The
number of slices, fixed to that of 128^3 patches as released, is the map's own here.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from MambaSegLib.errors import InputError
from MambaSegLib.networks.contract import SegmentationNetwork, require_divisible
from MambaSegLib.networks.float32_layer import Float32Layer
from MambaSegLib.networks.halving import halving_strides, total_stride
from MambaSegLib.networks.mamba import MambaScan
from MambaSegLib.networks.options import read_options, with_options
from MambaSegLib.scan.order import NATURAL_ORDER, ScanOrder

if TYPE_CHECKING:
    from MambaSegLib.plan import IntTriple, NetworkPlan

LEVELS = 4
EXPAND, STATES = 2, 16
ORDERS = (NATURAL_ORDER, ScanOrder(backward=True), ScanOrder((1, 2, 0)))
"""Forward, backward, and across slices: Z varies fastest."""


@dataclass(frozen=True)
class SegMambaOptions:
    """What may be changed.

    Attributes:
        width: Channels at full resolution and after the first halving; they double at each further level.
        depths: Mamba blocks at each of the four levels.
    """

    width: int = 48
    depths: tuple[int, ...] = (2, 2, 2, 2)

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if self.width < 1 or len(self.depths) != LEVELS or min(self.depths) < 1:
            msg = f"width must be at least 1 and depths four numbers of at least 1, got {self.width} and {self.depths}"
            raise InputError(msg)


def resolve(plan: NetworkPlan) -> NetworkPlan:
    """The plan with its options written out."""
    return with_options(plan, read_options(plan.options, SegMambaOptions()))


def build(plan: NetworkPlan) -> SegMamba:
    """Build for the plan's patch; other patches must have the same halves."""
    return SegMamba(plan, read_options(plan.options, SegMambaOptions()))


class Direction(MambaScan):
    """Convolution and scan of one direction."""

    def __init__(self, channels: int) -> None:
        """Initialize as Mamba does."""
        super().__init__()
        self._build_scan(channels, STATES, expand=EXPAND)
        self._initialize_time_steps()

    def forward(self, values: Tensor, gate: Tensor, grid: IntTriple, order: ScanOrder) -> Tensor:
        """See `MambaScan.scan`."""
        return self.scan(values, gate, grid, order)


class TriOrientedMamba(Float32Layer):
    """Norm, one projection in, three scans that are added, one projection out, and the shortcut."""

    def __init__(self, channels: int) -> None:
        """Build the layer."""
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.in_proj = nn.Linear(channels, 2 * EXPAND * channels, bias=False)
        self.directions = nn.ModuleList(Direction(channels) for _ in ORDERS)
        self.out_proj = nn.Linear(EXPAND * channels, channels, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, Z, Y, X) -> the same shape."""
        return self.mix_in_float32(features) + features

    def mix(self, features: Tensor) -> Tensor:
        """See `Float32Layer.mix`."""
        _, _, z, y, x = features.shape
        tokens = self.norm(features.flatten(2).transpose(1, 2).contiguous())
        values, gate = self.in_proj(tokens).transpose(1, 2).chunk(2, dim=1)
        scans = [
            direction(values, gate, (z, y, x), order) for direction, order in zip(self.directions, ORDERS, strict=True)
        ]
        total: Tensor = self.out_proj((scans[0] + scans[1] + scans[2]).transpose(1, 2))
        return total.transpose(1, 2).reshape(features.shape)


def _norm_relu(conv: nn.Conv3d) -> nn.Sequential:
    return nn.Sequential(conv, nn.InstanceNorm3d(conv.out_channels), nn.ReLU())


class GatedSpatialConvolution(nn.Module):
    """Two 3x3x3 convolutions beside one of a single voxel, added, mixed by another of a single voxel, and the shortcut.

    The paper multiplies the two ways; the released code, followed here, adds them.
    """

    def __init__(self, channels: int) -> None:
        """Build the block."""
        super().__init__()
        self.wide = nn.Sequential(*(_norm_relu(nn.Conv3d(channels, channels, 3, padding=1)) for _ in range(2)))
        self.narrow = _norm_relu(nn.Conv3d(channels, channels, 1))
        self.mix = _norm_relu(nn.Conv3d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, Z, Y, X) -> the same shape."""
        y: Tensor = self.mix(self.wide(x) + self.narrow(x)) + x
        return y


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut without bias, with instance norms without weights, as MONAI's UnetResBlock."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        """Build the block; the shortcut is projected where channels change."""
        super().__init__()
        self.first = nn.Conv3d(in_channels, out_channels, 3, padding=1, bias=False)
        self.second = nn.Conv3d(out_channels, out_channels, 3, padding=1, bias=False)
        changed = in_channels != out_channels
        self.shortcut = nn.Conv3d(in_channels, out_channels, 1, bias=False) if changed else None
        self.norm = nn.InstanceNorm3d(out_channels)
        self.activation = nn.LeakyReLU(0.01)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, Z, Y, X) -> (B, C', Z, Y, X)."""
        y = self.norm(self.second(self.activation(self.norm(self.first(x)))))
        total: Tensor = self.activation(y + (x if self.shortcut is None else self.norm(self.shortcut(x))))
        return total


class DecoderStage(nn.Module):
    """Transposed convolution, concatenation with the skip, residual block."""

    def __init__(self, below: int, channels: int, stride: IntTriple) -> None:
        """Build the stage."""
        super().__init__()
        self.up = nn.ConvTranspose3d(below, channels, stride, stride, bias=False)
        self.block = ResidualBlock(2 * channels, channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, below, z, y, x) and (B, C, Z, Y, X) -> (B, C, Z, Y, X)."""
        y: Tensor = self.block(torch.cat((self.up(x), skip), dim=1))
        return y


class SegMamba(SegmentationNetwork):
    """Four Mamba levels below full resolution; each level's features pass a small network on their way to the decoder."""

    def __init__(self, plan: NetworkPlan, options: SegMambaOptions) -> None:
        """Build with PyTorch's and Mamba's initialization, as released."""
        super().__init__()
        self.deep_supervision = plan.deep_supervision
        strides = halving_strides(plan.patch_size, [(2, 2, 2)] * LEVELS)
        self.divisor = total_stride(strides)
        widths = [options.width * 2**level for level in range(LEVELS)]
        stem = nn.Conv3d(plan.in_channels, widths[0], 7, strides[0], 3)
        downs = [
            nn.Sequential(nn.InstanceNorm3d(above), nn.Conv3d(above, below, stride, stride))
            for (above, below), stride in zip(pairwise(widths), strides[1:], strict=True)
        ]
        self.down = nn.ModuleList([stem, *downs])
        self.stages = nn.ModuleList(
            nn.Sequential(GatedSpatialConvolution(width), *(TriOrientedMamba(width) for _ in range(depth)))
            for width, depth in zip(widths, options.depths, strict=True)
        )
        self.leave = nn.ModuleList(
            nn.Sequential(
                nn.InstanceNorm3d(width), nn.Conv3d(width, 2 * width, 1), nn.GELU(), nn.Conv3d(2 * width, width, 1)
            )
            for width in widths
        )
        # Skips: the image itself, and what leaves each level but the last, one level's width wider.
        below = [*widths[1:], 2 * widths[-1]]
        skips = [(plan.in_channels, widths[0]), *zip(widths, below, strict=True)]
        self.skips = nn.ModuleList(ResidualBlock(a, b) for a, b in skips)
        self.decoder = nn.ModuleList(
            DecoderStage(b, a, stride) for a, b, stride in list(zip(widths, below, strides, strict=True))[::-1]
        )
        self.last = ResidualBlock(widths[0], widths[0])
        self.head = nn.Conv3d(widths[0], plan.out_channels, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """See `SegmentationNetwork.forward`."""
        require_divisible(tuple(image.shape[2:]), self.divisor)
        x = image
        left = [image]
        for down, stage, leave in zip(self.down, self.stages, self.leave, strict=True):
            x = stage(down(x))
            left.append(leave(x))
        *skips, x = [block(y) for block, y in zip(self.skips, left, strict=True)]
        for stage, skip in zip(self.decoder, reversed(skips), strict=True):
            x = stage(x, skip)
        return (self.head(self.last(x)),)
