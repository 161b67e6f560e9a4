"""Augmentation: from explicit seeds, on image and labels alike, and only along the axes that may be mirrored."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from MambaSegTraining import augmentation
from MambaSegTraining.augmentation import augment, nnunet_augmentation, plan_geometric, reach, seeded_globals
from MambaSegTraining.patches import Patch, cut_patch, random_generator
from MambaSegTraining.store import StoredCase

from MambaSegLib.plan import Channel, Label, NetworkPlan, Normalization, Plan, StagePlan

SIZE = (12, 14, 16)


@pytest.fixture
def plan():
    stage = StagePlan(4, (1, 1, 1), (3, 3, 3), 1)
    network = NetworkPlan("nnunet", 1, 2, SIZE, (stage,))
    channel = Channel("MRI", Normalization("zscore"))
    return Plan("SPL", (1.0, 1.0, 1.0), (channel,), (Label(1, "a", (1, 2, 3)),), network, mirror_axes=(2,))


def _patch(size):
    """Labels are where the image is bright; the block is off the middle along every axis."""
    labels = np.zeros(size, np.uint8)
    middle = [length // 2 for length in size]
    labels[middle[0] - 3 : middle[0], middle[1] - 4 : middle[1], middle[2] - 5 : middle[2]] = 1
    return Patch(labels[None].astype(np.float32) * 4 - 2, labels)


def _augmented(plan, seed, size=None):
    transform = nnunet_augmentation(plan)
    patch = _patch(size or plan_geometric(plan.patch_size).initial_size)
    return augment(transform, patch, (False,), random_generator((seed,), 0))


def _numpy_state():
    return str(np.random.get_state())  # noqa: NPY002


def test_the_same_generator_gives_the_same_patch_and_leaves_the_global_randomness_alone(plan):
    before = torch.get_rng_state(), _numpy_state()
    first = _augmented(plan, 1)
    second = _augmented(plan, 1)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == _numpy_state()
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_seeding_is_undone_after_an_error():
    before = _numpy_state()
    with pytest.raises(KeyError), seeded_globals(1):
        raise KeyError
    assert _numpy_state() == before


def test_image_and_labels_move_together(plan):
    for seed in range(30):
        image, labels = _augmented(plan, seed)
        assert image.shape == (1, *SIZE)
        assert labels.shape == SIZE
        assert image[0][labels == 1].median() > image[0][labels == 0].median() + 0.5


def test_only_allowed_axes_are_mirrored(plan):
    """The block lies below the middle along Z, Y and X; only along X may it come to lie above."""
    above = np.zeros(3)
    for seed in range(40):
        _, labels = _augmented(plan, seed)
        center = np.argwhere(labels.numpy()).mean(0)
        above += center > (np.array(SIZE) - 1) / 2
    assert above[0] == above[1] == 0
    assert 10 < above[2] < 30


def test_masked_channels_stay_zero_outside(plan):
    channel = replace(plan.channels[0], normalization=Normalization("zscore", masked=True))
    masked_plan = replace(plan, channels=(channel,))
    transform = nnunet_augmentation(masked_plan)
    size = plan_geometric(SIZE).initial_size
    patch = _patch(size)
    patch = Patch(np.where(patch.labels == 1, 2.0, 0.0).astype(np.float32)[None], patch.labels)
    for seed in range(20):
        image, labels = augment(transform, patch, (True,), random_generator((seed,), 0))
        assert (image[0][labels == 0] == 0).all()


def test_what_is_cut_holds_a_turned_box_with_a_margin_and_a_scaled_one():
    """A square of 10 turned by 45 degrees is 10 * sqrt(2) = 14.14 wide, and 14.14 / 0.85 = 16.6; scaled by 1.4, 14 wide."""
    assert reach((4, 10, 10), (math.pi / 4, 0.0, 0.0)) == (6, 17, 17)
    assert reach((4, 10, 10), (0.0, 0.0, 0.0)) == (6, 14, 14)


@pytest.mark.parametrize("size", [(12, 12, 12), (6, 16, 12)])
def test_a_patch_that_is_scaled_or_turned_about_one_axis_finds_image_everywhere(plan, size, monkeypatch):
    """In the middle of an image of ones, nothing else may be found; before, the largest scalings found zeros at the sides."""
    monkeypatch.setattr(augmentation, "_intensity", lambda geometric: [])
    case = StoredCase(
        "a", np.ones((1, 64, 64, 64), np.float32), np.ones((64, 64, 64), np.uint8), {1: np.full((1, 3), 32)}
    )
    transform = nnunet_augmentation(replace(plan, network=replace(plan.network, patch_size=size)))
    spatial = transform.transforms[0]
    wider = plan_geometric(size).initial_size
    patch = cut_patch(case, size, True, random_generator((0,)), wider)
    for scale, axis in [(1.4, None), (0.7, None), *((1.0, axis) for axis in range(3))]:
        spatial.p_scaling, spatial.scaling = 1.0, (scale, scale)
        spatial.p_rotation, turn = 1.0, math.radians(30)
        spatial.rotation = lambda image, dim, axis=axis, turn=turn: turn if dim == axis else 0.0
        image, labels = augment(transform, patch, (False,), random_generator((1,)))
        assert (image - 1).abs().max() < 1e-5, (scale, axis)
        assert (labels == 1).all(), (scale, axis)


def test_thin_patches_are_rotated_in_their_plane_only():
    geometric = plan_geometric((14, 256, 224))
    assert geometric.in_plane
    assert geometric.initial_size[0] == 14
    assert geometric.initial_size[1] >= 256
    assert not plan_geometric((40, 56, 40)).in_plane


def test_thin_patches_are_augmented_slice_by_slice(plan):
    thin = replace(plan, network=replace(plan.network, patch_size=(4, 32, 32)))
    patch = _patch(plan_geometric((4, 32, 32)).initial_size)
    for seed in range(10):
        image, labels = augment(nnunet_augmentation(thin), patch, (False,), random_generator((seed,), 0))
        assert image.shape == (1, 4, 32, 32)
        assert labels.shape == (4, 32, 32)


@pytest.mark.parametrize("size", [SIZE, (7, 9, 11), (5, 15, 14)])
def test_a_patch_that_is_neither_turned_nor_scaled_is_where_it_was_meant_to_be(plan, size, monkeypatch):
    """Whether its sides are even or odd: a patch at the border would else reach a voxel beyond the image."""
    monkeypatch.setattr(augmentation, "_intensity", lambda geometric: [])
    image = np.random.default_rng(0).normal(size=(1, 24, 26, 25)).astype(np.float32)
    case = StoredCase("a", image, (image[0] > 1).astype(np.uint8), {})
    transform = nnunet_augmentation(replace(plan, network=replace(plan.network, patch_size=size), mirror_axes=()))
    untouched = 0
    for seed in range(40):
        wide, plain = (
            cut_patch(case, size, False, random_generator((seed,)), wider)
            for wider in (plan_geometric(size).initial_size, None)
        )
        found, labels = augment(transform, wide, (False,), random_generator((seed, 1)))
        if np.array_equal(found.numpy(), plain.image):
            assert np.array_equal(labels.numpy(), plain.labels)
            untouched += 1
    assert 15 <= untouched < 40  # 0.8 x 0.8 of them
