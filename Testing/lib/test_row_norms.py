"""Residuals, LayerNorms and sums over paths: the kernels in Triton's interpreter against PyTorch's operations in float64."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

if torch.cuda.is_available():
    pytest.skip("the kernels are compiled here; Testing/gpu tests them", allow_module_level=True)

from MambaSegLib.networks.mamba import MambaLayer3d
from MambaSegLib.networks.mamba_directions import sum_of_paths
from MambaSegLib.scan import triton_backend, triton_norms_launch, triton_tuning
from MambaSegLib.scan.order import ScanPath
from MambaSegLib.scan.row_norms import add_norm, sum_paths, uses_kernels

if TYPE_CHECKING:
    from torch import Tensor

# float32 rounds to 6e-8; sums over a row, and for parameters over all rows, add to it.
FORWARD_TOLERANCE = 1e-6
GRADIENT_TOLERANCE = 1e-5
# 8 bits: a GPU rounds to the nearest, the interpreter cuts off.
HALF_TOLERANCE = 2**-7
EPS = 1e-5


@pytest.fixture(autouse=True)
def _several_small_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_backend, "why_unavailable", lambda device, needs_gradient: None)
    monkeypatch.setattr(triton_norms_launch, "BLOCK_ELEMENTS", 64)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative_error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def with_gradients(compute: Callable[..., Tensor], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    output = compute(**leaves)
    output.backward(random(*output.shape, seed=9).to(output.dtype))
    return {"output": output.detach()} | {f"gradient of {name}": t.grad for name, t in leaves.items()}


def compare(compute: Callable[..., Tensor], tensors: dict[str, Tensor], half: bool = False) -> None:
    """The kernels with these tensors, PyTorch with the same in float64."""
    found = with_gradients(lambda **t: compute(**t, backend="triton"), tensors)
    doubles = {name: t.double() for name, t in tensors.items()}
    wanted = with_gradients(lambda **t: compute(**t, backend="pytorch"), doubles)
    for name, value in wanted.items():
        tolerance = FORWARD_TOLERANCE if name == "output" else GRADIENT_TOLERANCE
        error = relative_error(found[name], value)
        assert error <= (HALF_TOLERANCE if half else tolerance), f"{name}: relative error {error:.1e}"
    for name, tensor in tensors.items():
        assert found[f"gradient of {name}"].dtype == tensor.dtype


def normalized(x: Tensor, residual: Tensor | None = None, backend: str = "auto", half: bool = False) -> Tensor:
    """In float32 or bfloat16; in float64 where that goes in."""
    dtype = x.dtype if x.dtype == torch.float64 else torch.bfloat16 if half else torch.float32
    return add_norm(x, residual, EPS, dtype, backend)


@pytest.mark.parametrize("channels", [4, 5, 32, 100])
def test_rows_of_any_width_are_normalized_as_pytorch_does_with_every_gradient(channels):
    compare(normalized, {"x": random(2, 7, channels) + 0.5})


@pytest.mark.parametrize("directions", [1, 3])
def test_a_residual_is_shared_by_the_directions_and_its_gradient_summed(directions):
    compare(normalized, {"x": random(directions, 2, 7, 6), "residual": random(2, 7, 6, seed=1)})


def test_no_rows_are_normalized_to_no_rows():
    x = random(3, 0, 7, 6).requires_grad_()
    residual = random(0, 7, 6).requires_grad_()
    found = normalized(x, residual, backend="triton")
    found.sum().backward()
    assert found.shape == x.grad.shape == x.shape
    assert residual.grad.shape == residual.shape


def test_bfloat16_goes_in_and_out_with_statistics_in_float32():
    tensors = {"x": random(3, 2, 7, 32).bfloat16(), "residual": 100 + random(2, 7, 32, seed=1)}
    compare(lambda **t: normalized(**t, half=True), tensors, half=True)
    assert normalized(**tensors, backend="triton", half=True).dtype == torch.bfloat16
    compare(normalized, {"x": random(1, 7, 32).bfloat16()}, half=True)


def test_a_mean_far_from_zero_costs_no_digits_of_the_variance():
    x = 1000 + random(8, 32)
    found, wanted = normalized(x, backend="triton"), normalized(x.double(), backend="pytorch")
    assert relative_error(found, wanted) < 1e-4  # the mean itself rounds to 6e-5; mean of squares would be off by 1e-2


def paths_of(directions: int, paths: int, channels: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    made = {
        "headed": random(directions, 2, 7, channels).to(dtype),
        "mixed": random(directions, 2, 7, channels, seed=1).to(dtype),
        "tokens": random(2, 7, channels, seed=2),
    }
    if directions > paths:
        made |= {"weight": 1 + random(paths, channels, seed=3), "bias": random(paths, channels, seed=4)}
    return made


def summed(paths: int) -> Callable[..., Tensor]:
    def compute(weight: Tensor | None = None, bias: Tensor | None = None, **tensors: Any) -> Tensor:
        return sum_paths(weight=weight, bias=bias, paths=paths, eps=EPS, **tensors)

    return compute


@pytest.mark.parametrize(
    ("directions", "paths", "channels"), [(1, 1, 6), (3, 3, 5), (2, 1, 32), (6, 3, 5), (2, 1, 100)]
)
@pytest.mark.parametrize("accumulates", [False, True])
def test_paths_are_summed_as_pytorch_does_with_every_gradient(directions, paths, channels, accumulates):
    tensors = paths_of(directions, paths, channels)
    if accumulates:
        tensors["before"] = random(2, 7, channels, seed=5)
    compare(summed(paths), tensors)


@pytest.mark.parametrize(("directions", "paths"), [(2, 2), (4, 2)])
def test_paths_in_bfloat16_are_summed_in_float32(directions, paths):
    tensors = paths_of(directions, paths, 16, torch.bfloat16)
    compare(summed(paths), tensors, half=True)
    found, wanted = (summed(paths)(**tensors, backend=name) for name in ("triton", "pytorch"))
    assert relative_error(found, wanted) <= FORWARD_TOLERANCE


def test_gradients_are_the_same_to_the_bit_every_time():
    runs = [with_gradients(lambda **t: summed(2)(**t, backend="triton"), paths_of(4, 2, 6)) for _ in range(2)]
    for name, value in runs[0].items():
        assert torch.equal(value, runs[1][name]), name


def test_nothing_but_the_inputs_is_kept_for_the_gradients():
    tensors = {name: t.requires_grad_() for name, t in paths_of(4, 2, 6, torch.bfloat16).items()}
    inputs = {t.untyped_storage().data_ptr() for t in tensors.values()}
    kept: set[int] = set()

    def note(tensor: Tensor) -> Tensor:
        kept.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        total = summed(2)(**tensors, backend="triton")
        plain = add_norm(tensors["mixed"], tensors["tokens"], EPS, torch.bfloat16, "triton")
    assert total.requires_grad
    assert plain.requires_grad
    assert kept
    assert kept <= inputs


def test_memory_around_the_tensors_is_not_read_and_all_of_the_result_is_written(monkeypatch):
    real = torch.empty

    def poisoned(*arguments: Any, **options: Any) -> Tensor:
        return real(*arguments, **options).fill_(float("nan"))

    def framed(tensor: Tensor) -> Tensor:
        frame = torch.full((tensor.numel() + 256,), float("nan"), dtype=tensor.dtype)
        window = frame[128:-128].view(tensor.shape)
        return window.copy_(tensor)

    monkeypatch.setattr(triton_norms_launch.torch, "empty", poisoned)
    monkeypatch.setattr(triton_norms_launch.torch, "empty_like", lambda t: poisoned(t.shape, dtype=t.dtype))
    tensors = {name: framed(t) for name, t in paths_of(4, 2, 5).items()}
    found = with_gradients(lambda **t: summed(2)(**t, backend="triton"), tensors)
    rows = {"x": tensors["mixed"], "residual": tensors["tokens"]}
    found |= {
        f"normalized {k}": v for k, v in with_gradients(lambda **t: normalized(**t, backend="triton"), rows).items()
    }
    for name, value in found.items():
        assert torch.isfinite(value).all(), name


def test_a_whole_layer_with_the_kernels_is_the_layer_with_pytorch_with_every_gradient(monkeypatch):
    """Paths with one and with two directions, together and one after the other, kept and computed again."""
    monkeypatch.setattr(triton_tuning, "config_for", lambda kind, u, states: triton_tuning.ScanConfig(4, 4, 4, 1, 2, 2))
    monkeypatch.setattr(triton_tuning, "CONVOLUTION_BLOCK", (8, 4))
    torch.manual_seed(0)
    texts = ("WHD:both", "HWD:forward", "DWH:backward")
    layer = MambaLayer3d(4, [ScanPath.parse(text) for text in texts], 2, False, "linear")
    names = [name for name, _ in layer.named_parameters()]
    found: list[dict[str, Tensor]] = []
    for backend, together_bytes, recompute in (
        ("pytorch", 1 << 30, False),
        ("triton", 1 << 30, False),
        ("triton", 1, True),
    ):
        for path in layer.paths:
            path.recompute = recompute
            for part in path.layers:
                part.mamba.scan_backend = backend
        tokens = random(1, 6, 4).requires_grad_()
        output = sum_of_paths(list(layer.paths), tokens, (1, 2, 3), torch.float32, together_bytes)
        output.backward(random(1, 6, 4, seed=1))
        gradients = {name: layer.get_parameter(name).grad for name in names}
        found.append({"output": output.detach(), "tokens": tokens.grad} | gradients)
        layer.zero_grad()
    for one, other in pairwise(found):
        for name, value in one.items():
            assert relative_error(other[name], value) < GRADIENT_TOLERANCE, name


def test_the_kernels_are_for_the_scans_own_backend_only():
    assert uses_kernels(torch.device("cpu"), "triton")
    assert not uses_kernels(torch.device("cpu"), "pytorch")
