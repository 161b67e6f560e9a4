"""Learning rate and momentum as functions of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from MambaSegTraining.recipe import Recipe

ONECYCLE_START = 1 / 25
POLY_POWER = 0.9
MOMENTUM_SLOW, MOMENTUM_FAST = 0.95, 0.85
"""Momentum of one cycle at the lowest and at the highest learning rate; PyTorch's OneCycleLR."""


def learning_rate(recipe: Recipe, iteration: int) -> float:
    """Learning rate of one optimizer step.

    Args:
        recipe: Settings of the training.
        iteration: Number of the step, from 0 to `recipe.iterations` - 1.
    """
    step, total, per_epoch = _position(recipe, iteration)
    if recipe.schedule == "linear":
        return recipe.learning_rate * (1 - step / total)
    if recipe.schedule == "poly":
        return float(recipe.learning_rate * (1 - step / total) ** POLY_POWER)
    if recipe.schedule == "cosine":
        half_period = recipe.cosine_period * per_epoch or total
        return _cosine(recipe.learning_rate, recipe.minimum_learning_rate, step / half_period)
    return _one_cycle(recipe, step, total, (recipe.learning_rate * ONECYCLE_START, recipe.learning_rate, 0.0))


def momentum(recipe: Recipe, iteration: int) -> float | None:
    """Momentum of one optimizer step, arguments as for `learning_rate`; None leaves the optimizer's own."""
    if not recipe.cycle_momentum:
        return None
    step, total, _ = _position(recipe, iteration)
    return _one_cycle(recipe, step, total, (MOMENTUM_SLOW, MOMENTUM_FAST, MOMENTUM_SLOW))


def _position(recipe: Recipe, iteration: int) -> tuple[int, int, int]:
    """Step, number of steps and steps per epoch, as the schedule counts them."""
    if recipe.schedule_step == "epoch":
        return iteration // recipe.iterations_per_epoch, recipe.epochs, 1
    return iteration, recipe.iterations, recipe.iterations_per_epoch


def _one_cycle(recipe: Recipe, step: int, total: int, values: tuple[float, float, float]) -> float:
    """Along one cosine from the first value to the second during the warm-up, and along another to the third."""
    first, second, third = values
    peak_step = recipe.warmup_fraction * total - 1
    if step <= peak_step:
        return _cosine(first, second, step / max(peak_step, 1))
    return _cosine(second, third, (step - peak_step) / max(total - 1 - peak_step, 1))


def _cosine(start: float, end: float, position: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * position)) / 2
