"""The selective scan on a CPU, compiled on the user's computer by numba: no compiler to install.

Tensors are read where they are: any scan order by index, B and C inside a wider projection, no copies in another layout.
float32 inside; bfloat16 and float16 come in and go out by conversion. Results depend on the number of threads to rounding.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from MambaSegLib.scan.checks import needs_gradient
from MambaSegLib.scan.order import ScanOrder
from MambaSegLib.scan.paths import Array, Grid, path_numbers


def why_unavailable(device: str, needs_gradient: bool) -> str | None:
    """Say why this backend cannot run on `device`; None if it can."""
    del needs_gradient
    if torch.device(device).type != "cpu":
        return f"it computes on the CPU, and the tensors are on {device}"
    try:
        import numba  # noqa: F401
    except Exception as error:  # noqa: BLE001 - a broken numba raises whatever it likes; the person gets its words
        return f"numba cannot be imported ({type(error).__name__}: {error}); pip install numba"
    return None


class _Settings(NamedTuple):
    """What a call needs besides tensors.

    Attributes:
        path: See `paths.path_numbers`.
        nonlinear: Softplus on delta in a scan, SiLU on the output in a convolution.
        threads: As many as PyTorch uses.
        keeps: Whether a backward pass may follow.
    """

    path: Array
    nonlinear: bool
    threads: int
    keeps: bool


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
        ValueError: For float64 tensors, which this backend would round.
    """
    tensors = (u, delta, A, B, C, D, z, delta_bias)
    _refuse_double(tensors)
    settings = _Settings(path_numbers(grid, order), delta_softplus, torch.get_num_threads(), needs_gradient(tensors))
    rows = [None if t is None else t.transpose(1, 2).float() for t in (u, delta, B, C, z)]
    parameters = [None if t is None else t.float() for t in (A, D, delta_bias)]
    y, last_state = _Scan.apply(settings, *rows, *parameters)  # type: ignore[no-untyped-call]
    return y.transpose(1, 2).to(u.dtype), last_state


def _refuse_double(tensors: tuple[Tensor | None, ...]) -> None:
    if any(t is not None and t.dtype == torch.float64 for t in tensors):
        msg = "the numba backend computes in float32 and would round float64 tensors; use backend='pytorch'"
        raise ValueError(msg)


class _Scan(torch.autograd.Function):
    """Rows (B, L, D) and (B, L, N) in memory order; then A, D and delta_bias."""

    @staticmethod
    def forward(
        ctx: Any,
        settings: _Settings,
        u: Tensor,
        delta: Tensor,
        B: Tensor,
        C: Tensor,
        z: Tensor | None,
        A: Tensor,
        D: Tensor | None,
        delta_bias: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        from MambaSegLib.scan import numba_tasks

        operands = numba_tasks.operands_of(u, delta, B, C, z)
        problem = numba_tasks.make_problem(operands, A, D, delta_bias, settings.nonlinear, settings.path)
        out = torch.empty(operands.u.shape)
        every = numba_tasks.checkpoint_distance(out, problem.states) if settings.keeps else 0
        states, checkpoints = numba_tasks.run_forward(problem, out, every, settings.threads)
        if settings.keeps:
            ctx.settings, ctx.every, ctx.checkpoints = settings, every, checkpoints
            ctx.save_for_backward(u, delta, B, C, z, A, D, delta_bias)
        last_state = numba_tasks.unblocked(states, problem)
        ctx.mark_non_differentiable(last_state)
        return out, last_state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        from MambaSegLib.scan import numba_tasks

        u, delta, B, C, z, A, D, delta_bias = ctx.saved_tensors
        operands = numba_tasks.operands_of(u, delta, B, C, z)
        problem = numba_tasks.make_problem(operands, A, D, delta_bias, ctx.settings.nonlinear, ctx.settings.path)
        found = numba_tasks.run_backward(
            problem, operands, numba_tasks.by_rows(dout), ctx.checkpoints, ctx.every, ctx.settings.threads
        )
        dA = numba_tasks.unblocked(found.rates, problem)
        return None, *found.operands, dA, _vector(found.skip, D), _vector(found.bias, delta_bias)


def _vector(sums: Array, like: Tensor | None) -> Tensor | None:
    """Sums in blocks of 16 channels as the gradient of a parameter (D,)."""
    return None if like is None else torch.from_numpy(sums.reshape(-1)[: like.shape[0]].astype(np.float32))


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, grid: Grid, order: ScanOrder
) -> Tensor:
    """See `scan.causal_conv1d`.

    Raises:
        ValueError: For float64 tensors, which this backend would round.
    """
    tensors = (x, weight, bias)
    _refuse_double(tensors)
    settings = _Settings(
        path_numbers(grid, order), activation == "silu", torch.get_num_threads(), needs_gradient(tensors)
    )
    y: Tensor = _Convolution.apply(  # type: ignore[no-untyped-call]
        settings, x.transpose(1, 2).float(), weight.float(), None if bias is None else bias.float()
    )
    return y.transpose(1, 2).to(x.dtype)


class _Convolution(torch.autograd.Function):
    """Rows (B, L, D) in memory order, weights (D, K), bias (D,)."""

    @staticmethod
    def forward(ctx: Any, settings: _Settings, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        from MambaSegLib.scan import numba_conv_tasks
        from MambaSegLib.scan.numba_tasks import by_rows

        taps = numba_conv_tasks.make_taps(weight, bias, settings.nonlinear, settings.path)
        if settings.keeps:
            ctx.settings = settings
            ctx.save_for_backward(x, weight, bias)
        return numba_conv_tasks.run_forward(taps, by_rows(x), settings.threads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        from MambaSegLib.scan import numba_conv_tasks
        from MambaSegLib.scan.numba_tasks import by_rows

        x, weight, bias = ctx.saved_tensors
        settings = ctx.settings
        taps = numba_conv_tasks.make_taps(weight, bias, settings.nonlinear, settings.path)
        dx, dweight, dbias = numba_conv_tasks.run_backward(taps, by_rows(x), by_rows(dout), settings.threads)
        return None, dx, dweight, None if bias is None else dbias
