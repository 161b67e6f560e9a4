"""Fingerprints and plans of nnU-Net v2, read into this package's own records.

Both forms of plans are understood: the older one with flat keys (UNet_base_num_features, conv_kernel_sizes, ...) and the
newer one with architecture.arch_kwargs. Source: the files nnU-Net 2.1 to 2.8 write.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from MambaSegLib.errors import InputError
from MambaSegLib.networks import fit_patch, resolve_plan
from MambaSegLib.plan import Channel, IntTriple, Label, NetworkPlan, Normalization, OptionValue, Plan, StagePlan, Triple
from MambaSegTraining.fingerprint import CaseFacts, ChannelFacts, DatasetFingerprint
from MambaSegTraining.label_table import parse_labels
from MambaSegTraining.planning import COLORS

ORIENTATION = "SPL"
"""nnU-Net keeps the axes of the files; an axial stack in the usual order is assumed."""
SCHEMES = {
    "CTNormalization": "ct",
    "ZScoreNormalization": "zscore",
    "NoNormalization": "none",
    "RescaleTo01Normalization": "rescale",
}
NETWORKS = {"PlainConvUNet": "nnunet", "ResidualEncoderUNet": "nnunet_resenc"}


@dataclass(frozen=True)
class ImportedPlan:
    """What nnU-Net's plans hold beyond ours.

    Attributes:
        name: nnU-Net's name of the plans and the configuration.
        plan: The plan.
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
    content, description = _read(plans), _read(dataset_json)
    try:
        settings = _configuration(plans, content, configuration)
        name, stages = _architecture(settings)
        channels = _channels(plans, content, settings, description)
        table = parse_labels(description)
        labels = tuple(Label(value, name, COLORS[(value - 1) % len(COLORS)]) for value, name in table.labels.items())
        built = NetworkPlan(
            name=network or NETWORKS[name],
            in_channels=len(channels),
            out_channels=len(table.regions) or len(labels) + 1,
            patch_size=_triple(settings["patch_size"]),
            stages=stages,
            options=dict(options or {}),
        )
        plan = Plan(
            orientation="".join(ORIENTATION[axis] for axis in content["transpose_forward"]),
            spacing_mm=_floats(settings["spacing"]),
            channels=channels,
            labels=labels,
            network=fit_patch(resolve_plan(built)),
            regions=table.regions,
            ignore_value=table.ignore_value,
            mirror_axes=(0, 1, 2),
        )
        label = f"{content['plans_name']} {configuration}"
        median = _floats(settings["median_image_size_in_voxels"])
        return ImportedPlan(label, plan, int(settings["batch_size"]), bool(settings["batch_dice"]), median)
    except (KeyError, TypeError, IndexError) as error:
        msg = f"{plans} lacks something nnU-Net's plans have ({error!r}) in the configuration {configuration}."
        raise InputError(msg) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{path} cannot be read as JSON: {error}."
        raise InputError(msg) from error
    if not isinstance(content, dict):
        msg = f"{path} must hold an object."
        raise InputError(msg)
    return content


def _case_facts(number: int, spacing: Sequence[float], shape: Sequence[int], share: float) -> CaseFacts:
    cropped = _triple(shape)
    enlarged = _triple([round(length * share ** (-1 / 3)) for length in cropped])
    return CaseFacts(f"case_{number:04d}", ORIENTATION, _floats(spacing), enlarged, cropped, (), "")


def _channel_facts(values: Mapping[str, float]) -> ChannelFacts:
    names = ("mean", "std", "min", "percentile_00_5", "median", "percentile_99_5", "max")
    return ChannelFacts(*(float(values[name]) for name in names))


def _configuration(path: Path, content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A configuration with what it inherits filled in."""
    configurations = content["configurations"]
    if name not in configurations:
        msg = f"{path} has no configuration {name!r}; it has {', '.join(configurations)}."
        raise InputError(msg)
    own = dict(configurations[name])
    parent = own.pop("inherits_from", None)
    merged = {**_configuration(path, content, parent), **own} if parent else own
    if len(merged["patch_size"]) != 3 or "previous_stage" in merged:
        msg = f"{path}: the configuration {name} is 2D or a cascade; choose 3d_fullres or 3d_lowres."
        raise InputError(msg)
    return merged


def _architecture(settings: Mapping[str, Any]) -> tuple[str, tuple[StagePlan, ...]]:
    """Class name of the network and its stages, of either form."""
    if "architecture" in settings:
        name = settings["architecture"]["network_class_name"].rsplit(".", 1)[-1]
        values = settings["architecture"]["arch_kwargs"]
        features, strides, kernels = values["features_per_stage"], values["strides"], values["kernel_sizes"]
        blocks = values.get("n_blocks_per_stage", values.get("n_conv_per_stage"))
        decoder = values["n_conv_per_stage_decoder"]
    else:
        name = settings["UNet_class_name"]
        strides, kernels = settings["pool_op_kernel_sizes"], settings["conv_kernel_sizes"]
        base, largest = settings["UNet_base_num_features"], settings["unet_max_num_features"]
        features = [min(base * 2**stage, largest) for stage in range(len(strides))]
        blocks, decoder = settings["n_conv_per_stage_encoder"], settings["n_conv_per_stage_decoder"]
    if name not in NETWORKS:
        msg = f"nnU-Net's network {name} is not known here; known are {', '.join(NETWORKS)}."
        raise InputError(msg)
    by_resolution = [*reversed(decoder), decoder[0]]  # nnU-Net lists the deepest decoder stage first
    rows = zip(features, strides, kernels, blocks, by_resolution, strict=True)
    return name, tuple(StagePlan(int(f), _triple(s), _triple(k), int(b), int(d)) for f, s, k, b, d in rows)


def _channels(
    path: Path, content: Mapping[str, Any], settings: Mapping[str, Any], description: Mapping[str, Any]
) -> tuple[Channel, ...]:
    names = description["channel_names"]
    rows = zip(settings["normalization_schemes"], settings["use_mask_for_norm"], strict=True)
    channels = []
    for index, (scheme, masked) in enumerate(rows):
        if scheme not in SCHEMES:
            msg = f"{path} normalizes channel {index} by {scheme}; known are {', '.join(SCHEMES)}."
            raise InputError(msg)
        name = str(names[str(index)])
        facts = content["foreground_intensity_properties_per_channel"][str(index)]
        channels.append(Channel(name, _normalization(SCHEMES[scheme], bool(masked), facts), _modality(name)))
    return tuple(channels)


def _normalization(scheme: str, masked: bool, facts: Mapping[str, float]) -> Normalization:
    if scheme == "ct":
        lower, upper = facts["percentile_00_5"], facts["percentile_99_5"]
        return Normalization("ct", lower=lower, upper=upper, mean=facts["mean"], std=facts["std"])
    return Normalization(scheme, masked=masked and scheme == "zscore")  # type: ignore[arg-type]


def _modality(channel: str) -> str:
    return "CT" if channel.upper() == "CT" else ""


def _triple(values: Sequence[float]) -> IntTriple:
    z, y, x = (int(value) for value in values)
    return z, y, x


def _floats(values: Sequence[float]) -> Triple:
    z, y, x = (float(value) for value in values)
    if not all(math.isfinite(value) and value > 0 for value in (z, y, x)):
        msg = f"lengths must be positive, found {(z, y, x)}."
        raise InputError(msg)
    return z, y, x
