"""A run's folder as input of the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from MambaSegLib.errors import InputError
from MambaSegLib.schema import from_json
from MambaSegLib.volume_io import read_channels, read_labels
from MambaSegTraining.component_selection import final_prediction, final_scores, select_components
from MambaSegTraining.costs.records import read_cost
from MambaSegTraining.files import read_json
from MambaSegTraining.fingerprint import dataset_of
from MambaSegTraining.fold_training import ENVIRONMENT_FILE
from MambaSegTraining.leakage_record import checked_leakage, describe_leakage
from MambaSegTraining.metrics.legacy import LegacyScore, score_case_legacy
from MambaSegTraining.provenance import Environment, Environments
from MambaSegTraining.report.records import CaseImages, Cost, Family, ModelRun
from MambaSegTraining.report.write import ReportFiles, write_report
from MambaSegTraining.run_folder import RunFolder
from MambaSegTraining.scores import pooled, protocol, read_scores, structures
from MambaSegTraining.trained_recipe import describe_recipe
from MambaSegTraining.training_log import EpochRecord

CNN_NETWORKS = ("nnunet", "nnunet_resenc", "mednext_m_k3", "mednext_m_k5")
TRANSFORMERS = ("transunet", "cotr", "unetr", "swin_unetr", "nnformer")


def report_runs(
    folders: Sequence[Path],
    target: Path,
    names: Sequence[str] = (),
    title: str = "",
    *,
    legacy: bool = False,
    pictures: bool = True,
) -> ReportFiles:
    """Write the report of one or more runs.

    Args:
        folders: Run folders, each planned, trained and validated.
        target: Folder of the report.
        names: What to call the models; () takes the networks' names.
        title: Title of the page; "" names the data sets.
        legacy: Also give the numbers by the convention of the 2025 paper's scripts; see `metrics.legacy`.
        pictures: Show slices of the worst cases.

    Raises:
        InputError: If there are fewer names than folders, or a run lacks what `model_run` reads.
    """
    if names and len(names) != len(folders):
        msg = f"{len(folders)} runs need as many names, found {len(names)}"
        raise InputError(msg)
    pairs = zip(folders, names or [""] * len(folders), strict=True)
    runs = [model_run(RunFolder(folder), name, legacy=legacy) for folder, name in pairs]
    if not pictures:
        runs = [replace(run, load_case=None) for run in runs]
    datasets = ", ".join(dict.fromkeys(run.dataset for run in runs))
    return write_report(runs, target, title or f"Segmentation report: {datasets}")


def model_run(run: RunFolder, name: str = "", *, legacy: bool = False) -> ModelRun:
    """Read what the report tells about a run.

    Args:
        run: Planned, trained and validated.
        name: What to call the model; "" takes the network's name.
        legacy: As for `report_runs`.

    Raises:
        InputError: If a file is missing or damaged.
    """
    plan, settings, splits, folds = run.read_plan(), run.read_settings(), run.read_splits(), final_scores(run)
    selection = select_components(run)
    network, curves = plan.network.name, _curves(run)
    return ModelRun(
        name=name or network,
        dataset=settings.dataset.name or "unnamed data set",
        protocol=protocol(splits, folds, selection.names, plan.ignore_value),
        structures=structures(run),
        scores=pooled(folds),
        subjects=splits.subjects,
        leakage=describe_leakage(run),
        provenance=_provenance(run),
        family=_family(network),
        cost=_cost(run, curves),
        legacy=legacy_scores(run) if legacy else (),
        curves=curves,
        components=selection.choices,
        load_case=lambda case: load_case(run, case),
    )


def load_case(run: RunFolder, case: str) -> CaseImages:
    """Read image, reference and out-of-fold prediction of a case."""
    found = next(item for item in dataset_of(run).cases if item.name == case)
    fold = next(number for number, fold in enumerate(run.read_splits().folds) if case in fold.val)
    prediction, ignored = final_prediction(run, fold, case), run.read_plan().ignore_value
    return CaseImages(read_channels(found.images), read_labels(found.labels), prediction, ignored)


def legacy_scores(run: RunFolder) -> tuple[LegacyScore, ...]:
    """Every validated case by the convention of the 2025 paper's scripts, from the label maps the run's bundle gives."""
    references = {case.name: case.labels for case in dataset_of(run).cases}
    measured, ignored = structures(run), run.read_plan().ignore_value
    scores: list[LegacyScore] = []
    for fold in final_scores(run):
        for name in dict.fromkeys(score.case for score in fold.scores):
            prediction, reference = final_prediction(run, fold.fold, name), read_labels(references[name])
            scores += score_case_legacy(prediction, reference, name, fold.fold, measured, ignored)
    return tuple(scores)


def _cost(run: RunFolder, curves: Mapping[int, tuple[EpochRecord, ...]]) -> Cost:
    """What `mambaseg-train cost` found, and how long the training took."""
    cost = Cost(training_hours=_hours(curves), training_hardware=_hardware(run))
    found = read_cost(run)
    if found is None:
        return cost
    cost = replace(cost, parameters=found.parameters, gmacs=found.gmacs)
    measured = found.measured
    if measured is None:
        return cost
    memory = measured.training_memory_bytes
    patch = " x ".join(map(str, measured.patch_size))
    how = f"{measured.hardware}, {measured.precision}, batch {measured.batch_size}, patch {patch}"
    how += ", Mamba layers recomputed" if measured.recompute else ""
    return replace(
        cost,
        training_memory_gb=None if memory is None else memory / 1e9,
        step_s=measured.training_step_s,
        volume_s=measured.volume_s,
        hardware=how,
    )


def _family(network: str) -> Family:
    return "CNNs" if network in CNN_NETWORKS else "Transformers" if network in TRANSFORMERS else "Mamba"


def _curves(run: RunFolder) -> Mapping[int, tuple[EpochRecord, ...]]:
    curves = {}
    for fold in range(len(run.read_splits().folds)):
        path = run.fold(fold) / "log.jsonl"
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            curves[fold] = tuple(from_json(EpochRecord, json.loads(line), str(path)) for line in lines)
    return curves


def _hours(curves: Mapping[int, tuple[EpochRecord, ...]]) -> float | None:
    seconds = sum(record.seconds for records in curves.values() for record in records)
    return seconds / 3600 if seconds else None


def _starts(run: RunFolder) -> list[Environment]:
    paths = [run.fold(fold) / ENVIRONMENT_FILE for fold in range(len(run.read_splits().folds))]
    return [start for path in paths if path.is_file() for start in read_json(Environments, path).starts]


def _hardware(run: RunFolder) -> str:
    return "; ".join(sorted({start.hardware for start in _starts(run)}))


def _provenance(run: RunFolder) -> Mapping[str, str]:
    settings, splits, plan, starts = run.read_settings(), run.read_splits(), run.read_plan(), _starts(run)
    spacing = " × ".join(f"{step:g}" for step in plan.spacing_mm)
    entries = {
        "Data set": f"{settings.dataset.name} ({settings.dataset.license or 'license not stated'})",
        "Attribution": settings.dataset.attribution,
        "Recipe": describe_recipe(run, range(len(splits.folds))),
        "Network": plan.network.name,
        "Voxel size (Z, Y, X)": f"{spacing} mm, axes {plan.orientation}",
        "Patch (Z, Y, X)": " × ".join(map(str, plan.patch_size)) + " voxels",
        "Folds": splits.source,
        "Hash of the folds (SHA-256)": splits.sha256,
        "Cases held out from all folds": str(len(splits.test) or ""),
        "Hash of the leakage check (SHA-256)": checked_leakage(run).sha256,
        "Seeds": ", ".join(dict.fromkeys(str(start.seed) for start in starts)),
        "Code": ", ".join(dict.fromkeys(start.code_version for start in starts)),
        "Software": ", ".join(dict.fromkeys(package for start in starts for package in start.software)),
        "Hardware": _hardware(run),
        "Selective scan": ", ".join(dict.fromkeys(start.scan for start in starts)),
        "Weights measured": ", ".join(dict.fromkeys(fold.weights for fold in read_scores(run))),
    }
    return {name: value for name, value in entries.items() if value}
