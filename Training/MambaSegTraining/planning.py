"""From fingerprint and settings to the plan: spacing, orientation, normalization, patch size and network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np

from MambaSegLib.errors import InputError
from MambaSegLib.label_table import plain_label
from MambaSegLib.manifest_check import plan_problems
from MambaSegLib.networks import NETWORKS, fit_patch, resolve_plan
from MambaSegLib.plan import (
    Channel,
    Fingerprint,
    IntensityRange,
    Label,
    NetworkPlan,
    Normalization,
    Plan,
    Region,
    Triple,
    VolumeRange,
)
from MambaSegLib.volume import Array
from MambaSegTraining.architecture import plan_architecture
from MambaSegTraining.dataset import Dataset
from MambaSegTraining.fingerprint import CaseFacts, ChannelFacts, DatasetFingerprint
from MambaSegTraining.memory_budget import fit_to_memory
from MambaSegTraining.named_plans import named_plan
from MambaSegTraining.settings import Settings

AXES = ("SI", "PA", "LR")
"""Anatomical axes in the order of an axial stack; the first letter is the direction plans grow in."""
ANISOTROPY_THRESHOLD = 3
MASKED_BELOW = 0.75


def make_plan(dataset: Dataset, fingerprint: DatasetFingerprint, settings: Settings) -> Plan:
    """Derive the plan of a data set by nnU-Net's rules, with the settings' replacements.

    Raises:
        InputError: If a setting contradicts the data set or cannot be built.
    """
    axes = _axis_order(fingerprint.cases)
    make = _named if settings.plan.named else _planned
    plan = make(dataset, fingerprint, settings, axes)
    if plan.regions and not NETWORKS[plan.network.name].negative_logits:
        msg = (
            f"{plan.network.name} ends in a ReLU as published, so it cannot say that a voxel is outside a region. "
            "Choose another network, or labels instead of regions."
        )
        raise InputError(msg)
    for path, text in plan_problems(plan):
        msg = f"No model could be made of this: {path}: {text}. Correct the configuration or dataset.json."
        raise InputError(msg)
    if plan.regions and plan.network.name == "transunet" and plan.network.options.get("variant") != "encoder":
        msg = (
            "The queries of transunet share each voxel out among classes, so they cannot find regions that overlap. "
            'Choose network.options = { variant = "encoder" }, another network, or no regions.'
        )
        raise InputError(msg)
    return plan


def _planned(dataset: Dataset, fingerprint: DatasetFingerprint, settings: Settings, axes: tuple[int, int, int]) -> Plan:
    """The plan by nnU-Net's rules."""
    spacings = np.array([_by_axis(case, case.spacing_mm, axes) for case in fingerprint.cases])
    shapes = np.array([_by_axis(case, case.cropped_shape, axes) for case in fingerprint.cases])
    spacing = settings.plan.spacing_mm or target_spacing(spacings, shapes)
    regions = settings.regions or dataset.regions
    outputs, median = len(regions) or len(dataset.labels) + 1, median_shape(fingerprint, spacing)
    patch, stages = plan_architecture(spacing, median, outputs, settings.network, settings.plan.patch_size)
    planned = NetworkPlan(
        name=settings.network.name,
        in_channels=len(dataset.channels),
        out_channels=outputs,
        patch_size=patch,
        stages=stages,
        options=settings.network.options,
    )
    network = fit_patch(resolve_plan(planned))
    if settings.plan.patch_size is not None and network.patch_size != patch:
        msg = f"{planned.name} cannot take plan.patch_size {patch}; the next larger it can is {network.patch_size}."
        raise InputError(msg)
    plan = Plan(
        orientation=_orientation(axes),
        spacing_mm=spacing,
        channels=_channels(fingerprint, settings),
        labels=_labels(dataset, settings),
        network=network,
        regions=regions,
        ignore_value=dataset.ignore_value,
        crop_to_nonzero=settings.plan.crop_to_nonzero,
        mirror_axes=settings.plan.mirror_axes,
        fingerprint=_plan_fingerprint(dataset, fingerprint, axes, regions),
    )
    return fit_to_memory(plan, settings, median)


def _named(dataset: Dataset, fingerprint: DatasetFingerprint, settings: Settings, axes: tuple[int, int, int]) -> Plan:
    """A released plan for this data set: what the network sees is the plan's, names and colors are the data set's."""
    about, network = settings.plan, settings.network
    if about.spacing_mm or about.patch_size or network.features or network.blocks or network.decoder_blocks:
        msg = (
            f"plan.named = {about.named!r} says spacing, patch, features and blocks; leave out plan.spacing_mm, "
            "plan.patch_size, network.features, network.blocks and network.decoder_blocks, or plan.named."
        )
        raise InputError(msg)
    plan = named_plan(about.named, network.name, network.options or None).plan
    labels, channels = _labels(dataset, settings), len(dataset.channels)
    if len(labels) != len(plan.labels) or channels != len(plan.channels):
        msg = (
            f"The plan {about.named!r} is for {len(plan.channels)} channels and {len(plan.labels)} structures; "
            f"{dataset.name} has {channels} and {len(labels)}."
        )
        raise InputError(msg)
    regions = settings.regions or dataset.regions
    return replace(
        plan,
        orientation=_orientation(axes),
        labels=labels,
        network=replace(plan.network, out_channels=len(regions) or len(labels) + 1),
        regions=regions,
        ignore_value=dataset.ignore_value,
        mirror_axes=about.mirror_axes,
        fingerprint=_plan_fingerprint(dataset, fingerprint, axes, regions),
    )


def _orientation(axes: tuple[int, int, int]) -> str:
    return "".join(AXES[axis][0] for axis in axes)


def target_spacing(spacings: Array, shapes: Array) -> Triple:
    """Median voxel size; for thick slices the 10th percentile along the thick axis.

    Args:
        spacings: (N, 3) in mm.
        shapes: (N, 3) voxels.

    Source:
        nnU-Net v2's default planner: an axis counts as thick if its voxels are more than 3 times longer, and its image
        more than 3 times shorter in voxels, than along the other axes.
    """
    spacing, shape = np.median(spacings, axis=0), np.median(shapes, axis=0)
    thick = int(np.argmax(spacing))
    others = [axis for axis in range(3) if axis != thick]
    longest_other = max(spacing[others])
    has_thick_voxels = spacing[thick] > ANISOTROPY_THRESHOLD * longest_other
    has_few_slices = shape[thick] * ANISOTROPY_THRESHOLD < min(shape[others])
    if has_thick_voxels and has_few_slices:
        thinner = np.percentile(spacings[:, thick], 10)
        spacing[thick] = max(thinner, longest_other)
    return _triple(spacing)


def normalization(channel: str, facts: ChannelFacts, masked: bool) -> Normalization:
    """nnU-Net's choice by the channel's name: "CT", "noNorm", "rescale_to_0_1"; anything else is a z-score."""
    key = channel.lower()
    if key == "ct":
        return Normalization(
            "ct", lower=facts.percentile_00_5, upper=facts.percentile_99_5, mean=facts.mean, std=facts.std
        )
    if key == "nonorm":
        return Normalization("none")
    if key == "rescale_to_0_1":
        return Normalization("rescale")
    return Normalization("zscore", masked=masked)


def median_shape(fingerprint: DatasetFingerprint, spacing_mm: Triple) -> Triple:
    """Median voxels of the images, their zero margins cropped, at a plan's spacing and in the order of its axes."""
    axes = _axis_order(fingerprint.cases)
    spacings = np.array([_by_axis(case, case.spacing_mm, axes) for case in fingerprint.cases])
    shapes = np.array([_by_axis(case, case.cropped_shape, axes) for case in fingerprint.cases])
    return _triple(np.median(np.round(shapes * spacings / spacing_mm), axis=0))


def _axis_order(cases: Sequence[CaseFacts]) -> tuple[int, int, int]:
    """Anatomical axes, the one with the longest voxels first, the others in the order of an axial stack."""
    spacings = np.array([_by_axis(case, case.spacing_mm, (0, 1, 2)) for case in cases])
    thick = int(np.argmax(np.median(spacings, axis=0)))
    first, second = (axis for axis in range(3) if axis != thick)
    return thick, first, second


def _by_axis(case: CaseFacts, values: Sequence[float], axes: Sequence[int]) -> list[float]:
    """Values along (Z, Y, X) of a case, reordered to anatomical axes."""
    position = {letter: index for index, letter in enumerate(case.orientation)}
    return [values[next(position[letter] for letter in AXES[axis] if letter in position)] for axis in axes]


def _channels(fingerprint: DatasetFingerprint, settings: Settings) -> tuple[Channel, ...]:
    kept = [np.prod(case.cropped_shape) / np.prod(case.shape) for case in fingerprint.cases]
    masked = settings.plan.crop_to_nonzero and float(np.median(kept)) < MASKED_BELOW
    modality = settings.dataset.modality
    return tuple(
        Channel(name, normalization(name, facts, masked), modality or ("CT" if name.lower() == "ct" else ""))
        for name, facts in zip(fingerprint.channels, fingerprint.intensities, strict=True)
    )


def _labels(dataset: Dataset, settings: Settings) -> tuple[Label, ...]:
    given = {label.value: label for label in settings.labels}
    unknown = sorted(set(given) - set(dataset.labels))
    if unknown:
        msg = f"The configuration describes the labels {unknown}; {dataset.name} has {sorted(dataset.labels)}."
        raise InputError(msg)
    return tuple(given.get(value) or plain_label(value, name) for value, name in dataset.labels.items())


def _plan_fingerprint(
    dataset: Dataset, fingerprint: DatasetFingerprint, axes: Sequence[int], regions: Sequence[Region]
) -> Fingerprint:
    spacings = np.array([_by_axis(case, case.spacing_mm, axes) for case in fingerprint.cases])
    extents = spacings * [_by_axis(case, case.shape, axes) for case in fingerprint.cases]
    angles = [case.obliquity_deg for case in fingerprint.cases if case.obliquity_deg is not None]
    has_scale = all(channel.lower() == "ct" for channel in fingerprint.channels)
    ranges = tuple(
        IntensityRange(facts.percentile_00_5, facts.median, facts.percentile_99_5) for facts in fingerprint.intensities
    )
    return Fingerprint(
        spacing_min_mm=_triple(spacings.min(axis=0)),
        spacing_max_mm=_triple(spacings.max(axis=0)),
        extent_min_mm=_triple(extents.min(axis=0)),
        extent_max_mm=_triple(extents.max(axis=0)),
        intensities=ranges if has_scale else (),
        obliquity_max_deg=max(angles) if len(angles) == len(fingerprint.cases) else None,
        volumes=_volumes(dataset, fingerprint, regions),
    )


def _volumes(dataset: Dataset, fingerprint: DatasetFingerprint, regions: Sequence[Region]) -> tuple[VolumeRange, ...]:
    """Of each label; unknown where voxels that nobody labelled may belong to it.

    Labels that lie in the same regions cannot be told apart: the one that all of them become has their volume.
    """
    if dataset.ignore_value is not None:
        return ()
    become = {
        value: region.value for region in regions for value in region.labels
    }  # later ones paint over earlier ones
    parts = [[part for part in dataset.labels if become.get(part, part) == own] or [own] for own in dataset.labels]
    counts = [dict(zip(dataset.labels, case.label_voxels, strict=True)) for case in fingerprint.cases]
    voxels = np.array([[sum(count[part] for part in own) for own in parts] for count in counts])
    milliliters = voxels * [[prod(case.spacing_mm) / 1000] for case in fingerprint.cases]
    lows, highs = milliliters.min(axis=0), milliliters.max(axis=0)
    return tuple(VolumeRange(float(low), float(high)) for low, high in zip(lows, highs, strict=True))


def _triple(values: Array) -> Triple:
    z, y, x = (float(value) for value in values)
    return z, y, x
