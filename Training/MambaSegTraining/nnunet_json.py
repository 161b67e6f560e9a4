"""Fingerprints and plans of nnU-Net v2, read into this package's own records.

Source: the files nnU-Net 2.1 to 2.8 write.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from MambaSegLib.errors import InputError
from MambaSegLib.nnunet.files import json_object
from MambaSegLib.nnunet.plans import AXIAL, lengths, parse_plan, read_configuration
from MambaSegLib.plan import IntTriple, OptionValue, Plan, Triple
from MambaSegTraining.fingerprint import CaseFacts, ChannelFacts, DatasetFingerprint


@dataclass(frozen=True)
class ImportedPlan:
    """What nnU-Net's plans hold beyond ours.

    Attributes:
        name: nnU-Net's name of the plans and the configuration.
        plan: The plan; nnU-Net keeps the axes of the files, so an axial stack in the usual order is assumed.
        batch_size: Patches per step.
        batch_dice: Whether the soft Dice pools the batch.
        median_shape: Median voxels of the training images at the plan's spacing.
    """

    name: str
    plan: Plan
    batch_size: int
    batch_dice: bool
    median_shape: Triple


def read_nnunet_fingerprint(path: Path, channels: Sequence[str], dataset: str = "") -> DatasetFingerprint:
    """Read dataset_fingerprint.json.

    nnU-Net stores no case names, orientations, label counts or hashes, and of the uncropped shapes only the median share
    that cropping leaves: cases are numbered, "SPL" is assumed, uncropped shapes are enlarged by that share.

    Args:
        path: The file.
        channels: Name per channel, from dataset.json.
        dataset: Name of the data set.

    Raises:
        InputError: If it is no such file, or has another number of channels.
    """
    content = _read(path)
    try:
        share = float(content["median_relative_size_after_cropping"])
        pairs = list(zip(content["spacings"], content["shapes_after_crop"], strict=True))
        cases = tuple(_case_facts(number, spacing, shape, share) for number, (spacing, shape) in enumerate(pairs, 1))
        properties = content["foreground_intensity_properties_per_channel"]
        facts = tuple(_channel_facts(properties[str(index)]) for index in range(len(properties)))
    except (KeyError, TypeError, ValueError) as error:
        msg = f"{path} is not a dataset_fingerprint.json of nnU-Net v2 ({error!r})."
        raise InputError(msg) from error
    if len(facts) != len(channels):
        msg = f"{path} describes {len(facts)} channel(s), {len(channels)} were named: {', '.join(channels)}."
        raise InputError(msg)
    return DatasetFingerprint(dataset, str(path.parent), tuple(channels), cases, facts)


def read_nnunet_plan(
    plans: Path,
    dataset_json: Path,
    *,
    configuration: str = "3d_fullres",
    network: str = "",
    options: Mapping[str, OptionValue] | None = None,
) -> ImportedPlan:
    """Read one configuration of nnUNetPlans.json.

    Args:
        plans: The file.
        dataset_json: The data set's dataset.json: names of channels and labels.
        configuration: A 3D one.
        network: A name of the network table; "" takes nnU-Net's own. For a residual network nnU-Net's number of
            convolutions per stage becomes the number of residual blocks, as in the paper's code. The patch grows to the next
            the network can take.
        options: Options of that network.

    Raises:
        InputError: If something is missing or cannot be expressed here.
    """
    content = _read(plans)
    plan = parse_plan(content, _read(dataset_json), configuration, file=str(plans), network=network, options=options)
    try:
        settings = read_configuration(content, configuration, str(plans))
        label = f"{content['plans_name']} {configuration}"
        median = lengths(settings["median_image_size_in_voxels"])
        return ImportedPlan(label, plan, int(settings["batch_size"]), bool(settings["batch_dice"]), median)
    except (KeyError, TypeError) as error:
        msg = f"{plans} lacks something nnU-Net's plans have ({error!r}) in the configuration {configuration}."
        raise InputError(msg) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        msg = f"{path} cannot be read as JSON: {error}."
        raise InputError(msg) from error
    return json_object(text, str(path))


def _case_facts(number: int, spacing: Sequence[float], shape: Sequence[int], share: float) -> CaseFacts:
    cropped = _triple(shape)
    enlarged = _triple([round(length * share ** (-1 / 3)) for length in cropped])
    return CaseFacts(f"case_{number:04d}", AXIAL, lengths(spacing), enlarged, cropped, (), "")


def _channel_facts(values: Mapping[str, float]) -> ChannelFacts:
    names = ("mean", "std", "min", "percentile_00_5", "median", "percentile_99_5", "max")
    return ChannelFacts(*(float(values[name]) for name in names))


def _triple(values: Sequence[float]) -> IntTriple:
    z, y, x = (int(value) for value in values)
    return z, y, x
