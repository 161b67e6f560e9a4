"""Plans of nnU-Net v2, read into this package's own record.

Both forms are understood: the older one with flat keys (UNet_base_num_features, conv_kernel_sizes, ...) and the newer one
with architecture.arch_kwargs. Source: the files nnU-Net 2.0 to 2.8 write, and its `PlansManager` and
`ConfigurationManager`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from MambaSegLib.errors import InputError
from MambaSegLib.label_table import parse_labels, plain_label
from MambaSegLib.networks import fit_patch, resolve_plan
from MambaSegLib.plan import Channel, IntTriple, NetworkPlan, Normalization, OptionValue, Plan, StagePlan, Triple

AXIAL = "SPL"
"""Orientation of an axial stack in the usual order (DICOM's)."""
SCHEMES = {
    "CTNormalization": "ct",
    "ZScoreNormalization": "zscore",
    "NoNormalization": "none",
    "RescaleTo01Normalization": "rescale",
}
NETWORKS = {"PlainConvUNet": "nnunet", "ResidualEncoderUNet": "nnunet_resenc"}

Content = Mapping[str, Any]
"""What a JSON file of nnU-Net's holds."""


def read_configuration(plans: Content, name: str, file: str) -> dict[str, Any]:
    """A 3D configuration with what it inherits filled in.

    Args:
        plans: Content of the plans.
        name: The configuration.
        file: What to call the plans in a message.

    Raises:
        InputError: If there is no such configuration, or it is 2D or a cascade.
        KeyError, TypeError: If the plans are no plans.
    """
    merged = _inherited(plans["configurations"], name, file, ())
    if len(merged["patch_size"]) != 3 or merged.get("previous_stage"):
        msg = f"{file}: the configuration {name} is 2D or a cascade; choose 3d_fullres or 3d_lowres."
        raise InputError(msg)
    return merged


def parse_plan(
    plans: Content,
    description: Content,
    configuration: str,
    *,
    file: str,
    orientation: str = AXIAL,
    network: str = "",
    options: Mapping[str, OptionValue] | None = None,
) -> Plan:
    """Read one configuration.

    Args:
        plans: Content of nnUNetPlans.json or plans.json.
        description: Content of dataset.json: names of channels and labels.
        configuration: A 3D one.
        file: What to call the plans in a message.
        orientation: Of the training images as nnU-Net read them, which it does not record.
        network: A name of the network table; "" takes nnU-Net's own. For a residual network nnU-Net's number of
            convolutions per stage becomes the number of residual blocks, as in the paper's code. The patch grows to the next
            the network can take.
        options: Options of that network.

    Raises:
        InputError: If something is missing or cannot be expressed here.
    """
    try:
        settings = read_configuration(plans, configuration, file)
        name, stages = _architecture(settings)
        channels = _channels(plans, settings, description, file)
        table = parse_labels(description)
        built = NetworkPlan(
            name=network or NETWORKS[name],
            in_channels=len(channels),
            out_channels=len(table.regions) or len(table.labels) + 1,
            patch_size=_triple(settings["patch_size"]),
            stages=stages,
            options=dict(options or {}),
        )
        return Plan(
            orientation="".join(orientation[axis] for axis in plans["transpose_forward"]),
            spacing_mm=lengths(settings["spacing"]),
            channels=channels,
            labels=tuple(plain_label(value, label) for value, label in table.labels.items()),
            network=fit_patch(resolve_plan(built)),
            regions=table.regions,
            ignore_value=table.ignore_value,
            mirror_axes=(0, 1, 2),
        )
    except InputError:
        raise
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, ArithmeticError, RecursionError) as error:
        msg = (
            f"{file} or its dataset.json is not as nnU-Net writes it ({error!r}) in the configuration {configuration}."
        )
        raise InputError(msg) from error


def lengths(values: Sequence[float]) -> Triple:
    """Three lengths.

    Raises:
        InputError: If one is not a positive number.
    """
    z, y, x = (float(value) for value in values)
    if not all(math.isfinite(value) and value > 0 for value in (z, y, x)):
        msg = f"lengths must be positive, found {(z, y, x)}."
        raise InputError(msg)
    return z, y, x


def intensities(plans: Content) -> Content:
    """Foreground statistics per channel number, under either name."""
    found: Content = plans.get("foreground_intensity_properties_per_channel") or plans.get(
        "foreground_intensity_properties_by_modality", {}
    )
    return found


def _inherited(configurations: Content, name: str, file: str, heirs: tuple[str, ...]) -> dict[str, Any]:
    if name not in configurations or name in heirs:
        problem = f"the configuration {name!r} inherits from itself" if name in heirs else f"no configuration {name!r}"
        msg = f"{file} has {problem}; it has {', '.join(configurations)}."
        raise InputError(msg)
    own = dict(configurations[name])
    parent = own.pop("inherits_from", None)
    return {**_inherited(configurations, parent, file, (*heirs, name)), **own} if parent else own


def _architecture(settings: Content) -> tuple[str, tuple[StagePlan, ...]]:
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


def _channels(plans: Content, settings: Content, description: Content, file: str) -> tuple[Channel, ...]:
    names = _channel_names(description.get("channel_names") or description["modality"])
    if len(names) != len(settings["normalization_schemes"]):
        msg = (
            f"{file} is for {len(settings['normalization_schemes'])} channel(s), but dataset.json names {len(names)}: "
            f"{', '.join(names)}. They are of different data sets."
        )
        raise InputError(msg)
    rows = zip(names, settings["normalization_schemes"], settings["use_mask_for_norm"], strict=True)
    channels = []
    for index, (name, scheme, masked) in enumerate(rows):
        if scheme not in SCHEMES:
            msg = f"{file} normalizes channel {index} by {scheme}; known are {', '.join(SCHEMES)}."
            raise InputError(msg)
        facts = intensities(plans).get(str(index), {})
        channels.append(Channel(name, _normalization(SCHEMES[scheme], bool(masked), facts), _modality(name)))
    return tuple(channels)


def _channel_names(listed: Mapping[str, str]) -> list[str]:
    """By number; where one name stands for several channels, with the number nnU-Net's files have."""
    names = [str(listed[str(index)]) for index in range(len(listed))]
    return [f"{name}_{index:04d}" if names.count(name) > 1 else name for index, name in enumerate(names)]


def _normalization(scheme: str, masked: bool, facts: Mapping[str, float]) -> Normalization:
    if scheme == "ct":
        lower, upper = float(facts["percentile_00_5"]), float(facts["percentile_99_5"])
        return Normalization("ct", lower=lower, upper=upper, mean=float(facts["mean"]), std=float(facts["std"]))
    return Normalization(scheme, masked=masked and scheme == "zscore")  # type: ignore[arg-type]


def _modality(channel: str) -> str:
    return "CT" if channel.upper() == "CT" else ""


def _triple(values: Sequence[float]) -> IntTriple:
    z, y, x = (int(value) for value in values)
    return z, y, x
