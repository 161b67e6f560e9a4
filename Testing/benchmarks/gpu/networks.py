"""Whole networks on the paper's plans: a patch predicted and a training step, time and peak memory.

The baseline is each Mamba network as the released code computes it: Mamba layers of `released.py`, convolutions and norms by
PyTorch's own modules, channels first. For a network without Mamba layers it is those modules. "without Mamba layers" is what
the convolutions alone take, with this project's norms and layout, and with PyTorch's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import torch
from MambaSegTraining.named_plans import NAMED_PLANS, named_plan
from measuring import Row, Run, Settings, race
from released import as_released, without_mamba
from torch import nn
from volumes import tiny

from MambaSegLib.devices import measured_convolutions, place
from MambaSegLib.networks import create_network, fused_norm, set_recompute, set_scan_backend
from MambaSegLib.plan import NetworkPlan
from MambaSegLib.scan import list_backends

MAMBAS = ("mamba_unet_unidirectional", "mamba_unet_bidirectional", "mamba_unet_multidirectional")
NETWORKS = (*MAMBAS, "nnunet", "nnunet_resenc")
TINY_NETWORKS = ("mamba_unet_bidirectional", "nnunet")


def unplaced(plan: NetworkPlan, device: str, backend: str) -> nn.Module:
    """A network with the same weights every time, channels first."""
    torch.manual_seed(0)
    network = create_network(plan).to(device)
    set_scan_backend(network, backend)
    return network


def built(plan: NetworkPlan, device: str, backend: str) -> nn.Module:
    """The same, in the layout the predictor and the training give it."""
    network = unplaced(plan, device, backend)
    place(network, torch.device(device))
    return network


def _plain(run: Run) -> Run:
    """With PyTorch's convolutions and norms instead of this project's."""

    def plainly() -> None:
        with mock.patch.object(fused_norm, "is_available", return_value=False):
            run()

    return plainly


def inference(network: nn.Module, image: torch.Tensor) -> Run:
    """Predict one patch as the sliding window does."""
    network.eval()
    network.deep_supervision = False
    device = image.device.type

    def run() -> None:
        with (
            torch.inference_mode(),
            torch.autocast(device, torch.bfloat16, enabled=device == "cuda"),
            measured_convolutions(),
        ):
            network(image)

    return run


def training_step(network: nn.Module, image: torch.Tensor, recompute: bool = False) -> Run:
    """Forward, a loss, backward, optimizer; weights and the optimizer's moments are there before and not counted."""
    network.train()
    network.deep_supervision = True
    set_recompute(network, recompute)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    device = image.device.type

    def run() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"), measured_convolutions():
            outputs = network(image)
        with measured_convolutions():
            sum(output.float().square().mean() for output in outputs).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def variants_of(plan: NetworkPlan, name: str, image: torch.Tensor, training: bool, device: str) -> dict[str, Run | str]:
    """The baseline first. One network at a time is on the device: see `_Lazy`."""
    available = {status.name: status for status in list_backends(device, needs_gradient=True)}
    make = training_step if training else inference
    if name not in MAMBAS:
        return {
            "PyTorch's modules": _Lazy(lambda: _plain(make(unplaced(plan, device, "auto"), image))),
            "as it is": _Lazy(lambda: make(built(plan, device, "auto"), image)),
        }
    baseline = next(n for n in ("mamba_ssm", "triton", "numba", "pytorch") if available[n].available)
    found: dict[str, Run | str] = {
        f"released, {baseline}": _Lazy(
            lambda: _plain(make(as_released(unplaced(plan, device, baseline), baseline), image))
        )
    }
    for backend in ("triton", "numba"):
        if not available[backend].available:
            found[backend] = available[backend].reason
            continue
        found[backend] = _Lazy(lambda backend=backend: make(built(plan, device, backend), image))
        if training:
            found[f"{backend}, recomputed"] = _Lazy(
                lambda backend=backend: training_step(built(plan, device, backend), image, recompute=True)
            )
    found["without Mamba layers"] = _Lazy(lambda: make(without_mamba(built(plan, device, "auto")), image))
    found["without Mamba layers, PyTorch's modules"] = _Lazy(
        lambda: _plain(make(without_mamba(unplaced(plan, device, "auto")), image))
    )
    return found


class _Lazy:
    """A variant whose network is made when it first runs; weights are small beside what a pass takes."""

    def __init__(self, make) -> None:
        self._make, self._run = make, None

    def __call__(self) -> None:
        if self._run is None:
            self._run = self._make()
        self._run()


def measure(settings: Settings) -> Iterator[list[Row]]:
    """One table after the other."""
    for plan_name in NAMED_PLANS[:1] if settings.tiny else settings.plans:
        for name in TINY_NETWORKS if settings.tiny else settings.networks or NETWORKS:
            named = named_plan(plan_name, name)
            plan = tiny(named.plan.network) if settings.tiny else named.plan.network
            for training in (False, True):
                batch = named.batch_size if training else 1
                image = torch.randn(batch, plan.in_channels, *plan.patch_size, device=settings.device)
                what = f"training step, batch {batch}" if training else "patch"
                variants = variants_of(plan, name, image, training, settings.device)
                yield race(f"{plan_name} {name} {what}", variants, settings)
