"""The official CUDA kernels: `selective_scan_fn` of mamba-ssm and `causal_conv1d_fn` of causal-conv1d.

Neither takes a scan order, so other orders than memory order cost copies here.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from MambaSegLib.scan.order import ScanOrder
from MambaSegLib.scan.paths import Grid, from_scan_order, to_scan_order

MAX_STATES = 256
CHUNK = 2048
"""Steps of a chunk inside the kernel; it keeps 2 N float32 states per chunk and counts them in 32 bits."""
INDEX_LIMIT = 2**31
PROBE_TOLERANCE = 1e-4
"""A right kernel in float32 differs from the specification by about 1e-6."""


def why_unavailable(device: str, needs_gradient: bool) -> str | None:
    """Say why the kernels cannot run on `device`; None if they can."""
    del needs_gradient
    if torch.device(device).type != "cuda":
        return f"its kernels need a CUDA device, and the tensors are on {device}"
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA device"
    try:
        import causal_conv1d  # noqa: F401
        import selective_scan_cuda  # noqa: F401
        from mamba_ssm.ops import selective_scan_interface  # noqa: F401
    except Exception as error:  # noqa: BLE001 - a mismatched build raises whatever it likes; the person gets its words
        return (
            f"its compiled parts cannot be imported ({type(error).__name__}: {error}); mamba-ssm must be built with "
            "MAMBA_KEEP_CUDA_BUILD=TRUE against this PyTorch, and causal-conv1d must be installed"
        )
    return _probe_failure(str(device))


@lru_cache(maxsize=16)
def _probe_failure(device: str) -> str | None:
    """Run a tiny scan and compare it with the specification: a build for another GPU loads, and fails only then."""
    from MambaSegLib.scan.pytorch_backend import selective_scan_sequential

    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(1, count, 9, generator=generator).to(device) for count in (4, 4, 2, 2)]
    u, delta, B, C = rows
    arguments = (u, delta, -torch.ones(4, 2, device=device), B, C, None, None, None, True, (1, 1, 9), ScanOrder())
    try:
        found, _ = selective_scan(*arguments)
        wanted, _ = selective_scan_sequential(*arguments)
        difference = float((found - wanted).abs().max())
    except Exception as error:  # noqa: BLE001 - see above
        return f"a tiny scan failed on {device} ({type(error).__name__}: {error})"
    return None if difference < PROBE_TOLERANCE else f"a tiny scan on {device} is off by {difference:.2g}"


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
    grid: Grid,
    order: ScanOrder,
) -> tuple[Tensor, Tensor]:
    """Output (B, D, L) and last state (B, D, N); see `scan.selective_scan`.

    Raises:
        ValueError: If the problem is larger than the kernel counts, or has more states than it supports.
    """
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    _check_size(u.shape, A.shape[1])
    u, delta, B, C = (to_scan_order(t, grid, order).contiguous() for t in (u, delta, B, C))
    z = None if z is None else to_scan_order(z, grid, order).contiguous()
    single = [None if t is None else t.float() for t in (A, D, delta_bias)]
    delta, B, C = (t.to(u.dtype) for t in (delta, B, C))
    z = None if z is None else z.to(u.dtype)
    out, last_state = selective_scan_fn(u, delta, single[0], B, C, single[1], z, single[2], delta_softplus, True)
    return from_scan_order(out, grid, order), last_state.detach()


def _check_size(shape: tuple[int, ...], states: int) -> None:
    batch, channels, length = shape
    if states > MAX_STATES:
        msg = f"the mamba_ssm kernels take at most {MAX_STATES} states, got {states}; use another backend"
        raise ValueError(msg)
    if batch * channels * -(-length // CHUNK) * states * 2 >= INDEX_LIMIT:
        msg = (
            f"a scan of {batch} x {channels} channels x {length} tokens x {states} states overflows the 32-bit counters "
            "of the mamba_ssm kernels; use a smaller patch or another backend"
        )
        raise ValueError(msg)


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, grid: Grid, order: ScanOrder
) -> Tensor:
    """See `scan.causal_conv1d`; kernels of 2 to 4 taps are the official one's, others run in PyTorch."""
    from MambaSegLib.scan import pytorch_backend

    if not 2 <= weight.shape[1] <= 4:
        return pytorch_backend.causal_conv1d(x, weight, bias, activation, grid, order)
    from causal_conv1d import causal_conv1d_fn

    sequence = to_scan_order(x, grid, order).contiguous()
    bias = None if bias is None else bias.to(x.dtype)
    y: Tensor = causal_conv1d_fn(sequence, weight.to(x.dtype), bias, activation=activation)
    return from_scan_order(y, grid, order)
