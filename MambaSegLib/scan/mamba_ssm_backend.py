"""The official CUDA kernels: `selective_scan_fn` of mamba-ssm and `causal_conv1d_fn` of causal-conv1d.

Neither takes a scan order, so other orders than memory order cost copies here. Limits are those of their sources:
`csrc/selective_scan/selective_scan.cpp` and `selective_scan_fwd_kernel.cuh` of mamba-ssm 2.3.2, `csrc/causal_conv1d.cpp` of
causal-conv1d 1.7.0.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from MambaSegLib.scan.order import ScanOrder
from MambaSegLib.scan.paths import Grid, from_scan_order, to_scan_order

MAX_STATES = 256
CHUNK = 2048
"""Steps of a chunk inside the kernel; it keeps N pairs of float32 per chunk and counts them in 32 bits."""
INDEX_LIMIT = 2**31
CONVOLUTION_LIMIT = 2**32
"""The convolution's steps in memory are unsigned and 32 bits wide."""


def why_unavailable(device: str, needs_gradient: bool) -> str | None:
    """Say why the kernels cannot run on `device`; None if they can."""
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
    return _probe_failure(str(device), needs_gradient)


@lru_cache(maxsize=16)
def _probe_failure(device: str, needs_gradient: bool) -> str | None:
    from MambaSegLib.scan.probe import probe_failure

    return probe_failure(selective_scan, causal_conv1d, device, needs_gradient)


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
        ValueError: If the problem is larger than the kernel counts, or has more states or digits than it supports.
    """
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    _check_type(u)
    _check_size(u.shape, A.shape[1])
    u, delta, B, C = (to_scan_order(t, grid, order).contiguous() for t in (u, delta, B, C))
    z = None if z is None else to_scan_order(z, grid, order).contiguous()
    single = [None if t is None else t.float().contiguous() for t in (A, D, delta_bias)]
    delta, B, C = (t.to(u.dtype) for t in (delta, B, C))
    z = None if z is None else z.to(u.dtype)
    out, last_state = selective_scan_fn(u, delta, single[0], B, C, single[1], z, single[2], delta_softplus, True)
    return from_scan_order(out, grid, order), last_state.detach()


def _check_type(tensor: Tensor) -> None:
    if tensor.dtype == torch.float64:
        msg = "the mamba_ssm kernels compute in float32 and would round float64 tensors; use backend='pytorch'"
        raise ValueError(msg)


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
    """See `scan.causal_conv1d`; kernels of 2 to 4 taps are the official one's, others run in PyTorch.

    Raises:
        ValueError: As `selective_scan`.
    """
    from MambaSegLib.scan import pytorch_backend

    _check_type(x)
    if not 2 <= weight.shape[1] <= 4:
        return pytorch_backend.causal_conv1d(x, weight, bias, activation, grid, order)
    if x.numel() >= CONVOLUTION_LIMIT:
        msg = f"{x.numel()} values overflow the 32-bit steps of the causal_conv1d kernels; use a smaller patch"
        raise ValueError(msg)
    from causal_conv1d import causal_conv1d_fn

    sequence = to_scan_order(x, grid, order).contiguous()
    bias = None if bias is None else bias.to(x.dtype).contiguous()
    y: Tensor = causal_conv1d_fn(sequence, weight.to(x.dtype), bias, activation=activation)
    return from_scan_order(y, grid, order)
