"""Do the tensors of a scan fit together? Said in words before a kernel reads memory that is not there."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

REAL_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def needs_gradient(tensors: Iterable[Tensor | None]) -> bool:
    """Whether a backward pass may follow."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def check_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
) -> None:
    """Raise ValueError unless shapes, devices and types of a scan's arguments fit together."""
    if u.ndim != 3 or A.ndim != 2:
        msg = f"u must be (B, D, L) and A (D, N); got u {tuple(u.shape)} and A {tuple(A.shape)}"
        raise ValueError(msg)
    batch, channels, length = u.shape
    states = A.shape[1]
    wanted = {
        "delta": (delta, (batch, channels, length)),
        "A": (A, (channels, states)),
        "B": (B, (batch, states, length)),
        "C": (C, (batch, states, length)),
        "D": (D, (channels,)),
        "z": (z, (batch, channels, length)),
        "delta_bias": (delta_bias, (channels,)),
    }
    if min(batch, channels, length, states) < 1:
        msg = f"a scan needs at least one token, channel and state; got u {tuple(u.shape)} and A {tuple(A.shape)}"
        raise ValueError(msg)
    _check(u, "u", wanted)


def check_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> None:
    """Raise ValueError unless the arguments of a causal convolution fit together."""
    if activation not in (None, "silu"):
        msg = f"activation must be None or 'silu', got {activation!r}"
        raise ValueError(msg)
    if x.ndim != 3 or weight.ndim != 2:
        msg = f"x must be (B, D, L) and weight (D, K); got x {tuple(x.shape)} and weight {tuple(weight.shape)}"
        raise ValueError(msg)
    if min(*x.shape, *weight.shape) < 1:
        msg = f"a convolution needs at least one token, channel and tap; got x {tuple(x.shape)}, weight {tuple(weight.shape)}"
        raise ValueError(msg)
    channels = x.shape[1]
    _check(x, "x", {"weight": (weight, (channels, weight.shape[1])), "bias": (bias, (channels,))})


def _check(first: Tensor, first_name: str, wanted: dict[str, tuple[Tensor | None, tuple[int, ...]]]) -> None:
    if first.dtype not in REAL_TYPES:
        msg = f"{first_name} must be a real floating-point tensor, got {first.dtype}"
        raise ValueError(msg)
    for name, (tensor, shape) in wanted.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            msg = f"{name} must have shape {shape} to fit {first_name} {tuple(first.shape)}, got {tuple(tensor.shape)}"
            raise ValueError(msg)
        if tensor.device != first.device:
            msg = f"{name} is on {tensor.device}, {first_name} on {first.device}; move them to one device"
            raise ValueError(msg)
        if tensor.dtype not in REAL_TYPES:
            msg = f"{name} must be a real floating-point tensor, got {tensor.dtype}"
            raise ValueError(msg)
