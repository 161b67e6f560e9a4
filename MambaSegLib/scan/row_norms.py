"""What a Mamba layer does row by row between its matrix products: residuals, LayerNorms, sums over directions and paths.

On a GPU two kernels of our own do it in one pass over memory each (`triton_norms`); the plain operations of PyTorch below are
what they are tested against, and what runs elsewhere. Sums and statistics are float32, whatever the rows are.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from MambaSegLib.scan import resolve_backend


def uses_kernels(device: torch.device, backend: str) -> bool:
    """Whether the kernels run, or PyTorch's operations: decided as for the scan itself."""
    return resolve_backend(backend, str(device), torch.is_grad_enabled()) == "triton"


def add_norm(x: Tensor, residual: Tensor | None, eps: float, dtype: torch.dtype, backend: str = "auto") -> Tensor:
    """LayerNorm, without weight and bias, of x + residual.

    The sum is not returned: adding again costs less than writing and reading it.

    Args:
        x: Rows (..., C).
        residual: float32; its shape is that of x, or that without leading axes, over which it is repeated.
        eps: Added to the variance.
        dtype: Of the result.
        backend: As in `scan.selective_scan`.

    Returns:
        In the shape of x.
    """
    if uses_kernels(x.device, backend):
        from MambaSegLib.scan.triton_norms_launch import AddNorm

        normalized: Tensor = AddNorm.apply(x, residual, eps, dtype)  # type: ignore[no-untyped-call]
        return normalized
    rows = _wide(x) if residual is None else _wide(x) + residual
    return layer_norm(rows, rows.shape[-1:], eps=eps).to(dtype)


def sum_paths(
    headed: Tensor,
    mixed: Tensor,
    tokens: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    paths: int,
    eps: float,
    before: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Sum over paths of LN(sum of headed + (mixed + tokens) over the path's directions) (paper, Fig. 1).

    Args:
        headed: What the heads gave, (directions, B, L, C); the directions of a path follow each other, as many in each.
        mixed: What the Mamba blocks gave, in shape and type as headed.
        tokens: The layer's input, (B, L, C) float32.
        weight: Of each path's LayerNorm, (paths, C) float32; None if there is no LayerNorm.
        bias: As weight.
        paths: How many.
        eps: Of the LayerNorms.
        before: Added to the result, (B, L, C) float32.
        backend: As in `scan.selective_scan`.

    Returns:
        (B, L, C) float32.
    """
    if uses_kernels(headed.device, backend):
        from MambaSegLib.scan.triton_norms_launch import SumPaths

        summed: Tensor = SumPaths.apply(headed, mixed, tokens, weight, bias, before, paths, eps)  # type: ignore[no-untyped-call]
        return summed
    results = _wide(headed) + (_wide(mixed) + tokens)
    total: Tensor | None = None
    for path, own in enumerate(results.reshape(paths, -1, *tokens.shape).sum(1)):
        if weight is not None and bias is not None:
            own = layer_norm(own, own.shape[-1:], weight[path], bias[path], eps)
        total = own if total is None else total + own
    assert total is not None, "a layer has at least one path"
    return total if before is None else before + total


def _wide(rows: Tensor) -> Tensor:
    return rows.to(torch.promote_types(rows.dtype, torch.float32))
