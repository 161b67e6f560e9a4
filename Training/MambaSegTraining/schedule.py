"""Learning rate as a function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from MambaSegTraining.recipe import Recipe

ONECYCLE_START = 1 / 25
POLY_POWER = 0.9


def learning_rate(recipe: Recipe, iteration: int) -> float:
    """Learning rate of one optimizer step.

    Args:
        recipe: Settings of the training.
        iteration: Number of the step, from 0 to `recipe.iterations` - 1.
    """
    step, total, per_epoch = iteration, recipe.iterations, recipe.iterations_per_epoch
    if recipe.schedule_step == "epoch":
        step, total, per_epoch = iteration // per_epoch, recipe.epochs, 1
    if recipe.schedule == "linear":
        return recipe.learning_rate * (1 - step / total)
    if recipe.schedule == "poly":
        return float(recipe.learning_rate * (1 - step / total) ** POLY_POWER)
    if recipe.schedule == "cosine":
        half_period = recipe.cosine_period * per_epoch or total
        return _cosine(recipe.learning_rate, recipe.minimum_learning_rate, step / half_period)
    return _one_cycle(recipe, step, total)


def _one_cycle(recipe: Recipe, step: int, total: int) -> float:
    peak_step = recipe.warmup_fraction * total - 1
    if step <= peak_step:
        return _cosine(recipe.learning_rate * ONECYCLE_START, recipe.learning_rate, step / max(peak_step, 1))
    return _cosine(recipe.learning_rate, 0.0, (step - peak_step) / max(total - 1 - peak_step, 1))


def _cosine(start: float, end: float, position: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * position)) / 2
