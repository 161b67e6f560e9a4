"""The official CUDA kernels: `selective_scan_fn` of mamba-ssm, `causal_conv1d_fn` of causal-conv1d, and both fused in a block.

None takes a scan order, so other orders than memory order cost copies here. Limits are those of their sources:
`csrc/selective_scan/selective_scan.cpp` and `selective_scan_fwd_kernel.cuh` of mamba-ssm 2.3.2, `csrc/causal_conv1d.cpp` of
causal-conv1d 1.7.0.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from MambaSegLib.scan import pytorch_backend
from MambaSegLib.scan.arguments import BlockWeights, Convolution, Scan, each
from MambaSegLib.scan.checks import refuse_float64
from MambaSegLib.scan.order import NATURAL_ORDER, ScanOrder
from MambaSegLib.scan.paths import Grid, from_scan_order, to_scan_order

log = logging.getLogger(__name__)

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


def fuses_blocks(device: str, needs_gradient: bool) -> bool:
    """Whether `run_block` computes here what the single steps do; where they are available, it may still not run."""
    return _block_failure(device, needs_gradient) is None


@lru_cache(maxsize=16)
def _block_failure(device: str, needs_gradient: bool) -> str | None:
    """Its own C++ calls break where the versions of mamba-ssm and causal-conv1d do not fit together."""
    from MambaSegLib.scan.probe import disagreement

    reason = disagreement(
        "a tiny Mamba block",
        device,
        lambda: _probed_block(run_block, device, needs_gradient),
        lambda: _probed_block(_block_in_steps, device, needs_gradient),
    )
    if reason is not None:
        log.info("mamba_ssm's fused function is not used: %s", reason)
    return reason


def _probed_block(run: Callable[..., Tensor], device: str, with_gradient: bool) -> list[Tensor]:
    """Output and, on request, all gradients of a block of 4 channels, 2 states and rank 1."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, 9, 8), (4, 4), (4,), (5, 4), (4, 1), (4,), (4, 2), (4,), (2, 4))
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu") for shape in shapes]
    leaves = [(0.5 * t).to(device).requires_grad_(with_gradient) for t in drawn]
    xz, conv, conv_bias, x_proj, dt_proj, dt_bias, A_log, D, out_proj = leaves
    weights = BlockWeights(xz, conv, conv_bias, x_proj, dt_proj, dt_bias, -torch.exp(A_log), D, out_proj)
    with torch.autocast(xz.device.type, enabled=False), torch.set_grad_enabled(with_gradient):
        output = run(xz, weights, (1, 1, 9), NATURAL_ORDER)
    return [output.detach(), *(torch.autograd.grad(output.sum(), leaves) if with_gradient else ())]


def _block_in_steps(xz: Tensor, weights: BlockWeights, grid: Grid, order: ScanOrder) -> Tensor:
    """What `run_block` computes, by the specification."""
    x, z = xz.transpose(1, 2).chunk(2, dim=1)
    u = pytorch_backend.causal_conv1d(Convolution(x, weights.conv, weights.conv_bias, True, grid, order))
    states, rank = weights.A.shape[1], weights.dt_proj.shape[1]
    dt, B, C = torch.split(weights.x_proj @ u, [rank, states, states], dim=1)
    scan = Scan(u, weights.dt_proj @ dt, weights.A, B, C, weights.D, z, weights.dt_bias, True, grid, order)
    out, _ = pytorch_backend.selective_scan_sequential(scan)
    return out.transpose(1, 2) @ weights.out_proj.t()


def run_block(xz: Tensor, weights: BlockWeights, grid: Grid, order: ScanOrder) -> Tensor:
    """A Mamba block behind its first projection, in one function that keeps x, z and the scan's output for its gradients.

    Args:
        xz: The first projection's result, (B, L, 2 D) float32 in memory order.
        weights: Of the block, float32; `in_proj` is not used.
        grid: (Z, Y, X) of the L tokens.
        order: In which order convolution and scan visit the voxels.

    Returns:
        (B, L, C) in memory order.

    Raises:
        ValueError: As `selective_scan`.
    """
    from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn

    batch, length, wide = xz.shape
    _check_size((batch, wide // 2, length), weights.A.shape[1])
    _check_convolution(xz)
    sequence = to_scan_order(xz.transpose(1, 2), grid, order).contiguous()
    mixed: Tensor = mamba_inner_fn(
        sequence, weights.conv.unsqueeze(1), weights.conv_bias, weights.x_proj, weights.dt_proj, weights.out_proj, None,
        weights.A, None, None, weights.D, delta_bias=weights.dt_bias, delta_softplus=True,
    )  # fmt: skip
    return from_scan_order(mixed.transpose(1, 2), grid, order).transpose(1, 2)


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


def _check_convolution(x: Tensor) -> None:
    if x.numel() >= CONVOLUTION_LIMIT:
        msg = f"{x.numel()} values overflow the 32-bit steps of the causal_conv1d kernels; use a smaller patch"
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
    _check_convolution(x)
    from causal_conv1d import causal_conv1d_fn

    walk = convolution.grid, convolution.order
    sequence = to_scan_order(x, *walk).contiguous()
    taps, bias = each(lambda t: t.to(x.dtype).contiguous(), (weight, convolution.bias))
    y: Tensor = causal_conv1d_fn(sequence, taps, bias, activation="silu" if convolution.silu else None)
    return from_scan_order(y, *walk)
