"""A network that computes on the CPU by its fused twin, and everywhere else as it is."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from MambaSegLib.errors import BackendUnavailableError
from MambaSegLib.networks.contract import SegmentationNetwork
from MambaSegLib.networks.unet import UNet
from MambaSegLib.scan import numba_backend

if TYPE_CHECKING:
    from collections.abc import Sequence

    from MambaSegLib.cpu.layers import Workspace
    from MambaSegLib.cpu.unet import FusedUNet

_log = logging.getLogger(__name__)


def prepared(networks: Sequence[SegmentationNetwork], engine: str, device: torch.device) -> list[SegmentationNetwork]:
    """The networks of an ensemble, made ready to predict on the CPU by an engine of `choice.ENGINES` or "auto".

    "auto" takes the faster one, measured once on this computer, and logs it. On a GPU nothing is measured: there, the
    CPU computes only what the GPU's memory does not hold.

    Raises:
        BackendUnavailableError: If "fused" is asked for and cannot run; the message says why.
    """
    if engine == "pytorch":
        return list(networks)
    reason = next((found for found in map(why_not_fused, networks) if found is not None), None)
    if reason is not None:
        if engine != "auto":
            msg = f"the CPU engine {engine!r} cannot run: {reason}. Choose 'pytorch' or 'auto'."
            raise BackendUnavailableError(msg)
        _log.info("CPU engine: pytorch (%s)", reason)
        return list(networks)
    from MambaSegLib.cpu.choice import faster_engine
    from MambaSegLib.cpu.layers import Workspace

    if engine == "auto" and device.type == "cpu" and faster_engine(torch.get_num_threads()) == "pytorch":
        return list(networks)
    workspace = Workspace()
    return [CpuNetwork(network, workspace) for network in networks]


class CpuNetwork(SegmentationNetwork):
    """Prediction only: the weights are packed when the first image arrives, later changes are not seen.

    Outputs agree with the network's own to rounding.

    Attributes:
        network: The network itself, in evaluation mode.
    """

    def __init__(self, network: SegmentationNetwork, workspace: Workspace) -> None:
        """Wrap a network for which `why_not_fused` has no objection; see `FusedUNet` for `workspace`."""
        super().__init__()
        self.deep_supervision = False
        self.network = network
        self._workspace = workspace
        self._fused: FusedUNet | None = None
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """See `SegmentationNetwork.forward`."""
        if image.device.type != "cpu" or image.dtype != torch.float32 or torch.is_grad_enabled() or self.training:
            return self.network(image)  # type: ignore[no-any-return]
        if self._fused is None:
            from MambaSegLib.cpu.unet import FusedUNet

            assert isinstance(self.network, UNet), "only networks that have a twin are wrapped"
            self._fused = FusedUNet(self.network, self._workspace)
        return (self._fused(image),)


def why_not_fused(network: SegmentationNetwork) -> str | None:
    """Say why a network has no fused twin here; None if it has one."""
    reason = numba_backend.why_unavailable("cpu", needs_gradient=False)
    if reason is not None:
        return reason
    from MambaSegLib.cpu.unet import has_twin

    return None if has_twin(network) else "networks of this kind have no fused form"
