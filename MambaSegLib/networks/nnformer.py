"""nnFormer: a U-Net of windowed transformers whose skips are the keys and values of cross-attention.

Source: Zhou et al., nnFormer, IEEE TIP 2023, and the released nnFormer_synapse.py (282857341/nnFormer at 4f68255), which is
followed where the paper says less, but for three things: windows are cut to the map per axis (released: to its shortest
side on all axes; the same on cubes), every relative position has a bias of its own (the released index lets some share
one), and an axis of the patch that cannot be halved as often as the published network does (Z 4 times, Y and X 5 times)
is left alone at the first levels. Widths are published ones, so the plan's stages are not used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from MambaSegLib.errors import InputError
from MambaSegLib.networks.contract import SegmentationNetwork, require_shape
from MambaSegLib.networks.halving import halving_strides, total_stride
from MambaSegLib.networks.options import read_options, with_options
from MambaSegLib.networks.window_attention import WindowAttention

if TYPE_CHECKING:
    from MambaSegLib.plan import IntTriple, NetworkPlan

STRIDES: tuple[IntTriple, ...] = ((2, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2))
"""Two of the embedding, three between the stages."""
STAGES = 4
BLOCKS = 2
DROP_PATH = 0.2


@dataclass(frozen=True)
class NNFormerOptions:
    """What may be changed.

    Attributes:
        width: Channels of the first stage, an even number; they double at each stage.
        heads: Attention heads at each of the four stages; they divide the stage's channels.
        windows: Edge of the windows at each stage, in voxels of its map.
    """

    width: int = 192
    heads: tuple[int, ...] = (6, 12, 24, 48)
    windows: tuple[int, ...] = (4, 4, 8, 4)

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if self.width < 2 or self.width % 2:
            msg = f"width must be an even number of at least 2, got {self.width}"
            raise InputError(msg)
        if len(self.heads) != STAGES or len(self.windows) != STAGES or min(*self.heads, *self.windows) < 1:
            msg = f"heads and windows must be four numbers of at least 1, got {self.heads} and {self.windows}"
            raise InputError(msg)
        if any(self.width * 2**stage % heads for stage, heads in enumerate(self.heads)):
            msg = f"heads {self.heads} must divide the channels {self.width}, twice that, four times, eight times"
            raise InputError(msg)


def resolve(plan: NetworkPlan) -> NetworkPlan:
    """The plan with its options written out."""
    return with_options(plan, read_options(plan.options, NNFormerOptions()))


def build(plan: NetworkPlan) -> NNFormer:
    """Build for the plan's patch."""
    return NNFormer(plan, read_options(plan.options, NNFormerOptions()))


class ChannelsLast(nn.Module):
    """A convolution on (B, Z, Y, X, C)."""

    def __init__(self, conv: nn.Module) -> None:
        """Wrap `conv`."""
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """(B, Z, Y, X, C) -> (B, Z', Y', X', C')."""
        y: Tensor = self.conv(x.movedim(-1, 1)).movedim(1, -1)
        return y


class Block(nn.Module):
    """Windowed attention and a feed-forward network, each after a norm and with a shortcut."""

    def __init__(
        self, width: int, heads: int, window: int, size: IntTriple, shifted: bool, drop: float, crossed: bool = False
    ) -> None:
        """Build it for maps of `size`; windows shift on the axes that are longer than one window."""
        super().__init__()
        self.drop = drop
        z, y, x = (min(window, length) for length in size)
        a, b, c = (window // 2 if shifted and length > window else 0 for length in size)
        self.norm1 = nn.LayerNorm(width)
        self.attention = WindowAttention(width, heads, (z, y, x), (a, b, c), crossed)
        self.norm2 = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, skip: Tensor | None = None, upsampled: Tensor | None = None) -> Tensor:
        """(B, Z, Y, X, C) -> the same; a crossed block attends to `skip` from `upsampled`."""
        if skip is None or upsampled is None:
            mixed = self.attention(self.norm1(x))
        else:
            mixed = self.attention(self.norm1(skip), self.norm1(upsampled))
        x = x + self._dropped(mixed)
        return x + self._dropped(self.feed_forward(self.norm2(x)))

    def _dropped(self, branch: Tensor) -> Tensor:
        """Leave out the branch of some samples in training (stochastic depth)."""
        if not self.training or not self.drop:
            return branch
        keep = torch.rand(branch.shape[0], 1, 1, 1, 1, device=branch.device) >= self.drop
        return branch * keep / (1 - self.drop)


class Embedding(nn.Module):
    """Four convolutions, each but the last with GELU and norm behind it, and a last norm."""

    def __init__(self, in_channels: int, width: int, strides: tuple[IntTriple, IntTriple]) -> None:
        """Build it; the first and third convolution take the strides."""
        super().__init__()
        half = width // 2
        rows = ((in_channels, half, strides[0]), (half, half, 1), (half, width, strides[1]), (width, width, 1))
        self.convs = nn.ModuleList(ChannelsLast(nn.Conv3d(a, b, 3, stride, 1)) for a, b, stride in rows)
        self.norms = nn.ModuleList(nn.LayerNorm(b) for _, b, _ in rows)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, Z, Y, X) -> (B, Z', Y', X', C')."""
        x = image.movedim(1, -1)
        for conv, norm in zip(self.convs[:-1], self.norms[:-1], strict=True):
            x = norm(F.gelu(conv(x)))
        last: Tensor = self.norms[-1](self.convs[-1](x))
        return last


class Down(nn.Module):
    """GELU, norm and a strided convolution that doubles the channels."""

    def __init__(self, width: int, stride: IntTriple) -> None:
        """Build it for `width` channels."""
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conv = ChannelsLast(nn.Conv3d(width, 2 * width, 3, stride, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, Z, Y, X, C) -> (B, Z', Y', X', 2 C)."""
        y: Tensor = self.conv(self.norm(F.gelu(x)))
        return y


class DecoderStage(nn.Module):
    """Upsampling, cross-attention to the skip, shifted self-attention."""

    def __init__(
        self, width: int, heads: int, window: int, size: IntTriple, stride: IntTriple, drops: tuple[float, float]
    ) -> None:
        """Build it for maps of `size` and `width` channels."""
        super().__init__()
        self.norm = nn.LayerNorm(2 * width)
        self.up = ChannelsLast(nn.ConvTranspose3d(2 * width, width, stride, stride))
        self.cross = Block(width, heads, window, size, False, drops[0], crossed=True)
        self.block = Block(width, heads, window, size, True, drops[1])

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, z, y, x, 2 C) and (B, Z, Y, X, C) -> (B, Z, Y, X, C)."""
        upsampled = self.up(self.norm(x))
        y: Tensor = self.block(self.cross(upsampled + skip, skip, upsampled))
        return y


class NNFormer(SegmentationNetwork):
    """Embedding, four encoder stages, three decoder stages, and a transposed convolution to full size for each."""

    def __init__(self, plan: NetworkPlan, options: NNFormerOptions) -> None:
        """Build with PyTorch's initialization, as released."""
        super().__init__()
        self.deep_supervision = plan.deep_supervision
        self.patch_size = plan.patch_size
        strides = halving_strides(plan.patch_size, STRIDES)
        sizes = _sizes(plan.patch_size, strides)
        widths = [options.width * 2**stage for stage in range(STAGES)]
        stages = list(zip(widths, options.heads, options.windows, sizes, strict=True))
        drops = torch.linspace(0, DROP_PATH, STAGES * BLOCKS, device="cpu").tolist()
        self.embedding = Embedding(plan.in_channels, options.width, (strides[0], strides[1]))
        self.encoder = nn.ModuleList(
            nn.Sequential(*(Block(*stage, index % 2 == 1, drops[BLOCKS * number + index]) for index in range(BLOCKS)))
            for number, stage in enumerate(stages)
        )
        self.down = nn.ModuleList(Down(width, stride) for width, stride in zip(widths, strides[2:], strict=False))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        drops = torch.linspace(0, DROP_PATH, (STAGES - 1) * BLOCKS, device="cpu").tolist()
        upward = list(zip(stages[:-1], strides[2:], strict=True))[::-1]
        self.decoder = nn.ModuleList(
            DecoderStage(*stage, stride, (drops[BLOCKS * number], drops[BLOCKS * number + 1]))
            for number, (stage, stride) in enumerate(upward)
        )
        scale = total_stride(strides[:2])
        headed = widths[:-1] if plan.deep_supervision else widths[:1]
        self.heads = nn.ModuleList(
            ChannelsLast(nn.ConvTranspose3d(width, plan.out_channels, scale, scale)) for width in headed
        )

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """See `SegmentationNetwork.forward`."""
        require_shape(tuple(image.shape[2:]), self.patch_size, "its windows")
        x = self.embedding(image)
        skips = []
        for number, (stage, norm) in enumerate(zip(self.encoder, self.norms, strict=True)):
            x = stage(x if number == 0 else self.down[number - 1](x))
            skips.append(norm(x))
        x = skips.pop()
        decoded = []
        for stage, skip in zip(self.decoder, reversed(skips), strict=True):
            x = stage(x, skip)
            decoded.append(x)
        finest_first = decoded[::-1] if self.deep_supervision else decoded[-1:]
        return tuple(head(y).movedim(-1, 1) for head, y in zip(self.heads, finest_first, strict=False))


def _sizes(patch_size: IntTriple, strides: list[IntTriple]) -> list[IntTriple]:
    """Size of each stage's map."""
    sizes = []
    for stage in range(STAGES):
        a, b, c = total_stride(strides[: 2 + stage])
        sizes.append((patch_size[0] // a, patch_size[1] // b, patch_size[2] // c))
    return sizes
