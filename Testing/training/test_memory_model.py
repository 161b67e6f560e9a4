"""The memory model against what PyTorch really keeps for the backward pass, and the patch that fits a budget."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from MambaSegTraining.losses import deep_supervision_loss
from MambaSegTraining.mamba_memory import mamba_cost
from MambaSegTraining.memory_model import DRIVER_BYTES, StepSettings, estimate_step, fit_to_budget
from MambaSegTraining.named_plans import named_plan

from MambaSegLib.errors import InputError
from MambaSegLib.networks import create_network, set_recompute
from MambaSegLib.networks.mamba import MambaLayer3d, MambaScan
from MambaSegLib.networks.mamba_options import resolve_mamba_options
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
    image = torch.randn(batch, plan.in_channels, *plan.patch_size)
    labels = torch.randint(0, plan.out_channels, (batch, *plan.patch_size))
    return bytes_kept_by(
        network, lambda: deep_supervision_loss(network(image), labels, exclusive_classes(plan.out_channels))
    )


def bytes_kept_by(network: torch.nn.Module, compute: Callable[[], object]) -> int:
    """The same for any computation of a network."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in weights:
            kept[pointer] = tensor  # holding it keeps its address from being given to another
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = compute()
        assert result is not None  # and alive: what hangs on it is kept
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
    estimate = estimate_step(plan, StepSettings(batch, half=False, recompute=recompute, scan="indexed"))
    kept = estimate.kept + estimate.states
    assert kept == pytest.approx(bytes_autograd_keeps(plan, batch, recompute), rel=TOLERANCE)


class Unlaunched:
    """A kernel that does nothing: what is kept depends on shapes and types alone."""

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return lambda *arguments, **options: None


@pytest.fixture
def side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mamba layers compute as on a GPU, their kernels left out."""
    pytest.importorskip("triton")
    from MambaSegLib.networks import mamba
    from MambaSegLib.scan import triton_backend, triton_launch, triton_norms

    def run_forward(operands: Any, walk: object, softplus: bool) -> tuple[torch.Tensor, torch.Tensor]:
        u, A = operands.u, operands.A
        return torch.zeros(u.shape, dtype=u.dtype), torch.zeros(u.shape[0] * u.shape[1], *A.shape[1:])

    def run_convolution(x: torch.Tensor, *_: object) -> torch.Tensor:
        return torch.zeros(x.shape, dtype=x.dtype)

    monkeypatch.setattr(mamba, "share_launches", lambda device, backend: True)
    monkeypatch.setattr(triton_backend, "why_unavailable", lambda device, needs_gradient: None)
    monkeypatch.setattr(triton_launch, "run_forward", run_forward)
    monkeypatch.setattr(triton_launch, "run_convolution", run_convolution)
    for name in ("add_norm", "sum_paths"):
        monkeypatch.setattr(triton_norms, name, Unlaunched())
    built = MambaScan._build_scan

    def for_triton(self: MambaScan, *sizes: int) -> None:
        built(self, *sizes)
        self.scan_backend = "triton"

    monkeypatch.setattr(MambaScan, "_build_scan", for_triton)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("side_by_side")
def test_the_model_counts_what_directions_side_by_side_keep(case: str) -> None:
    plan, batch, recompute = CASES[case]
    estimate = estimate_step(plan, StepSettings(batch, half=False, mamba_half=False, recompute=recompute))
    assert estimate.kept == pytest.approx(bytes_autograd_keeps(plan, batch, recompute), rel=TOLERANCE)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("one_at_a_time", [False, True])
@pytest.mark.parametrize("name", ["paper", "released multi, 4 channels", "one order", "released bi, batch 2"])
@pytest.mark.usefixtures("side_by_side")
def test_the_model_counts_one_layer_side_by_side_in_either_precision(
    name: str, half: bool, one_at_a_time: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from MambaSegLib.networks import mamba_directions

    if one_at_a_time:
        monkeypatch.setattr(mamba_directions, "paths_at_once", lambda *sizes: 1)
    options = resolve_mamba_options(CASES[name][0])[1]
    layer = MambaLayer3d(24, options.paths(), 16, options.outer_norm, options.head)
    features = torch.randn(2, 24, 8, 16, 16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        kept = bytes_kept_by(layer, lambda: layer(features))
    options = replace(options, d_state_max=16)
    modelled = mamba_cost(24, 2 * 8 * 16 * 16, options, "side_by_side", recompute=False, half=half)
    assert modelled.kept == pytest.approx(kept, rel=TOLERANCE)


@pytest.mark.parametrize(("variant", "recompute"), [("triton", False), ("triton, recomputed", True)])
def test_the_estimate_is_on_the_safe_side_of_what_an_h200_needed(variant: str, recompute: bool) -> None:
    """The benchmark counts from after weights and the optimizer's moments were there."""
    results = Path(__file__).resolve().parents[1] / "gpu" / "results" / "h200_multidirectional.json"
    rows = json.loads(results.read_text())["rows"]
    case = "synapse mamba_unet_multidirectional training step, batch 2"
    (measured,) = (row["peak_bytes"] for row in rows if (row["case"], row["variant"]) == (case, variant))
    network = named_plan("synapse").plan.network
    estimate = estimate_step(network, StepSettings(recompute=recompute))
    there_before = 12 / 18 * estimate.weights
    assert measured < estimate.total - there_before - DRIVER_BYTES < 1.2 * measured


def test_weights_take_four_values_each_with_adam_and_three_with_sgd() -> None:
    plan = small_plan()
    count = sum(parameter.numel() for parameter in create_network(plan).parameters())
    assert estimate_step(plan, StepSettings(half=False)).weights == 16 * count
    assert estimate_step(plan, StepSettings(half=False, optimizer_values=1)).weights == 12 * count


def test_scan_orders_and_states_cost_what_they_add() -> None:
    """By hand: one more direction on 4096 tokens of 8 channels, released head, d_state 8."""
    plans = [
        small_plan(features=(8, 16), scan_orders=orders, mamba_stages=(0,), head="linear")
        for orders in (("HWD",), ("HWD", "DWH"))
    ]
    tokens, values = 2 * 4096, 8 + 4 * 8 + 16 + 16 + 16 + (1 + 2 * 8) + 16 + 4
    one, two = (estimate_step(plan, StepSettings(scan="indexed")) for plan in plans)
    assert two.mamba - one.mamba == 4 * tokens * values
    one, two = (estimate_step(plan) for plan in plans)
    values = 4 * 8 + 16 + (16 + 2 * 8) + 16 + 8 + 8  # x and z; u; delta, B and C; y; before and after the second norm
    weights = 4 * (32 * 8 + 8 * 8 + 2 * 16 * 8) + 2 * (32 * 8 + 8 * 8 + 16 * (16 + 2 * 8) + 16 * 8)
    assert two.mamba - one.mamba == 2 * tokens * values + weights
    deep, shallow = (
        estimate_step(
            small_plan(features=(8, 16), scan_orders=("HWD",), mamba_stages=(0,), d_state_max=most),
            StepSettings(scan="indexed"),
        )
        for most in (2, 1)
    )
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
