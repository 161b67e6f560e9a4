"""Mamba layers of a network at the Synapse patch: as the released code computes them, one by one, and side by side."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from measuring import Row, Run, Settings, race
from released import ReleasedLayer3d, paths_of
from torch import nn

from MambaSegLib.networks.mamba import MambaLayer3d
from MambaSegLib.scan import list_backends

STAGES = {
    "stage 1": (32, 32, (48, 192, 192)),
    "stage 2": (64, 64, (48, 96, 96)),
    "stage 3": (128, 64, (24, 48, 48)),
    "stage 4": (256, 64, (12, 24, 24)),
    "stage 5": (320, 64, (6, 12, 12)),
}
"""Channels, states (the released Multidirectional network stops at 64), feature map."""
TINY_STAGES = {"tiny": (4, 3, (2, 3, 4))}
ORDERS = {
    "unidirectional": ("HWD:forward",),
    "multidirectional": ("HWD:both", "HDW:both", "WHD:both", "DHW:both"),
}


def _runner(module: nn.Module, features: torch.Tensor, gradient: bool, recompute: bool = False) -> Run:
    def run() -> None:
        for part in module.modules():
            if hasattr(part, "recompute"):
                part.recompute = recompute
        device = features.device.type
        with torch.set_grad_enabled(gradient), torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            output = module(features)
        if gradient:
            output.backward(torch.ones_like(output))
            module.zero_grad()
            features.grad = None

    return run


def layers(channels: int, states: int, texts: tuple[str, ...], device: str) -> dict[str, nn.Module | str]:
    """The same weights computed in several ways; the baseline first."""
    torch.manual_seed(0)
    reference = MambaLayer3d(channels, paths_of(texts), states, outer_norm=False, head="linear").to(device)
    available = {status.name: status for status in list_backends(device, needs_gradient=True)}
    baseline = next(name for name in ("mamba_ssm", "triton", "numba", "pytorch") if available[name].available)
    found: dict[str, nn.Module | str] = {f"released, {baseline}": ReleasedLayer3d(reference, baseline)}
    for name in ("mamba_ssm", "triton", "numba"):
        if not available[name].available:
            found[name] = available[name].reason
            continue
        torch.manual_seed(0)
        own = MambaLayer3d(channels, paths_of(texts), states, outer_norm=False, head="linear").to(device)
        for part in own.modules():
            if hasattr(part, "scan_backend"):
                part.scan_backend = name
        found[name] = own
    return found


def measure(settings: Settings) -> Iterator[list[Row]]:
    """One table after the other."""
    for name, (channels, states, sizes) in (TINY_STAGES if settings.tiny else STAGES).items():
        for kind, texts in ORDERS.items():
            for gradient in (False, True):
                dtype = torch.bfloat16 if settings.device.startswith("cuda") else torch.float32
                features = torch.randn(1, channels, *sizes, device=settings.device, dtype=dtype).requires_grad_(
                    gradient
                )
                variants: dict[str, Run | str] = {}
                for variant, module in layers(channels, states, texts, settings.device).items():
                    variants[variant] = module if isinstance(module, str) else _runner(module, features, gradient)
                    if gradient and isinstance(module, MambaLayer3d):
                        variants[f"{variant}, recomputed"] = _runner(module, features, gradient, recompute=True)
                yield race(f"{name} {kind} {'forward + backward' if gradient else 'forward'}", variants, settings)
