"""Which network on which data set: from the named plans, from a plan's file, from a run's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from MambaSegLib.networks import NETWORKS, fit_patch, resolve_plan
from MambaSegLib.plan import IntTriple, NetworkPlan, OptionValue, Plan, Triple
from MambaSegTraining.files import read_json
from MambaSegTraining.fingerprint import DatasetFingerprint
from MambaSegTraining.named_plans import NAMED_PLANS, named_plan
from MambaSegTraining.planning import median_shape
from MambaSegTraining.recipe import Recipe
from MambaSegTraining.run_folder import RunFolder


@dataclass(frozen=True)
class Target:
    """One network on one data set's plan.

    Attributes:
        network: Network and patch.
        dataset: What to call the data set.
        recipe: How it is trained.
        volume_shape: Typical image, voxels at the plan's spacing.
    """

    network: NetworkPlan
    dataset: str
    recipe: Recipe
    volume_shape: Triple


def targets_of_plan(
    plan: str, networks: Sequence[str] = (), options: Mapping[str, OptionValue] | None = None
) -> tuple[Target, ...]:
    """Networks on a plan.

    Args:
        plan: One of `NAMED_PLANS`, or the path of a plan.json.
        networks: Names of the network table; () takes all for a named plan, and the plan's own for a file.
        options: Options of the networks; None takes the preset "released" of those that have it. For a file, networks
            other than its own get none.

    Raises:
        InputError: If the plan or a network is unknown, or a network refuses the options.
    """
    if plan not in NAMED_PLANS:
        return _targets_of_file(Path(plan), networks, options)
    targets = []
    for name in networks or NETWORKS:
        found = named_plan(plan, name, options)
        recipe = Recipe(batch_size=found.batch_size, batch_dice=found.batch_dice)
        targets.append(Target(fit_patch(found.plan.network), plan, recipe, found.median_shape))
    return tuple(targets)


def _targets_of_file(
    path: Path, networks: Sequence[str], options: Mapping[str, OptionValue] | None
) -> tuple[Target, ...]:
    plan = read_json(Plan, path).network
    shape = (float(plan.patch_size[0]), float(plan.patch_size[1]), float(plan.patch_size[2]))
    chosen = [_with_network(plan, name, options) for name in networks] or [plan]
    return tuple(Target(fit_patch(network), path.resolve().parent.name, Recipe(), shape) for network in chosen)


def _with_network(plan: NetworkPlan, name: str, options: Mapping[str, OptionValue] | None) -> NetworkPlan:
    if name == plan.name and options is None:
        return plan
    return resolve_plan(replace(plan, name=name, options=options or {}))


def target_of_run(run: RunFolder) -> Target:
    """The network of a run, with its recipe and the median of its images.

    Raises:
        InputError: If the run is not planned.
    """
    plan, settings = run.read_plan(), run.read_settings()
    shape = median_shape(read_json(DatasetFingerprint, run.fingerprint_file), plan.spacing_mm)
    return Target(plan.network, settings.dataset.name or run.path.resolve().name, settings.recipe, shape)


def with_patch(target: Target, patch: IntTriple) -> Target:
    """The same on another patch, enlarged to what the network can take."""
    return replace(target, network=fit_patch(replace(target.network, patch_size=patch)))
