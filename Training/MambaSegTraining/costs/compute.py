"""From targets to costs: count, and measure if asked to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from MambaSegLib.errors import MambaSegError
from MambaSegLib.plan import IntTriple
from MambaSegTraining.costs.records import NetworkCost
from MambaSegTraining.costs.targets import Target, with_patch


@dataclass(frozen=True)
class MeasureSettings:
    """How to measure.

    Attributes:
        device: "cpu", "cuda", "cuda:1", ...
        threads: Of the processor; 0 leaves PyTorch's choice.
        scan: Backend of the selective scan.
        repeats: Steps and patches that the medians are of.
        patch_size: Patch to measure; None takes the plan's.
        batch_size: Patches per training step; None takes the recipe's.
        precision: Autocast type of the training step; None takes the recipe's.
        timeout_s: For the training steps and for the prediction of a network; None waits.
    """

    device: str
    threads: int = 0
    scan: str = "auto"
    repeats: int = 3
    patch_size: IntTriple | None = None
    batch_size: int | None = None
    precision: Literal["bf16", "fp16", "off"] | None = None
    timeout_s: float | None = None


def cost_of(target: Target, settings: MeasureSettings | None = None) -> NetworkCost:
    """Count a network, and measure it if there are settings; what is impossible is told in the result's `problem`."""
    from MambaSegTraining.costs.counting import count_macs, count_parameters

    plan = target.network
    cost = NetworkCost(plan.name, target.dataset, plan.patch_size)
    try:
        cost = replace(cost, parameters=count_parameters(plan), macs=count_macs(plan))
        return cost if settings is None else _measured(cost, target, settings)
    except MambaSegError as error:
        return replace(cost, problem=str(error))


def _measured(cost: NetworkCost, target: Target, settings: MeasureSettings) -> NetworkCost:
    from MambaSegTraining.costs.measuring import measure
    from MambaSegTraining.costs.process import MeasureJob

    if settings.patch_size is not None:
        target = with_patch(target, settings.patch_size)
    given = target.recipe
    recipe = replace(given, batch_size=settings.batch_size or given.batch_size, amp=settings.precision or given.amp)
    job = MeasureJob(target.network, recipe, settings.device, settings.threads, settings.scan, settings.repeats)
    try:
        return replace(cost, measured=measure(job, target.volume_shape, settings.timeout_s))
    except MambaSegError as error:
        return replace(cost, problem=f"not measured: {error}")
