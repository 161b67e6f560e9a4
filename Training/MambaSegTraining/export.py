"""From trained folds to a bundle that `mambaseg` and 3D Slicer open."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from MambaSegLib.bundle import SCHEMA_VERSION, Bundle, BundleManifest, Metric, Provenance, save_bundle
from MambaSegLib.errors import InputError
from MambaSegLib.manifest import not_measured, utc_now
from MambaSegTraining.component_selection import final_plan, final_scores, select_components
from MambaSegTraining.files import load_weights, read_json
from MambaSegTraining.fold_training import BEST_FILE, ENVIRONMENT_FILE
from MambaSegTraining.leakage_record import checked_leakage, describe_leakage
from MambaSegTraining.metrics import DEFINITIONS, summarize_scores
from MambaSegTraining.metrics.summary import shown_labels
from MambaSegTraining.provenance import Environments
from MambaSegTraining.recipe import Recipe
from MambaSegTraining.run_folder import RECIPE_FILE, RunFolder
from MambaSegTraining.scores import pooled, protocol, read_scores
from MambaSegTraining.settings import Settings
from MambaSegTraining.trained_recipe import describe_recipe

WORKING_COPY = "Working copy made for validation; not a released model."


def export_bundle(
    run: RunFolder, settings: Settings, target: Path, *, half: bool = False, force: bool = False
) -> Bundle:
    """Write all trained folds as one bundle.

    Args:
        run: The run; its folds must be trained and validated.
        settings: Give name, description, use, limits and licenses.
        target: Folder or .zip.
        half: Store the weights in half precision.
        force: Replace a bundle that is already there.

    Raises:
        InputError: If a fold was trained but not validated, validated in another way than the others (weights,
            mirroring), or nothing was trained; or if name, licenses, intended use or limits are missing.
    """
    _require_statements(settings)
    folds, scores = run.trained_folds(), read_scores(run)
    if not folds:
        msg = f"No fold of {run.path} is trained to its end."
        raise InputError(msg)
    missing = sorted(set(folds) - {score.fold for score in scores})
    if missing:
        listed = ", ".join(map(str, missing))
        msg = f"Fold {listed} of {run.path} is not validated; run: mambaseg-train validate {run.path}"
        raise InputError(msg)
    kinds = {score.weights for score in scores}
    if len(kinds) > 1:
        msg = f"The folds of {run.path} were validated with different weights ({', '.join(sorted(kinds))})."
        raise InputError(msg)
    if len({score.mirroring for score in scores}) > 1:
        msg = f"Some folds of {run.path} were validated with mirroring, some without; validate them alike."
        raise InputError(msg)
    about = settings.bundle
    manifest = BundleManifest(
        schema_version=SCHEMA_VERSION,
        name=about.name,
        version=about.version,
        description=about.description,
        plan=final_plan(run),
        folds=(),
        provenance=_provenance(run, settings, folds),
        metrics=_metrics(run),
        intended_use=about.intended_use,
        limits=about.limits,
        references=about.references,
    )
    weights = {fold: load_weights(weights_file(run, fold, kinds.copy().pop())) for fold in folds}
    return save_bundle(manifest, weights, target, half=half, force=force)


def _require_statements(settings: Settings) -> None:
    about, bundle = settings.dataset, settings.bundle
    stated = {
        "dataset.name": about.name, "dataset.license": about.license, "bundle.name": bundle.name,
        "bundle.description": bundle.description, "bundle.weights_license": bundle.weights_license,
        "bundle.intended_use": bundle.intended_use, "bundle.limits": bundle.limits,
    }  # fmt: skip
    missing = [name for name, text in stated.items() if not text.strip()]
    if missing:
        msg = (
            f"A model is shared only with all that is said about it; the configuration lacks {', '.join(missing)}. Fill that in "
            "and export with --config FILE; nothing has to be trained again."
        )
        raise InputError(msg)


def save_working_bundle(run: RunFolder, fold: int, weights: str) -> Bundle:
    """Write one fold as a bundle in its own folder, so that it is validated the way it will be used."""
    settings, state = run.read_settings(), load_weights(weights_file(run, fold, weights))
    provenance = Provenance(
        dataset=settings.dataset.name or "unnamed",
        dataset_license=settings.dataset.license or "not stated",
        weights_license="not stated",
        splits_sha256=run.read_splits().sha256,
        recipe=settings.name,
        code_version=_environments(run, fold).starts[-1].code_version,
        seeds=(_environments(run, fold).starts[-1].seed,),
        created=utc_now(),
    )
    manifest = BundleManifest(
        schema_version=SCHEMA_VERSION,
        name=f"{run.read_plan().network.name}.fold_{fold}",
        version="0.0.0",
        description=WORKING_COPY,
        plan=run.read_plan(),
        folds=(),
        provenance=provenance,
        metrics=(not_measured("Not measured yet."),),
        intended_use=WORKING_COPY,
        limits=WORKING_COPY,
    )
    return save_bundle(manifest, {fold: state}, run.working_bundle(fold), force=True)


def weights_file(run: RunFolder, fold: int, weights: str) -> Path:
    """The final weights of a fold, or those with the best smoothed patch Dice.

    Raises:
        InputError: If its training is not finished.
    """
    final = run.require_weights(fold)
    return final.with_name(BEST_FILE) if weights == "best" else final


def _metrics(run: RunFolder) -> tuple[Metric, ...]:
    folds, splits, plan = final_scores(run), run.read_splits(), run.read_plan()
    summaries = summarize_scores(pooled(folds), plan.structure_names, splits.subjects)
    definitions = {metric.id: metric for metric in DEFINITIONS}
    return tuple(
        Metric(
            name=definitions[entry.metric].name,
            definition=definitions[entry.metric].text,
            label=entry.label,
            mean=entry.summary.mean,
            std=entry.summary.std,
            n=entry.summary.n,
            unit=definitions[entry.metric].unit,
            excluded=entry.summary.excluded,
            ci_low=entry.summary.ci_low,
            ci_high=entry.summary.ci_high,
            protocol=protocol(splits, folds, select_components(run).names, plan.ignore_value),
        )
        for entry in summaries
        if entry.summary and entry.label in shown_labels(plan.structure_names)
    )


def _provenance(run: RunFolder, settings: Settings, folds: Sequence[int]) -> Provenance:
    about, splits = settings.dataset, run.read_splits()
    environments = [_environments(run, fold) for fold in folds]
    starts = [start for environment in environments for start in environment.starts]
    recipe = read_json(Recipe, run.fold(folds[0]) / RECIPE_FILE)
    return Provenance(
        dataset=about.name,
        dataset_license=about.license,
        weights_license=settings.bundle.weights_license,
        splits_sha256=splits.sha256,
        recipe=describe_recipe(run, folds),
        code_version=", ".join(sorted({start.code_version for start in starts})),
        seeds=tuple(environment.starts[-1].seed for environment in environments),
        created=utc_now(),
        hardware="; ".join(sorted({start.hardware for start in starts})),
        dataset_attribution=about.attribution,
        dataset_url=about.url,
        training_cases=len({case for fold in folds for case in splits.folds[fold].train}),
        epochs=recipe.epochs,
        software=starts[-1].software,
        leakage=f"{describe_leakage(run)} Record: SHA-256 {checked_leakage(run).sha256}.",
    )


def _environments(run: RunFolder, fold: int) -> Environments:
    return read_json(Environments, run.fold(fold) / ENVIRONMENT_FILE)
