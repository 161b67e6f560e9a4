"""The directions of a Mamba layer side by side against the same directions one after the other."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn

from MambaSegLib.networks.mamba import MambaLayer3d
from MambaSegLib.networks.mamba_directions import half_precision, sum_of_paths
from MambaSegLib.scan.directions import share_launches
from MambaSegLib.scan.order import ALL_LETTERS, ScanPath

GRID = (2, 3, 4)
TOLERANCE = 2e-6
"""Relative; the same sums in another order, in float32."""
LAYERS = {
    "one way": ("HWD:forward",),
    "both ways": ("WHD:both",),
    "released": ("HWD:both", "HDW:both", "WHD:both", "DHW:both"),
    "both ways, one way, back": ("HWD:both", "HDW:forward", "DWH:backward"),
    "all twelve": tuple(f"{letters}:both" for letters in ALL_LETTERS),
}


def layer_of(name: str, head: str, channels: int = 6, states: int = 5) -> MambaLayer3d:
    """Every parameter moved off its initial value, so that a forgotten weight or bias shows."""
    torch.manual_seed(0)
    layer = MambaLayer3d(channels, [ScanPath.parse(text) for text in LAYERS[name]], states, False, head)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return layer


def one_by_one(layer: MambaLayer3d, tokens: Tensor) -> Tensor:
    return torch.stack([path(tokens, GRID) for path in layer.paths]).sum(0)


def relative_error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def gradients(layer: nn.Module, tokens: Tensor, output: Tensor) -> dict[str, Tensor]:
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    output.backward(weights)
    found = {name: parameter.grad.clone() for name, parameter in layer.named_parameters() if parameter.grad is not None}
    layer.zero_grad()
    return found | {"tokens": tokens.grad}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("together_bytes", [1, 1 << 30])
def test_side_by_side_is_one_by_one_with_every_gradient(name, head, together_bytes):
    layer = layer_of(name, head)
    tokens = [torch.randn(2, 24, 6, generator=torch.Generator().manual_seed(2)).requires_grad_() for _ in range(2)]
    wanted = one_by_one(layer, tokens[0])
    wanted_gradients = gradients(layer, tokens[0], wanted)
    found = sum_of_paths(list(layer.paths), tokens[1], GRID, torch.float32, together_bytes)
    found_gradients = gradients(layer, tokens[1], found)
    assert relative_error(found.detach(), wanted.detach()) < TOLERANCE
    assert found_gradients.keys() == wanted_gradients.keys()
    assert len(found_gradients) == 1 + len([p for n, p in layer.named_parameters() if not n.startswith("norm")])
    for parameter, gradient in wanted_gradients.items():
        assert relative_error(found_gradients[parameter], gradient) < 10 * TOLERANCE, parameter


def test_computing_again_changes_no_gradient_and_keeps_no_more_than_the_tokens():
    layer = layer_of("released", "linear")
    results, kept = [], []
    for recompute in (False, True):
        for path in layer.paths:
            path.recompute = recompute
        tokens = torch.randn(1, 24, 6, generator=torch.Generator().manual_seed(2)).requires_grad_()
        saved: dict[int, int] = {}

        def note(tensor: Tensor, saved: dict[int, int] = saved) -> Tensor:
            if not isinstance(tensor, nn.Parameter):
                saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            output = sum_of_paths(list(layer.paths), tokens, GRID, torch.float32, 1)
        kept.append(sum(saved.values()) / tokens.untyped_storage().nbytes())
        results.append(gradients(layer, tokens, output))
    for name, gradient in results[0].items():
        assert torch.equal(gradient, results[1][name]), name
    assert kept[0] > 20
    assert kept[1] <= 1.3  # times the layer's input


def test_bfloat16_between_the_projections_stays_close():
    layer = layer_of("released", "linear", channels=16)
    tokens = torch.randn(1, 24, 16)
    with torch.no_grad():
        exact = sum_of_paths(list(layer.paths), tokens, GRID, torch.float32)
        rounded = sum_of_paths(list(layer.paths), tokens, GRID, torch.bfloat16)
    assert rounded.dtype == torch.float32
    assert 0 < relative_error(rounded, exact) < 1e-2  # 8 bits: 4e-3 per rounding


def test_the_kernels_take_the_layers_tensors_as_they_are(monkeypatch):
    """In Triton's interpreter: directions one beside the other in one tensor, B and C inside the projection."""
    pytest.importorskip("triton")
    from MambaSegLib.scan import triton_backend, triton_launch, triton_tuning

    monkeypatch.setattr(triton_backend, "why_unavailable", lambda device, needs_gradient: None)
    monkeypatch.setattr(triton_tuning, "config_for", lambda kind, u, states: triton_tuning.ScanConfig(4, 4, 4, 1, 2, 2))
    monkeypatch.setattr(triton_tuning, "CONVOLUTION_BLOCK", (8, 4))
    copied = []
    real = triton_launch.by_rows
    monkeypatch.setattr(triton_launch, "by_rows", lambda rows: copied.append(real(rows) is not rows) or real(rows))
    layer = layer_of("both ways", "linear", channels=2, states=2)
    tokens = torch.randn(1, 6, 2)
    grid = (1, 2, 3)
    with torch.no_grad():
        wanted = layer.paths[0](tokens, grid)
        for part in copy.copy(list(layer.paths[0].layers)):
            part.mamba.scan_backend = "triton"
        found = sum_of_paths(list(layer.paths), tokens, grid, torch.float32)
    assert relative_error(found, wanted) < TOLERANCE
    assert copied
    assert not any(copied)


def test_launches_are_shared_on_a_gpu_with_the_triton_kernels_only():
    assert not share_launches(torch.device("cpu"), "auto")


def test_float16_autocast_leaves_the_layer_in_float32():
    cpu = torch.device("cpu")
    assert half_precision(cpu) == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert half_precision(cpu) == torch.bfloat16
    with torch.autocast("cpu", torch.float16):
        assert half_precision(cpu) == torch.float32
