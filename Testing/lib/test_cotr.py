"""CoTr: the released parameter count, its map sizes, and its attention and positions against slower, plainer code."""

import math

import pytest
import torch

from MambaSegLib.errors import InputError
from MambaSegLib.networks import create_network
from MambaSegLib.networks.deformable_attention import DeformableAttention, voxel_centers
from MambaSegLib.networks.halving import halving_strides
from MambaSegLib.networks.sine_positions import sine_positions
from MambaSegLib.plan import NetworkPlan

SIZES = [(2, 3, 4), (1, 2, 2)]


def test_it_has_the_released_parameters():
    with torch.device("meta"):
        network = create_network(NetworkPlan("cotr", 1, 14, (48, 192, 192), ()))
    assert sum(parameter.numel() for parameter in network.parameters()) == 41_872_504


def test_outputs_and_tokens_have_the_published_sizes():
    seen = []
    with torch.device("meta"):
        network = create_network(NetworkPlan("cotr", 1, 14, (48, 192, 192), ()))
        network.transformer.register_forward_hook(lambda module, given, result: seen.extend(given[0]))
        outputs = network(torch.empty(1, 1, 48, 192, 192))
    assert [tuple(m.shape[1:]) for m in seen] == [(384, 12, 24, 24), (384, 6, 12, 12)]
    sizes = [tuple(logits.shape[2:]) for logits in outputs]
    assert sizes == [(48, 192, 192), (48, 96, 96), (24, 48, 48), (12, 24, 24)]


def slow_attention(attention, query, tokens):
    """One token, head, map and point at a time; each sample is the sum over all voxels of their trilinear weights."""
    values, result = attention.value(tokens), torch.zeros_like(tokens)
    width = tokens.shape[-1] // attention.heads
    grid = (attention.heads, attention.levels, attention.points)
    centers = voxel_centers(SIZES, tokens)
    for batch in range(tokens.shape[0]):
        for token in range(tokens.shape[1]):
            offsets = attention.offsets(query[batch, token]).reshape(*grid, 3)
            weights = attention.weights(query[batch, token]).reshape(attention.heads, -1).softmax(-1).reshape(grid)
            for head in range(attention.heads):
                channels = slice(head * width, (head + 1) * width)
                start = 0
                for level, (depth, height, breadth) in enumerate(SIZES):
                    for point in range(attention.points):
                        x, y, z = centers[token] * torch.tensor([breadth, height, depth]) + offsets[head, level, point]
                        for index in range(depth * height * breadth):
                            k, j, i = index // (height * breadth), index // breadth % height, index % breadth
                            share = torch.ones(())
                            for place, voxel in ((x, i), (y, j), (z, k)):
                                share = share * torch.relu(1 - (place - voxel - 0.5).abs())
                            sample = share * values[batch, start + index, channels]
                            result[batch, token, channels] += weights[head, level, point] * sample
                    start += depth * height * breadth
    return attention.out(result)


def test_deformable_attention_equals_sampling_one_point_at_a_time():
    torch.manual_seed(0)
    attention = DeformableAttention(width=4, heads=2, levels=2, points=2)
    tokens = torch.randn(1, 28, 4)
    query = torch.randn(1, 28, 4)
    with torch.no_grad():
        for layer in (attention.offsets, attention.weights, attention.value, attention.out):
            torch.nn.init.normal_(layer.weight, std=0.5)
            torch.nn.init.normal_(layer.bias, std=0.5)
        torch.testing.assert_close(
            attention(query, tokens, SIZES), slow_attention(attention, query, tokens), rtol=1e-4, atol=1e-5
        )


def test_offsets_start_in_one_direction_per_head_one_voxel_further_each():
    bias = DeformableAttention(width=6, heads=6, levels=2, points=4).offsets.bias.reshape(6, 2, 4, 3)
    assert bias[0, 0].tolist() == [[1, 0, 0], [2, 0, 0], [3, 0, 0], [4, 0, 0]]
    torch.testing.assert_close(bias.abs().amax(-1), torch.arange(1.0, 5).expand(6, 2, 4))


def test_positions_are_sines_and_cosines_of_each_axis():
    positions = sine_positions((2, 3, 4), torch.empty(12), first=0.5).reshape(
        2, 3, 4, 3, 4
    )  # axis, channel of the axis
    for axis, (length, index) in enumerate(zip((2, 3, 4), (1, 2, 0), strict=True)):
        phase = (index + 0.5) / length * 2 * math.pi
        expected = [math.sin(phase), math.cos(phase), math.sin(phase), math.cos(phase / 10_000 ** (3 / 4))]
        assert positions[1, 2, 0, axis].tolist() == pytest.approx(expected, abs=1e-6)


def test_an_axis_that_cannot_be_halved_so_often_is_halved_at_the_last_levels():
    published = [(1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)]
    assert halving_strides((48, 192, 192), published) == published
    assert halving_strides((14, 256, 224), published) == [(1, 2, 2), (1, 2, 2), (1, 2, 2), (2, 2, 2)]
    assert halving_strides((40, 56, 9), published) == [(1, 1, 1), (2, 2, 1), (2, 2, 1), (2, 2, 1)]
    assert halving_strides((16, 16, 4), [(2, 2, 2)] * 4) == [(1, 1, 1), (2, 2, 1), (2, 2, 1), (2, 2, 2)]
    assert halving_strides((16, 16, 4), [(2, 2, 2)] * 4, smallest=1)[:2] == [(2, 2, 1), (2, 2, 1)]


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(InputError, match="heads"):
        create_network(NetworkPlan("cotr", 1, 2, (16, 32, 32), (), options={"width": 2, "heads": 5}))
