"""Options of the Mamba U-Nets: two presets and what may be changed about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from MambaSegLib.errors import InputError
from MambaSegLib.networks.mamba import HeadKind
from MambaSegLib.networks.options import read_options, with_options
from MambaSegLib.scan.order import ScanPath

if TYPE_CHECKING:
    from MambaSegLib.plan import NetworkPlan


@dataclass(frozen=True)
class MambaOptions:
    """How the Mamba layers of a network look.

    Attributes:
        scan_orders: Scan paths as text, "HWD:forward", "HDW:both", ...; their results are averaged.
        d_state_max: A stage with C channels has min(C, d_state_max) states.
        outer_norm: Normalize the tokens before the layer, its residual included.
        head: "linear" or "mlp" (two linear layers with GELU between).
        mamba_stages: Encoder stages followed by a Mamba layer, 0 the finest; empty means all.
    """

    scan_orders: tuple[str, ...]
    d_state_max: int
    outer_norm: bool
    head: HeadKind
    mamba_stages: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if self.d_state_max < 1:
            msg = f"d_state_max must be at least 1, got {self.d_state_max}"
            raise InputError(msg)
        if self.head not in get_args(HeadKind):
            msg = f"head must be one of {', '.join(get_args(HeadKind))}, got {self.head!r}"
            raise InputError(msg)
        try:
            paths = self.paths()
        except ValueError as error:
            raise InputError(str(error)) from error
        if not paths or len(set(paths)) != len(paths):
            msg = f"scan_orders must name at least one path, none twice; got {self.scan_orders}"
            raise InputError(msg)

    def paths(self) -> tuple[ScanPath, ...]:
        """Read `scan_orders`."""
        return tuple(ScanPath.parse(text) for text in self.scan_orders)


# As the text and figures of the paper say. It leaves the state size open: Mamba's own default, 16, is taken.
_PAPER_MULTI = ("HWD:forward", "HDW:forward", "WHD:forward", "DWH:forward")
# As the authors' published code computes: its fourth permutation is DHW, not the paper's DWH; each is walked both ways.
_RELEASED_MULTI = ("HWD:both", "HDW:both", "WHD:both", "DHW:both")

PRESETS: dict[str, dict[str, MambaOptions]] = {
    "paper": {
        "mamba_unet_unidirectional": MambaOptions(("HWD:forward",), 16, outer_norm=False, head="mlp"),
        "mamba_unet_bidirectional": MambaOptions(("HWD:both",), 16, outer_norm=False, head="mlp"),
        "mamba_unet_multidirectional": MambaOptions(_PAPER_MULTI, 16, outer_norm=False, head="mlp"),
    },
    "released": {
        "mamba_unet_unidirectional": MambaOptions(("HWD:forward",), 256, outer_norm=True, head="linear"),
        "mamba_unet_bidirectional": MambaOptions(("HWD:both",), 256, outer_norm=True, head="linear"),
        "mamba_unet_multidirectional": MambaOptions(_RELEASED_MULTI, 64, outer_norm=False, head="linear"),
    },
}
"""Which values each preset stands for, by network."""


def resolve_mamba_options(plan: NetworkPlan) -> tuple[NetworkPlan, MambaOptions]:
    """Combine a plan's preset ("paper" unless it says otherwise) with the options it sets itself.

    Returns:
        The plan with every option written out, and the same options as a record.

    Raises:
        InputError: If a preset, an option or a value is unknown.
    """
    given = dict(plan.options)
    preset = given.pop("preset", "paper")
    if preset not in PRESETS:
        msg = f"There is no preset {preset!r}; presets: {', '.join(PRESETS)}."
        raise InputError(msg)
    options = read_options(given, PRESETS[str(preset)][plan.name], others=("preset",))
    if any(stage not in range(len(plan.stages)) for stage in options.mamba_stages):
        msg = f"mamba_stages {options.mamba_stages} name stages the network has not (0 to {len(plan.stages) - 1})"
        raise InputError(msg)
    return with_options(plan, options), options


def resolve(plan: NetworkPlan) -> NetworkPlan:
    """The plan with its preset and options written out."""
    return resolve_mamba_options(plan)[0]
