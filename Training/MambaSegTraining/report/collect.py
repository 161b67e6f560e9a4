"""A run's folder as input of the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from MambaSegLib.errors import InputError
from MambaSegLib.schema import from_json
from MambaSegLib.volume_io import read_channels, read_labels
from MambaSegTraining.dataset import read_dataset
from MambaSegTraining.files import read_json
from MambaSegTraining.fingerprint import DatasetFingerprint
from MambaSegTraining.fold_training import ENVIRONMENT_FILE
from MambaSegTraining.leakage_record import checked_leakage
from MambaSegTraining.provenance import Environment, Environments
from MambaSegTraining.report.records import CaseImages, Cost, Family, ModelRun
from MambaSegTraining.report.write import ReportFiles, write_report
from MambaSegTraining.run_folder import RunFolder
from MambaSegTraining.scores import pooled, protocol, read_scores, structures
from MambaSegTraining.splits import Splits
from MambaSegTraining.training_log import EpochRecord

CNN_NETWORKS = ("nnunet", "nnunet_resenc", "mednext_m_k3", "mednext_m_k5")
TRANSFORMERS = ("transunet", "cotr", "unetr", "swin_unetr", "nnformer")


def report_runs(folders: Sequence[Path], target: Path, names: Sequence[str] = (), title: str = "") -> ReportFiles:
    """Write the report of one or more runs.

    Args:
        folders: Run folders, each planned, trained and validated.
        target: Folder of the report.
        names: What to call the models; () takes the networks' names.
        title: Title of the page; "" names the data sets.

    Raises:
        InputError: If there are fewer names than folders, or a run lacks what `model_run` reads.
    """
    if names and len(names) != len(folders):
        msg = f"{len(folders)} runs need as many names, found {len(names)}"
        raise InputError(msg)
    pairs = zip(folders, names or [""] * len(folders), strict=True)
    runs = [model_run(RunFolder(folder), name) for folder, name in pairs]
    datasets = ", ".join(dict.fromkeys(run.dataset for run in runs))
    return write_report(runs, target, title or f"Segmentation report: {datasets}")


def model_run(run: RunFolder, name: str = "", cost: Cost | None = None) -> ModelRun:
    """Read what the report tells about a run.

    Args:
        run: Planned, trained and validated.
        name: What to call the model; "" takes the network's name.
        cost: What the model needs; None takes what the training noted.

    Raises:
        InputError: If a file is missing or damaged.
    """
    plan, settings, splits, folds = run.read_plan(), run.read_settings(), run.read_splits(), read_scores(run)
    network, curves = plan.network.name, _curves(run)
    return ModelRun(
        name=name or network,
        dataset=settings.dataset.name or "unnamed data set",
        protocol=protocol(splits, folds),
        structures=structures(run),
        scores=pooled(folds),
        subjects=splits.subjects,
        leakage=_leakage(run, splits),
        provenance=_provenance(run),
        family=_family(network),
        cost=cost or Cost(training_hours=_hours(curves), hardware=_hardware(run)),
        curves=curves,
        load_case=lambda case: load_case(run, case),
    )


def _leakage(run: RunFolder, splits: Splits) -> str:
    return " ".join(text for text in (checked_leakage(run).describe(), splits.note) if text)


def load_case(run: RunFolder, case: str) -> CaseImages:
    """Read image, reference and out-of-fold prediction of a case."""
    dataset = read_dataset(Path(read_json(DatasetFingerprint, run.fingerprint_file).folder))
    found = next(item for item in dataset.cases if item.name == case)
    fold = next(number for number, fold in enumerate(run.read_splits().folds) if case in fold.val)
    prediction = read_labels(run.fold(fold) / "validation" / f"{case}.nii.gz")
    return CaseImages(read_channels(found.images), read_labels(found.labels), prediction)


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
        "Recipe": settings.name,
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
