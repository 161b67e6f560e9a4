"""Segmentation networks by name: one closed table, one builder signature, one contract.

A network takes (B, C, Z, Y, X) and returns a tuple of logits (B, K, ...), finest first. Its attribute
`deep_supervision` says whether the coarser ones are computed; set it to False for prediction.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, cast

from MambaSegLib.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from MambaSegLib.networks.contract import SegmentationNetwork
    from MambaSegLib.plan import NetworkPlan


@dataclass(frozen=True)
class NetworkEntry:
    """One row of the network table.

    Attributes:
        name: What plans, bundles and commands call it.
        builder: "module:function" below this package; the function maps a NetworkPlan to a network.
        source: Where the architecture was published.
    """

    name: str
    builder: str
    source: str


_MAMBAS = "Lumetti et al., Accurate 3D Medical Image Segmentation with Mambas, ISBI 2025"

NETWORKS: dict[str, NetworkEntry] = {
    entry.name: entry
    for entry in (
        NetworkEntry("mamba_unet_unidirectional", "mamba_unet:build_unidirectional", _MAMBAS),
        NetworkEntry("mamba_unet_bidirectional", "mamba_unet:build_bidirectional", _MAMBAS),
        NetworkEntry("mamba_unet_multidirectional", "mamba_unet:build_multidirectional", _MAMBAS),
    )
}
"""A literal table: it lists without PyTorch, and a downloaded plan can ask for nothing that is not in it."""


def list_networks() -> tuple[NetworkEntry, ...]:
    """Every network that can be built."""
    return tuple(NETWORKS.values())


def _builder(name: str) -> Callable[[NetworkPlan], SegmentationNetwork]:
    if name not in NETWORKS:
        msg = f"There is no network named {name!r}. Known networks: {', '.join(NETWORKS)}."
        raise InputError(msg)
    module, function = NETWORKS[name].builder.split(":")
    return cast(
        "Callable[[NetworkPlan], SegmentationNetwork]", getattr(import_module(f"{__name__}.{module}"), function)
    )


def create_network(plan: NetworkPlan) -> SegmentationNetwork:
    """Build the network a plan describes, with freshly initialized weights.

    Raises:
        InputError: If the name is not in the table, or the plan holds an option its builder refuses.
    """
    return _builder(plan.name)(plan)


def resolve_plan(plan: NetworkPlan) -> NetworkPlan:
    """Write out every option a plan leaves to its preset, so that stored weights never depend on later defaults."""
    if plan.name.startswith("mamba_unet_"):
        from MambaSegLib.networks.options import resolve_mamba_options

        return resolve_mamba_options(plan)[0]
    _builder(plan.name)
    return plan


def set_scan_backend(network: SegmentationNetwork, backend: str) -> None:
    """Choose the selective-scan backend of every Mamba block in a network; see `scan.resolve_backend`."""
    from MambaSegLib.networks.mamba import MambaBlock

    for module in network.modules():
        if isinstance(module, MambaBlock):
            module.scan_backend = backend


def set_recompute(network: SegmentationNetwork, recompute: bool) -> None:
    """Trade time for memory in training: Mamba paths keep only their input and compute the rest again when needed."""
    from MambaSegLib.networks.mamba import MambaPath

    for module in network.modules():
        if isinstance(module, MambaPath):
            module.recompute = recompute
