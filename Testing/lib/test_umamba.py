"""U-Mamba: published parameter counts, which layer sits where, and what the Mamba layer does to a feature map."""

from dataclasses import replace

import pytest
import torch

from MambaSegLib.networks import create_network
from MambaSegLib.networks.token_mamba import TokenMamba
from MambaSegLib.networks.umamba import released_blocks
from MambaSegLib.plan import NetworkPlan, StagePlan

KERNELS = ((1, 3, 3), *((3, 3, 3),) * 5)
STRIDES = ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2))
FEATURES = (32, 64, 128, 256, 320, 320)
# Counted from the released code on the paper's Synapse plan; the paper prints 41.95 M and 42.85 M.
COUNTS = {"umamba_bot": 41_945_158, "umamba_enc": 42_859_142}


def synapse_plan(name: str) -> NetworkPlan:
    rows = zip(FEATURES, STRIDES, KERNELS, strict=True)
    stages = tuple(StagePlan(features, stride, kernel, 2, 2) for features, stride, kernel in rows)
    return NetworkPlan(name, 1, 14, (48, 192, 192), stages)


def tiny_plan(name: str) -> NetworkPlan:
    stages = tuple(replace(stage, features=4 + 2 * index) for index, stage in enumerate(synapse_plan(name).stages[:4]))
    return NetworkPlan(name, 1, 3, (8, 16, 16), stages)


@pytest.mark.parametrize("name", COUNTS)
def test_the_synapse_network_has_the_published_parameters(name):
    with torch.device("meta"):
        network = create_network(synapse_plan(name))
    assert sum(parameter.numel() for parameter in network.parameters()) == COUNTS[name]


def test_the_coarser_encoder_and_the_finer_decoder_stages_have_one_block():
    stages = released_blocks(synapse_plan("umamba_bot").stages)
    assert [stage.blocks for stage in stages] == [2, 2, 2, 1, 1, 1]
    assert [stage.decoder_blocks for stage in stages[:-1]] == [1, 1, 2, 2, 2]


def test_bot_mixes_on_the_bottleneck_only_and_enc_at_every_stage():
    placed = {
        name: [isinstance(layer, TokenMamba) for layer in create_network(tiny_plan(name)).after_stage]
        for name in COUNTS
    }
    assert placed == {"umamba_bot": [False, False, False, True], "umamba_enc": [True] * 4}


def test_only_a_stage_with_no_more_voxels_than_channels_has_channels_as_tokens():
    with torch.device("meta"):
        layers = create_network(synapse_plan("umamba_enc")).after_stage
    assert [layer.channel_tokens for layer in layers] == [False] * 5 + [True]  # 6 * 6 * 6 = 216 <= 320
    assert layers[5].norm.normalized_shape == (216,)


def test_a_layer_visits_voxels_in_memory_order():
    torch.manual_seed(0)
    layer = TokenMamba(3, (2, 2, 3), channel_tokens=False)
    features = torch.randn(1, 3, 2, 2, 3, requires_grad=True)
    layer(features)[0, :, 1, 0, 1].sum().backward()  # the eighth of twelve voxels
    seen = features.grad.abs().sum((0, 1)).flatten() > 0
    assert seen.tolist() == [True] * 8 + [False] * 4


def test_a_layer_with_channels_as_tokens_visits_channels_in_order_and_refuses_another_size():
    torch.manual_seed(0)
    layer = TokenMamba(5, (1, 2, 2), channel_tokens=True)
    features = torch.randn(1, 5, 1, 2, 2, requires_grad=True)
    layer(features)[0, 2].sum().backward()
    assert (features.grad.abs().sum((0, 2, 3, 4)) > 0).tolist() == [True] * 3 + [False] * 2
    with pytest.raises(ValueError, match=r"\(1, 2, 2\)"):
        layer(torch.zeros(1, 5, 2, 2, 2))
