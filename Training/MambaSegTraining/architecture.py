"""Patch size, strides, kernels and stages by nnU-Net's published rules (Isensee et al., Nature Methods 2021)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from MambaSegLib.errors import InputError
from MambaSegLib.plan import IntTriple, StagePlan, Triple
from MambaSegTraining.settings import NetworkSettings

MIN_EDGE = 4
LARGEST_PATCH_VOXELS = 256**3
BASE_FEATURES, MAX_FEATURES = 32, 320
RESIDUAL_BLOCKS = (1, 3, 4, 6, 6, 6, 6, 6, 6, 6)
PLAIN_BLOCKS = (2,) * 10
# Feature-map values of a network, per patch, that nnU-Net v2 takes to fit 8 GB at batch size 2.
VALUES_PER_8_GB = {True: 680e6, False: 560e6}


@dataclass(frozen=True)
class Pooling:
    """How a patch is pooled.

    Attributes:
        patch_size: Voxels, rounded up to what the strides divide.
        strides: Per stage, (1, 1, 1) first.
        kernels: Per stage.
    """

    patch_size: IntTriple
    strides: tuple[IntTriple, ...]
    kernels: tuple[IntTriple, ...]


def plan_architecture(
    spacing_mm: Triple, median_shape: Sequence[float], classes: int, settings: NetworkSettings, patch: IntTriple | None
) -> tuple[IntTriple, tuple[StagePlan, ...]]:
    """Choose patch size and stages.

    Args:
        spacing_mm: Voxel size the network works at.
        median_shape: Median shape of the training images at that spacing.
        classes: Channels of the network's output.
        settings: Network, its size, and the memory to fit into.
        patch: Patch size to take instead of the chosen one.

    Raises:
        InputError: If `patch` is not divisible by the strides, or more features are given than stages fit.
    """
    if patch is None:
        pooling = _fitting_pooling(spacing_mm, median_shape, classes, settings)
    else:
        pooling = plan_pooling(spacing_mm, patch, len(settings.features) or None)
        if pooling.patch_size != patch:
            msg = f"plan.patch_size {patch} is not divisible by the strides; take {pooling.patch_size}."
            raise InputError(msg)
    return pooling.patch_size, _stages(pooling, settings)


def plan_pooling(spacing_mm: Triple, patch: Sequence[int], max_stages: int | None = None) -> Pooling:
    """Halve, again and again, the axes whose voxels are less than twice as long as the shortest, while 4 voxels remain.

    An axis gets kernel size 3 once its voxels are less than twice as long as the shortest, and keeps it; the deepest
    stage has it on all axes.
    """
    spacing, size = list(spacing_mm), list(patch)
    kernel, pools = [1, 1, 1], [0, 0, 0]
    strides: list[list[int]] = [[1, 1, 1]]
    kernels: list[list[int]] = []
    while max_stages is None or len(strides) < max_stages:
        large = [axis for axis in range(3) if size[axis] >= 2 * MIN_EDGE]
        if not large:
            break
        shortest = min(spacing[axis] for axis in large)
        pooled = [axis for axis in large if spacing[axis] / shortest < 2]
        if len(pooled) == 1 and size[pooled[0]] < 3 * MIN_EDGE:
            break
        kernel = [3 if spacing[axis] / min(spacing) < 2 else kernel[axis] for axis in range(3)]
        kernels.append(kernel)
        strides.append([2 if axis in pooled else 1 for axis in range(3)])
        for axis in pooled:
            pools[axis] += 1
            spacing[axis] *= 2
            size[axis] = math.ceil(size[axis] / 2)
    kernels.append([3, 3, 3])
    rounded = [math.ceil(length / 2**count) * 2**count for length, count in zip(patch, pools, strict=True)]
    return Pooling(_triple(rounded), tuple(map(_triple, strides)), tuple(map(_triple, kernels)))


def _fitting_pooling(
    spacing_mm: Triple, median_shape: Sequence[float], classes: int, settings: NetworkSettings
) -> Pooling:
    """Start with a cube in mm of 256^3 voxels, cut to the images, and shorten its relatively longest axis till it fits."""
    per_mm = [1 / length for length in spacing_mm]
    scale = (LARGEST_PATCH_VOXELS / math.prod(per_mm)) ** (1 / 3)
    patch = [max(1, round(min(axis * scale, shape))) for axis, shape in zip(per_mm, median_shape, strict=True)]
    stages = len(settings.features) or None
    pooling = plan_pooling(spacing_mm, patch, stages)
    limit = VALUES_PER_8_GB[is_residual(settings.name)] * settings.memory_gb / 8
    while feature_values(pooling, _stages(pooling, settings), classes, is_residual(settings.name)) > limit:
        patch = list(pooling.patch_size)
        axis = max(range(3), key=lambda axis: patch[axis] / median_shape[axis])
        divisor = math.prod(stride[axis] for stride in pooling.strides)
        if patch[axis] <= divisor:
            msg = f"No patch fits network.memory_gb = {settings.memory_gb}; ask for more memory or fewer features."
            raise InputError(msg)
        patch[axis] -= divisor
        divisor = math.prod(stride[axis] for stride in plan_pooling(spacing_mm, patch, stages).strides)
        patch[axis] = max(1, patch[axis] // divisor) * divisor  # the shorter axis may be pooled less often
        pooling = plan_pooling(spacing_mm, patch, stages)
    return pooling


def feature_values(pooling: Pooling, stages: Sequence[StagePlan], classes: int, residual: bool) -> float:
    """Values of all convolution outputs for one patch: what the memory of training is proportional to.

    A residual block has two convolutions, a plain one has one.
    """
    convolutions = 2 if residual else 1
    size = list(pooling.patch_size)
    sizes = []
    total = 0.0
    for stage in stages:
        size = [math.ceil(length / stride) for length, stride in zip(size, stage.stride, strict=True)]
        sizes.append(math.prod(size))
        total += stage.features * sizes[-1] * stage.blocks * convolutions
    for stage, voxels in zip(stages[:-1], sizes[:-1], strict=True):
        total += voxels * (stage.features * (convolutions * stage.decoder_blocks + 1) + classes)
    return total


def is_residual(network: str) -> bool:
    """Whether the encoder of a network of the table is residual, which has its own block counts."""
    return network.startswith("mamba_unet_") or network == "nnunet_resenc"


def _stages(pooling: Pooling, settings: NetworkSettings) -> tuple[StagePlan, ...]:
    count = len(pooling.strides)
    features = settings.features or tuple(min(BASE_FEATURES * 2**stage, MAX_FEATURES) for stage in range(count))
    if len(features) != count:
        msg = f"network.features has {len(features)} stages, but the patch {pooling.patch_size} allows only {count}."
        raise InputError(msg)
    residual = is_residual(settings.name)
    blocks = settings.blocks or (RESIDUAL_BLOCKS if residual else PLAIN_BLOCKS)[:count]
    if len(blocks) != count:
        msg = f"network.blocks has {len(blocks)} entries for {count} stages."
        raise InputError(msg)
    decoder = settings.decoder_blocks or (1 if residual else 2)
    rows = zip(features, pooling.strides, pooling.kernels, blocks, strict=True)
    return tuple(StagePlan(width, stride, kernel, count, decoder) for width, stride, kernel, count in rows)


def _triple(values: Sequence[int]) -> IntTriple:
    z, y, x = values
    return z, y, x
