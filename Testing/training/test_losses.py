"""The loss, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from MambaSegTraining.losses import (
    deep_supervision_loss,
    deep_supervision_weights,
    dice_and_cross_entropy,
    shrink_labels,
    soft_dice,
)

from MambaSegLib.readout import exclusive_classes

TWO = exclusive_classes(2)


def _probabilities(foreground: list[float]) -> torch.Tensor:
    """(1, 2, 1, 1, N) with these probabilities of class 1."""
    ones = torch.tensor(foreground, dtype=torch.float64)
    return torch.stack([1 - ones, ones])[None, :, None, None, :]


def test_soft_dice_of_two_voxels():
    labels = torch.tensor([1, 0])[None, None, None]
    # overlap 0.8, predicted 0.8 + 0.4, true 1
    expected = (2 * 0.8 + 1e-5) / (1.2 + 1 + 1e-5)
    assert soft_dice(_probabilities([0.8, 0.4]), labels, TWO).item() == pytest.approx(expected, rel=1e-9)


def test_an_absent_structure_that_is_not_predicted_counts_as_right():
    labels = torch.zeros((1, 1, 1, 2), dtype=torch.long)
    assert soft_dice(_probabilities([0.0, 0.0]), labels, TWO).item() == pytest.approx(1.0)


def test_batch_dice_pools_the_voxels_of_the_batch():
    probabilities = torch.cat([_probabilities([1.0]), _probabilities([0.0])])
    labels = torch.tensor([1, 1])[:, None, None, None]
    assert soft_dice(probabilities, labels, TWO).mean().item() == pytest.approx(0.5, abs=1e-4)
    assert soft_dice(probabilities, labels, TWO, batch_dice=True).item() == pytest.approx(2 / 3, abs=1e-4)


def test_the_loss_is_one_minus_dice_plus_cross_entropy():
    labels = torch.tensor([1, 0])[None, None, None]
    logits = _probabilities([0.8, 0.4]).log()
    entropy = -(math.log(0.8) + math.log(0.6)) / 2
    dice = (2 * 0.8 + 1e-5) / (1.2 + 1 + 1e-5)
    assert dice_and_cross_entropy(logits, labels, TWO).item() == pytest.approx(1 - dice + entropy, rel=1e-5)


def test_a_certain_and_right_prediction_costs_nothing():
    labels = torch.tensor([[[[0, 1, 2]]]])
    logits = 100 * torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).float()
    assert dice_and_cross_entropy(logits, labels, exclusive_classes(3)).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(("outputs", "expected"), [(1, (1.0,)), (2, (1.0, 0.0)), (4, (4 / 7, 2 / 7, 1 / 7, 0.0))])
def test_weights_of_the_outputs_halve_and_the_coarsest_is_off(outputs, expected):
    assert deep_supervision_weights(outputs) == pytest.approx(expected)


def test_deep_supervision_adds_the_weighted_losses():
    torch.manual_seed(0)
    labels = torch.randint(0, 2, (1, 8, 8, 8))
    outputs = tuple(torch.randn(1, 2, size, size, size) for size in (8, 4, 2))
    fine, middle = (
        dice_and_cross_entropy(output, shrink_labels(labels, output.shape[2:]), TWO) for output in outputs[:2]
    )
    assert deep_supervision_loss(outputs, labels, TWO).item() == pytest.approx((2 / 3 * fine + 1 / 3 * middle).item())


def test_labels_shrink_to_the_nearest_center():
    labels = torch.tensor([0, 1, 2, 3, 4, 5])[None, None, None]
    # Centers of three voxels over six: 0.5, 2.5, 4.5; ties go up.
    assert shrink_labels(labels, (1, 1, 3)).flatten().tolist() == [1, 3, 5]
