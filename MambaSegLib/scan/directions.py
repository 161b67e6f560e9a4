"""Several scans at once, one per direction of a layer: one launch on a GPU, one scan after the other elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from MambaSegLib.scan import causal_conv1d, resolve_backend, selective_scan
from MambaSegLib.scan.order import ScanOrder
from MambaSegLib.scan.paths import Grid


def share_launches(device: torch.device, backend: str) -> bool:
    """Whether directions that are scanned together cost less than one after the other."""
    return device.type == "cuda" and resolve_backend(backend, str(device), torch.is_grad_enabled()) == "triton"


def scan_directions(
    u: Tensor,
    delta: Tensor,
    B: Tensor,
    C: Tensor,
    z: Tensor,
    A: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    grid: Grid,
    orders: tuple[ScanOrder, ...],
    backend: str,
) -> Tensor:
    """Scan with softplus, skip and gate; rows as in `triton_backend.scan_rows`, the output too."""
    if resolve_backend(backend, str(u.device), torch.is_grad_enabled()) == "triton":
        from MambaSegLib.scan.triton_backend import scan_rows

        return scan_rows(u, delta, B, C, z, A, D, delta_bias, True, grid, orders)[0]
    outputs = []
    for group, order in enumerate(orders):
        own_u, own_delta, own_B, own_C, own_z = (t[group].transpose(1, 2) for t in (u, delta, B, C, z))
        scanned = selective_scan(
            own_u, own_delta, A[group], own_B, own_C, D[group], own_z, delta_bias[group], True,
            grid=grid, order=order, backend=backend,
        )  # fmt: skip
        outputs.append(scanned.transpose(1, 2))
    return torch.stack(outputs)


def convolve_directions(
    x: Tensor, weight: Tensor, bias: Tensor | None, grid: Grid, orders: tuple[ScanOrder, ...], backend: str
) -> Tensor:
    """Causal convolutions with SiLU; x (directions, B, L, D), weight (directions, D, K), bias (directions, D)."""
    if resolve_backend(backend, str(x.device), torch.is_grad_enabled()) == "triton":
        from MambaSegLib.scan.triton_backend import convolve_rows

        return convolve_rows(x, weight, bias, "silu", grid, orders)
    outputs = []
    for group, order in enumerate(orders):
        own_bias = None if bias is None else bias[group]
        found = causal_conv1d(
            x[group].transpose(1, 2), weight[group], own_bias, "silu", grid=grid, order=order, backend=backend
        )
        outputs.append(found.transpose(1, 2))
    return torch.stack(outputs)
