"""Trainings that give the same weights to the bit every time on the same computer; where that cannot be, they do not start."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from MambaSegLib.errors import InputError
from MambaSegLib.networks import NETWORKS
from MambaSegLib.scan import resolve_backend

CUBLAS_WORKSPACE = ":4096:8"
"""One of two sizes of cuBLAS's workspace with which its results do not vary, see NVIDIA's page on its reproducibility. PyTorch
refuses matrix products in deterministic mode without it, and both read it once, before the first product of a process."""


@contextmanager
def deterministic_algorithms(wanted: bool, device: str = "cpu") -> Iterator[None]:
    """Let PyTorch use deterministic algorithms only, for a while."""
    if wanted and torch.device(device).type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACE)  # cuBLAS can be told in no other way
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(wanted)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def require_determinism(name: str, network: nn.Module, device: str, scan: str) -> None:
    """Refuse what cannot be trained deterministically, before the first step would fail or, worse, vary.

    Args:
        name: Of the network.
        network: It.
        device: Where it is trained; on a CPU all can be.
        scan: Backend of the selective scan, see `MambaSegLib.scan`.

    Raises:
        InputError: Saying what is in the way and what to do.
    """
    if torch.device(device).type != "cuda":
        return
    cure = "Set deterministic = false in [recipe], or train on a CPU."
    if not NETWORKS[name].deterministic_on_gpu:
        msg = f"PyTorch has no deterministic gradient on a GPU for some of what {name} computes. {cure}"
        raise InputError(msg)
    scans = any(isinstance(getattr(module, "scan_backend", None), str) for module in network.modules())
    if scans and resolve_backend(scan, device, needs_gradient=True) == "mamba_ssm":
        # Its backward kernels add up the gradients of B and C by atomicAdd (selective_scan_bwd_kernel.cuh).
        msg = f"The gradients of the scan backend mamba_ssm vary in their last digits. Take --scan triton. {cure}"
        raise InputError(msg)
