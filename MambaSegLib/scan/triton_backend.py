"""The scan on NVIDIA GPUs with own kernels in Triton: nothing to compile beforehand, one sequence fills the whole device.

Tensors are read where they are, in any scan order and type; states are float32. All directions of a layer can share their
launches. What a backward pass needs beyond the inputs is computed again. Equal inputs give equal results to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from MambaSegLib.scan.arguments import Convolution, Scan, Scans, each
from MambaSegLib.scan.checks import refuse_float64
from MambaSegLib.scan.order import ScanOrder
from MambaSegLib.scan.paths import Grid

if TYPE_CHECKING:
    from MambaSegLib.scan.triton_launch import Operands, Walk

OLDEST_CAPABILITY = (7, 5)
"""What Triton compiles for: Turing (2018) and later."""
OLDEST_TRITON = (3, 3)
"""Older ones do not take tuples that run-time values are in."""
MOST_TOKENS = 2**31 - 2**14
"""Positions are counted in 32 bits, beyond the end of the last chunk; offsets in 64."""

MOST_SEQUENCES = 2**16 - 1
"""Directions times batch entries: programs along a grid's second axis."""


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
        import triton
    except Exception as error:  # noqa: BLE001 - a mismatched build raises whatever it likes; the person gets its words
        return f"triton cannot be imported ({type(error).__name__}: {error}); pip install triton, on Windows triton-windows"
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < OLDEST_TRITON:
        return f"triton {triton.__version__} is too old for its kernels: 3.3 comes with PyTorch 2.7"
    return None


@lru_cache(maxsize=16)
def _probe_failure(device: str, needs_gradient: bool) -> str | None:
    """Asked for one chunk, as its few tokens would be, and for several, which takes kernels of their own."""
    from MambaSegLib.scan.probe import probe_failure
    from MambaSegLib.scan.triton_tuning import EVERY_SCAN, ScanConfig, override

    for tokens in (16, 4):
        with override(EVERY_SCAN, ScanConfig(block_channels=4, boundary_channels=4, chunk=tokens)):
            failure = probe_failure(selective_scan, causal_conv1d, device, needs_gradient)
        if failure is not None:
            return failure
    return None


def selective_scan(scan: Scan) -> tuple[Tensor, Tensor]:
    """See `Backend.selective_scan`.

    Raises:
        ValueError: For float64 tensors, which this backend would round, and for more tokens than it counts.
    """
    u, delta, B, C, z = each(lambda t: t.transpose(1, 2)[None], scan.sequences)
    A, D, delta_bias = each(lambda t: t[None], scan.parameters)
    out, last = scan_rows(Scans(u, delta, A, B, C, D, z, delta_bias, scan.softplus, scan.grid, (scan.order,)))
    return out[0].transpose(1, 2), last[0]


def scan_rows(scans: Scans) -> tuple[Tensor, Tensor]:
    """Scan several directions in the same launches.

    Returns:
        Output (directions, B, L, D) in the dtype of u, and the last states (directions, B, D, N) in float32, which have
        no gradient.

    Raises:
        ValueError: As `selective_scan`.
    """
    from MambaSegLib.scan.triton_launch import Walk

    _check(scans.tensors)
    parameters = each(lambda t: t.float(), scans.parameters)
    result: tuple[Tensor, Tensor] = _Scan.apply(  # type: ignore[no-untyped-call]
        Walk(scans.grid, scans.orders), scans.softplus, *scans.sequences, *parameters
    )
    return result


def _check(tensors: tuple[Tensor | None, ...]) -> None:
    """The first one has the rows."""
    refuse_float64(tensors, "triton")
    assert tensors[0] is not None, "there are tokens"
    groups, batch, tokens, _ = tensors[0].shape
    if groups * batch > MOST_SEQUENCES:
        msg = f"the triton backend takes up to {MOST_SEQUENCES} sequences at once, got {groups * batch}; use a smaller batch"
        raise ValueError(msg)
    if tokens > MOST_TOKENS:
        msg = f"the triton backend counts up to {MOST_TOKENS} tokens, got {tokens}; use a smaller patch"
        raise ValueError(msg)


class _Scan(torch.autograd.Function):
    """Rows u, delta, B, C, z as in `Scans`; then A, D and delta_bias in float32."""

    @staticmethod
    def forward(ctx: Any, walk: Walk, softplus: bool, *tensors: Tensor | None) -> tuple[Tensor, Tensor]:
        from MambaSegLib.scan import triton_launch

        ctx.walk, ctx.softplus = walk, softplus
        ctx.save_for_backward(*tensors)
        operands = _operands(tensors)
        out, last = triton_launch.run_forward(operands, walk, softplus)
        last = last.reshape(*operands.u.shape[:2], *last.shape[1:]).transpose(2, 3)
        ctx.mark_non_differentiable(last)
        ctx.set_materialize_grads(False)  # or zeros are made for the last states, too
        return out, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        from MambaSegLib.scan import triton_launch

        if dout is None:  # whatever read the output hands nothing back
            return (None,) * len(ctx.needs_input_grad)
        saved = ctx.saved_tensors  # once: a checkpoint computes them again and refuses to hand them out twice
        D, delta_bias = saved[-2:]
        found = triton_launch.run_backward(_operands(saved), triton_launch.by_rows(dout), ctx.walk, ctx.softplus)
        skip, bias = None if D is None else found.skip, None if delta_bias is None else found.bias
        return None, None, found.u, found.delta, found.B, found.C, found.z, found.A, skip, bias


def _operands(tensors: Sequence[Any]) -> Operands:
    from MambaSegLib.scan.triton_launch import Operands, by_rows

    *rows, A, D, delta_bias = tensors
    u, delta, B, C, z = each(by_rows, rows)
    return Operands(u, delta, B, C, z, A.transpose(1, 2).contiguous(), *each(lambda t: t.contiguous(), (D, delta_bias)))


def causal_conv1d(convolution: Convolution) -> Tensor:
    """See `Backend.causal_conv1d`.

    Raises:
        ValueError: As `selective_scan`.
    """
    x, weight, bias = each(lambda t: t[None], convolution.tensors)
    y = convolve_rows(x.transpose(2, 3), weight, bias, convolution.silu, convolution.grid, (convolution.order,))
    return y[0].transpose(1, 2)


def convolve_rows(
    x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, grid: Grid, orders: tuple[ScanOrder, ...]
) -> Tensor:
    """Causal convolutions of several directions in one launch.

    Args:
        x: Rows (directions, B, L, D), as u of `Scans`.
        weight: (directions, D, K).
        bias: (directions, D).
        silu: Whether SiLU follows.
        grid: (Z, Y, X) of the L tokens.
        orders: One per direction.

    Returns:
        In shape and dtype of x.

    Raises:
        ValueError: As `selective_scan`.
    """
    from MambaSegLib.scan.triton_launch import Walk

    _check((x, weight, bias))
    result: Tensor = _Convolution.apply(  # type: ignore[no-untyped-call]
        Walk(grid, orders), silu, x, *each(lambda t: t.float(), (weight, bias))
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
