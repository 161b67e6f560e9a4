"""Deterministic training on a real GPU: every network the table says can, twice, to the same weights; the others are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from MambaSegTraining.batches import Batch
from MambaSegTraining.determinism import deterministic_algorithms, require_determinism
from MambaSegTraining.fold_training import FoldJob, train_step
from MambaSegTraining.recipe import Recipe
from MambaSegTraining.run_folder import RunFolder
from MambaSegTraining.training_state import TrainingState

from MambaSegLib.devices import measured_convolutions
from MambaSegLib.errors import InputError
from MambaSegLib.networks import NETWORKS, create_network, fit_patch
from MambaSegLib.plan import NetworkPlan, StagePlan
from MambaSegLib.readout import exclusive_classes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this computer"),
]

STAGES = (StagePlan(8, (1, 1, 1), (3, 3, 3), 1), StagePlan(16, (2, 2, 2), (3, 3, 3), 1))
STEPS = 3


def _trained(plan: NetworkPlan) -> dict[str, torch.Tensor]:
    recipe = Recipe(amp="bf16", deterministic=True)
    job = FoldJob(RunFolder(Path()), 0, recipe, "cuda")
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    with deterministic_algorithms(wanted=True, device="cuda"), measured_convolutions():
        state = TrainingState(create_network(plan), recipe, "cuda")
        require_determinism(plan.name, state.network, "cuda", "auto")
        for _ in range(STEPS):
            image = torch.randn((2, 1, *plan.patch_size), generator=generator)
            labels = torch.randint(3, (2, *plan.patch_size), generator=generator)
            train_step(state, Batch(image, labels), job, exclusive_classes(3))
    return {name: weights.cpu() for name, weights in state.weights().items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_two_trainings_give_the_same_weights_to_the_bit_or_are_refused(
    name: str, narrow_options: dict[str, dict[str, object]]
) -> None:
    plan = fit_patch(NetworkPlan(name, 1, 3, (16, 32, 32), STAGES, True, narrow_options.get(name, {})))
    if not NETWORKS[name].deterministic_on_gpu:
        with pytest.raises(InputError, match="no deterministic gradient"):
            _trained(plan)
        return
    first, second = _trained(plan), _trained(plan)
    assert all(torch.equal(first[key], second[key]) for key in first)
