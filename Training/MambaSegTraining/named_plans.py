"""The plans the paper's authors released for its three data sets, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files

from MambaSegLib.errors import InputError
from MambaSegLib.networks import fit_patch, resolve_plan
from MambaSegLib.networks.mamba_options import PRESETS
from MambaSegLib.plan import OptionValue, Plan, StagePlan, Triple
from MambaSegLib.schema import from_json, parse_json
from MambaSegTraining.architecture import RESIDUAL_BLOCKS

NAMED_PLANS = ("acdc", "braintumour", "synapse")
RESENC_M_BATCH_SIZES = {"acdc": 4, "braintumour": 2, "synapse": 2}


@dataclass(frozen=True)
class NamedPlan:
    """A plan with what its training needs besides.

    Attributes:
        name: One of `NAMED_PLANS`.
        source: Where the values were published.
        batch_size: Patches per step.
        batch_dice: Whether the soft Dice pools the batch.
        median_shape: Median voxels of the training images at the plan's spacing.
        plan: The plan; its network is the released Multidirectional one.
    """

    name: str
    source: str
    batch_size: int
    batch_dice: bool
    median_shape: Triple
    plan: Plan


def named_plan(name: str, network: str = "", options: Mapping[str, OptionValue] | None = None) -> NamedPlan:
    """Read a named plan.

    Args:
        name: One of `NAMED_PLANS`.
        network: A name of the network table; "" leaves the one it has. `nnunet_resenc` gets blocks and batch size of the
            ResEncM plan released beside the default one, which has the same patch, strides and kernels. The patch
            grows to the next the network can take.
        options: Options of that network; None takes those of its preset "released", where it has presets.

    Raises:
        InputError: If the name is unknown.
    """
    if name not in NAMED_PLANS:
        msg = f"There is no plan named {name!r}; there are {', '.join(NAMED_PLANS)}."
        raise InputError(msg)
    file = files("MambaSegTraining") / "named_plans" / f"{name}.json"
    found = from_json(NamedPlan, parse_json(file.read_bytes(), file.name), file.name)
    if not network:
        return found
    released = {"preset": "released"} if network in PRESETS["released"] else {}
    changed = replace(found.plan.network, name=network, options=released if options is None else options)
    if network == "nnunet_resenc":
        found = replace(found, batch_size=RESENC_M_BATCH_SIZES[name])
        changed = replace(changed, stages=_resenc_m_stages(changed.stages))
    return replace(found, plan=replace(found.plan, network=fit_patch(resolve_plan(changed))))


def _resenc_m_stages(stages: Sequence[StagePlan]) -> tuple[StagePlan, ...]:
    pairs = zip(stages, RESIDUAL_BLOCKS, strict=False)
    return tuple(replace(stage, blocks=blocks, decoder_blocks=1) for stage, blocks in pairs)
