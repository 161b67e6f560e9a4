"""Instance normalization, the sum with a residual and LeakyReLU as one step on NVIDIA GPUs; PyTorch needs several passes.

The result is that of `nn.InstanceNorm3d`, `+` and `nn.LeakyReLU` to rounding: statistics and intermediate results are float32,
whatever the maps are. Equal inputs give equal results to the bit.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from MambaSegLib.scan.probe import disagreement
from MambaSegLib.scan.triton_backend import why_no_triton

if TYPE_CHECKING:
    from MambaSegLib.networks.norm_launch import Affine, Statistics

log = logging.getLogger(__name__)

TYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_VOXELS = 2**31 - 2**14
"""Voxels are counted in 32 bits, beyond the end of the last block; offsets in 64."""


def is_available(device: torch.device) -> bool:
    """Whether the kernels run on a device."""
    return device.type == "cuda" and why_unavailable(str(device)) is None


def can_read(x: Tensor, norm: nn.InstanceNorm3d) -> bool:
    """Whether `norm_activation` takes a map, wherever it is; what PyTorch refuses, such as a single voxel, is left to its message."""
    if x.dtype not in TYPES or not norm.affine or norm.track_running_stats:
        return False
    if x.ndim != 5 or x.shape[1] != norm.num_features or not len(x) or not 1 < x[0, 0].numel() <= MOST_VOXELS:
        return False
    return x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last_3d)


def norm_activation(
    x: Tensor, norm: nn.InstanceNorm3d, residual: Tensor | None = None, slope: float = 1.0, in_place: bool = False
) -> Tensor:
    """LeakyReLU(norm(x) + residual).

    Args:
        x: (B, C, Z, Y, X), for which `can_read` is true.
        norm: Its parameters count, not its method.
        residual: Of the same shape.
        slope: Of LeakyReLU; 1 for none.
        in_place: `x` is not needed any more and may be overwritten; it is not where gradients are recorded.
    """
    from MambaSegLib.networks.norm_launch import Affine

    if torch.is_grad_enabled():
        result: Tensor = _NormActivation.apply(x, residual, norm.weight, norm.bias, norm.eps, slope)  # type: ignore[no-untyped-call]
        return result
    out, _ = _forward(x, residual, Affine(norm.weight, norm.bias, norm.eps, slope), in_place, keep=False)
    return out


class _NormActivation(torch.autograd.Function):
    """See `norm_activation`. Kept are x, which the convolution made, and the result only if the next layer keeps it anyway."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float, slope: float
    ) -> Tensor:
        from MambaSegLib.networks.norm_launch import Affine

        out, statistics = _forward(x, residual, Affine(weight, bias, eps, slope), in_place=False, keep=True)
        assert statistics is not None, "they were to be kept"
        ctx.scalars = eps, slope
        ctx.residual_type = None if residual is None else residual.dtype
        masked = out if residual is not None and slope != 1 else None
        ctx.save_for_backward(x, masked, weight, bias, *statistics)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        from MambaSegLib.networks.norm_launch import Affine, Statistics, run_backward

        x, out, weight, bias, mean, rstd = ctx.saved_tensors
        dout = _lying_as(x, dout)
        affine = Affine(weight, bias, *ctx.scalars)
        dx, dresidual, dweight, dbias = run_backward(x, dout, out, Statistics(mean, rstd), affine)
        if ctx.residual_type is not None:
            dresidual = (dout if dresidual is None else dresidual).to(ctx.residual_type)
        return dx, dresidual, dweight.to(weight.dtype), dbias.to(bias.dtype), None, None


def _forward(
    x: Tensor, residual: Tensor | None, affine: Affine, in_place: bool, keep: bool
) -> tuple[Tensor, Statistics | None]:
    from MambaSegLib.networks.norm_launch import run_forward

    kind = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    out = x if in_place and kind == x.dtype else torch.empty_like(x, dtype=kind)
    return out, run_forward(x, None if residual is None else _lying_as(x, residual), affine, out, keep)


def _lying_as(x: Tensor, other: Tensor) -> Tensor:
    """A map in the memory format of x: itself if it has that."""
    return other.contiguous(memory_format=torch.contiguous_format if x.is_contiguous() else torch.channels_last_3d)


@lru_cache(maxsize=16)
def why_unavailable(device: str) -> str | None:
    """Say why the kernels cannot run on `device`; None if they can. Asked once: a tiny map is compared with PyTorch."""
    reason = why_no_triton(device) or _probe_failure(device)
    if reason is not None:
        log.info("Instance normalization is PyTorch's: %s", reason)
    return reason


def _probe_failure(device: str) -> str | None:
    return disagreement("a tiny map", device, lambda: _probe(device, fused=True), lambda: _probe(device, fused=False))


def _probe(device: str, fused: bool) -> list[Tensor]:
    """A tiny map's result and gradients."""
    generator = torch.Generator().manual_seed(0)
    # Whatever PyTorch makes tensors of by default, these are float32.
    kind: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
    x, residual, outer = (torch.randn((1, 3, 2, 3, 5), generator=generator, **kind).to(device) for _ in range(3))
    norm = nn.InstanceNorm3d(3, affine=True, dtype=torch.float32, device=device)
    leaves = [x.requires_grad_(), residual.requires_grad_(), norm.weight, norm.bias]
    with torch.enable_grad(), torch.autocast("cuda", enabled=False):
        y = norm_activation(x, norm, residual, 0.1) if fused else functional.leaky_relu(norm(x) + residual, 0.1)
        return [y.detach(), *torch.autograd.grad(y, leaves, outer)]
