"""The scan on NVIDIA GPUs with own kernels in Triton: nothing to compile beforehand, one sequence fills the whole device.

Tensors are read where they are, in any scan order and type; states are float32. All directions of a layer can share their
launches. What a backward pass needs beyond the inputs is computed again. Equal inputs give equal results to the bit.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from MambaSegLib.scan.order import ScanOrder
from MambaSegLib.scan.paths import Grid

if TYPE_CHECKING:
    from MambaSegLib.scan.triton_launch import Walk

OLDEST_CAPABILITY = (7, 5)
"""What Triton compiles for: Turing (2018) and later."""
MOST_TOKENS = 2**31 - 2**14
"""Positions are counted in 32 bits, beyond the end of the last chunk; offsets in 64."""


def why_unavailable(device: str, needs_gradient: bool) -> str | None:
    """Say why the kernels cannot run on `device`; None if they can."""
    return why_no_triton(device) or _probe_failure(str(device), needs_gradient)


def why_no_triton(device: str) -> str | None:
    """Say why no kernel in Triton can run on `device`; None if nothing is known to be in the way."""
    if torch.device(device).type != "cuda":
        return f"its kernels need an NVIDIA GPU, and the tensors are on {device}"
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA device"
    if torch.version.hip is not None:
        return "this is a GPU of AMD, on which it was never tested"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_CAPABILITY:
        return f"this GPU has compute capability {capability[0]}.{capability[1]}; Triton needs 7.5 or newer"
    try:
        import triton  # noqa: F401
    except Exception as error:  # noqa: BLE001 - a mismatched build raises whatever it likes; the person gets its words
        return f"triton cannot be imported ({type(error).__name__}: {error}); pip install triton, on Windows triton-windows"
    return None


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
    """Output (B, D, L) in the dtype of u, and the last state (B, D, N) without gradient; see `scan.selective_scan`.

    Raises:
        ValueError: For float64 tensors, which this backend would round, and for more tokens than it counts.
    """
    rows = [None if t is None else t.transpose(1, 2)[None] for t in (u, delta, B, C, z)]
    parameters = [None if t is None else t[None] for t in (A, D, delta_bias)]
    arguments: tuple[Any, ...] = (*rows, *parameters, delta_softplus, grid, (order,))
    out, last = scan_rows(*arguments)
    return out[0].transpose(1, 2), last[0]


def scan_rows(
    u: Tensor,
    delta: Tensor,
    B: Tensor,
    C: Tensor,
    z: Tensor | None,
    A: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    grid: Grid,
    orders: tuple[ScanOrder, ...],
) -> tuple[Tensor, Tensor]:
    """Scan several directions in the same launches.

    Args:
        u: Tokens in memory order as rows, (directions, B, L, D). Any steps in memory, as long as the last axis is
            contiguous; others are copied. So are the next four.
        delta: As u.
        B: (directions, B, L, N).
        C: As B.
        z: As u.
        A: (directions, D, N).
        D: (directions, D).
        delta_bias: (directions, D).
        delta_softplus: As in `scan.selective_scan`.
        grid: (Z, Y, X) of the L tokens.
        orders: One per direction.

    Returns:
        Output (directions, B, L, D) in the dtype of u, and the last states (directions, B, D, N) in float32, which have
        no gradient.

    Raises:
        ValueError: As `selective_scan`.
    """
    from MambaSegLib.scan.triton_launch import Walk

    _check((u, delta, B, C, z, A, D, delta_bias), u.shape[2])
    parameters = [None if t is None else t.float() for t in (A, D, delta_bias)]
    result: tuple[Tensor, Tensor] = _Scan.apply(  # type: ignore[no-untyped-call]
        Walk(grid, orders), delta_softplus, u, delta, B, C, z, *parameters
    )
    return result


def _check(tensors: tuple[Tensor | None, ...], tokens: int) -> None:
    if any(t is not None and t.dtype == torch.float64 for t in tensors):
        msg = "the triton backend computes in float32 and would round float64 tensors; use backend='pytorch'"
        raise ValueError(msg)
    if tokens > MOST_TOKENS:
        msg = f"the triton backend counts up to {MOST_TOKENS} tokens, got {tokens}; use a smaller patch"
        raise ValueError(msg)


class _Scan(torch.autograd.Function):
    """See `scan_rows`; parameters are float32."""

    @staticmethod
    def forward(
        ctx: Any,
        walk: Walk,
        softplus: bool,
        u: Tensor,
        delta: Tensor,
        B: Tensor,
        C: Tensor,
        z: Tensor | None,
        A: Tensor,
        D: Tensor | None,
        delta_bias: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        from MambaSegLib.scan import triton_launch

        ctx.walk, ctx.softplus = walk, softplus
        ctx.save_for_backward(u, delta, B, C, z, A, D, delta_bias)
        out, last = triton_launch.run_forward(_operands(u, delta, B, C, z, A, D, delta_bias), walk, softplus)
        last = last.reshape(u.shape[0], u.shape[1], *last.shape[1:]).transpose(2, 3)
        ctx.mark_non_differentiable(last)
        return out, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        from MambaSegLib.scan import triton_launch

        saved = ctx.saved_tensors  # once: a checkpoint computes them again and refuses to hand them out twice
        D, delta_bias = saved[-2:]
        operands = _operands(*saved)
        found = triton_launch.run_backward(operands, triton_launch.by_rows(dout), ctx.walk, ctx.softplus)
        skip, bias = None if D is None else found.skip, None if delta_bias is None else found.bias
        return None, None, found.u, found.delta, found.B, found.C, found.z, found.A, skip, bias


def _operands(
    u: Tensor,
    delta: Tensor,
    B: Tensor,
    C: Tensor,
    z: Tensor | None,
    A: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
) -> Any:
    from MambaSegLib.scan.triton_launch import Operands, by_rows

    rows = [None if t is None else by_rows(t) for t in (u, delta, B, C, z)]
    vectors = [None if t is None else t.contiguous() for t in (D, delta_bias)]
    operands: tuple[Any, ...] = (*rows, A.transpose(1, 2).contiguous(), *vectors)
    return Operands(*operands)


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, grid: Grid, order: ScanOrder
) -> Tensor:
    """See `scan.causal_conv1d`.

    Raises:
        ValueError: As `selective_scan`.
    """
    bias = None if bias is None else bias[None]
    return convolve_rows(x.transpose(1, 2)[None], weight[None], bias, activation, grid, (order,))[0].transpose(1, 2)


def convolve_rows(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    grid: Grid,
    orders: tuple[ScanOrder, ...],
) -> Tensor:
    """Causal convolutions of several directions in one launch; x (directions, B, L, D), weight (directions, D, K)."""
    from MambaSegLib.scan.triton_launch import Walk

    _check((x, weight, bias), x.shape[2])
    result: Tensor = _Convolution.apply(  # type: ignore[no-untyped-call]
        Walk(grid, orders), activation == "silu", x, weight.float(), None if bias is None else bias.float()
    )
    return result


class _Convolution(torch.autograd.Function):
    """See `convolve_rows`; parameters are float32."""

    @staticmethod
    def forward(ctx: Any, walk: Walk, silu: bool, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        from MambaSegLib.scan import triton_launch

        ctx.walk, ctx.silu = walk, silu
        ctx.save_for_backward(x, weight, bias)
        return triton_launch.run_convolution(triton_launch.by_rows(x), *_taps(weight, bias), walk, silu)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        from MambaSegLib.scan import triton_launch

        x, weight, bias = ctx.saved_tensors
        dx, dweight, dbias = triton_launch.run_convolution_backward(
            triton_launch.by_rows(x), *_taps(weight, bias), triton_launch.by_rows(dout), ctx.walk, ctx.silu
        )
        return None, None, dx, dweight.transpose(1, 2), None if bias is None else dbias


def _taps(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Weights with channels last, as the kernels read them."""
    return weight.transpose(1, 2).contiguous(), None if bias is None else bias.contiguous()
