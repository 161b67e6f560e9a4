"""Fused instance normalization against PyTorch's, step by step in Triton's interpreter; blocks are tiny so that all edges occur."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

if torch.cuda.is_available():
    pytest.skip("the kernels are compiled here; Testing/gpu tests them", allow_module_level=True)

from torch import nn
from torch.nn import functional

from MambaSegLib.networks import create_network, fused_norm, norm_launch
from MambaSegLib.networks.conv_norm import ConvNorm, activation
from MambaSegLib.networks.unet import ResidualBlock
from MambaSegLib.plan import NetworkPlan, StagePlan

if TYPE_CHECKING:
    from torch import Tensor

FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last_3d}
# Rounding of float32 to 6e-8, once in the sums and once in the result.
FORWARD_TOLERANCE = 1e-6
# Gradients are differences of sums that cancel in part.
GRADIENT_TOLERANCE = 1e-5
SHAPES = {
    "odd": (1, 3, 3, 5, 7),
    "even, two entries": (2, 4, 2, 4, 8),
    "one channel": (2, 1, 3, 3, 3),
    "more channels than a block": (1, 9, 2, 3, 3),
    "few voxels": (2, 3, 1, 2, 3),
    "two voxels": (2, 3, 1, 1, 2),
}


@pytest.fixture(params=["rows in one block", "rows in pieces"])
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "rows in pieces":
        for name, value in (("WHOLE", 0), ("TILE", 16), ("WIDTH", 4), ("PROGRAMS", 6)):
            monkeypatch.setattr(norm_launch, name, value)
        monkeypatch.setattr(norm_launch, "JOIN", norm_launch.JOIN | {"PARTS": 2})


@pytest.fixture
def _fused_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_norm, "is_available", lambda device: True)


def norm_of(channels: int) -> nn.InstanceNorm3d:
    generator = torch.Generator().manual_seed(1)
    norm = nn.InstanceNorm3d(channels, affine=True)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(channels, generator=generator))
        norm.bias.copy_(torch.randn(channels, generator=generator))
    return norm


def random_map(shape: tuple[int, ...], layout: str, seed: int = 0) -> Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return made.contiguous(memory_format=FORMATS[layout])


def wanted(x: Tensor, norm: nn.InstanceNorm3d, residual: Tensor | None, slope: float) -> Tensor:
    """PyTorch's modules in float64."""
    y = functional.instance_norm(x.double(), weight=norm.weight.double(), bias=norm.bias.double(), eps=norm.eps)
    return functional.leaky_relu(y if residual is None else y + residual.double(), slope)


def relative_error(found: Tensor, reference: Tensor) -> float:
    return float((found.double() - reference.double()).norm() / reference.double().norm())


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_norm_residual_and_activation_are_those_of_pytorch(name, layout):
    x, residual = (random_map(SHAPES[name], layout, seed) for seed in range(2))
    norm = norm_of(x.shape[1])
    for extra, slope in itertools.product((None, residual), (1.0, 0.01)):
        found = fused_norm.norm_activation(x, norm, extra, slope)
        assert relative_error(found, wanted(x, norm, extra, slope)) <= FORWARD_TOLERANCE
        assert found.is_contiguous(memory_format=FORMATS[layout])


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("layout", FORMATS)
@torch.no_grad()
def test_a_constant_channel_becomes_its_bias_and_a_large_mean_costs_no_digits(layout):
    x, norm = random_map((2, 3, 3, 4, 5), layout), norm_of(3)
    x[:, 0], x[:, 1] = 0.1, x[:, 1] + 1000
    found = fused_norm.norm_activation(x, norm)
    assert torch.equal(found[:, 0], norm.bias[0].expand(found[:, 0].shape))
    assert (
        relative_error(found[:, 1], wanted(x, norm, None, 1)[:, 1]) <= FORWARD_TOLERANCE * 100
    )  # x itself: 1000 * 6e-8


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_types_are_rounded_once_at_the_end(kind):
    x, residual = (random_map((2, 3, 3, 4, 5), "contiguous", seed).to(kind) for seed in range(2))
    norm = norm_of(3)
    found = fused_norm.norm_activation(x, norm, residual, 0.01)
    assert found.dtype == kind
    # A GPU rounds to the nearest, the interpreter may cut off.
    torch.testing.assert_close(found.double(), wanted(x, norm, residual, 0.01), rtol=torch.finfo(kind).eps, atol=1e-6)
    assert fused_norm.norm_activation(x, norm, residual.float(), 0.01).dtype == torch.float32


def with_gradients(
    x: Tensor, residual: Tensor | None, norm: nn.InstanceNorm3d, slope: float, fused: bool
) -> dict[str, Tensor]:
    """Result and every gradient; not fused, in float64."""
    tensors = {"x": x, "residual": residual, "weight": norm.weight, "bias": norm.bias}
    leaves = {
        name: (t if fused else t.double()).detach().requires_grad_() for name, t in tensors.items() if t is not None
    }
    own = nn.InstanceNorm3d(x.shape[1], norm.eps, affine=True)
    own.weight, own.bias = (nn.Parameter(leaves[name].detach()) for name in ("weight", "bias"))
    leaves |= {"weight": own.weight, "bias": own.bias}
    made = fused_norm.norm_activation if fused else wanted
    y = made(leaves["x"], own, leaves.get("residual"), slope)
    outer = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    y.backward(outer.to(y.dtype))
    return {"result": y.detach()} | {name: leaf.grad for name, leaf in leaves.items()}


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize(
    "name", sorted(SHAPES.keys() - {"two voxels"})
)  # always 1 and -1: the gradient is 0 but for rounding
def test_all_gradients_are_those_of_pytorch(name, layout):
    x, residual = (random_map(SHAPES[name], layout, seed) for seed in range(2))
    norm = norm_of(x.shape[1])
    for extra, slope in ((None, 1.0), (None, 0.01), (residual, 1.0), (residual, 0.01)):
        found, reference = (with_gradients(x, extra, norm, slope, fused) for fused in (True, False))
        assert found.keys() == reference.keys()
        for key, value in reference.items():
            assert relative_error(found[key], value) <= GRADIENT_TOLERANCE, (key, extra is None, slope)


@pytest.mark.usefixtures("_blocks")
def test_gradients_of_half_types_come_back_in_kind():
    x, residual = (random_map((2, 3, 3, 4, 5), "contiguous", seed).bfloat16() for seed in range(2))
    for extra in (residual, residual.float()):
        found, reference = (with_gradients(x, extra, norm_of(3), 0.01, fused) for fused in (True, False))
        assert (found["x"].dtype, found["residual"].dtype) == (torch.bfloat16, extra.dtype)
        assert found["weight"].dtype == torch.float32
        for key, value in reference.items():
            assert relative_error(found[key], value) <= 2**-7, key  # 8 bits, which the interpreter cuts off


@pytest.mark.usefixtures("_fused_on_cpu")
def test_training_keeps_nothing_but_what_convolutions_made_and_the_block_returned():
    block, kept = ResidualBlock(4, 4, (3, 3, 3)), {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        block(torch.ones(1, 4, 4, 4, 4))
    # The input; after the first convolution, its norm and the second convolution; the result.
    assert sum(count == 256 for count in kept.values()) == 5


@pytest.mark.usefixtures("_blocks")
@torch.no_grad()
def test_in_place_the_map_is_overwritten_and_nothing_around_it():
    frame = torch.full((3, 3, 3, 4, 5), torch.nan)
    frame[1] = random_map((3, 3, 4, 5), "contiguous")
    x, norm, residual = frame[1:2], norm_of(3), random_map((1, 3, 3, 4, 5), "channels last", 1)
    separate = fused_norm.norm_activation(x, norm, residual, 0.01)
    found = fused_norm.norm_activation(x, norm, residual, 0.01, in_place=True)
    assert found.data_ptr() == x.data_ptr()
    assert torch.equal(found, separate)
    assert frame[[0, 2]].isnan().all()


def test_maps_that_pytorch_has_to_refuse_or_that_lie_in_steps_are_left_to_it():
    norm, x = norm_of(3).requires_grad_(False), random_map((1, 3, 2, 4, 6), "contiguous")
    assert fused_norm.can_read(x, norm)
    assert fused_norm.can_read(x.contiguous(memory_format=torch.channels_last_3d), norm)
    assert not fused_norm.can_read(x[..., ::2], norm)
    assert not fused_norm.can_read(x.double(), norm)
    assert not fused_norm.can_read(x[:, :2], norm)
    assert not fused_norm.can_read(x[:0], norm)
    assert not fused_norm.can_read(x, nn.InstanceNorm3d(3))
    assert not fused_norm.can_read(x, nn.InstanceNorm3d(3, affine=True, track_running_stats=True))
    assert not fused_norm.is_available(x.device)


@pytest.mark.usefixtures("_fused_on_cpu")
def test_a_single_voxel_is_refused_as_by_pytorch():
    with torch.no_grad(), pytest.raises(ValueError, match="more than 1 spatial element"):
        ConvNorm(3, 4, (1, 1, 1), (1, 1, 1), bias=True)(torch.ones(2, 3, 1, 1, 1))


def test_it_says_why_it_cannot_run_here_and_its_probe_agrees_with_pytorch(monkeypatch):
    assert "need an NVIDIA GPU" in fused_norm.why_unavailable("cpu")
    assert fused_norm._probe_failure("cpu") is None
    real = norm_launch.run_backward
    monkeypatch.setattr(norm_launch, "run_backward", lambda *arguments: [t * 2 for t in real(*arguments)])
    assert "is off by" in fused_norm._probe_failure("cpu")


def test_its_probe_is_in_float32_whatever_the_program_around_set_and_needs_memory(monkeypatch):
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert fused_norm._probe_failure("cpu") is None
            assert {t.dtype for t in fused_norm._probe("cpu", fused=True)} == {torch.float32}
    finally:
        torch.set_default_dtype(torch.float32)

    def without_memory(device: str, fused: bool) -> None:
        raise torch.OutOfMemoryError

    # Not an answer: it would be kept when memory is free again.
    monkeypatch.setattr(fused_norm, "_probe", without_memory)
    with pytest.raises(torch.OutOfMemoryError):
        fused_norm._probe_failure("cpu")


def blocks_to_compare() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        "same shape": ResidualBlock(4, 4, (3, 3, 3)),
        "strided": ResidualBlock(4, 6, (1, 3, 3), (1, 2, 2)),
        "norm alone": ConvNorm(4, 5, (3, 3, 3), (1, 1, 1), bias=False),
    }


@pytest.mark.parametrize("name", ["same shape", "strided", "norm alone"])
@torch.no_grad()
def test_blocks_compute_the_same_fused(name, monkeypatch):
    block, x = blocks_to_compare()[name], random_map((2, 4, 4, 6, 6), "contiguous")
    for part in block.modules():
        if isinstance(part, nn.InstanceNorm3d | nn.Conv3d) and part.bias is not None:
            nn.init.normal_(part.bias)
        if isinstance(part, nn.InstanceNorm3d):
            nn.init.normal_(part.weight)
    plain = block(x)
    monkeypatch.setattr(fused_norm, "is_available", lambda device: True)
    image = x.clone()
    assert relative_error(block(x), plain) <= 3 * FORWARD_TOLERANCE
    assert torch.equal(x, image)


def test_blocks_learn_the_same_fused(monkeypatch):
    block, x = blocks_to_compare()["strided"], random_map((2, 4, 4, 6, 6), "contiguous")
    plain = gradients_of(block, x)
    monkeypatch.setattr(fused_norm, "is_available", lambda device: True)
    for name, gradient in gradients_of(block, x).items():
        if name.endswith("0.bias"):
            continue  # zero but for rounding: the norm takes the bias away
        assert relative_error(gradient, plain[name]) <= 3 * GRADIENT_TOLERANCE, name


def gradients_of(block: nn.Module, x: Tensor) -> dict[str, Tensor]:
    block.zero_grad()
    block(x).square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in block.named_parameters()}


@pytest.mark.parametrize("name", ["nnunet", "nnunet_resenc", "umamba_bot", "mamba_unet_multidirectional"])
@torch.inference_mode()
def test_whole_networks_predict_the_same_fused(name, monkeypatch):
    stages = (StagePlan(4, (1, 1, 1), (3, 3, 3), 1), StagePlan(8, (1, 2, 2), (3, 3, 3), 2))
    network = create_network(NetworkPlan(name, 1, 3, (4, 8, 8), stages, False)).eval()
    x = random_map((1, 1, 4, 8, 8), "contiguous")
    plain = network(x)[0]
    calls: list[Any] = []

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        return real(*arguments, **options)

    real = fused_norm.norm_activation
    monkeypatch.setattr(fused_norm, "is_available", lambda device: True)
    monkeypatch.setattr(fused_norm, "norm_activation", counted)
    assert relative_error(network(x)[0], plain) <= 10 * FORWARD_TOLERANCE
    assert len(calls) == sum(isinstance(part, nn.InstanceNorm3d) for part in network.modules())


def test_weights_keep_the_names_of_plain_sequences():
    names = ResidualBlock(4, 6, (3, 3, 3), (2, 2, 2)).state_dict().keys()
    assert {n.rsplit(".", 1)[0] for n in names} == {
        "first.0.0", "first.0.1", "second.0", "second.1", "shortcut.1.0", "shortcut.1.1",
    }  # fmt: skip
    assert activation().inplace
