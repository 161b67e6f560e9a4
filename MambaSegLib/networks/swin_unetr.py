"""Swin UNETR: a shifted-window transformer as encoder of a convolutional U-Net. Built on MONAI.

Source: Hatamizadeh et al., Swin UNETR, BrainLes 2021; MONAI's SwinUNETR (1.5 or newer), first version, windows of 7. One
output, no deep supervision, as published. Widths are options, so the plan's stages are not used. Each axis is halved
5 times: the patch must be a multiple of 32, and 2 voxels must be left on some axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from MambaSegLib.errors import InputError
from MambaSegLib.networks.contract import SegmentationNetwork, next_multiple, require_divisible
from MambaSegLib.networks.monai_parts import monai_network
from MambaSegLib.networks.options import read_options, with_options

if TYPE_CHECKING:
    from torch import Tensor

    from MambaSegLib.plan import IntTriple, NetworkPlan

DIVISOR = (32, 32, 32)


@dataclass(frozen=True)
class SwinUNETROptions:
    """What may be changed.

    Attributes:
        feature_size: Channels after the first halving; they double at each level. A multiple of 12.
        depths: Transformer blocks at each of the four levels.
        heads: Attention heads at each level; they divide the level's channels.
    """

    feature_size: int = 48
    depths: tuple[int, ...] = (2, 2, 2, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if self.feature_size < 12 or self.feature_size % 12:
            msg = f"feature_size must be a multiple of 12, got {self.feature_size}"
            raise InputError(msg)
        if len(self.depths) != 4 or len(self.heads) != 4 or min(*self.depths, *self.heads) < 1:
            msg = f"depths and heads must be four numbers of at least 1, got {self.depths} and {self.heads}"
            raise InputError(msg)
        if any(self.feature_size * 2**level % heads for level, heads in enumerate(self.heads)):
            msg = (
                f"heads {self.heads} must divide the channels {self.feature_size}, twice that, four times, eight times"
            )
            raise InputError(msg)


def resolve(plan: NetworkPlan) -> NetworkPlan:
    """The plan with its options written out."""
    return with_options(plan, read_options(plan.options, SwinUNETROptions()))


def fit(plan: NetworkPlan) -> IntTriple:
    """The next larger multiple of 32 per axis; the last axis is doubled where one voxel would be left of the patch.

    A norm over one voxel has nothing to normalize.
    """
    fitting = next_multiple(plan.patch_size, DIVISOR)
    return (32, 32, 64) if fitting == DIVISOR else fitting


def build(plan: NetworkPlan) -> SwinUNETR:
    """Build with MONAI's initialization."""
    return SwinUNETR(plan, read_options(plan.options, SwinUNETROptions()))


class _NumbersOnCpu(TorchFunctionMode):
    """Lets the network be laid out on the meta device: MONAI reads rates out of a tensor while it builds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.linspace:
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


class SwinUNETR(SegmentationNetwork):
    """MONAI's SwinUNETR under this package's contract."""

    def __init__(self, plan: NetworkPlan, options: SwinUNETROptions) -> None:
        """Build it; its weights do not depend on the patch."""
        super().__init__()
        self.deep_supervision = plan.deep_supervision
        make = monai_network("swin_unetr", "SwinUNETR", plan.name)
        with _NumbersOnCpu():
            self.body = make(
                in_channels=plan.in_channels,
                out_channels=plan.out_channels,
                feature_size=options.feature_size,
                depths=options.depths,
                num_heads=options.heads,
            )

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """See `SegmentationNetwork.forward`."""
        require_divisible(tuple(image.shape[2:]), DIVISOR)
        return (self.body(image),)
