"""The fused CPU form of the paper's Mamba layer computes what the layer computes with the sequential PyTorch scan."""

from itertools import permutations

import numpy as np
import pytest
import torch

pytest.importorskip("numba")

from MambaSegLib.cpu import mamba_layer
from MambaSegLib.cpu.layers import FeatureMap, Workspace, padded
from MambaSegLib.cpu.mamba_layer import FusedMambaLayer, packed_weights
from MambaSegLib.cpu.mamba_strip import STEPS, run_stretch
from MambaSegLib.networks.mamba import MambaBlock, MambaLayer3d
from MambaSegLib.scan.order import NATURAL_ORDER, ScanPath
from MambaSegLib.scan.paths import path_numbers

LETTERS = ["".join(letters) for letters in permutations("HWD")]
# Sums of some dozen float32 products and a scan, one after another; a wrong token, order or channel is off by 0.1 and more.
TOLERANCE = 5e-6


def make_layer(channels, states, paths, outer_norm=False, head="linear"):
    torch.manual_seed(0)
    layer = MambaLayer3d(channels, [ScanPath.parse(path) for path in paths], states, outer_norm, head)
    for parameter in layer.parameters():
        if parameter.ndim == 1:  # biases and normalizations start as 0 and 1, which would hide that they are left out
            parameter.data += 0.3 * torch.randn_like(parameter)
    return layer.eval().requires_grad_(False)


def specified(layer, features):
    for module in layer.modules():
        if isinstance(module, MambaBlock):
            module.scan_backend = "pytorch"
    return layer(features)


def fused(layer, features, threads=1):
    _, channels, *sizes = features.shape
    array = np.zeros((*sizes, padded(channels)), np.float32)
    array[..., :channels] = features[0].permute(1, 2, 3, 0).numpy()
    before = array.copy()
    found = FusedMambaLayer(layer).run(FeatureMap(array, channels), Workspace(), threads)
    np.testing.assert_array_equal(array, before)
    scaled = found.array if found.scale is None else found.array * found.scale + found.shift
    assert not scaled[..., channels:].any()
    return torch.from_numpy(scaled[..., :channels]).permute(3, 0, 1, 2)[None]


def assert_same(found, expected):
    assert float((found - expected).norm() / expected.norm()) < TOLERANCE


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("letters", LETTERS)
def test_every_order_in_both_directions(letters, direction):
    layer, features = make_layer(16, 4, [f"{letters}:{direction}"]), torch.randn(1, 16, 4, 5, 7)
    assert_same(fused(layer, features), specified(layer, features))


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 1, 3), (1, 1, STEPS), (1, 2, STEPS // 2 + 1), (3, 7, 11)])
def test_any_number_of_tokens(sizes):
    layer, features = make_layer(16, 4, ["HWD:both", "DWH:forward"]), torch.randn(1, 16, *sizes)
    assert_same(fused(layer, features), specified(layer, features))


@pytest.mark.parametrize(("channels", "states"), [(4, 3), (20, 16), (32, 32), (36, 5)])
@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("outer_norm", [False, True])
def test_any_width_head_and_normalization(channels, states, head, outer_norm):
    layer = make_layer(channels, states, ["HWD:forward"], outer_norm, head)
    features = 3 + torch.randn(1, channels, 3, 5, 6)
    assert_same(fused(layer, features), specified(layer, features))


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize(
    "paths",
    [
        ["HWD:forward"],
        ["HWD:both"],
        ["HWD:forward", "HDW:forward", "WHD:backward"],
        ["HWD:both", "DWH:both"],
        ["WHD:forward", "DHW:both"],
    ],
)
@pytest.mark.parametrize("slow", [False, True])
def test_a_scan_divided_among_threads_carries_its_states_across(paths, threads, slow, monkeypatch):
    """Slow: time steps so small that every state remembers everything, and each chunk must begin at the beginning."""
    monkeypatch.setattr(mamba_layer, "SHORTEST_CHUNK", 2 * STEPS)
    monkeypatch.setattr(mamba_layer, "WARM_UP", STEPS)
    layer, features = make_layer(16, 4, paths), torch.randn(1, 16, 10, 9, 11)
    for module in layer.modules():
        if isinstance(module, MambaBlock):
            module.dt_proj.bias.fill_(-9.0 if slow else 1.0)
            module.D.fill_(0.0)  # what is left comes through the states alone
            module.A_log.add_(0.0 if slow else 1.0)
    assert_same(fused(layer, features, threads), specified(layer, features))


@pytest.mark.parametrize("log_rate", [-200.0, -12.0])
def test_states_that_never_fade_are_carried_from_chunk_to_chunk(log_rate, monkeypatch):
    """A = -exp(A_log) may round to 0, which remembers everything."""
    monkeypatch.setattr(mamba_layer, "SHORTEST_CHUNK", 2 * STEPS)
    monkeypatch.setattr(mamba_layer, "WARM_UP", 2 * STEPS)
    layer, features = make_layer(20, 5, ["HWD:forward"]), torch.randn(1, 20, 10, 9, 11)
    for module in layer.modules():
        if isinstance(module, MambaBlock):
            module.A_log.fill_(log_rate)
    assert_same(fused(layer, features, 4), specified(layer, features))


def test_a_warm_up_that_begins_with_wrong_inputs_must_be_longer_than_those():
    """The convolution looks back before the first tile, which is zero there: that tile alone is never enough."""
    layer, tokens = make_layer(16, 4, ["HWD:forward"]), np.ones((5 * STEPS, 16), np.float32)
    layer.paths[0].layers[0].mamba.dt_proj.bias.fill_(50.0)  # a single token makes all before it forgotten
    weights = packed_weights(layer.paths[0].layers[0], layer.norm)
    enough = [
        run_stretch(
            weights, path_numbers((1, 1, 5 * STEPS), NATURAL_ORDER), tokens, np.zeros_like(tokens), False,
            4 * STEPS, 5 * STEPS, warm, np.zeros(weights.rates.shape, np.float32), np.zeros((2, 16), np.float32),
        )
        for warm in (STEPS, 2 * STEPS)
    ]  # fmt: skip
    assert enough == [False, True]


def test_chunks_begin_with_states_from_before_them(monkeypatch):
    """Without warm-up, the test above would pass if states did not matter; here they are seen to."""
    monkeypatch.setattr(mamba_layer, "SHORTEST_CHUNK", 2 * STEPS)
    layer, features = make_layer(16, 4, ["HWD:forward"]), torch.randn(1, 16, 10, 9, 11)
    expected = specified(layer, features)
    monkeypatch.setattr(mamba_layer, "run_chunk", lambda *arguments: original(*arguments[:-1], 0))
    original = run_without_states()
    found = fused(layer, features, threads=4)
    assert float((found - expected).norm() / expected.norm()) > 100 * TOLERANCE


def run_without_states():
    """A chunk that takes no positions before it into account."""

    def run(weights, path, x, out, accumulate, start, stop, warm):
        states, sums = np.zeros(weights.rates.shape, np.float32), np.zeros(weights.dt_bias.shape, np.float32)
        assert run_stretch(weights, path, x, out, accumulate, start, stop, warm, states, sums)

    return run
