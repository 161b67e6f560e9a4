"""The official CUDA kernels: `selective_scan_fn` of mamba-ssm and `causal_conv1d_fn` of causal-conv1d.

Neither takes a scan order, so other orders than memory order cost copies here. Limits are those of their sources:
`csrc/selective_scan/selective_scan.cpp` and `selective_scan_fwd_kernel.cuh` of mamba-ssm 2.3.2, `csrc/causal_conv1d.cpp` of
causal-conv1d 1.7.0.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from MambaSegLib.scan import pytorch_backend
from MambaSegLib.scan.arguments import Convolution, Scan, each
from MambaSegLib.scan.checks import refuse_float64
from MambaSegLib.scan.paths import from_scan_order, to_scan_order

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


def selective_scan(scan: Scan) -> tuple[Tensor, Tensor]:
    """See `Backend.selective_scan`.

    Raises:
        ValueError: If the problem is larger than the kernel counts, or has more states or digits than it supports.
    """
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    refuse_float64(scan.tensors, "mamba_ssm")
    _check_size(scan.u.shape, scan.A.shape[1])
    walk, kind = (scan.grid, scan.order), scan.u.dtype
    u, delta, B, C, z = each(lambda t: to_scan_order(t, *walk).contiguous().to(kind), scan.sequences)
    A, D, delta_bias = each(lambda t: t.float().contiguous(), scan.parameters)
    out, last_state = selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, scan.softplus, True)
    return from_scan_order(out, *walk), last_state.detach()


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


def causal_conv1d(convolution: Convolution) -> Tensor:
    """See `Backend.causal_conv1d`; kernels of 2 to 4 taps are the official one's, others run in PyTorch.

    Raises:
        ValueError: As `selective_scan`.
    """
    x, weight = convolution.x, convolution.weight
    refuse_float64(convolution.tensors, "mamba_ssm")
    if not 2 <= weight.shape[1] <= 4:
        return pytorch_backend.causal_conv1d(convolution)
    if x.numel() >= CONVOLUTION_LIMIT:
        msg = f"{x.numel()} values overflow the 32-bit steps of the causal_conv1d kernels; use a smaller patch"
        raise ValueError(msg)
    from causal_conv1d import causal_conv1d_fn

    walk = convolution.grid, convolution.order
    sequence = to_scan_order(x, *walk).contiguous()
    taps, bias = each(lambda t: t.to(x.dtype).contiguous(), (weight, convolution.bias))
    y: Tensor = causal_conv1d_fn(sequence, taps, bias, activation="silu" if convolution.silu else None)
    return from_scan_order(y, *walk)
