"""Every network of the table: shapes, finite numbers, a gradient in each parameter, options that are checked."""

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from MambaSegLib.bundle_network import network_with_weights
from MambaSegLib.errors import InputError
from MambaSegLib.networks import create_network, fit_patch, list_networks, resolve_plan, set_recompute, set_scan_backend
from MambaSegLib.plan import NetworkPlan, StagePlan

NAMES = [entry.name for entry in list_networks()]
WITH_PRESETS = [name for name in NAMES if name.startswith("mamba_unet_")]


@pytest.fixture
def small_plan(narrow_options):
    """Makes a plan of three small stages from a network's name and options."""
    stages = (
        StagePlan(4, (1, 1, 1), (1, 3, 3), blocks=1),
        StagePlan(6, (1, 2, 2), (3, 3, 3), blocks=2),
        StagePlan(8, (2, 2, 2), (3, 3, 3), blocks=1),
    )

    def make(name: str, **options) -> NetworkPlan:
        return fit_patch(NetworkPlan(name, 2, 3, (4, 8, 8), stages, True, {**narrow_options.get(name, {}), **options}))

    return make


@pytest.mark.parametrize("name", NAMES)
def test_logits_come_finest_first_and_the_first_have_the_size_of_the_patch(name, small_plan):
    torch.manual_seed(0)
    plan = small_plan(name)
    outputs = create_network(plan)(torch.randn(2, 2, *plan.patch_size))
    sizes = [logits.shape[2:] for logits in outputs]
    assert tuple(sizes[0]) == plan.patch_size
    assert all(min(f - c for f, c in zip(fine, coarse, strict=True)) >= 0 for fine, coarse in pairwise(sizes))
    assert {logits.shape[:2] for logits in outputs} == {(2, 3)}


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name.startswith(("mamba_unet", "nnunet", "umamba", "transunet"))]
)
def test_a_u_net_of_the_plans_stages_has_an_output_at_each_but_the_deepest(name, small_plan):
    outputs = create_network(small_plan(name))(torch.randn(2, 2, 4, 8, 8))
    assert [tuple(logits.shape) for logits in outputs] == [(2, 3, 4, 8, 8), (2, 3, 4, 4, 4)]


@pytest.mark.parametrize("entry", list_networks(), ids=lambda entry: entry.name)
def test_the_table_says_whose_outputs_can_be_negative(entry, small_plan):
    torch.manual_seed(0)
    plan = small_plan(entry.name)
    with torch.no_grad():
        finest = create_network(plan)(torch.randn(2, 2, *plan.patch_size))[0]
    assert bool((finest < 0).any()) == entry.negative_logits


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_a_gradient(name, small_plan):
    torch.manual_seed(0)
    plan = small_plan(name)
    network = create_network(plan)
    outputs = network(torch.randn(2, 2, *plan.patch_size))
    sum(logits.square().mean() for logits in outputs).backward()
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize("name", NAMES)
def test_without_deep_supervision_only_the_finest_output_is_computed_and_it_is_the_same(name, small_plan):
    torch.manual_seed(0)
    plan = small_plan(name)
    network = create_network(plan).eval()
    image = torch.randn(1, 2, *plan.patch_size)
    with torch.no_grad():
        finest = network(image)[0]
        network.deep_supervision = False
        (alone,) = network(image)
    torch.testing.assert_close(alone, finest, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_the_scan_backend_reaches_every_mamba_block(name, small_plan):
    network = create_network(small_plan(name))
    set_scan_backend(network, "pytorch")
    blocks = [module for module in network.modules() if "A_log" in dict(module.named_parameters(recurse=False))]
    assert bool(blocks) == ("mamba" in name)
    assert all(block.scan_backend == "pytorch" for block in blocks)


@pytest.mark.parametrize("name", [name for name in NAMES if "mamba" in name])
def test_recomputing_reaches_every_mamba_layer_and_changes_no_gradient(name, small_plan):
    torch.manual_seed(0)
    plan = small_plan(name)
    network = create_network(plan)
    image = torch.randn(2, 2, *plan.patch_size)
    gradients, kept_values = [], []

    def count(tensor):
        kept_values[-1] += tensor.numel()
        return tensor

    for recompute in (False, True):
        set_recompute(network, recompute)
        network.zero_grad()
        kept_values.append(0)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            outputs = network(image)
        sum(logits.square().mean() for logits in outputs).backward()
        gradients.append([parameter.grad.clone() for parameter in network.parameters()])
    assert kept_values[1] < kept_values[0]
    for kept, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, kept, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_mixed_precision_trains_and_changes_little(name, small_plan):
    torch.manual_seed(0)
    plan = small_plan(name)
    network = create_network(plan)
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    image = torch.randn(2, 2, *plan.patch_size)
    with torch.no_grad():
        expected = network.eval()(image)[0]
    with torch.autocast("cpu", torch.bfloat16):
        outputs = network(image)
    sum(logits.float().square().mean() for logits in outputs).backward()
    # Left out: oneDNN's bfloat16 weight gradient of a 3 x 3 x 3 convolution on a map of exactly two slices holds whatever
    # was in memory (PyTorch 2.13, AVX-512).
    others = [parameter for parameter in network.parameters() if parameter.dim() != 5]
    assert all(parameter.grad.isfinite().all() for parameter in others)
    # bfloat16 keeps 8 bits and dozens of layers in sequence add up; a layer in the wrong precision is far worse.
    correlation = torch.corrcoef(torch.stack((outputs[0].float().flatten(), expected.flatten())))[0, 1]
    assert correlation > 0.95


@pytest.mark.parametrize("name", NAMES)
def test_every_network_computes_in_float64_where_asked_to(name, small_plan):
    torch.manual_seed(0)
    plan = small_plan(name)
    network = create_network(plan).eval()
    image = torch.randn(1, 2, *plan.patch_size)
    with torch.no_grad():
        single, double = network(image)[0], network.double()(image.double())[0]
    assert double.dtype == torch.float64
    assert float((single - double).norm() / double.norm()) < 1e-4  # rounding in float32 leaves about 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_stored_weights_make_the_same_network_again(name, small_plan):
    torch.manual_seed(0)
    plan = resolve_plan(small_plan(name))
    network = create_network(plan).eval()
    again = network_with_weights(plan, network.state_dict(), name).eval()
    image = torch.randn(1, 2, *plan.patch_size)
    with torch.no_grad():
        torch.testing.assert_close(again(image)[0], network(image)[0], rtol=0, atol=0)


@pytest.mark.parametrize("name", WITH_PRESETS)
@pytest.mark.parametrize("preset", ["paper", "released"])
def test_a_resolved_plan_builds_the_same_network_as_its_preset(name, preset, small_plan):
    plan = resolve_plan(small_plan(name, preset=preset))
    assert "preset" not in plan.options
    torch.manual_seed(0)
    from_preset = create_network(small_plan(name, preset=preset)).state_dict()
    torch.manual_seed(0)
    from_resolved = create_network(plan).state_dict()
    assert from_preset.keys() == from_resolved.keys()
    assert all(torch.equal(from_preset[key], from_resolved[key]) for key in from_preset)


@pytest.mark.parametrize("name", NAMES)
def test_a_resolved_plan_stays_as_it_is_and_builds_the_same_network(name, small_plan):
    plan = small_plan(name)
    resolved = resolve_plan(plan)
    assert resolve_plan(resolved) == resolved
    assert set(plan.options) <= set(resolved.options)
    shapes = []
    for each in (plan, resolved):
        with torch.device("meta"):
            shapes.append({key: value.shape for key, value in create_network(each).state_dict().items()})
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", NAMES)
def test_an_option_no_network_has_is_refused(name, small_plan):
    with pytest.raises(InputError, match="option"):
        resolve_plan(small_plan(name, telepathy=True))
    with pytest.raises(InputError, match="option"):
        create_network(small_plan(name, telepathy=True))


def test_mamba_layers_can_be_placed_at_chosen_stages_only(small_plan):
    everywhere = create_network(small_plan("mamba_unet_unidirectional"))
    bottleneck = create_network(small_plan("mamba_unet_unidirectional", mamba_stages=(2,)))
    scans = [sum(name.endswith("A_log") for name in network.state_dict()) for network in (everywhere, bottleneck)]
    assert scans == [3, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "best"}, "paper, released"),
        ({"scan_orders": ("HWX:forward",)}, "HWX"),
        ({"scan_orders": ("HWD:sideways",)}, "sideways"),
        ({"scan_orders": ()}, "at least one"),
        ({"scan_orders": ("HWD:both", "HWD:both")}, "none twice"),
        ({"scan_orders": ("HWD", "HWD:forward")}, "none twice"),
        ({"d_state_max": 0}, "at least 1"),
        ({"d_state_max": "many"}, "int"),
        ({"head": "conv"}, "linear, mlp"),
        ({"heads": "mlp"}, "Unknown option"),
        ({"mamba_stages": (7,)}, "0 to 2"),
    ],
)
def test_an_option_that_cannot_be_built_is_refused_with_what_would_be_right(options, message, small_plan):
    with pytest.raises(InputError, match=message):
        create_network(small_plan("mamba_unet_multidirectional", **options))


def test_an_unknown_network_is_refused_with_the_names_there_are(small_plan):
    with pytest.raises(InputError, match="mamba_unet_unidirectional"):
        create_network(replace(small_plan(NAMES[0]), name="os.system"))


def test_a_plan_with_a_patch_the_network_cannot_take_is_refused_with_one_it_can(small_plan):
    plan = replace(small_plan("nnunet"), patch_size=(3, 8, 9))
    with pytest.raises(InputError, match=r"\(4, 8, 12\)"):
        create_network(plan)
    create_network(fit_patch(plan))


def test_a_patch_the_strides_do_not_divide_is_refused_in_words(small_plan):
    network = create_network(small_plan(NAMES[0]))
    with pytest.raises(ValueError, match=r"multiple of \(2, 4, 4\)"):
        network(torch.zeros(1, 2, 4, 8, 10))


def test_the_table_lists_without_pytorch():
    code = "import sys, MambaSegLib.networks as n; n.list_networks(); assert 'torch' not in sys.modules"
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
