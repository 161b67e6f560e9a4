"""The selective scan of Mamba and its causal convolution, with one signature and several backends.

Importing this package loads neither PyTorch nor numba; the functions do.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Literal, cast, overload

from MambaSegLib.errors import BackendUnavailableError

if TYPE_CHECKING:
    from torch import Tensor

    from MambaSegLib.scan.arguments import Backend, Scan
    from MambaSegLib.scan.order import ScanOrder

BACKENDS = ("triton", "mamba_ssm", "numba", "pytorch")
"""Fastest first. Results agree to rounding; backends differ in speed and in where they run."""

SHAPES = "shapes"
"""Computes nothing, for counting operations: see `shapes_backend`."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BackendStatus:
    """Whether a backend can run here.

    Attributes:
        name: One of `BACKENDS`.
        available: Whether it can.
        reason: Why it cannot; empty if it can.
    """

    name: str
    available: bool
    reason: str


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: Literal[False] = False,
    *,
    grid: tuple[int, int, int] | None = None,
    order: ScanOrder | None = None,
    backend: str = "auto",
) -> Tensor: ...


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    return_last_state: Literal[True],
    *,
    grid: tuple[int, int, int] | None = None,
    order: ScanOrder | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]: ...


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    grid: tuple[int, int, int] | None = None,
    order: ScanOrder | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Selective state-space scan: h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t, y_t = C_t h_t + D u_t, times silu(z_t).

    Letters, shapes and defaults are those of `mamba_ssm.selective_scan_fn`. Differentiable in all tensor arguments.
    Fastest with tensors that are transposed views of (B, L, ...) memory; others are copied.

    Args:
        u: Input, (B, D, L): D channels, L tokens.
        delta: Time step before softplus, (B, D, L).
        A: Decay rates, (D, N): N states per channel.
        B: How the input enters the states, (B, N, L).
        C: How the states are read, (B, N, L).
        D: Skip connection, (D,).
        z: Gate, (B, D, L).
        delta_bias: Added to delta, (D,).
        delta_softplus: Whether delta + delta_bias goes through softplus.
        return_last_state: Whether to return h after the last token, too.
        grid: (Z, Y, X) with Z Y X = L: the volume whose voxels the tokens are, in memory order.
        order: In which order the scan visits the voxels; memory order if None. Input and output stay in memory order.
        backend: One of `BACKENDS`, or "auto": the fastest that can run with this device, these types and gradients.

    Returns:
        The output (B, D, L) in the dtype of u; with `return_last_state`, also the last state (B, D, N) in float32,
        which has no gradient.

    Raises:
        ValueError: If shapes, devices or types do not fit together.
        BackendUnavailableError: If the backend asked for by name cannot run; the message says why.
    """
    from MambaSegLib.scan.arguments import Scan
    from MambaSegLib.scan.paths import checked_grid

    walk = checked_grid(u.shape[2:].numel(), grid, order)
    scan = Scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, *walk)
    out, last_state = run_scan(scan, backend)
    return (out, last_state) if return_last_state else out


def run_scan(scan: Scan, backend: str) -> tuple[Tensor, Tensor]:
    """`selective_scan` with the last state, for a scan described already."""
    return _backend_for(backend, scan.tensors).selective_scan(scan)


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    *,
    grid: tuple[int, int, int] | None = None,
    order: ScanOrder | None = None,
    backend: str = "auto",
) -> Tensor:
    """Depthwise convolution over each token and the K - 1 before it in scan order; zeros stand before the first.

    Args:
        x: Input, (B, D, L).
        weight: Taps, (D, K); the last one meets the token itself.
        bias: (D,).
        activation: None or "silu".
        grid: (Z, Y, X) with Z Y X = L.
        order: In which order the taps reach back; memory order if None.
        backend: One of `BACKENDS`, or "auto".

    Returns:
        (B, D, L) in the dtype of x, tokens in memory order.

    Raises:
        ValueError: If shapes, devices or types do not fit together.
        BackendUnavailableError: If the backend asked for by name cannot run; the message says why.
    """
    from MambaSegLib.scan.arguments import Convolution
    from MambaSegLib.scan.paths import checked_grid

    if activation not in (None, "silu"):
        msg = f"activation must be None or 'silu', got {activation!r}"
        raise ValueError(msg)
    walk = checked_grid(x.shape[2:].numel(), grid, order)
    convolution = Convolution(x, weight, bias, activation == "silu", *walk)
    return _backend_for(backend, convolution.tensors).causal_conv1d(convolution)


def streams_blocks(tokens: Tensor, backend: str = "auto") -> bool:
    """Whether `numba_layer.stream_block` can stand in for a Mamba block's single steps: no gradients, float32, numba."""
    import torch

    if torch.is_grad_enabled() or not _is_plain(tokens):
        return False
    return resolve_backend(backend, str(tokens.device)) == "numba"


def fuses_blocks(tokens: Tensor, taps: int, backend: str = "auto") -> bool:
    """Whether `mamba_ssm_backend.run_block` can: float32, as many taps as the official convolution takes, mamba_ssm."""
    import torch

    if not _is_plain(tokens) or not 2 <= taps <= 4:
        return False
    device, needs_gradient = str(tokens.device), torch.is_grad_enabled()
    if resolve_backend(backend, device, needs_gradient) != "mamba_ssm":
        return False
    from MambaSegLib.scan import mamba_ssm_backend

    return mamba_ssm_backend.fuses_blocks(device, needs_gradient)


def _is_plain(tokens: Tensor) -> bool:
    """Whether everything is float32: under autocast, what is fused would round where the single steps do not."""
    import torch

    return tokens.dtype == torch.float32 and not torch.is_autocast_enabled(tokens.device.type)


def list_backends(device: str = "cpu", needs_gradient: bool = False) -> tuple[BackendStatus, ...]:
    """What each backend says about running on `device` ("cpu", "cuda", "cuda:1", "mps"), fastest first."""
    reasons = ((name, _module(name).why_unavailable(str(device), needs_gradient)) for name in BACKENDS)
    return tuple(BackendStatus(name, reason is None, reason or "") for name, reason in reasons)


def resolve_backend(name: str, device: str, needs_gradient: bool = False) -> str:
    """Name of the backend that will run: the fastest available for "auto", else `name` itself.

    Raises:
        BackendUnavailableError: If the backend asked for by name cannot run on `device`; the message says why.
        ValueError: For a name that is not in `BACKENDS`.
    """
    if name == "auto":
        return _fastest(str(device), needs_gradient)
    if name not in (*BACKENDS, SHAPES):
        msg = f"scan backend {name!r} is not one of auto, {', '.join(BACKENDS)}"
        raise ValueError(msg)
    return _asked_for(name, str(device), needs_gradient)


def _module(name: str) -> Backend:
    return cast("Backend", import_module(f"MambaSegLib.scan.{name}_backend"))


@lru_cache(maxsize=64)
def _fastest(device: str, needs_gradient: bool) -> str:
    """The cache spares probing per call, and logs each choice once."""
    for status in list_backends(device, needs_gradient):
        if status.available:
            _log.info("scan backend on %s: %s", device, status.name)
            return status.name
        _log.debug("scan backend %s is out: %s", status.name, status.reason)
    msg = "the pytorch backend runs on every device"
    raise AssertionError(msg)


@lru_cache(maxsize=64)
def _asked_for(name: str, device: str, needs_gradient: bool) -> str:
    """The cache spares asking per call, too; it keeps no refusal."""
    reason = _module(name).why_unavailable(device, needs_gradient)
    if reason is not None:
        msg = f"the scan backend {name!r} cannot run on {device}: {reason}. Choose another one or 'auto'."
        raise BackendUnavailableError(msg)
    return name


def _backend_for(name: str, tensors: tuple[Tensor | None, ...]) -> Backend:
    from MambaSegLib.scan.checks import has_float64, needs_gradient

    if name == "auto" and has_float64(tensors):
        name = "pytorch"  # the others would round float64 to float32
    assert tensors[0] is not None, "the input comes first"
    return _module(resolve_backend(name, str(tensors[0].device), needs_gradient(tensors)))
