"""One Mamba block on a feature map as U-Mamba has it: normalized tokens in, mixed tokens out, nothing around it."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from torch import Tensor, nn

from MambaSegLib.networks.float32_layer import Float32Layer
from MambaSegLib.networks.mamba import MambaBlock
from MambaSegLib.scan.order import NATURAL_ORDER

if TYPE_CHECKING:
    from MambaSegLib.plan import IntTriple


class TokenMamba(Float32Layer):
    """LayerNorm and Mamba over the voxels of a feature map, or over its channels where there are few voxels.

    With channels as tokens each token is the whole (flattened) map of one channel, so the layer fits one map size only.
    """

    def __init__(self, channels: int, size: IntTriple, channel_tokens: bool) -> None:
        """Build the layer for (B, `channels`, *`size`)."""
        super().__init__()
        self.size = size
        self.channel_tokens = channel_tokens
        width = prod(size) if channel_tokens else channels
        self.norm = nn.LayerNorm(width)
        self.mamba = MambaBlock(width, d_state=16)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, Z, Y, X) -> the same shape."""
        return self.mix_in_float32(features)

    def mix(self, features: Tensor) -> Tensor:
        """See `Float32Layer.mix`."""
        _, channels, z, y, x = features.shape
        if not self.channel_tokens:
            tokens = self.norm(features.flatten(2).transpose(1, 2).contiguous())
            return self.mamba(tokens, (z, y, x), NATURAL_ORDER).transpose(1, 2).reshape(features.shape)  # type: ignore[no-any-return]
        if (z, y, x) != self.size:
            msg = f"channels are tokens here, so the feature map must be {self.size}, not {(z, y, x)}: use the plan's patch"
            raise ValueError(msg)
        tokens = self.norm(features.flatten(2))
        return self.mamba(tokens, (1, 1, channels), NATURAL_ORDER).reshape(features.shape)  # type: ignore[no-any-return]
