"""Products of millions of rows with small matrices, whose weight gradients are sums over all rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

PARTS = 128
"""Partial sums of a weight gradient. A library gives such a product a few blocks of the GPU, each of which walks through
millions of rows; as this many products at once it fills the GPU."""
SHORTEST_PART = 512
"""Rows; below it one product is as fast."""
MANY_ROWS = 1 << 16
"""From here on a pass over the result costs more than launches do."""


def multiply_rows(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Rows (groups, M, K) times weights (groups, K, N), plus bias (groups, N): (groups, M, N).

    On a GPU the gradients are fast for large M, too.
    """
    if rows.is_cuda and torch.is_grad_enabled() and (rows.requires_grad or weight.requires_grad):
        product: Tensor = _RowProduct.apply(rows, weight, bias)  # type: ignore[no-untyped-call]
        return product
    return _product(rows, weight, bias)


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None:
        return torch.bmm(rows, weight)
    if len(rows) == 1:
        return torch.addmm(bias[0], rows[0], weight[0])[None]
    if rows.shape[1] < MANY_ROWS or torch.is_grad_enabled():
        return torch.baddbmm(bias[:, None], rows, weight)
    # One product adds a bias on its way; a batch of products first fills the result with it.
    result = rows.new_empty(len(rows), rows.shape[1], weight.shape[2])
    for group, own in enumerate(result):
        torch.addmm(bias[group], rows[group], weight[group], out=own)
    return result


class _RowProduct(torch.autograd.Function):
    """See `multiply_rows`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        ctx.bias_dtype = None if bias is None else bias.dtype
        return _product(rows, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        rows, weight = ctx.saved_tensors
        for_rows = torch.bmm(gradient, weight.transpose(1, 2)) if ctx.needs_input_grad[0] else None
        for_bias = None if ctx.bias_dtype is None else gradient.sum(1, dtype=torch.float32).to(ctx.bias_dtype)
        return for_rows, weight_gradient(rows, gradient).to(weight.dtype), for_bias


def weight_gradient(rows: Tensor, gradient: Tensor) -> Tensor:
    """Sum over M of rows (groups, M, K) times gradients (groups, M, N): (groups, K, N); partial sums meet in float32."""
    groups, count, _ = rows.shape
    part = count // PARTS
    if part < SHORTEST_PART:
        return torch.bmm(rows.transpose(1, 2), gradient)
    whole = part * PARTS
    left, right = (t[:, :whole].reshape(groups * PARTS, part, t.shape[2]) for t in (rows, gradient))
    parts = torch.bmm(left.transpose(1, 2), right).reshape(groups, PARTS, rows.shape[2], -1)
    total = parts.sum(1, dtype=torch.float32)
    if whole < count:
        total += torch.bmm(rows[:, whole:].transpose(1, 2), gradient[:, whole:])
    return total
