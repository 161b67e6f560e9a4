"""Do the tensors of a scan fit together? Said in words before a kernel reads memory that is not there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from MambaSegLib.scan.arguments import Convolution, Scan

REAL_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def needs_gradient(tensors: Iterable[Tensor | None]) -> bool:
    """Whether a backward pass may follow."""
    return torch.is_grad_enabled() and True in [t.requires_grad for t in tensors if t is not None]


def has_float64(tensors: Iterable[Tensor | None]) -> bool:
    """Whether float32 arithmetic would round any of them."""
    return torch.float64 in [t.dtype for t in tensors if t is not None]


def refuse_float64(tensors: Iterable[Tensor | None], backend: str) -> None:
    """Raise ValueError if a backend that computes in float32 would round a tensor."""
    if has_float64(tensors):
        msg = f"the {backend} backend computes in float32 and would round float64 tensors; use backend='pytorch'"
        raise ValueError(msg)


def check_scan(scan: Scan) -> None:
    """Raise ValueError unless shapes, devices and types of a scan's tensors fit together."""
    u, A = scan.u, scan.A
    if u.ndim != 3 or A.ndim != 2:
        msg = f"u must be (B, D, L) and A (D, N); got u {tuple(u.shape)} and A {tuple(A.shape)}"
        raise ValueError(msg)
    batch, channels, length = u.shape
    states = A.shape[1]
    wanted = {
        "delta": (scan.delta, (batch, channels, length)),
        "A": (A, (channels, states)),
        "B": (scan.B, (batch, states, length)),
        "C": (scan.C, (batch, states, length)),
        "D": (scan.D, (channels,)),
        "z": (scan.z, (batch, channels, length)),
        "delta_bias": (scan.delta_bias, (channels,)),
    }
    if min(batch, channels, length, states) < 1:
        msg = f"a scan needs at least one token, channel and state; got u {tuple(u.shape)} and A {tuple(A.shape)}"
        raise ValueError(msg)
    _check(u, "u", wanted)


def check_convolution(convolution: Convolution) -> None:
    """Raise ValueError unless shapes, devices and types of a causal convolution's tensors fit together."""
    x, weight = convolution.x, convolution.weight
    if x.ndim != 3 or weight.ndim != 2:
        msg = f"x must be (B, D, L) and weight (D, K); got x {tuple(x.shape)} and weight {tuple(weight.shape)}"
        raise ValueError(msg)
    if min(*x.shape, *weight.shape) < 1:
        msg = f"a convolution needs at least one token, channel and tap; got x {tuple(x.shape)}, weight {tuple(weight.shape)}"
        raise ValueError(msg)
    channels = x.shape[1]
    _check(x, "x", {"weight": (weight, (channels, weight.shape[1])), "bias": (convolution.bias, (channels,))})


def _check(first: Tensor, first_name: str, wanted: dict[str, tuple[Tensor | None, tuple[int, ...]]]) -> None:
    if first.dtype not in REAL_TYPES:
        msg = f"{first_name} must be a real floating-point tensor, got {first.dtype}"
        raise ValueError(msg)
    for name, (tensor, shape) in wanted.items():
        if tensor is None:
            continue
        if tensor.shape != shape:
            msg = f"{name} must have shape {shape} to fit {first_name} {tuple(first.shape)}, got {tuple(tensor.shape)}"
            raise ValueError(msg)
        if tensor.device != first.device:
            msg = f"{name} is on {tensor.device}, {first_name} on {first.device}; move them to one device"
            raise ValueError(msg)
        if tensor.dtype not in REAL_TYPES:
            msg = f"{name} must be a real floating-point tensor, got {tensor.dtype}"
            raise ValueError(msg)
