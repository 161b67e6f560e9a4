"""CoTr: a convolutional encoder, a deformable transformer over its two coarsest maps, a decoder that adds the skips.

Source: Xie et al., CoTr, MICCAI 2021, and the released ResTranUnet.py and CNNBackbone.py (YtongXie/CoTr at 9d454dc), which
are followed where the paper says less. The released attention takes a token's position along (z, x, y) for one along
(x, y, z), so that a token looks around a place that is not its own; here it looks around its own, as the paper says.

Widths are published ones, so the plan's stages are not used. The published network halves Y and X 4 times and Z 3 times;
an axis of the patch that cannot be halved that often is left alone at the first levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from MambaSegLib.errors import InputError
from MambaSegLib.networks.contract import SegmentationNetwork, require_divisible
from MambaSegLib.networks.deformable_attention import DeformableAttention
from MambaSegLib.networks.halving import halving_strides, total_stride
from MambaSegLib.networks.options import read_options, with_options
from MambaSegLib.networks.sine_positions import sine_positions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from MambaSegLib.plan import IntTriple, NetworkPlan

STRIDES: tuple[IntTriple, ...] = ((1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2))
BLOCKS = (3, 3, 2)
LEVELS, POINTS = 2, 4
DROPOUT = 0.1


@dataclass(frozen=True)
class CoTrOptions:
    """What may be changed.

    Attributes:
        width: Channels of the first map; the others have 3, 6 and 6 times as many.
        layers: Transformer layers.
        heads: Attention heads; they divide 6 times the width.
    """

    width: int = 64
    layers: int = 6
    heads: int = 6

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if min(self.width, self.layers, self.heads) < 1 or 6 * self.width % self.heads:
            msg = f"width, layers and heads must be at least 1, and heads must divide 6 times the width, got {self}"
            raise InputError(msg)


def resolve(plan: NetworkPlan) -> NetworkPlan:
    """The plan with its options written out."""
    return with_options(plan, read_options(plan.options, CoTrOptions()))


def build(plan: NetworkPlan) -> CoTr:
    """Build with the released initialization."""
    return CoTr(plan, read_options(plan.options, CoTrOptions()))


def _conv(in_channels: int, out_channels: int, kernel: int, stride: IntTriple | int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False),
        nn.InstanceNorm3d(out_channels, affine=True),
    )


def _activation() -> nn.LeakyReLU:
    return nn.LeakyReLU(1e-2, inplace=True)


class _EncoderBlock(nn.Module):
    """One convolution and a shortcut, which is projected where size or channels change."""

    def __init__(self, in_channels: int, out_channels: int, stride: IntTriple, project: bool) -> None:
        super().__init__()
        self.conv = _conv(in_channels, out_channels, 3, stride)
        self.shortcut = _conv(in_channels, out_channels, 1, stride) if project else nn.Identity()
        self.activation = _activation()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(self.conv(x) + self.shortcut(x))
        return y


class _DecoderBlock(nn.Module):
    """Two convolutions, each with its activation, and the input added to them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            _conv(channels, channels, 3), _activation(), _conv(channels, channels, 3), _activation()
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.convs(x) + x
        return y


class _TransformerLayer(nn.Module):
    """Deformable attention and a feed-forward network; norms after the shortcuts."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = DeformableAttention(width, heads, LEVELS, POINTS)
        self.norm1 = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(DROPOUT), nn.Linear(4 * width, width)
        )
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(DROPOUT)
        for module in self.feed_forward:
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, tokens: Tensor, positions: Tensor, sizes: Sequence[IntTriple]) -> Tensor:
        tokens = self.norm1(tokens + self.dropout(self.attention(tokens + positions, tokens, sizes)))
        result: Tensor = self.norm2(tokens + self.dropout(self.feed_forward(tokens)))
        return result


class DeformableTransformer(nn.Module):
    """The released DeTrans encoder over two maps of equal width."""

    def __init__(self, width: int, options: CoTrOptions) -> None:
        """Build `options.layers` layers."""
        super().__init__()
        self.level = nn.Parameter(torch.randn(LEVELS, width))
        self.layers = nn.ModuleList(_TransformerLayer(width, options.heads) for _ in range(options.layers))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Mix the maps, (B, C, Z, Y, X) each."""
        sizes = [(m.shape[2], m.shape[3], m.shape[4]) for m in maps]
        tokens = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)
        positions = torch.cat(
            [sine_positions(size, tokens, first=0.5) + level for size, level in zip(sizes, self.level, strict=True)]
        )
        for layer in self.layers:
            tokens = layer(tokens, positions, sizes)
        parts = torch.split(tokens, [m.shape[2:].numel() for m in maps], dim=1)
        return [part.transpose(1, 2).reshape(m.shape) for part, m in zip(parts, maps, strict=True)]


class CoTr(SegmentationNetwork):
    """Encoder, transformer between encoder and decoder, decoder with three coarser heads."""

    def __init__(self, plan: NetworkPlan, options: CoTrOptions) -> None:
        """Build for the plan's patch; other patches must have the same halves."""
        super().__init__()
        self.deep_supervision = plan.deep_supervision
        strides = halving_strides(plan.patch_size, STRIDES)
        self.divisor = total_stride(strides)
        widths = [options.width * factor for factor in (1, 3, 6, 6)]
        self.stem = nn.Sequential(_conv(plan.in_channels, widths[0], 7, strides[0]), _activation())
        rows = zip(widths[:-1], widths[1:], BLOCKS, strides[1:], strict=True)
        self.encoder = nn.ModuleList(_encoder_stage(*row) for row in rows)
        self.transformer = DeformableTransformer(widths[-1], options)
        self.up = nn.ModuleList(
            nn.ConvTranspose3d(widths[level + 1], widths[level], strides[level + 1], strides[level + 1], bias=False)
            for level in (2, 1, 0)
        )
        self.decoder = nn.ModuleList(_DecoderBlock(widths[level]) for level in (2, 1, 0))
        z, y, x = (float(step) for step in strides[0])
        self.last_up = nn.Upsample(scale_factor=(z, y, x), mode="trilinear")
        coarser = [nn.Conv3d(widths[level], plan.out_channels, 1) for level in (2, 1, 0)]
        self.heads = nn.ModuleList(coarser if plan.deep_supervision else [])
        self.last_head = nn.Conv3d(widths[0], plan.out_channels, 1)
        self.apply(_initialize)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """See `SegmentationNetwork.forward`."""
        require_divisible(tuple(image.shape[2:]), self.divisor)
        x = self.stem(image)
        maps = [x]
        for stage in self.encoder:
            x = stage(x)
            maps.append(x)
        skip, x = self.transformer(maps[2:])
        decoded = []
        for up, block, added in zip(self.up, self.decoder, (skip, maps[1], maps[0]), strict=True):
            x = block(up(x) + added)
            decoded.append(x)
        finest = self.last_head(self.last_up(x))
        if not self.deep_supervision:
            return (finest,)
        coarser = [head(y) for head, y in zip(self.heads, decoded, strict=True)]
        return (finest, *coarser[::-1])


def _encoder_stage(in_channels: int, out_channels: int, blocks: int, stride: IntTriple) -> nn.Sequential:
    first = _EncoderBlock(in_channels, out_channels, stride, project=True)
    rest = [_EncoderBlock(out_channels, out_channels, (1, 1, 1), project=False) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
