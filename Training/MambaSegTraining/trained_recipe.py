"""With which recipe the folds of a run were trained, in words: `train --config` takes another than the run's."""

from __future__ import annotations

from collections.abc import Sequence

from MambaSegTraining.files import read_json
from MambaSegTraining.recipe import Recipe
from MambaSegTraining.run_folder import RECIPE_FILE, RunFolder


def describe_recipe(run: RunFolder, folds: Sequence[int]) -> str:
    """The name of the run's settings, and what was different when folds were trained.

    Args:
        run: The run.
        folds: Folds to tell about; those without a recipe are left out.
    """
    planned = run.read_settings()
    differing: dict[str, list[int]] = {}
    for fold in folds:
        path = run.fold(fold) / RECIPE_FILE
        changed = read_json(Recipe, path).changes_from(planned.recipe) if path.is_file() else {}
        if changed:
            text = ", ".join(f"{name} {now} instead of {then}" for name, (then, now) in changed.items())
            differing.setdefault(text, []).append(fold)
    parts = [f"fold {', '.join(map(str, found))}: {text}" for text, found in differing.items()]
    return f"{planned.name} ({'; '.join(parts)})" if parts else planned.name
