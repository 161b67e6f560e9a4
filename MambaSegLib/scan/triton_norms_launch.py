"""From tensors to launches of `triton_norms`, with gradients: see `row_norms` for what the functions compute."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from MambaSegLib.scan import triton_norms
from MambaSegLib.scan.triton_launch import COMMON, on_device_of
from MambaSegLib.scan.triton_tuning import pieces, power_of_2

BLOCK_ELEMENTS = 2048
"""Of one program, in rows of the next power of 2: 16 per thread. With 32, registers leave room for half as many programs."""


def block(channels: int) -> dict[str, int]:
    """How rows are divided: a program's rows and their width."""
    width = power_of_2(channels)
    return {"C": channels, "ROWS": max(1, BLOCK_ELEMENTS // width), "BLOCK_C": width}


def _contiguous(*tensors: Tensor | None) -> list[Any]:
    return [None if t is None else t.contiguous() for t in tensors]


class AddNorm(torch.autograd.Function):
    """`row_norms.add_norm` with gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor | None, eps: float, dtype: torch.dtype) -> Tensor:
        """Normalize; kept is nothing but the arguments."""
        x, residual = _contiguous(x, residual)
        ctx.save_for_backward(x, residual)
        ctx.eps = eps
        groups, rows, sizes = AddNorm.sizes(x, residual)
        out = torch.empty(x.shape, dtype=dtype, device=x.device)
        with on_device_of(x):
            grid = (groups * pieces(rows, sizes["ROWS"]),)
            triton_norms.add_norm[grid](x, residual, out, rows, groups, eps, **sizes, num_warps=4, **COMMON)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x and residual."""
        x, residual = ctx.saved_tensors
        groups, rows, sizes = AddNorm.sizes(x, residual)
        dx = torch.empty_like(x)
        dresidual = None if residual is None else torch.empty_like(residual)
        with on_device_of(x):
            triton_norms.add_norm_gradients[(pieces(rows, sizes["ROWS"]),)](
                x, residual, dout.contiguous(), dx, dresidual, rows, groups, ctx.eps, **sizes, num_warps=4, **COMMON
            )
        return dx, dresidual, None, None

    @staticmethod
    def sizes(x: Tensor, residual: Tensor | None) -> tuple[int, int, dict[str, int]]:
        """Groups, rows of each, how the rows are divided."""
        shared = x if residual is None else residual
        return math.prod(x.shape[: x.ndim - shared.ndim]), math.prod(shared.shape[:-1]), block(x.shape[-1])


class SumPaths(torch.autograd.Function):
    """`row_norms.sum_paths` with gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        headed: Tensor,
        mixed: Tensor,
        tokens: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        before: Tensor | None,
        paths: int,
        eps: float,
    ) -> Tensor:
        """Sum; kept are the arguments, and they only if there is a LayerNorm."""
        headed, mixed, tokens, weight, bias, before = _contiguous(headed, mixed, tokens, weight, bias, before)
        ctx.shape, ctx.dtype, ctx.paths, ctx.eps = headed.shape, headed.dtype, paths, eps
        if weight is not None:  # plain sums need nothing for their gradients
            ctx.save_for_backward(headed, mixed, tokens, weight)
        rows, sizes = tokens.numel() // tokens.shape[-1], block(tokens.shape[-1])
        total = torch.empty_like(tokens)
        with on_device_of(tokens):
            triton_norms.sum_paths[(pieces(rows, sizes["ROWS"]),)](
                headed, mixed, tokens, weight, bias, before, total, rows, paths, eps, EACH=headed.shape[0] // paths,
                **sizes, num_warps=4, **COMMON,
            )  # fmt: skip
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dtotal: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients in the order of the arguments."""
        dbefore = dtotal if ctx.needs_input_grad[5] else None
        saved = ctx.saved_tensors  # once: a checkpoint computes them again and refuses to hand them out twice
        if not saved:
            dresults = dtotal.to(ctx.dtype).expand(ctx.shape)
            return dresults, dresults, ctx.shape[0] * dtotal, None, None, dbefore, None, None
        headed, mixed, tokens, weight = saved
        rows, sizes = tokens.numel() // tokens.shape[-1], block(tokens.shape[-1])
        blocks = pieces(rows, sizes["ROWS"])
        dresults, dtokens = torch.empty_like(headed), torch.empty_like(tokens)
        dweight = torch.empty((blocks, *weight.shape), dtype=torch.float32, device=tokens.device)
        dbias = torch.empty((blocks, weight.shape[1]), dtype=torch.float32, device=tokens.device)
        with on_device_of(tokens):
            triton_norms.sum_paths_gradients[(blocks,)](
                headed, mixed, tokens, weight, dtotal.contiguous(), dresults, dtokens, dweight, dbias,
                rows, ctx.paths, ctx.eps, EACH=headed.shape[0] // ctx.paths, **sizes, num_warps=4, **COMMON,
            )  # fmt: skip
        return dresults, dresults, dtokens, dweight.sum(0), dbias.sum(0).expand(weight.shape), dbefore, None, None
