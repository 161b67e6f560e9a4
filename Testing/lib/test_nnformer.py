"""nnFormer: the released parameter count, and its windows against attention one voxel at a time."""

from itertools import product

import pytest
import torch

from MambaSegLib.errors import InputError
from MambaSegLib.networks import create_network
from MambaSegLib.networks.nnformer import Block
from MambaSegLib.networks.window_attention import WindowAttention, relative_positions
from MambaSegLib.plan import NetworkPlan


def test_it_has_the_released_parameters_and_map_sizes():
    with torch.device("meta"):
        network = create_network(NetworkPlan("nnformer", 1, 14, (64, 128, 128), ()))
        outputs = network(torch.empty(1, 1, 64, 128, 128))
    assert sum(parameter.numel() for parameter in network.parameters()) == 150_054_210
    assert [tuple(logits.shape[2:]) for logits in outputs] == [(64, 128, 128), (32, 64, 64), (16, 32, 32)]


def windows_and_shifts(network) -> list:
    return [(module.window, module.shift) for module in network.modules() if isinstance(module, WindowAttention)]


def test_windows_are_the_released_ones_on_cubes_and_cut_per_axis_elsewhere():
    with torch.device("meta"):
        cubes = create_network(NetworkPlan("nnformer", 1, 14, (64, 128, 128), ()))
        thick = create_network(NetworkPlan("nnformer", 1, 4, (14, 256, 224), ()))
    four, none, two = (4, 4, 4), (0, 0, 0), (2, 2, 2)
    encoder = [(four, none), (four, two), (four, none), (four, two), ((8, 8, 8), none), ((8, 8, 8), none)]
    assert windows_and_shifts(cubes.encoder) == [*encoder, (four, none), (four, none)]
    decoder = [((8, 8, 8), none), ((8, 8, 8), none), (four, none), (four, two), (four, none), (four, two)]
    assert windows_and_shifts(cubes.decoder) == decoder
    assert windows_and_shifts(thick.encoder)[4:] == [
        ((8, 8, 8), none), ((8, 8, 8), (4, 4, 4)), (four, none), (four, two)
    ]  # fmt: skip
    assert Block(4, 1, 4, (3, 9, 4), True, 0).attention.window == (3, 4, 4)
    assert Block(4, 1, 4, (3, 9, 4), True, 0).attention.shift == (0, 2, 0)


def test_each_relative_position_has_a_number_of_its_own():
    numbers = relative_positions((2, 3, 2))
    places = list(product(range(2), range(3), range(2)))
    by_offset = {}
    for row, here in enumerate(places):
        for column, there in enumerate(places):
            offset = tuple(a - b for a, b in zip(here, there, strict=True))
            by_offset.setdefault(offset, set()).add(int(numbers[row, column]))
    assert all(len(found) == 1 for found in by_offset.values())
    assert sorted(number for found in by_offset.values() for number in found) == list(range(3 * 5 * 3))


def slow_attention(attention, volume, queries):
    """One voxel at a time, with the voxels its window holds, those left out that only the cyclic shift brought there."""
    _, *size, width = volume.shape
    padded = [-(-length // step) * step for length, step in zip(size, attention.window, strict=True)]
    places = list(product(*map(range, padded)))
    filled = torch.zeros(*padded, width)
    filled[: size[0], : size[1], : size[2]] = volume[0]
    asking = filled
    if queries is not None:
        asking = torch.zeros(*padded, width)
        asking[: size[0], : size[1], : size[2]] = queries[0]
    *query_weight, key_weight, value_weight = attention.project_in.weight.split(width)
    *query_bias, key_bias, value_bias = attention.project_in.bias.split(width)
    moved = {
        place: tuple((p - s) % n for p, s, n in zip(place, attention.shift, padded, strict=True)) for place in places
    }
    per_head = width // attention.heads
    numbers = relative_positions(attention.window)
    inside = list(product(*map(range, attention.window)))
    result = torch.zeros(1, *size, width)
    for here in product(*map(range, size)):
        fellows = [
            there
            for there in places
            if all(
                a // w == b // w and (a >= n - s) == (b >= n - s)
                for a, b, w, s, n in zip(
                    moved[here], moved[there], attention.window, attention.shift, padded, strict=True
                )
            )
        ]
        query = asking[here] if queries is not None else query_weight[0] @ asking[here] + query_bias[0]
        row = inside.index(tuple(a % w for a, w in zip(moved[here], attention.window, strict=True)))
        for head in range(attention.heads):
            channels = slice(head * per_head, (head + 1) * per_head)
            scores, values = [], []
            for there in fellows:
                column = inside.index(tuple(b % w for b, w in zip(moved[there], attention.window, strict=True)))
                key = (key_weight @ filled[there] + key_bias)[channels]
                bias = attention.position_bias[numbers[row, column], head]
                scores.append(query[channels] @ key / per_head**0.5 + bias)
                values.append((value_weight @ filled[there] + value_bias)[channels])
            result[0][here][channels] = torch.stack(scores).softmax(0) @ torch.stack(values)
    return attention.project_out(result)


@pytest.mark.parametrize("crossed", [False, True])
@pytest.mark.parametrize(
    ("size", "window", "shift"),
    [((2, 4, 4), (2, 2, 2), (0, 0, 0)), ((2, 4, 4), (2, 2, 4), (0, 1, 0)), ((3, 4, 5), (2, 2, 3), (1, 1, 1))],
)
def test_windowed_attention_equals_attention_one_voxel_at_a_time(size, window, shift, crossed):
    torch.manual_seed(0)
    attention = WindowAttention(4, 2, window, shift, crossed)
    volume, queries = torch.randn(1, *size, 4), torch.randn(1, *size, 4) if crossed else None
    with torch.no_grad():
        torch.nn.init.normal_(attention.position_bias)
        expected = slow_attention(attention, volume, queries)
        torch.testing.assert_close(attention(volume, queries), expected, rtol=1e-5, atol=1e-5)


def test_each_sample_of_a_batch_is_treated_as_if_alone():
    torch.manual_seed(0)
    attention = WindowAttention(4, 2, (2, 2, 2), (1, 1, 1))
    volumes = torch.randn(3, 4, 4, 6, 4)
    alone = torch.cat([attention(volume[None]) for volume in volumes])
    torch.testing.assert_close(attention(volumes), alone)


def test_in_training_whole_branches_are_left_out_and_the_rest_made_up_for():
    torch.manual_seed(0)
    block = Block(4, 1, 2, (2, 2, 2), False, drop=0.25)
    branch = torch.ones(4000, 1, 1, 1, 1)
    dropped = block._dropped(branch)
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert dropped.mean().item() == pytest.approx(1, abs=0.05)
    torch.testing.assert_close(block.eval()._dropped(branch), branch)


@pytest.mark.parametrize(
    ("options", "message"), [({"width": 3}, "even"), ({"heads": (5, 5, 5, 5)}, "heads"), ({"windows": (4,)}, "four")]
)
def test_options_that_cannot_be_built_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        create_network(NetworkPlan("nnformer", 1, 2, (32, 32, 32), (), options=options))


def test_another_patch_than_the_planned_one_is_refused():
    options = {"width": 6, "heads": (1, 1, 1, 1), "windows": (2, 2, 2, 2)}
    network = create_network(NetworkPlan("nnformer", 1, 2, (16, 32, 32), (), options=options))
    with pytest.raises(ValueError, match="windows"):
        network(torch.zeros(1, 1, 32, 32, 32))
