"""The scan without its values: outputs of the right shape and type, so that a network's operations can be counted.

Not one of `BACKENDS`: nobody can segment with it. It runs on fake tensors only (`torch._subclasses.FakeTensorMode`), where
whoever counts sees its two operators by name; on tensors with values it raises.
"""

from __future__ import annotations

import torch
from torch import Tensor

from MambaSegLib.errors import BackendUnavailableError
from MambaSegLib.scan.arguments import Convolution, Scan

_REFUSAL = "the scan backend 'shapes' only counts; choose another one or 'auto'"


def why_unavailable(device: str, needs_gradient: bool) -> str | None:
    """Return None: shapes exist everywhere."""
    del device, needs_gradient
    return None


@torch.library.custom_op("mambaseg_shapes::selective_scan", mutates_args=())
def scan_shape(u: Tensor, A: Tensor, factors: int) -> Tensor:
    """Stand in for a scan of u (B, D, L) with A (D, N) that multiplies each of its inputs and outputs `factors` times."""
    raise BackendUnavailableError(_REFUSAL)


@scan_shape.register_fake
def _(u: Tensor, A: Tensor, factors: int) -> Tensor:
    del A, factors
    return torch.empty_like(u)


@torch.library.custom_op("mambaseg_shapes::causal_conv1d", mutates_args=())
def conv_shape(x: Tensor, weight: Tensor) -> Tensor:
    """Stand in for a depthwise convolution of x (B, D, L) with weight (D, K)."""
    raise BackendUnavailableError(_REFUSAL)


@conv_shape.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    del weight
    return torch.empty_like(x)


SCAN_OPERATOR = torch.ops.mambaseg_shapes.selective_scan
CONVOLUTION_OPERATOR = torch.ops.mambaseg_shapes.causal_conv1d


def selective_scan(scan: Scan) -> tuple[Tensor, Tensor]:
    """Output and last state without values."""
    out: Tensor = scan_shape(scan.u, scan.A, 1 + (scan.D is not None) + (scan.z is not None))
    return out, scan.u.new_empty((scan.u.shape[0], *scan.A.shape), dtype=torch.float32)


def causal_conv1d(convolution: Convolution) -> Tensor:
    """Output without values."""
    out: Tensor = conv_shape(convolution.x, convolution.weight)
    return out
