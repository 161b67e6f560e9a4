"""Whether a plan fits the memory its settings state, by the memory model of the Mamba U-Nets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from MambaSegLib.plan import Plan
from MambaSegTraining.memory_model import StepSettings, estimate_step, fit_to_budget
from MambaSegTraining.recipe import Recipe
from MambaSegTraining.settings import Settings

MODELLED = "mamba_unet_"
"""Networks the memory model knows."""


def step_settings(recipe: Recipe) -> StepSettings:
    """How a recipe carries out a training step."""
    return StepSettings(
        batch_size=recipe.batch_size,
        half=recipe.amp != "off",
        mamba_half=recipe.amp == "bf16",
        recompute=recipe.recompute,
        optimizer_values=1 if recipe.optimizer == "sgd" else 2,
    )


def fit_to_memory(plan: Plan, settings: Settings, median_shape: Sequence[float]) -> Plan:
    """Shorten the patch of a Mamba U-Net until a step of the recipe fits `network.memory_gb`; a given patch stays.

    Raises:
        InputError: If not even the smallest patch fits.
    """
    if settings.plan.patch_size or not plan.network.name.startswith(MODELLED):
        return plan
    return fit_to_budget(plan, settings.network.memory_gb, step_settings(settings.recipe), median_shape=median_shape)


def describe_memory(plan: Plan, settings: Settings, with_recompute: Plan) -> str:
    """Expected memory of a training step in a line or two for a person; "" for networks without a model.

    Args:
        plan: The plan.
        settings: What it was made with.
        with_recompute: The plan that the same settings with recompute = true give.
    """
    if not plan.network.name.startswith(MODELLED):
        return ""
    step, budget = step_settings(settings.recipe), settings.network.memory_gb
    needed = {
        recompute: estimate_step(plan.network, replace(step, recompute=recompute)).total / 1e9
        for recompute in (False, True)
    }
    now = needed[step.recompute]
    copied = estimate_step(plan.network, replace(step, scan="mamba_ssm")).total / 1e9
    text = (
        f"a training step takes about {needed[False]:.1f} GB of GPU memory, {needed[True]:.1f} GB with recompute = true "
        f"({copied:.1f} GB as the recipe stands, where mamba_ssm's kernels scan)"
    )
    if now > budget:
        cure = " Set recompute = true in [recipe]." if needed[True] <= budget else ""
        text += f"\nNOTE: that is more than network.memory_gb = {budget:g}.{cure}"
    if with_recompute.patch_size != plan.patch_size:
        text += f"\nwith recompute = true in [recipe] the patch could be {with_recompute.patch_size}"
    return text
