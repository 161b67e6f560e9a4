"""Segmentation networks by name: one closed table, one builder signature, one contract.

A network takes (B, C, Z, Y, X) and returns a tuple of logits (B, K, ...), finest first. Its attribute
`deep_supervision` says whether the coarser ones are computed; set it to False for prediction.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from MambaSegLib.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from MambaSegLib.networks.contract import SegmentationNetwork
    from MambaSegLib.plan import NetworkPlan


@dataclass(frozen=True)
class NetworkEntry:
    """One row of the network table. Functions are "module:function" below this package.

    Attributes:
        name: What plans, bundles and commands call it.
        builder: Maps a `NetworkPlan` to a network.
        source: Where the architecture was published.
        resolver: Maps a `NetworkPlan` to one that has every option written out, and refuses what the builder would.
        fit: Maps a `NetworkPlan` to the smallest patch, no smaller than its own, that the network can take.
        negative_logits: Whether its outputs can be negative, as those of overlapping regions must be.
        deterministic_on_gpu: Whether PyTorch has deterministic gradients on a GPU for all it computes; trilinear interpolation
            and sampling at any place have none.
    """

    name: str
    builder: str
    source: str
    resolver: str = "options:refuse_options"
    fit: str = "contract:fit_strides"
    negative_logits: bool = True
    deterministic_on_gpu: bool = True


_MAMBAS = "Lumetti et al., Accurate 3D Medical Image Segmentation with Mambas, ISBI 2025"
_MAMBA_OPTIONS = "mamba_options:resolve"

NETWORKS: dict[str, NetworkEntry] = {
    entry.name: entry
    for entry in (
        NetworkEntry("mamba_unet_unidirectional", "mamba_unet:build_unidirectional", _MAMBAS, _MAMBA_OPTIONS),
        NetworkEntry("mamba_unet_bidirectional", "mamba_unet:build_bidirectional", _MAMBAS, _MAMBA_OPTIONS),
        NetworkEntry("mamba_unet_multidirectional", "mamba_unet:build_multidirectional", _MAMBAS, _MAMBA_OPTIONS),
        NetworkEntry("nnunet", "nnunet:build_plain", "Isensee et al., nnU-Net, Nature Methods 2021"),
        NetworkEntry(
            "nnunet_resenc", "nnunet:build_residual_encoder", "Isensee et al., nnU-Net Revisited, MICCAI 2024 (ResEnc)"
        ),
        NetworkEntry("umamba_bot", "umamba:build_bot", "Ma et al., U-Mamba, arXiv 2401.04722 (Bot)"),
        NetworkEntry("umamba_enc", "umamba:build_enc", "Ma et al., U-Mamba, arXiv 2401.04722 (Enc)"),
        NetworkEntry(
            "mednext_m_k3",
            "mednext:build_k3",
            "Roy et al., MedNeXt, MICCAI 2023 (M, kernel 3)",
            "mednext:resolve",
            "contract:fit_any",
        ),
        NetworkEntry(
            "mednext_m_k5",
            "mednext:build_k5",
            "Roy et al., MedNeXt, MICCAI 2023 (M, kernel 5)",
            "mednext:resolve",
            "contract:fit_any",
        ),
        NetworkEntry(
            "unetr", "unetr:build", "Hatamizadeh et al., UNETR, WACV 2022 (MONAI)", "unetr:resolve", "unetr:fit"
        ),
        NetworkEntry(
            "swin_unetr",
            "swin_unetr:build",
            "Hatamizadeh et al., Swin UNETR, BrainLes 2021 (MONAI)",
            "swin_unetr:resolve",
            "swin_unetr:fit",
        ),
        NetworkEntry(
            "transunet", "transunet:build", "Chen et al., 3D TransUNet, arXiv 2310.07781", "transunet:resolve"
        ),
        NetworkEntry(
            "cotr",
            "cotr:build",
            "Xie et al., CoTr, MICCAI 2021",
            "cotr:resolve",
            "contract:fit_any",
            deterministic_on_gpu=False,
        ),
        NetworkEntry(
            "nnformer",
            "nnformer:build",
            "Zhou et al., nnFormer, IEEE TIP 2023",
            "nnformer:resolve",
            "contract:fit_any",
        ),
        NetworkEntry(
            "segmamba",
            "segmamba:build",
            "Xing et al., SegMamba, MICCAI 2024",
            "segmamba:resolve",
            "contract:fit_any",
        ),
        NetworkEntry(
            "nnmamba",
            "nnmamba:build",
            "Gong et al., nnMamba, ISBI 2025",
            "nnmamba:resolve",
            "contract:fit_any",
            negative_logits=False,
            deterministic_on_gpu=False,
        ),
    )
}
"""A literal table: it lists without PyTorch, and a downloaded plan can ask for nothing that is not in it."""


def list_networks() -> tuple[NetworkEntry, ...]:
    """Every network that can be built."""
    return tuple(NETWORKS.values())


def _entry(name: str) -> NetworkEntry:
    if name not in NETWORKS:
        msg = f"There is no network named {name!r}. Known networks: {', '.join(NETWORKS)}."
        raise InputError(msg)
    return NETWORKS[name]


def _function(reference: str) -> Callable[[NetworkPlan], Any]:
    module, function = reference.split(":")
    return cast("Callable[[NetworkPlan], Any]", getattr(import_module(f"{__name__}.{module}"), function))


def create_network(plan: NetworkPlan) -> SegmentationNetwork:
    """Build the network a plan describes, with freshly initialized weights.

    Raises:
        InputError: If the name is not in the table, the plan holds an option its builder refuses, or a patch it cannot
            take; the message says which patch it could.
    """
    entry = _entry(plan.name)
    suitable = fit_patch(plan).patch_size
    if suitable != plan.patch_size:
        msg = f"The network {plan.name} cannot take the patch {plan.patch_size}; the next larger it can is {suitable}."
        raise InputError(msg)
    return cast("SegmentationNetwork", _function(entry.builder)(plan))


def resolve_plan(plan: NetworkPlan) -> NetworkPlan:
    """Write out every option a plan leaves to its preset, so that stored weights never depend on later defaults."""
    return cast("NetworkPlan", _function(_entry(plan.name).resolver)(plan))


def fit_patch(plan: NetworkPlan) -> NetworkPlan:
    """The plan with its patch enlarged, axis by axis, to the next size its network can take."""
    return replace(plan, patch_size=_function(_entry(plan.name).fit)(plan))


def set_scan_backend(network: SegmentationNetwork, backend: str) -> None:
    """Choose the selective-scan backend of every Mamba block in a network; see `scan.resolve_backend`.

    A block is any module with a text `scan_backend`.
    """
    for module in network.modules():
        if isinstance(getattr(module, "scan_backend", None), str):
            module.scan_backend = backend  # type: ignore[assignment]


def set_recompute(network: SegmentationNetwork, recompute: bool) -> None:
    """Trade time for memory in training: what can, keeps only its input and computes the rest again when needed.

    That is any module with a boolean `recompute`: Mamba layers.
    """
    for module in network.modules():
        if isinstance(getattr(module, "recompute", None), bool):
            module.recompute = recompute  # type: ignore[assignment]
