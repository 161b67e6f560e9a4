"""The selective scan on a CPU, compiled on the user's computer by numba: no compiler to install.

Tensors are read where they are: any scan order by index, B and C inside a wider projection, no copies in another layout.
float32 inside; bfloat16 and float16 come in and go out by conversion. Results depend on the number of threads to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from MambaSegLib.scan.arguments import Convolution, Scan, each
from MambaSegLib.scan.checks import needs_gradient, refuse_float64
from MambaSegLib.scan.paths import Array, path_numbers

if TYPE_CHECKING:
    from MambaSegLib.scan.numba_tasks import Operands
    from MambaSegLib.scan.numba_tiles import Problem


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


def selective_scan(scan: Scan) -> tuple[Tensor, Tensor]:
    """See `Backend.selective_scan`.

    Raises:
        ValueError: For float64 tensors, which this backend would round.
    """
    refuse_float64(scan.tensors, "numba")
    settings = _settings(scan, scan.softplus)
    rows = each(lambda t: t.transpose(1, 2).float(), scan.sequences)
    parameters = each(lambda t: t.float(), scan.parameters)
    y, last_state = _Scan.apply(settings, *rows, *parameters)  # type: ignore[no-untyped-call]
    return y.transpose(1, 2).to(scan.u.dtype), last_state


def _settings(call: Scan | Convolution, nonlinear: bool) -> _Settings:
    path = path_numbers(call.grid, call.order)
    return _Settings(path, nonlinear, torch.get_num_threads(), needs_gradient(call.tensors))


class _Scan(torch.autograd.Function):
    """Rows u, delta, B, C, z in memory order, (B, L, D) and (B, L, N); then A, D and delta_bias."""

    @staticmethod
    def forward(ctx: Any, settings: _Settings, *tensors: Tensor | None) -> tuple[Tensor, Tensor]:
        from MambaSegLib.scan import numba_tasks

        operands, problem = _described(tensors, settings)
        out = numba_tasks.room_like(operands.u)
        every = numba_tasks.checkpoint_distance(out, problem.states) if settings.keeps else 0
        states, checkpoints = numba_tasks.run_forward(problem, out, every, settings.threads)
        if settings.keeps:
            ctx.settings, ctx.every = settings, every
            # Saved as a tensor, so that a layer which is computed again in the backward pass does not keep them.
            ctx.save_for_backward(*tensors, torch.from_numpy(checkpoints))
        last_state = numba_tasks.unblocked(states, problem)
        ctx.mark_non_differentiable(last_state)
        return out, last_state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        from MambaSegLib.scan import numba_tasks

        *tensors, checkpoints = ctx.saved_tensors  # once: a checkpoint refuses to hand them out twice
        operands, problem = _described(tensors, ctx.settings)
        found = numba_tasks.run_backward(
            problem, operands, numba_tasks.by_rows(dout), checkpoints.numpy(), ctx.every, ctx.settings.threads
        )
        dA = numba_tasks.unblocked(found.rates, problem)
        return None, *found.operands, dA, _vector(found.skip, tensors[6]), _vector(found.bias, tensors[7])


def _described(tensors: Sequence[Any], settings: _Settings) -> tuple[Operands, Problem]:
    """The arguments of `_Scan` for kernels: copied where they have to be."""
    from MambaSegLib.scan.numba_tasks import Operands, by_rows, make_problem

    *rows, A, D, delta_bias = tensors
    operands = Operands(*each(by_rows, rows))
    return operands, make_problem(operands, A, D, delta_bias, settings.nonlinear, settings.path)


def _vector(sums: Array, like: Tensor | None) -> Tensor | None:
    """Sums in blocks of 16 channels as the gradient of a parameter (D,)."""
    return None if like is None else torch.from_numpy(sums.reshape(-1)[: like.shape[0]].astype(np.float32))


def causal_conv1d(convolution: Convolution) -> Tensor:
    """See `Backend.causal_conv1d`.

    Raises:
        ValueError: For float64 tensors, which this backend would round.
    """
    refuse_float64(convolution.tensors, "numba")
    x, weight, bias = each(lambda t: t.float(), convolution.tensors)
    settings = _settings(convolution, convolution.silu)
    y: Tensor = _Convolution.apply(settings, x.transpose(1, 2), weight, bias)  # type: ignore[no-untyped-call]
    return y.transpose(1, 2).to(convolution.x.dtype)


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
