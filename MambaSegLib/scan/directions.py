"""Several scans at once, one per direction of a layer: one launch on a GPU, one scan after the other elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from MambaSegLib.scan import causal_conv1d, resolve_backend, run_scan
from MambaSegLib.scan.arguments import Scans
from MambaSegLib.scan.order import ScanOrder
from MambaSegLib.scan.paths import Grid


def share_launches(device: torch.device, backend: str) -> bool:
    """Whether directions that are scanned together cost less than one after the other."""
    return device.type == "cuda" and _is_triton(backend, device)


def _is_triton(backend: str, device: torch.device) -> bool:
    return resolve_backend(backend, str(device), torch.is_grad_enabled()) == "triton"


def scan_directions(scans: Scans, backend: str) -> Tensor:
    """The output of `triton_backend.scan_rows`, (directions, B, L, D)."""
    if _is_triton(backend, scans.u.device):
        from MambaSegLib.scan.triton_backend import scan_rows

        return scan_rows(scans)[0]
    return torch.stack([run_scan(scan, backend)[0].transpose(1, 2) for scan in scans.one_by_one()])


def convolve_directions(
    x: Tensor, weight: Tensor, bias: Tensor | None, grid: Grid, orders: tuple[ScanOrder, ...], backend: str
) -> Tensor:
    """Causal convolutions with SiLU; x (directions, B, L, D), weight (directions, D, K), bias (directions, D)."""
    if _is_triton(backend, x.device):
        from MambaSegLib.scan.triton_backend import convolve_rows

        return convolve_rows(x, weight, bias, True, grid, orders)
    outputs = []
    for group, order in enumerate(orders):
        own_bias = None if bias is None else bias[group]
        found = causal_conv1d(
            x[group].transpose(1, 2), weight[group], own_bias, "silu", grid=grid, order=order, backend=backend
        )
        outputs.append(found.transpose(1, 2))
    return torch.stack(outputs)
