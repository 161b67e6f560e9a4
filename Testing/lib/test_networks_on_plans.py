"""Every network of the table on the plans of the paper's three data sets, and on a small patch."""

import pytest
import torch
from MambaSegTraining.architecture import plan_architecture
from MambaSegTraining.named_plans import NAMED_PLANS, named_plan
from MambaSegTraining.settings import NetworkSettings

from MambaSegLib.networks import create_network, fit_patch, list_networks
from MambaSegLib.plan import NetworkPlan

NAMES = [entry.name for entry in list_networks()]


@pytest.mark.parametrize("dataset", NAMED_PLANS)
@pytest.mark.parametrize("name", NAMES)
def test_each_takes_the_plan_of_each_data_set_of_the_paper(name, dataset):
    plan = named_plan(dataset, name).plan.network
    original = named_plan(dataset).plan.network.patch_size
    assert all(0 <= fitting - size < 32 for fitting, size in zip(plan.patch_size, original, strict=True))
    with torch.device("meta"):  # shapes only: no memory, no time
        network = create_network(plan)
        if "mamba" in name:  # the scan has no such device
            return
        outputs = network(torch.empty(1, plan.in_channels, *plan.patch_size))
    assert tuple(outputs[0].shape) == (1, plan.out_channels, *plan.patch_size)
    assert all(logits.shape[1] == plan.out_channels for logits in outputs)
    assert [logits.shape[2:].numel() for logits in outputs] == sorted(
        (logits.shape[2:].numel() for logits in outputs), reverse=True
    )


@pytest.mark.parametrize("name", NAMES)
def test_each_takes_thick_slices(name, narrow_options):
    spacing, patch = (6.35, 1.52, 1.52), (6, 32, 48)
    patch, stages = plan_architecture(spacing, patch, 4, NetworkSettings(name, features=(4, 6, 8, 8)), patch)
    assert [stage.stride for stage in stages] == [(1, 1, 1), (1, 2, 2), (1, 2, 2), (1, 2, 2)]
    plan = fit_patch(NetworkPlan(name, 1, 4, patch, stages, True, narrow_options.get(name, {})))
    fitted = {"unetr": (16, 32, 48), "swin_unetr": (32, 32, 64)}
    assert plan.patch_size == fitted.get(name, patch)
    torch.manual_seed(0)
    with torch.no_grad():
        outputs = create_network(plan).eval()(torch.randn(1, 1, *plan.patch_size))
    assert tuple(outputs[0].shape) == (1, 4, *plan.patch_size)
    assert all(logits.isfinite().all() for logits in outputs)


@pytest.mark.parametrize("name", NAMES)
def test_each_takes_a_small_patch_or_the_next_larger_one(name, narrow_options):
    patch, stages = plan_architecture(
        (1.0, 1.0, 1.0), (32, 48, 32), 3, NetworkSettings(name, features=(4, 6, 8, 8)), (32, 48, 32)
    )
    plan = fit_patch(NetworkPlan(name, 1, 3, patch, stages, True, narrow_options.get(name, {})))
    assert patch == (32, 48, 32)
    assert plan.patch_size == ((32, 64, 32) if name == "swin_unetr" else patch)
    torch.manual_seed(0)
    with torch.no_grad():
        outputs = create_network(plan).eval()(torch.randn(1, 1, *plan.patch_size))
    assert tuple(outputs[0].shape) == (1, 3, *plan.patch_size)
    assert all(logits.isfinite().all() for logits in outputs)
