"""Convolution, instance normalization, residual and activation, fused on a GPU as far as `fused_norm` goes.

The modules are the plain ones in a row, so weights have the names they have in `nn.Sequential`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from MambaSegLib.networks import fused_norm

if TYPE_CHECKING:
    from MambaSegLib.plan import IntTriple

NEGATIVE_SLOPE = 0.01
FEWEST_CHANNELS = 8
"""Of a map that is laid out with channels last, 16 bytes of them in half precision."""


class ConvNorm(nn.Sequential):
    """Convolution that keeps the size (but for its stride), then instance normalization."""

    def __init__(self, in_channels: int, out_channels: int, kernel: IntTriple, stride: IntTriple, bias: bool) -> None:
        """Build both; `bias` is the convolution's, the norm has weight and bias."""
        padding = ((kernel[0] - 1) // 2, (kernel[1] - 1) // 2, (kernel[2] - 1) // 2)
        super().__init__(
            nn.Conv3d(in_channels, out_channels, kernel, stride, padding, bias=bias),
            nn.InstanceNorm3d(out_channels, eps=1e-5, affine=True),
        )

    def forward(self, x: Tensor, residual: Tensor | None = None, activation: nn.LeakyReLU | None = None) -> Tensor:
        """(B, C, Z, Y, X) -> activation(norm(convolution(x)) + residual), (B, C', Z', Y', X')."""
        convolution, norm = cast("tuple[nn.Conv3d, nn.InstanceNorm3d]", tuple(self))
        fused = fused_norm.is_available(x.device)
        # The norm subtracts the mean: adding the bias before it is a pass over the map for nothing.
        bias = convolution.bias if torch.is_grad_enabled() else None
        y: Tensor = _convolved(convolution, x, bias) if fused else convolution(x)
        if fused and fused_norm.can_read(y, norm):
            slope = 1.0 if activation is None else activation.negative_slope
            return fused_norm.norm_activation(y, norm, residual, slope, in_place=not torch.is_grad_enabled())
        y = norm(y)
        if residual is not None:
            y = y + residual
        if activation is not None:
            y = activation(y)
        return y


def _convolved(convolution: nn.Conv3d, x: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution with channels last; for kernels (1, k, k) as a 2D one of all slices, which cuDNN has faster kernels for."""
    weight, stride, padding = convolution.weight, convolution.stride, cast("IntTriple", convolution.padding)
    if x.shape[1] < FEWEST_CHANNELS:
        return functional.conv3d(x, weight, bias, stride, padding)
    x = x.contiguous(memory_format=torch.channels_last_3d)
    if weight.shape[2] > 1 or weight.shape[3] == 1 or stride[0] > 1:
        return functional.conv3d(x, weight, bias, stride, padding)
    slices = x.transpose(1, 2).flatten(0, 1)
    y = functional.conv2d(slices, weight[:, :, 0], bias, stride[1:], padding[1:])
    return y.view(len(x), -1, *y.shape[1:]).transpose(1, 2)


class ConvNormActivation(nn.Sequential):
    """`ConvNorm`, then LeakyReLU as nnU-Net uses it."""

    def __init__(self, in_channels: int, out_channels: int, kernel: IntTriple, stride: IntTriple = (1, 1, 1)) -> None:
        """Build it with a bias in the convolution."""
        super().__init__(ConvNorm(in_channels, out_channels, kernel, stride, bias=True), activation())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, Z, Y, X) -> (B, C', Z', Y', X')."""
        normalized, activated = self
        y: Tensor = normalized(x, activation=activated)
        return y


def activation() -> nn.LeakyReLU:
    """LeakyReLU as nnU-Net uses it."""
    return nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True)
