"""A trained model of nnU-Net v2 becomes a bundle: the same network and weights, to be used like any other model here."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from MambaSegLib.bundle import Bundle, save_bundle
from MambaSegLib.errors import InputError
from MambaSegLib.manifest_check import plan_problems
from MambaSegLib.nnunet.description import describe
from MambaSegLib.nnunet.exactness import refuse_differences
from MambaSegLib.nnunet.files import ALL_CASES, DATASET, FINGERPRINT, PLANS, TrainedModel, checkpoint_name, open_trained
from MambaSegLib.nnunet.fingerprint import parse_fingerprint
from MambaSegLib.nnunet.orientation import array_orientation
from MambaSegLib.nnunet.plans import Content, parse_plan
from MambaSegLib.nnunet.weights import Checkpoint, parse_checkpoint, renamed
from MambaSegLib.plan import Plan
from MambaSegLib.progress import Progress, ProgressCallback

if TYPE_CHECKING:
    from torch import Tensor

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choices:
    """What a person may say about a model that its files do not.

    Attributes:
        orientation: Directions in which the (x, y, z) of the training images grow, e.g. "LPS" or "RAS"; "" where nnU-Net's
            reader fixed it.
        weights_license: License of the weights; "" becomes "not stated".
        configuration: Which, if there are several; "" takes the only one, or 3d_fullres.
        folds: Which; () takes all that are numbered, or the one trained on all cases where there is no other.
        name: Name of the bundle; "" makes one of the network and the data set.
    """

    orientation: str = ""
    weights_license: str = ""
    configuration: str = ""
    folds: tuple[int, ...] = ()
    name: str = ""


def convert_nnunet(
    source: Path, target: Path, choices: Choices, *, force: bool = False, on_progress: ProgressCallback = lambda _: None
) -> Bundle:
    """Convert a model; the bundle appears whole or not at all.

    Args:
        source: nnU-Net's folder or .zip.
        target: The bundle's folder, or its .zip.
        choices: What the files do not say.
        force: Replace a bundle that is already there.
        on_progress: Called before and after every fold.

    Raises:
        InputError: If the model cannot be computed here exactly as nnU-Net plans it, or something is missing.
        BundleError: If a file is damaged or hostile, or the target exists.
        EnvironmentProblemError: If PyTorch is too old to read checkpoints safely.
    """
    model = open_trained(source, choices.configuration)
    plans, description = model.read_json(PLANS), model.read_json(DATASET)
    orientation = array_orientation(str(plans.get("image_reader_writer")), choices.orientation)
    folds = _folds(model, choices.folds)
    if model.postprocessing:
        _log.warning("%s is a pickle and was not opened: nnU-Net's postprocessing is left out", model.postprocessing)
    read: dict[str, Checkpoint] = {}
    weights: dict[int, Mapping[str, Tensor]] = {}
    plan: Plan | None = None
    for fold in folds:
        on_progress(Progress("Converting", len(read), len(folds)))
        file = checkpoint_name(fold)
        checkpoint = parse_checkpoint(model.read_checkpoint(fold), file)
        plan = plan or _plan(model, plans, description, checkpoint, orientation, choices.configuration)
        weights[0 if fold == ALL_CASES else int(fold)] = renamed(checkpoint.weights, plan.network, file)
        read[file] = replace(checkpoint, weights={})
    assert plan is not None, "a trained model has a fold"
    plan = replace(plan, mirror_axes=_agreed(tuple(read.values())).mirror_axes)
    manifest = describe(plans, description, plan, read, choices.weights_license)
    if choices.name:
        manifest = replace(manifest, name=choices.name)
    bundle = save_bundle(manifest, weights, target, force=force)
    on_progress(Progress("Converting", len(folds), len(folds)))
    return bundle


def _folds(model: TrainedModel, wanted: Sequence[int]) -> tuple[str, ...]:
    numbered = tuple(fold for fold in model.folds if fold != ALL_CASES)
    missing = sorted({str(fold) for fold in wanted} - set(numbered))
    if missing:
        msg = f"{model.folder} has no fold {', '.join(missing)}; it has {', '.join(model.folds)}."
        raise InputError(msg)
    return tuple(map(str, sorted(wanted))) or numbered or model.folds


def _plan(
    model: TrainedModel, plans: Content, description: Content, checkpoint: Checkpoint, orientation: str, wanted: str
) -> Plan:
    configuration = checkpoint.configuration
    if wanted and wanted != configuration:
        msg = f"{model.folder} was trained in the configuration {configuration!r}, not {wanted}."
        raise InputError(msg)
    plan = parse_plan(plans, description, configuration, file=PLANS, orientation=orientation)
    refuse_differences(plans, configuration, plan, PLANS)
    fingerprint = parse_fingerprint(model.read_json(FINGERPRINT), plans, plan) if model.has(FINGERPRINT) else None
    plan = replace(plan, fingerprint=fingerprint, thick_slices="repeated")
    for path, text in plan_problems(plan):
        msg = f"No model could be made of {PLANS}: {path}: {text}."
        raise InputError(msg)
    return plan


def _agreed(checkpoints: Sequence[Checkpoint]) -> Checkpoint:
    """The first, if all folds were trained alike."""
    first = checkpoints[0]
    for other in checkpoints[1:]:
        for what in ("trainer", "configuration", "mirror_axes"):
            if getattr(other, what) != getattr(first, what):
                msg = (
                    f"The folds were not trained alike: {what} is {getattr(first, what)!r} and {getattr(other, what)!r}. "
                    "Convert them one by one with --folds."
                )
                raise InputError(msg)
    return first
