"""Does each scan backend compute the right thing here, and how fast? Asked before anyone trusts it with an image."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

from MambaSegLib.scan import list_backends, selective_scan

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 1e-3
"""Largest error of an output of size about 1 that rounding in float32 explains; a wrong kernel misses by far more."""
_CHANNELS, _STATES = 12, 8
_SMALL_GRID = (5, 7, 9)
_SPEED_GRID = (32, 32, 32)
_ORDERS = ((0, 1, 2), (2, 0, 1))


@dataclass(frozen=True)
class BackendCheck:
    """One backend on one device.

    Attributes:
        name: The backend.
        device: The device.
        available: Whether it can run.
        reason: Why it cannot.
        error: Largest deviation from the sequential reference; None if it was not tested.
        passed: Whether that is rounding; False if it was not tested.
        tokens_per_s: Voxels scanned per second with 64 channels of 16 states; None if it did not run.
    """

    name: str
    device: str
    available: bool
    reason: str
    error: float | None = None
    passed: bool = False
    tokens_per_s: float | None = None


def check_backends(device: str, *, test: bool = True, speed: bool = True) -> tuple[BackendCheck, ...]:
    """Test every backend on a device against the sequential reference, and time it.

    Args:
        device: Where.
        test: False only asks each backend whether it could run, which takes no time.
        speed: False leaves out the timing.
    """
    return tuple(
        _check(status.name, device, speed)
        if status.available and test
        else BackendCheck(status.name, device, status.available, status.reason)
        for status in list_backends(device)
    )


def _check(name: str, device: str, speed: bool) -> BackendCheck:
    try:
        error = max(_deviation(name, device, axes, backward) for axes in _ORDERS for backward in (False, True))
        rate = _tokens_per_s(name, device) if speed else None
    except (RuntimeError, ValueError, OSError, ImportError) as problem:  # what a broken build or driver raises
        reason = f"it fails when it runs: {problem}".splitlines()[0]
        return BackendCheck(name, device, available=False, reason=reason)
    return BackendCheck(name, device, True, "", error, error <= TOLERANCE, rate)


def _deviation(name: str, device: str, axes: tuple[int, int, int], backward: bool) -> float:
    from MambaSegLib.scan.arguments import Scan
    from MambaSegLib.scan.order import ScanOrder
    from MambaSegLib.scan.pytorch_backend import selective_scan_sequential

    order = ScanOrder(axes, backward)
    u, delta, A, B, C, D, z, bias = _tensors(_SMALL_GRID, _CHANNELS, _STATES)  # noqa: N806 (the paper's letters)
    expected, _ = selective_scan_sequential(Scan(u, delta, A, B, C, D, z, bias, True, _SMALL_GRID, order))
    u, delta, A, B, C, D, z, bias = (tensor.to(device) for tensor in (u, delta, A, B, C, D, z, bias))  # noqa: N806
    found = selective_scan(u, delta, A, B, C, D, z, bias, True, grid=_SMALL_GRID, order=order, backend=name)
    deviation = float((found.cpu() - expected).abs().max())
    return deviation if isfinite(deviation) else sys.float_info.max  # NaN is no larger than anything, and not in JSON


def _tokens_per_s(name: str, device: str) -> float:
    tensors = _tensors(_SPEED_GRID, 64, 16)
    u, delta, A, B, C, D, z, bias = (tensor.to(device) for tensor in tensors)  # noqa: N806 (the paper's letters)

    def run() -> None:
        selective_scan(u, delta, A, B, C, D, z, bias, True, grid=_SPEED_GRID, backend=name)
        _wait_for(device)

    run()  # compiles
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return _SPEED_GRID[0] * _SPEED_GRID[1] * _SPEED_GRID[2] / min(seconds)


def _tensors(grid: tuple[int, int, int], channels: int, states: int) -> tuple[Tensor, ...]:
    """Inputs of the size they have in a trained network, always the same ones."""
    import torch

    generator = torch.Generator().manual_seed(0)
    length = grid[0] * grid[1] * grid[2]

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    # Transposed views of (B, L, D) memory, as the networks have them.
    rows = [draw(1, length, width).transpose(1, 2) for width in (channels, channels, states, states, channels)]
    u, delta, B, C, z = rows  # noqa: N806
    A = -torch.arange(1.0, states + 1).repeat(channels, 1)  # noqa: N806
    return u, delta, A, B, C, draw(channels), z, draw(channels) - 3


def _wait_for(device: str) -> None:
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()
