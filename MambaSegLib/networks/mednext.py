"""MedNeXt-M: a U-Net of ConvNeXt blocks, with kernels of 3 or 5 voxels.

Source: Roy et al., MedNeXt, MICCAI 2023, and the released MedNextV1.py (MIC-DKFZ/MedNeXt at 02583e3): a downsampling
block expands as much as the stage it leads to (MONAI's MedNeXt: as the one it comes from), an upsampling one likewise.

Widths, blocks and expansions are published ones, so the plan's stages are not used. The published network halves each
axis 4 times; an axis of the patch that cannot be halved that often is left alone at the first levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from MambaSegLib.errors import InputError
from MambaSegLib.networks.contract import SegmentationNetwork, require_divisible
from MambaSegLib.networks.halving import halving_strides, total_stride
from MambaSegLib.networks.options import read_options, with_options

if TYPE_CHECKING:
    from MambaSegLib.plan import IntTriple, NetworkPlan

LEVELS = 5
EXPANSIONS = (2, 3, 4, 4, 4, 4, 4, 3, 2)
"""Per stage: four of the encoder, the bottleneck, four of the decoder, in the order of computation."""
BLOCKS = (3, 4, 4, 4, 4, 4, 4, 4, 3)


@dataclass(frozen=True)
class MedNeXtOptions:
    """What may be changed.

    Attributes:
        width: Channels at full resolution; they double at each level.
    """

    width: int = 32

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if self.width < 1:
            msg = f"width must be at least 1, got {self.width}"
            raise InputError(msg)


def resolve(plan: NetworkPlan) -> NetworkPlan:
    """The plan with its options written out."""
    return with_options(plan, read_options(plan.options, MedNeXtOptions()))


def build_k3(plan: NetworkPlan) -> MedNeXt:
    """Kernels of 3 x 3 x 3 voxels."""
    return MedNeXt(plan, read_options(plan.options, MedNeXtOptions()), kernel=3)


def build_k5(plan: NetworkPlan) -> MedNeXt:
    """Kernels of 5 x 5 x 5 voxels."""
    return MedNeXt(plan, read_options(plan.options, MedNeXtOptions()), kernel=5)


class MedNeXtBlock(nn.Module):
    """Depthwise convolution, norm, expansion, GELU, compression, and the shortcut.

    Each channel has its own group in the norm, so it is an instance norm.
    """

    def __init__(self, in_channels: int, out_channels: int, expansion: int, spatial: nn.Module) -> None:
        """Build the block around a depthwise (perhaps strided) convolution `spatial`."""
        super().__init__()
        self.spatial = spatial
        self.norm = nn.GroupNorm(in_channels, in_channels)
        self.expand = nn.Conv3d(in_channels, expansion * in_channels, 1)
        self.activation = nn.GELU()
        self.compress = nn.Conv3d(expansion * in_channels, out_channels, 1)
        self.shortcut: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, Z, Y, X) -> (B, C', Z', Y', X')."""
        y = self.compress(self.activation(self.expand(self.norm(self.spatial(x)))))
        total: Tensor = y + self.shortcut(x)
        return total


def _plain_block(channels: int, expansion: int, kernel: int) -> MedNeXtBlock:
    spatial = nn.Conv3d(channels, channels, kernel, padding=kernel // 2, groups=channels)
    return MedNeXtBlock(channels, channels, expansion, spatial)


def _down_block(channels: int, expansion: int, kernel: int, stride: IntTriple) -> MedNeXtBlock:
    spatial = nn.Conv3d(channels, channels, kernel, stride, kernel // 2, groups=channels)
    block = MedNeXtBlock(channels, 2 * channels, expansion, spatial)
    block.shortcut = nn.Conv3d(channels, 2 * channels, 1, stride)
    return block


class _UpBlock(MedNeXtBlock):
    """Transposed convolutions of stride 2 give 2 n - 1 voxels; a zero in front of them makes it 2 n, as released."""

    def __init__(self, channels: int, expansion: int, kernel: int, stride: IntTriple) -> None:
        spatial = nn.ConvTranspose3d(channels, channels, kernel, stride, kernel // 2, groups=channels)
        super().__init__(channels, channels // 2, expansion, spatial)
        self.shortcut = nn.ConvTranspose3d(channels, channels // 2, 1, stride)
        z, y, x = (step - 1 for step in stride)
        self.pad = nn.ZeroPad3d((x, 0, y, 0, z, 0))

    def forward(self, x: Tensor) -> Tensor:
        padded: Tensor = self.pad(super().forward(x))
        return padded


class MedNeXt(SegmentationNetwork):
    """Five levels, skips that are added, and with deep supervision a head at each level, bottleneck included."""

    def __init__(self, plan: NetworkPlan, options: MedNeXtOptions, kernel: int) -> None:
        """Build with PyTorch's own initialization, as released."""
        super().__init__()
        self.deep_supervision = plan.deep_supervision
        strides = halving_strides(plan.patch_size, [(2, 2, 2)] * (LEVELS - 1))
        self.divisor = total_stride(strides)
        widths = [options.width * 2**level for level in range(LEVELS)]
        self.stem = nn.Conv3d(plan.in_channels, widths[0], 1)
        self.encoder = nn.ModuleList(_stage(widths[level], level, kernel) for level in range(LEVELS))
        self.down = nn.ModuleList(
            _down_block(widths[level], EXPANSIONS[level + 1], kernel, strides[level]) for level in range(LEVELS - 1)
        )
        upward = list(reversed(range(LEVELS - 1)))
        self.up = nn.ModuleList(
            _UpBlock(widths[level + 1], EXPANSIONS[2 * (LEVELS - 1) - level], kernel, strides[level])
            for level in upward
        )
        self.decoder = nn.ModuleList(_stage(widths[level], 2 * (LEVELS - 1) - level, kernel) for level in upward)
        headed = widths if plan.deep_supervision else widths[:1]
        # Transposed as released: at one voxel the same as a convolution, but drawn from a wider range at the start.
        self.heads = nn.ModuleList(nn.ConvTranspose3d(width, plan.out_channels, 1) for width in headed)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """See `SegmentationNetwork.forward`."""
        require_divisible(tuple(image.shape[2:]), self.divisor)
        x = self.encoder[0](self.stem(image))
        skips = []
        for down, stage in zip(self.down, self.encoder[1:], strict=True):
            skips.append(x)
            x = stage(down(x))
        features = [x]
        for up, stage, skip in zip(self.up, self.decoder, reversed(skips), strict=True):
            x = stage(up(x) + skip)
            features.append(x)
        finest_first = features[::-1] if self.deep_supervision else features[-1:]
        return tuple(head(y) for head, y in zip(self.heads, finest_first, strict=False))


def _stage(channels: int, index: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(*(_plain_block(channels, EXPANSIONS[index], kernel) for _ in range(BLOCKS[index])))
