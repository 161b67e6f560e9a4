"""A Mamba layer as the paper's released code computes it: the baseline of the GPU benchmarks.

Written anew after its description: for every scan order the volume is permuted into a copy, for the backward direction
flipped into another, every direction runs mamba-ssm's block alone, and the results are flipped and permuted back. Weights
are those of the layer it stands in for. Where mamba-ssm is not installed, the same copies surround another backend.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from MambaSegLib.networks.mamba import MambaBlock, MambaLayer3d
from MambaSegLib.scan.order import NATURAL_ORDER, ScanPath


class ReleasedLayer3d(nn.Module):
    """Stands in for a `MambaLayer3d`."""

    def __init__(self, layer: MambaLayer3d, backend: str) -> None:
        super().__init__()
        self.layer = layer
        self.backend = backend

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, Z, Y, X) -> the same shape; float32 inside, as the released layers switch autocast off."""
        with torch.autocast(features.device.type, enabled=False):
            volume = features.float()
            if isinstance(self.layer.norm, nn.LayerNorm):
                volume = self.layer.norm(volume.movedim(1, -1)).movedim(-1, 1)
            total = sum(self._path(path, volume) for path in self.layer.paths) / len(self.layer.paths)
        return total.to(features.dtype)

    def _path(self, path: Any, volume: Tensor) -> Tensor:
        axes = path.orders[0].axes
        permuted = volume.permute(0, 1, *(2 + axis for axis in axes)).contiguous()
        tokens = permuted.flatten(2).transpose(1, 2).contiguous()
        results = []
        for layer, order in zip(path.layers, path.orders, strict=True):
            own = tokens.flip(1).contiguous() if order.backward else tokens
            mixed = self._block(layer.mamba, layer.norm1(own)) + own
            mixed = layer.head(layer.norm2(mixed)) + mixed
            results.append(mixed.flip(1) if order.backward else mixed)
        total = path.norm(results[0] + results[1] if len(results) > 1 else results[0])
        back = [axes.index(axis) for axis in range(3)]
        return total.transpose(1, 2).reshape(permuted.shape).permute(0, 1, *(2 + axis for axis in back)).contiguous()

    def _block(self, block: MambaBlock, tokens: Tensor) -> Tensor:
        if self.backend != "mamba_ssm":
            block.scan_backend = self.backend
            return block(tokens, (1, 1, tokens.shape[1]), NATURAL_ORDER)
        from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn

        # As `mamba_ssm.Mamba` does with causal-conv1d at hand: one fused function from xz to the output projection.
        xz = block.in_proj(tokens).transpose(1, 2).contiguous()
        return mamba_inner_fn(
            xz, block.conv1d.weight, block.conv1d.bias, block.x_proj.weight, block.dt_proj.weight,
            block.out_proj.weight, block.out_proj.bias, -torch.exp(block.A_log.float()), None, None, block.D.float(),
            delta_bias=block.dt_proj.bias.float(), delta_softplus=True,
        )  # fmt: skip


def as_released(network: nn.Module, backend: str) -> nn.Module:
    """Replace every Mamba layer of a network."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, MambaLayer3d):
                setattr(module, name, ReleasedLayer3d(child, backend))
    return network


def without_mamba(network: nn.Module) -> nn.Module:
    """What the convolutions alone take."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, MambaLayer3d):
                setattr(module, name, nn.Identity())
    return network


def paths_of(texts: tuple[str, ...]) -> list[ScanPath]:
    """Read scan orders."""
    return [ScanPath.parse(text) for text in texts]
