"""The kernels for LayerNorms, residuals and sums over paths on a real GPU, against PyTorch's operations in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch

from MambaSegLib.networks.mamba import MambaLayer3d
from MambaSegLib.scan import list_backends, row_norms
from MambaSegLib.scan.order import ScanPath
from MambaSegLib.scan.row_norms import add_norm, sum_paths

if TYPE_CHECKING:
    from torch import Tensor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this computer"),
]

CUDA = "cuda"
EPS = 1e-5
# float32 rounds to 6e-8; sums over a row, and for parameters over all rows, add to it.
FORWARD_TOLERANCE = 1e-6
GRADIENT_TOLERANCE = 1e-5
# 8 bits, rounded to the nearest.
HALF_TOLERANCE = 2**-8


@pytest.fixture(autouse=True)
def _kernels() -> None:
    status = {s.name: s for s in list_backends(CUDA, needs_gradient=True)}["triton"]
    if not status.available:
        pytest.skip(f"triton: {status.reason}")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator(CUDA).manual_seed(seed), device=CUDA)


def relative_error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def with_gradients(compute: Callable[..., Tensor], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    output = compute(**leaves)
    output.backward(random(*output.shape, seed=9).to(torch.bfloat16).to(output.dtype))
    return {"output": output.detach()} | {f"gradient of {name}": t.grad for name, t in leaves.items()}


def compare(compute: Callable[..., Tensor], tensors: dict[str, Tensor], half: bool) -> None:
    """The kernels with these tensors, twice to the same bits; PyTorch with the same in float64."""
    found, again = (with_gradients(lambda **t: compute(**t, backend="triton"), tensors) for _ in range(2))
    doubles = {name: t.double() for name, t in tensors.items()}
    wanted = with_gradients(lambda **t: compute(**t, backend="pytorch"), doubles)
    for name, value in wanted.items():
        assert torch.equal(found[name], again[name]), name
        tolerance = FORWARD_TOLERANCE if name == "output" else GRADIENT_TOLERANCE
        error = relative_error(found[name], value)
        assert error <= (HALF_TOLERANCE if half else tolerance), f"{name}: relative error {error:.1e}"


CHANNELS = [4, 5, 32, 64, 100, 320, 640, 1024]


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("half", [False, True])
def test_normalization_of_rows_with_and_without_a_residual_matches_pytorch(channels, half):
    dtype = torch.bfloat16 if half else torch.float32

    def normalized(x: Tensor, residual: Tensor | None = None, backend: str = "auto") -> Tensor:
        return add_norm(x, residual, EPS, x.dtype if x.dtype == torch.float64 else dtype, backend)

    compare(normalized, {"x": random(1, 1001, channels) + 0.5}, half)
    rows = {"x": random(8, 2, 1001, channels).to(dtype), "residual": random(2, 1001, channels, seed=1)}
    compare(normalized, rows, half)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize(("directions", "paths"), [(1, 1), (2, 1), (8, 4)])
@pytest.mark.parametrize("half", [False, True])
def test_sums_over_paths_match_pytorch(channels, directions, paths, half):
    dtype = torch.bfloat16 if half else torch.float32

    def summed(weight: Tensor | None = None, bias: Tensor | None = None, **tensors: Any) -> Tensor:
        return sum_paths(weight=weight, bias=bias, paths=paths, eps=EPS, **tensors)

    tensors = {
        "headed": random(directions, 2, 1001, channels).to(dtype),
        "mixed": random(directions, 2, 1001, channels, seed=1).to(dtype),
        "tokens": random(2, 1001, channels, seed=2),
        "before": random(2, 1001, channels, seed=5),
    }
    if directions > paths:
        tensors |= {"weight": 1 + random(paths, channels, seed=3), "bias": random(paths, channels, seed=4)}
    compare(summed, tensors, half)


def test_offsets_beyond_32_bits_are_right():
    """More than 2**31 elements in all directions together; the last rows are compared."""
    rows, channels = 2**23, 64
    if torch.cuda.mem_get_info()[0] < 14 * rows * channels * 5:
        pytest.skip("this GPU has too little memory free")
    x = torch.zeros(5, 1, rows, channels, dtype=torch.bfloat16, device=CUDA)
    tokens = torch.zeros(1, rows, channels, device=CUDA)
    x[-1, :, -7:], tokens[:, -7:] = random(1, 7, channels).bfloat16(), random(1, 7, channels, seed=1)
    with torch.no_grad():
        found = add_norm(x, tokens, EPS, torch.bfloat16, "triton")[-1, :, -7:]
        wanted = add_norm(x[-1, :, -7:], tokens[:, -7:], EPS, torch.float32, "pytorch")
        assert relative_error(found, wanted) <= HALF_TOLERANCE
        total = sum_paths(x, x, tokens, None, None, 5, EPS, backend="triton")[:, -7:]
        shown = sum_paths(x[:, :, -7:], x[:, :, -7:], tokens[:, -7:], None, None, 5, EPS, backend="pytorch")
        assert relative_error(total, shown) <= FORWARD_TOLERANCE


@pytest.mark.parametrize("recompute", [False, True])
def test_a_layer_with_the_kernels_is_the_layer_with_pytorch_between_the_same_scans(monkeypatch, recompute):
    torch.manual_seed(0)
    texts = ("HWD:both", "HDW:both", "WHD:forward", "DHW:both")
    layer = MambaLayer3d(32, [ScanPath.parse(text) for text in texts], 16, outer_norm=True, head="linear").to(CUDA)
    for path in layer.paths:
        path.recompute = recompute
        for part in path.layers:
            part.mamba.scan_backend = "triton"

    def run() -> dict[str, Tensor]:
        features = random(2, 32, 5, 6, 7).requires_grad_()
        output = layer(features)
        output.backward(random(*output.shape, seed=1))
        gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
        layer.zero_grad()
        return {"output": output.detach(), "features": features.grad} | gradients

    found = run()
    monkeypatch.setattr(row_norms, "uses_kernels", lambda device, backend: False)
    for name, value in run().items():
        assert relative_error(found[name], value) <= 2 * GRADIENT_TOLERANCE, name
