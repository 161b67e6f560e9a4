"""A layer on feature maps that is computed in float32 and, on request, twice instead of kept."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def in_float32(features: Tensor, layer: nn.Module) -> Tensor:
    """Features in float32; in float64 where the layer's weights are: a network that was asked to be exact stays so."""
    exact = next(layer.parameters()).dtype == torch.float64
    return features.to(torch.float64 if exact else torch.float32)


class Float32Layer(nn.Module):
    """Base of layers with a recurrence, in which half precision would overflow.

    Attributes:
        recompute: In training, keep the input only and compute the rest again in the backward pass.
    """

    def __init__(self) -> None:
        """Keep everything, at first."""
        super().__init__()
        self.recompute = False

    def mix(self, features: Tensor) -> Tensor:
        """What the layer does: (B, C, Z, Y, X) -> the same shape, both float32 (or float64, see `in_float32`)."""
        raise NotImplementedError

    def mix_in_float32(self, features: Tensor) -> Tensor:
        """`mix`, whatever autocast says; the result has the dtype of the input."""
        with torch.autocast(features.device.type, enabled=False):
            entering = in_float32(features, self)
            if self.recompute and torch.is_grad_enabled():
                mixed: Tensor = checkpoint(self.mix, entering, use_reentrant=False)
            else:
                mixed = self.mix(entering)
        return mixed.to(features.dtype)
