"""The memory model against what PyTorch really keeps for the backward pass, and the patch that fits a budget."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from MambaSegTraining.losses import deep_supervision_loss
from MambaSegTraining.memory_model import StepSettings, estimate_step, fit_to_budget
from MambaSegTraining.named_plans import named_plan

from MambaSegLib.errors import InputError
from MambaSegLib.networks import create_network, set_recompute
from MambaSegLib.plan import NetworkPlan, StagePlan
from MambaSegLib.readout import exclusive_classes

TOLERANCE = 0.03
"""Small vectors (affine weights of norms, running sums) are left out of the model: 2 % of these tiny networks."""


def small_plan(
    name: str = "mamba_unet_multidirectional",
    *,
    patch: tuple[int, int, int] = (16, 16, 16),
    features: tuple[int, ...] = (8, 16, 24),
    stride: tuple[int, int, int] = (2, 2, 2),
    blocks: int = 1,
    channels: int = 1,
    **options: object,
) -> NetworkPlan:
    strides = [(1, 1, 1), *[stride] * (len(features) - 1)]
    stages = tuple(StagePlan(f, s, (3, 3, 3), blocks, blocks) for f, s in zip(features, strides, strict=True))
    return NetworkPlan(name, channels, 3, patch, stages, options=options)


def bytes_autograd_keeps(plan: NetworkPlan, batch: int, recompute: bool) -> int:
    """Storages PyTorch saves in forward pass and loss, each once, weights left out."""
    network = create_network(plan)
    set_recompute(network, recompute)
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in weights:
            kept[pointer] = tensor  # holding it keeps its address from being given to another
        return tensor

    image = torch.randn(batch, plan.in_channels, *plan.patch_size)
    labels = torch.randint(0, plan.out_channels, (batch, *plan.patch_size))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        deep_supervision_loss(network(image), labels, exclusive_classes(plan.out_channels))
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


CASES = {
    "paper": (small_plan(), 1, False),
    "paper, recomputed": (small_plan(), 1, True),
    "released uni": (small_plan("mamba_unet_unidirectional", preset="released"), 1, False),
    "released bi, batch 2": (small_plan("mamba_unet_bidirectional", preset="released", blocks=2), 2, False),
    "released bi, recomputed": (small_plan("mamba_unet_bidirectional", preset="released"), 1, True),
    "released multi, 4 channels": (small_plan(preset="released", channels=4), 1, False),
    "released multi, recomputed": (small_plan(preset="released"), 2, True),
    "many states": (small_plan(features=(8, 16, 64), d_state_max=64), 1, False),
    "one order": (small_plan(scan_orders=("WDH:both",)), 1, False),
    "two stages with Mamba": (small_plan(mamba_stages=(1, 2)), 1, False),
    "thick slices": (small_plan(patch=(4, 32, 32), stride=(1, 2, 2)), 1, False),
}


@pytest.mark.parametrize("case", CASES)
def test_the_model_counts_what_autograd_keeps(case: str) -> None:
    plan, batch, recompute = CASES[case]
    estimate = estimate_step(plan, StepSettings(batch, half=False, recompute=recompute))
    assert estimate.kept == pytest.approx(bytes_autograd_keeps(plan, batch, recompute), rel=TOLERANCE)


def test_weights_take_four_values_each_with_adam_and_three_with_sgd() -> None:
    plan = small_plan()
    count = sum(parameter.numel() for parameter in create_network(plan).parameters())
    assert estimate_step(plan, StepSettings(half=False)).weights == 16 * count
    assert estimate_step(plan, StepSettings(half=False, optimizer_values=1)).weights == 12 * count


def test_scan_orders_and_states_cost_what_they_add() -> None:
    """By hand: one more direction on 4096 tokens of 8 channels, released head, d_state 8."""
    one = estimate_step(small_plan(features=(8, 16), scan_orders=("HWD",), mamba_stages=(0,), head="linear"))
    two = estimate_step(small_plan(features=(8, 16), scan_orders=("HWD", "DWH"), mamba_stages=(0,), head="linear"))
    tokens, values = 2 * 4096, 8 + 4 * 8 + 16 + 16 + 16 + (1 + 2 * 8) + 16 + 4
    assert two.mamba - one.mamba == 4 * tokens * values
    deep = estimate_step(small_plan(features=(8, 16), scan_orders=("HWD",), mamba_stages=(0,), d_state_max=2))
    shallow = estimate_step(small_plan(features=(8, 16), scan_orders=("HWD",), mamba_stages=(0,), d_state_max=1))
    assert deep.mamba - shallow.mamba == 4 * tokens * 2


def test_recomputing_saves_most_of_the_mamba_layers_at_full_size() -> None:
    network = named_plan("synapse").plan.network
    usual, again = (estimate_step(network, StepSettings(recompute=recompute)) for recompute in (False, True))
    assert again.mamba < usual.mamba / 10
    assert again.total < usual.total / 3


def test_a_plan_that_fits_stays_as_it_is() -> None:
    plan = named_plan("acdc").plan
    assert fit_to_budget(plan, 80, StepSettings(recompute=True)) is plan


@pytest.mark.parametrize("gigabytes", [8, 24])
def test_a_smaller_budget_gives_a_patch_that_fits_and_is_not_wastefully_small(gigabytes: float) -> None:
    plan, settings = named_plan("synapse").plan, StepSettings(recompute=True)
    fitted = fit_to_budget(plan, gigabytes, settings, median_shape=(147, 512, 512))
    used = estimate_step(fitted.network, settings).total / 1e9
    assert gigabytes * 0.7 < used <= gigabytes
    strides = [[stage.stride[axis] for stage in fitted.network.stages] for axis in range(3)]
    for size, axis in zip(fitted.patch_size, strides, strict=True):
        assert size % torch.tensor(axis).prod().item() == 0
    assert fitted.spacing_mm == plan.spacing_mm


def test_an_impossible_budget_is_refused_with_what_could_be_done() -> None:
    with pytest.raises(InputError, match="Recompute the Mamba layers"):
        fit_to_budget(replace(named_plan("acdc").plan, network=small_plan(patch=(8, 8, 8))), 0.5)


def test_a_network_without_a_model_is_refused() -> None:
    with pytest.raises(InputError, match="no memory model of nnunet"):
        estimate_step(replace(small_plan(), name="nnunet"))
