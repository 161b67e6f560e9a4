"""3D TransUNet: the released parameter count, and its transformer against PyTorch's own."""

import pytest
import torch
from MambaSegTraining.named_plans import named_plan
from torch import nn

from MambaSegLib.errors import InputError
from MambaSegLib.networks import create_network
from MambaSegLib.networks.transunet import BottleneckTransformer, TransformerLayer, TransUNetOptions

SMALL = TransUNetOptions(depth=2, hidden_size=12, mlp_size=20, heads=3, layer_scale=False)


def test_the_encoder_variant_has_the_released_parameters_on_the_synapse_plan():
    with torch.device("meta"):
        network = create_network(named_plan("synapse", "transunet").plan.network)
    assert sum(parameter.numel() for parameter in network.parameters()) == 116_500_512
    assert network.transformer.positions.shape == (1, 6 * 6 * 6, 768)


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
