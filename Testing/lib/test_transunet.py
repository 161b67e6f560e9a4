"""3D TransUNet: the released parameter count, and its transformer against PyTorch's own."""

import pytest
import torch
from MambaSegTraining.named_plans import named_plan
from torch import nn

from MambaSegLib.errors import InputError
from MambaSegLib.networks import create_network
from MambaSegLib.networks.query_decoder import QueryDecoder
from MambaSegLib.networks.transunet import BottleneckTransformer, TransformerLayer, TransUNetOptions
from MambaSegLib.plan import NetworkPlan, StagePlan

SMALL = TransUNetOptions(depth=2, hidden_size=12, mlp_size=20, heads=3, layer_scale=False)


UNUSED_HEAD = 32 * 14
"""The released network with queries also holds the finest convolutional head, which none of its outputs uses."""


@pytest.mark.parametrize(
    ("variant", "count"),
    [("encoder", 116_500_512), ("decoder", 33_652_975 - UNUSED_HEAD), ("both", 119_385_903 - UNUSED_HEAD)],
)
def test_each_variant_has_the_released_parameters_on_the_synapse_plan(variant, count):
    with torch.device("meta"):
        network = create_network(named_plan("synapse", "transunet", {"variant": variant}).plan.network)
    assert sum(parameter.numel() for parameter in network.parameters()) == count
    if variant != "decoder":
        assert network.transformer.positions.shape == (1, 6 * 6 * 6, 768)


def small_queries(**options) -> NetworkPlan:
    stages = [StagePlan(4 + 2 * index, (2, 2, 2) if index else (1, 1, 1), (3, 3, 3), 1) for index in range(4)]
    small = {"depth": 1, "hidden_size": 12, "mlp_size": 12, "heads": 2}
    return NetworkPlan("transunet", 1, 3, (16, 16, 24), tuple(stages), options={**small, **options})


def test_queries_look_at_three_decoder_maps_coarse_to_fine():
    torch.manual_seed(0)
    seen = []
    network = create_network(small_queries(variant="decoder"))
    network.query_decoder.register_forward_pre_hook(lambda module, given: seen.append(given))
    with torch.no_grad():
        network(torch.randn(1, 1, 16, 16, 24))
    ((maps, finest),) = seen
    assert [tuple(m.shape[1:]) for m in maps] == [(10, 2, 2, 3), (8, 4, 4, 6), (6, 8, 8, 12)]
    assert tuple(finest.shape[1:]) == (4, 16, 16, 24)


@pytest.mark.parametrize("variant", ["decoder", "both"])
def test_with_queries_every_parameter_gets_a_gradient(variant):
    torch.manual_seed(0)
    network = create_network(small_queries(variant=variant))
    outputs = network(torch.randn(2, 1, 16, 16, 24))
    assert [tuple(logits.shape[2:]) for logits in outputs] == [(16, 16, 24), (8, 8, 12), (4, 4, 6)]
    sum(logits.square().mean() for logits in outputs).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    network.eval().deep_supervision = False
    with torch.no_grad():
        assert len(network(torch.randn(1, 1, 16, 16, 24))) == 1


def test_class_logits_are_what_queries_class_and_mask_say_together():
    torch.manual_seed(0)
    decoder = QueryDecoder((4,), 4, classes=2, width=48, queries=5, heads=2, layers=1).eval()
    maps, finest = [torch.randn(1, 4, 2, 3, 2)], torch.randn(1, 4, 4, 6, 4)
    last = {}
    decoder.norm.register_forward_hook(lambda module, given, result: last.update(queries=result))
    with torch.no_grad():
        logits = decoder(maps, finest)
        classes = decoder.classes(last["queries"]).softmax(-1)
        masks = torch.einsum("bqc,bczyx->bqzyx", decoder.masks(last["queries"]), decoder.enter_mask(finest)).sigmoid()
        for label in range(2):
            expected = sum(classes[0, query, label] * masks[0, query] for query in range(5))
            torch.testing.assert_close(logits[0, label].exp(), expected)


def test_a_query_is_kept_from_what_its_mask_leaves_out_unless_the_mask_is_empty():
    decoder = QueryDecoder((4,), 4, classes=2, width=48, queries=2, heads=2, layers=1)
    masks = torch.full((1, 2, 2, 4, 4), -1.0)
    masks[0, 0, :, :2] = 1.0  # the first query has the front half, the second nothing
    blocked = decoder._blocked(masks, torch.empty(1, 48, 1, 2, 2))
    assert blocked.shape == (2, 2, 4)
    assert blocked[:, 0].tolist() == [[False, False, True, True]] * 2
    assert not blocked[:, 1].any()


def test_a_layer_without_scaled_shortcuts_is_pytorchs_with_the_same_weights():
    torch.manual_seed(0)
    layer = TransformerLayer(SMALL).eval()
    peer = nn.TransformerEncoderLayer(
        12, 3, 20, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    ).eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.3)
        qkv = (layer.query, layer.key, layer.value)
        peer.self_attn.in_proj_weight.copy_(torch.cat([linear.weight for linear in qkv]))
        peer.self_attn.in_proj_bias.copy_(torch.cat([linear.bias for linear in qkv]))
        pairs = [(peer.self_attn.out_proj, layer.out), (peer.linear1, layer.up), (peer.linear2, layer.down)]
        for theirs, ours in [*pairs, (peer.norm1, layer.norm1), (peer.norm2, layer.norm2)]:
            theirs.weight.copy_(ours.weight)
            theirs.bias.copy_(ours.bias)
        tokens = torch.randn(2, 5, 12)
        torch.testing.assert_close(layer(tokens), peer(tokens), rtol=1e-5, atol=1e-5)


def test_the_layer_scale_is_on_the_shortcut_as_released():
    torch.manual_seed(0)
    layer = TransformerLayer(TransUNetOptions(hidden_size=12, mlp_size=20, heads=3)).eval()
    tokens = torch.randn(1, 5, 12)
    with torch.no_grad():
        for linear in (layer.out, layer.down):  # only the shortcuts are left
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        torch.testing.assert_close(layer(tokens), tokens * 1e-5 * 1e-5)


def test_every_voxel_of_the_bottleneck_sees_every_other():
    torch.manual_seed(0)
    transformer = BottleneckTransformer(4, 2 * 3 * 2, SMALL).eval()
    features = torch.randn(1, 4, 2, 3, 2, requires_grad=True)
    transformer(features)[0, :, 1, 2, 1].sum().backward()
    assert (features.grad.abs().sum((0, 1)) > 0).all()


def test_another_patch_than_the_planned_one_and_odd_heads_are_refused():
    with torch.device("meta"):
        network = create_network(named_plan("synapse", "transunet").plan.network)
        with pytest.raises(ValueError, match="learned positions"):
            network(torch.empty(1, 1, 48, 192, 160))
    with pytest.raises(InputError, match="heads"):
        create_network(named_plan("synapse", "transunet", {"heads": 7}).plan.network)
    with pytest.raises(InputError, match="encoder, decoder, both"):
        create_network(small_queries(variant="none"))
