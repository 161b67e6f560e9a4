"""All directions of a Mamba layer side by side, for GPUs: few launches, no copies in another order, one normalization.

The directions read the same tokens, so their LayerNorms differ in weight and bias only: those go into the projection behind
them, and one normalized tensor and one matrix product serve every direction. Convolution and scan take all directions in one
launch each; the rest is batched matrix products. The result is that of the layers one by one, to rounding.

Matrix products, convolution and the scan's input and output may be bfloat16; the scan's states, sums over the residual
branches and normalization are float32. The latter two never lie in memory per direction: `row_norms` adds again where a sum
is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from MambaSegLib.networks.row_products import multiply_rows
from MambaSegLib.scan.arguments import Scans
from MambaSegLib.scan.directions import convolve_directions, scan_directions
from MambaSegLib.scan.row_norms import add_norm, sum_paths

if TYPE_CHECKING:
    from MambaSegLib.networks.mamba import MambaBlock, MambaLayer, MambaPath
    from MambaSegLib.plan import IntTriple
    from MambaSegLib.scan.order import ScanOrder

TOGETHER_BYTES = 2 << 30
"""Paths are computed together while their intermediate results need no more than this. A fixed number, so that the division,
and with it the rounding, does not depend on what else is in memory; large feature maps fill a GPU with one direction."""


def half_precision(device: torch.device) -> torch.dtype:
    """bfloat16 where autocast asks for it, else float32: float16 has too small a range for the scan's input."""
    enabled = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) == torch.bfloat16
    return torch.bfloat16 if enabled else torch.float32


def sum_of_paths(
    paths: Sequence[MambaPath],
    tokens: Tensor,
    grid: IntTriple,
    precision: torch.dtype,
    together_bytes: int = TOGETHER_BYTES,
) -> Tensor:
    """Sum of all paths' results.

    Args:
        paths: Of one layer.
        tokens: (B, L, C) float32 in memory order.
        grid: (Z, Y, X) with Z Y X = L.
        precision: Of what lies between the projections: float32 or bfloat16.
        together_bytes: See `TOGETHER_BYTES`.

    Returns:
        (B, L, C) float32.
    """
    total: Tensor | None = None
    for some in _divided(paths, tokens, precision, together_bytes):
        compute = partial(_sum_of_some, some, grid=grid, precision=precision)
        if torch.is_grad_enabled() and some[0].recompute:
            # Without what came before: the checkpoint would keep it.
            part = cast("Tensor", checkpoint(compute, tokens, use_reentrant=False))
            total = part if total is None else total + part
        else:
            total = compute(tokens, before=total)
    assert total is not None, "a layer has at least one path"
    return total


def _divided(
    paths: Sequence[MambaPath], tokens: Tensor, precision: torch.dtype, together_bytes: int
) -> list[Sequence[MambaPath]]:
    """Paths in their order, as many at a time as fit."""
    block = _layers(paths)[0].mamba
    batch, length, channels = tokens.shape
    at_once = paths_at_once(
        batch * length, channels, block.D.shape[0], block.x_proj.weight.shape[0], precision.itemsize,
        max(len(path.layers) for path in paths), together_bytes,
    )  # fmt: skip
    return [paths[start : start + at_once] for start in range(0, len(paths), at_once)]


def paths_at_once(
    tokens: int,
    channels: int,
    inner: int,
    projected: int,
    itemsize: int,
    directions: int,
    together_bytes: int = TOGETHER_BYTES,
) -> int:
    """How many paths are computed together.

    Args:
        tokens: Rows of all batch entries.
        channels: Of the layer's input.
        inner: Channels of the scan.
        projected: What x_proj makes of them: the time steps of low rank, B and C.
        itemsize: Bytes of a number between the projections.
        directions: Of the path that has most.
        together_bytes: See `TOGETHER_BYTES`.
    """
    narrow = 5 * inner + projected  # xz, u, delta, y; and what x_proj gives
    per_direction = tokens * (narrow * itemsize + 3 * channels * 4)
    return max(1, together_bytes // (per_direction * directions))


def _layers(paths: Sequence[MambaPath]) -> list[MambaLayer]:
    return [cast("MambaLayer", layer) for path in paths for layer in path.layers]


def _sum_of_some(
    paths: Sequence[MambaPath], tokens: Tensor, grid: IntTriple, precision: torch.dtype, before: Tensor | None = None
) -> Tensor:
    layers = _layers(paths)
    orders = tuple(order for path in paths for order in path.orders)
    mixed = _mixed(layers, tokens, grid, orders, precision)
    headed = _headed(layers, mixed, tokens, precision)
    alike = [list(group) for _, group in groupby(paths, lambda path: len(path.layers))]
    sizes = [len(_layers(some)) for some in alike]
    total = before
    for some, own_headed, own_mixed in zip(alike, _split(headed, sizes), _split(mixed, sizes), strict=True):
        total = _normalized_sum(some, own_headed, own_mixed, tokens, total)
    assert total is not None
    return total


def _split(rows: Tensor, sizes: list[int]) -> Sequence[Tensor]:
    """Not split if there is but one part: the gradient of a part is a copy."""
    return torch.split(rows, sizes) if len(sizes) > 1 else (rows,)


def _normalized_sum(
    paths: Sequence[MambaPath], headed: Tensor, mixed: Tensor, tokens: Tensor, before: Tensor | None
) -> Tensor:
    """Sum over paths with equally many directions, whose residual branches end here."""
    norms = [path.norm for path in paths if isinstance(path.norm, nn.LayerNorm)]
    weight, bias = (_stacked(n.weight for n in norms), _stacked(n.bias for n in norms)) if norms else (None, None)
    eps = norms[0].eps if norms else 0.0
    return sum_paths(headed, mixed, tokens, weight, bias, len(paths), eps, before, _layers(paths)[0].mamba.scan_backend)


def _mixed(
    layers: Sequence[MambaLayer],
    tokens: Tensor,
    grid: IntTriple,
    orders: tuple[ScanOrder, ...],
    precision: torch.dtype,
) -> Tensor:
    """What the Mamba blocks make of the normalized tokens, before the residual: (directions, B, L, C) in `precision`."""
    batch, length, _ = tokens.shape
    blocks = [layer.mamba for layer in layers]
    backend, states = blocks[0].scan_backend, blocks[0].d_state
    weight, bias = _folded([layer.norm1 for layer in layers], [block.in_proj for block in blocks])
    plain = add_norm(tokens, None, layers[0].norm1.eps, precision, backend)
    together = weight.flatten(0, 1).t()[None].to(precision)
    xz = multiply_rows(plain.reshape(1, batch * length, -1), together, bias.reshape(1, -1).to(precision))
    # (B, L, directions x 2D) seen as x and z of (directions, B, L, D): kernels step over the other directions.
    x, z = xz.reshape(batch, length, len(blocks), 2, -1).permute(3, 2, 0, 1, 4).unbind(0)
    taps = torch.stack([block.conv1d.weight.squeeze(1) for block in blocks])
    u = convolve_directions(
        x, taps, _stacked(cast("Tensor", block.conv1d.bias) for block in blocks), grid, orders, backend
    )
    projected = multiply_rows(u.flatten(1, 2), _delta_b_c(blocks).to(precision))
    delta, B, C = torch.split(projected.reshape(len(blocks), batch, length, -1), [u.shape[3], states, states], dim=-1)
    # Kernels read A with its channels last, so it is stacked that way.
    A = -torch.exp(_stacked(block.A_log.t() for block in blocks)).transpose(1, 2)
    D, bias = _stacked(block.D for block in blocks), _stacked(block.dt_proj.bias for block in blocks)
    scans = Scans(u, delta, A, B, C, D, z, bias, True, grid, orders)
    y = scan_directions(scans, backend)
    out = multiply_rows(y.flatten(1, 2), _transposed([block.out_proj for block in blocks], precision))
    return out.reshape(len(blocks), batch, length, -1)


def _delta_b_c(blocks: Sequence[MambaBlock]) -> Tensor:
    """x_proj, and dt_proj after it, as one product: (directions, D, D + 2 N), columns of delta first, then of B and C."""
    delta = [block.dt_proj.weight @ block.x_proj.weight[: block.dt_rank] for block in blocks]
    b_c = [block.x_proj.weight[block.dt_rank :] for block in blocks]
    return torch.cat((torch.stack(delta), torch.stack(b_c)), 1).transpose(1, 2)


def _headed(layers: Sequence[MambaLayer], mixed: Tensor, tokens: Tensor, precision: torch.dtype) -> Tensor:
    """LayerNorm and head of each direction, before the residual: (directions, B, L, C) in `precision`."""
    heads = [
        [layer.head] if isinstance(layer.head, nn.Linear) else list(cast("nn.Sequential", layer.head))
        for layer in layers
    ]
    first = [cast("nn.Linear", head[0]) for head in heads]
    weight, bias = _folded([layer.norm2 for layer in layers], first)
    plain = add_norm(mixed, tokens, layers[0].norm2.eps, precision, layers[0].mamba.scan_backend).flatten(1, 2)
    found = multiply_rows(plain, weight.transpose(1, 2).to(precision), bias.to(precision))
    if len(heads[0]) > 1:
        last = [cast("nn.Linear", head[2]) for head in heads]
        shift = _stacked(linear.bias for linear in last).to(precision)
        found = multiply_rows(F.gelu(found), _transposed(last, precision), shift)
    return found.reshape(mixed.shape)


def _folded(norms: Sequence[nn.LayerNorm], linears: Sequence[nn.Linear]) -> tuple[Tensor, Tensor]:
    """W (w x + b) + c as (W w) x + (W b + c), per direction: weights (directions, out, in) and biases (directions, out)."""
    weight = _stacked(linear.weight for linear in linears)
    scale, shift = _stacked(norm.weight for norm in norms), _stacked(norm.bias for norm in norms)
    bias = torch.bmm(weight, shift[:, :, None])[:, :, 0]
    if linears[0].bias is not None:
        bias = bias + _stacked(linear.bias for linear in linears)
    return weight * scale[:, None], bias


def _stacked(parameters: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(parameters))


def _transposed(linears: Sequence[nn.Linear], precision: torch.dtype) -> Tensor:
    """Weights as a batched product wants them: (directions, in, out)."""
    return _stacked(linear.weight for linear in linears).transpose(1, 2).to(precision)
