"""The Mamba layers against a slow reference, written loop by loop from the published description.

The reference permutes and flips copies of the volume and steps through the recurrence one voxel at a time, in float64;
the layers index in place. They share no code.
"""

from itertools import product

import numpy as np
import pytest
import torch

from MambaSegLib.networks.mamba import MambaBlock, MambaLayer, MambaLayer3d
from MambaSegLib.scan.order import ALL_LETTERS, ScanOrder, ScanPath

GRID = (3, 4, 5)
CHANNELS = 6
TOLERANCE = 2e-6
"""Relative; float32 rounding over 60 recurrent steps stays an order of magnitude below it."""


def numbers(parameter):
    return parameter.detach().double().numpy()


def layer_norm(x, norm):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + norm.eps) * numbers(norm.weight) + numbers(norm.bias)


def silu(x):
    return x / (1 + np.exp(-x))


def slow_mamba(block: MambaBlock, sequence):
    """Mamba over one sequence (L, C), as in the Mamba paper, Algorithm 2."""
    x, z = np.split(sequence @ numbers(block.in_proj.weight).T, 2, axis=1)
    taps, bias = numbers(block.conv1d.weight)[:, 0], numbers(block.conv1d.bias)
    A = -np.exp(numbers(block.A_log))
    state = np.zeros_like(A)
    inputs = []
    results = []
    for t in range(len(x)):
        past = [x[t - 3 + k] if t - 3 + k >= 0 else 0 * x[0] for k in range(4)]
        u = silu(sum(taps[:, k] * past[k] for k in range(4)) + bias)
        inputs.append(u)
        projected = numbers(block.x_proj.weight) @ u
        dt, B, C = np.split(projected, [block.dt_rank, block.dt_rank + block.d_state])
        delta = np.log1p(np.exp(numbers(block.dt_proj.weight) @ dt + numbers(block.dt_proj.bias)))
        state = np.exp(delta[:, None] * A) * state + (delta * u)[:, None] * B
        results.append((state @ C + numbers(block.D) * u) * silu(z[t]))
    return np.array(results) @ numbers(block.out_proj.weight).T


def slow_head(layer: MambaLayer, x):
    if isinstance(layer.head, torch.nn.Linear):
        return x @ numbers(layer.head.weight).T + numbers(layer.head.bias)
    first, _, last = layer.head
    hidden = torch.from_numpy(x @ numbers(first.weight).T + numbers(first.bias))
    hidden = torch.nn.functional.gelu(hidden).numpy()
    return hidden @ numbers(last.weight).T + numbers(last.bias)


def slow_t(layer: MambaLayer, x):
    """T(x): x1 = Mamba(LN1(x)) + x ; T = head(LN2(x1)) + x1."""
    mixed = slow_mamba(layer.mamba, layer_norm(x, layer.norm1)) + x
    return slow_head(layer, layer_norm(mixed, layer.norm2)) + mixed


def slow_path(path, text: str, volume):
    """One permutation of a (Z, Y, X, C) volume; P(x) = LN(T_f(x) + flip(T_b(flip(x)))) when walked both ways."""
    letters, direction = text.split(":")
    axes = ["HWD".index(letter) for letter in letters]
    permuted = volume.transpose(*axes, 3)
    x = permuted.reshape(-1, volume.shape[3])
    if direction == "forward":
        y = slow_t(path.layers[0], x)
    elif direction == "backward":
        y = slow_t(path.layers[0], x[::-1])[::-1]
    else:
        y = layer_norm(slow_t(path.layers[0], x) + slow_t(path.layers[1], x[::-1])[::-1], path.norm)
    return y.reshape(permuted.shape).transpose(*np.argsort(axes), 3)


def slow_layer(layer: MambaLayer3d, texts, features):
    volume = features.detach().double().numpy().transpose(1, 2, 3, 0)
    if isinstance(layer.norm, torch.nn.LayerNorm):
        volume = layer_norm(volume, layer.norm)
    results = [slow_path(path, text, volume) for path, text in zip(layer.paths, texts, strict=True)]
    return np.mean(results, axis=0).transpose(3, 0, 1, 2)


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    """Move every parameter off its initial value, so that a forgotten norm weight or bias shows."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module


def relative_error(fast, slow) -> float:
    return float(np.linalg.norm(fast.detach().double().numpy() - slow) / np.linalg.norm(slow))


LAYERS = {
    "unidirectional": ("HWD:forward",),
    "bidirectional": ("HWD:both",),
    "multidirectional, paper": ("HWD:forward", "HDW:forward", "WHD:forward", "DWH:forward"),
    "multidirectional, released": ("HWD:both", "HDW:both", "WHD:both", "DHW:both"),
    "all twelve": tuple(f"{letters}:both" for letters in ALL_LETTERS),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(("outer_norm", "head"), [(True, "linear"), (False, "mlp")])
def test_a_layer_computes_what_its_description_says(name, outer_norm, head):
    texts = LAYERS[name]
    torch.manual_seed(0)
    layer = shaken(MambaLayer3d(CHANNELS, [ScanPath.parse(text) for text in texts], 5, outer_norm, head))
    features = torch.randn(2, CHANNELS, *GRID)
    fast = layer(features)
    for case in range(2):
        assert relative_error(fast[case], slow_layer(layer, texts, features[case])) < TOLERANCE


@pytest.mark.parametrize(("letters", "backward"), list(product(ALL_LETTERS, (False, True))))
def test_each_of_the_twelve_orders_is_the_natural_order_on_a_permuted_copy(letters, backward):
    torch.manual_seed(1)
    block = shaken(MambaBlock(CHANNELS, 5))
    axes = ScanPath(letters, "forward").axes
    tokens = torch.randn(1, 60, CHANNELS)
    fast = block(tokens, GRID, ScanOrder(axes, backward))
    copy = tokens.reshape(*GRID, CHANNELS).permute(*axes, 3)
    sequence = copy.reshape(-1, CHANNELS).double().numpy()
    slow = slow_mamba(block, sequence[::-1] if backward else sequence)
    slow = (slow[::-1] if backward else slow).reshape(copy.shape).transpose(*np.argsort(axes), 3)
    assert relative_error(fast[0], slow.reshape(60, CHANNELS)) < TOLERANCE


def test_the_released_unidirectional_layer_does_not_see_the_scale_of_its_input():
    torch.manual_seed(2)
    layer = MambaLayer3d(CHANNELS, [ScanPath("HWD", "forward")], 5, outer_norm=True, head="linear")
    features = torch.randn(1, CHANNELS, *GRID)
    torch.testing.assert_close(layer(features), layer(1000 * features), rtol=1e-3, atol=1e-3)


def test_recomputation_changes_no_gradient():
    torch.manual_seed(3)
    layer = MambaLayer3d(CHANNELS, [ScanPath("HWD", "both"), ScanPath("DWH", "forward")], 5, False, "mlp")
    features = torch.randn(1, CHANNELS, *GRID)
    gradients = []
    for recompute in (False, True):
        for path in layer.paths:
            path.recompute = recompute
        layer.zero_grad()
        layer(features).square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in layer.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again, rtol=0, atol=0)


def test_autocast_leaves_the_layer_in_float32_and_returns_the_callers_type():
    torch.manual_seed(4)
    layer = MambaLayer3d(CHANNELS, [ScanPath("HWD", "forward")], 5, False, "mlp")
    features = torch.randn(1, CHANNELS, *GRID, dtype=torch.bfloat16)
    expected = layer(features.float())
    with torch.autocast("cpu", torch.bfloat16):
        result = layer(features)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result, expected.bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize("gradient", [True, False])
def test_a_layer_with_float64_weights_is_exact_to_float64(gradient):
    texts = LAYERS["multidirectional, paper"]
    torch.manual_seed(5)
    layer = shaken(MambaLayer3d(CHANNELS, [ScanPath.parse(text) for text in texts], 5, True, "linear")).double()
    features = torch.randn(1, CHANNELS, *GRID, dtype=torch.float64)
    with torch.set_grad_enabled(gradient):
        result = layer(features)
    assert result.dtype == torch.float64
    assert relative_error(result[0], slow_layer(layer, texts, features[0])) < 1e-12


def test_a_float64_layer_gives_float32_features_back_as_float32():
    torch.manual_seed(6)
    layer = MambaLayer3d(CHANNELS, [ScanPath("HWD", "forward")], 5, False, "mlp").double()
    features = torch.randn(1, CHANNELS, *GRID)
    assert torch.equal(layer(features), layer(features.double()).float())
