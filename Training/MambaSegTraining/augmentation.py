"""nnU-Net's default augmentation, by its authors' own library (batchgeneratorsv2)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from MambaSegLib.plan import IntTriple, Plan, Triple
from MambaSegTraining.patches import Patch

ISOTROPIC_ROTATION = math.radians(30)
SCALING = (0.7, 1.4)
"""Of the steps between voxels: 1.4 shrinks what is seen and reaches 1.4 times as far."""
MARGIN = 1 / 0.85
"""What nnU-Net cuts more than rotations ask for (`get_patch_size` with its trainer's scale range)."""
ANISOTROPY_THRESHOLD = 3


@dataclass(frozen=True)
class Geometric:
    """The part of the augmentation that depends on the shape of the patch.

    Attributes:
        rotation: Largest angle about each axis (Z, Y, X), in radians.
        in_plane: Rotate and scale slice by slice: for patches with few, thick slices.
        initial_size: Voxels to cut so that a rotated and shrunk patch still finds image in its corners.
    """

    rotation: Triple
    in_plane: bool
    initial_size: IntTriple


def plan_geometric(patch_size: IntTriple) -> Geometric:
    """nnU-Net's rules: any in-plane angle for patches three times wider than thick, 30 degrees otherwise."""
    in_plane = max(patch_size) / patch_size[0] > ANISOTROPY_THRESHOLD
    if in_plane:
        _, height, width = reach(patch_size, (math.pi, 0.0, 0.0))
        return Geometric((math.pi, 0.0, 0.0), True, (patch_size[0], height, width))
    angles = (ISOTROPIC_ROTATION,) * 3
    return Geometric(angles, False, reach(patch_size, angles))


def reach(size: IntTriple, angles: Triple) -> IntTriple:
    """Voxels along each axis in which the box `size` lies under any rotation up to `angles`, one axis at a time, or scaling.

    A margin is for both at once and for rotations about several axes; where these reach further, they find 0, as at any border
    of an image.
    """
    extent = np.asarray(size, dtype=float)
    for axis, largest in enumerate(angles):
        first, second = (other for other in range(3) if other != axis)
        for angle in np.linspace(0, min(largest, math.pi / 2), 10):
            along, across = abs(math.cos(angle)), abs(math.sin(angle))
            extent[first] = max(extent[first], size[first] * along + size[second] * across)
            extent[second] = max(extent[second], size[second] * along + size[first] * across)
    scaled = np.asarray(size) * SCALING[1]
    z, y, x = (math.ceil(round(length, 6)) for length in np.maximum(extent * MARGIN, scaled))
    return z, y, x


def nnunet_augmentation(plan: Plan) -> Any:
    """The transform for one patch, called as `transform(image=..., segmentation=...)`."""
    from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms

    geometric = plan_geometric(plan.patch_size)
    return ComposeTransforms([*_spatial(plan.patch_size, geometric), *_intensity(geometric), *_finish(plan)])


def augment(
    transform: Any, patch: Patch, masked: tuple[bool, ...], generator: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Apply a transform to one patch.

    Args:
        transform: See `nnunet_augmentation`.
        patch: The patch.
        masked: Per channel: its zeros are outside of what was normalized and stay 0, whatever is done to the rest.
        generator: Source of the randomness.

    Returns:
        Image (C, Z, Y, X) float32 and labels (Z, Y, X) int16, at the size the transform makes.
    """
    segmentation = torch.from_numpy(patch.labels.astype(np.int16))[None]
    if any(masked):
        inside = torch.from_numpy((patch.image[list(masked)] != 0).any(0).astype(np.int16))
        segmentation = torch.cat([segmentation, inside[None]])
    with seeded_globals(int(generator.integers(2**31))):
        result = transform(image=torch.tensor(patch.image), segmentation=segmentation)
    image, labels = result["image"].float(), result["segmentation"]
    for channel, is_masked in enumerate(masked):
        if is_masked:
            image[channel] *= labels[1]
    return image, labels[0]


@contextmanager
def seeded_globals(seed: int) -> Iterator[None]:
    """Seed the random numbers of NumPy and PyTorch for a while: batchgeneratorsv2 draws from these only."""
    before = np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(before)  # noqa: NPY002


def _spatial(patch_size: IntTriple, geometric: Geometric) -> list[Any]:
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
    from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform

    size, angle = patch_size[geometric.in_plane :], geometric.rotation[0]
    transform = SpatialTransform(
        size,
        patch_center_dist_from_border=0,
        random_crop=False,
        p_rotation=0.2,
        rotation=(-angle, angle),
        p_scaling=0.2,
        scaling=SCALING,
        p_synchronize_scaling_across_axes=1,
    )
    return [Convert3DTo2DTransform(), transform, Convert2DTo3DTransform()] if geometric.in_plane else [transform]


def _intensity(geometric: Geometric) -> list[Any]:
    from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
    from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
    from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
    from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
    from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
    from batchgeneratorsv2.transforms.utils.random import RandomTransform

    def gamma(inverted: int) -> Any:
        return GammaTransform(BGContrast((0.7, 1.5)), inverted, synchronize_channels=False, p_per_channel=1,
                              p_retain_stats=1)  # fmt: skip

    low_resolution = SimulateLowResolutionTransform(
        scale=(0.5, 1),
        synchronize_channels=False,
        synchronize_axes=True,
        ignore_axes=(0,) if geometric.in_plane else None,
        p_per_channel=0.5,
    )
    contrast = ContrastTransform(BGContrast((0.75, 1.25)), preserve_range=True, synchronize_channels=False)
    steps = [
        (0.1, GaussianNoiseTransform((0, 0.1), p_per_channel=1, synchronize_channels=True)),
        (0.2, GaussianBlurTransform((0.5, 1.0), synchronize_channels=False, synchronize_axes=False, p_per_channel=0.5)),
        (0.15, MultiplicativeBrightnessTransform(BGContrast((0.75, 1.25)), synchronize_channels=False)),
        (0.15, contrast),
        (0.25, low_resolution),
        (0.1, gamma(inverted=1)),
        (0.3, gamma(inverted=0)),
    ]
    return [RandomTransform(transform, apply_probability=probability) for probability, transform in steps]


def _finish(plan: Plan) -> list[Any]:
    from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform

    return [MirrorTransform(allowed_axes=plan.mirror_axes)] if plan.mirror_axes else []
