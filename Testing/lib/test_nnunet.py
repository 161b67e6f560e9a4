"""nnU-Net's networks against the packaged originals: counts on the paper's Synapse plan, and outputs with their weights."""

import pytest
import torch
from torch import nn

from MambaSegLib.errors import InputError
from MambaSegLib.networks import create_network
from MambaSegLib.plan import NetworkPlan, StagePlan

KERNELS = ((1, 3, 3), *((3, 3, 3),) * 5)
STRIDES = ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2))
FEATURES = (32, 64, 128, 256, 320, 320)
BLOCKS = {"nnunet": (2,) * 6, "nnunet_resenc": (1, 3, 4, 6, 6, 6)}
DECODER_BLOCKS = {"nnunet": 2, "nnunet_resenc": 1}
COUNTS = {"nnunet": 30_713_158, "nnunet_resenc": 101_867_334}
PEERS = {
    "nnunet": ("PlainConvUNet", "n_conv_per_stage"),
    "nnunet_resenc": ("ResidualEncoderUNet", "n_blocks_per_stage"),
}


def synapse_plan(name: str, stages: int = 6, narrower: int = 1) -> NetworkPlan:
    rows = zip(FEATURES[:stages], STRIDES, KERNELS, BLOCKS[name], strict=False)
    planned = tuple(StagePlan(f // narrower, s, k, b, DECODER_BLOCKS[name]) for f, s, k, b in rows)
    return NetworkPlan(name, 1, 14, (48, 192, 192), planned)


def peer_of(plan: NetworkPlan) -> nn.Module:
    unet = pytest.importorskip(
        "dynamic_network_architectures.architectures.unet",
        reason="nnU-Net's own networks are not installed: pip install --no-deps dynamic-network-architectures",
    )
    kind, blocks = PEERS[plan.name]
    return getattr(unet, kind)(
        input_channels=plan.in_channels,
        n_stages=len(plan.stages),
        features_per_stage=[stage.features for stage in plan.stages],
        conv_op=nn.Conv3d,
        kernel_sizes=[stage.kernel for stage in plan.stages],
        strides=[stage.stride for stage in plan.stages],
        num_classes=plan.out_channels,
        n_conv_per_stage_decoder=[stage.decoder_blocks for stage in plan.stages[:-1]],
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
        **{blocks: [stage.blocks for stage in plan.stages]},
    )


def copy_weights(peer: nn.Module, network: nn.Module) -> None:
    """Both list the same layers; the original's decoder holds its encoder a second time, which is left out."""
    taken = {
        part: [
            value
            for name, value in peer.state_dict().items()
            if name.startswith(part) and ".all_modules." not in name and not name.startswith("decoder.encoder.")
        ]
        for part in ("encoder", "decoder.transpconvs", "decoder.stages", "decoder.seg_layers")
    }
    own = {"encoder": "encoder", "decoder.transpconvs": "decoder.upsample", "decoder.stages": "decoder.stages"}
    own["decoder.seg_layers"] = "decoder.heads"
    state = {}
    for part, prefix in own.items():
        names = [name for name in network.state_dict() if name.startswith(prefix)]
        state.update(dict(zip(names, taken[part], strict=True)))
    network.load_state_dict(state)


@pytest.mark.parametrize("name", COUNTS)
def test_the_synapse_network_has_the_parameters_of_the_original(name):
    with torch.device("meta"):
        network = create_network(synapse_plan(name))
    assert sum(parameter.numel() for parameter in network.parameters()) == COUNTS[name]


@pytest.mark.parametrize("name", COUNTS)
def test_with_the_weights_of_the_original_every_output_is_the_same(name):
    torch.manual_seed(0)
    plan = synapse_plan(name, stages=4, narrower=8)
    peer, network = peer_of(plan), create_network(plan)
    for parameter in peer.parameters():  # zeroed norms and biases would hide a layer in the wrong place
        nn.init.normal_(parameter, std=0.2)
    copy_weights(peer, network)
    image = torch.randn(2, 1, 8, 16, 24)
    with torch.no_grad():
        for ours, theirs in zip(network(image), peer(image), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", COUNTS)
def test_weights_start_as_the_originals_do(name):
    torch.manual_seed(0)
    plan = synapse_plan(name, stages=3, narrower=2)
    peer, network = peer_of(plan), create_network(plan)
    peer.apply(peer.initialize)
    twin = create_network(plan)
    copy_weights(peer, twin)
    for (key, ours), theirs in zip(network.state_dict().items(), twin.state_dict().values(), strict=True):
        if theirs.std() == 0 or theirs.numel() == 1:  # norms and biases: one value each
            torch.testing.assert_close(ours, theirs, msg=key)
        else:
            # Thousands of normal numbers each: their standard deviations agree to a few percent.
            assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.15), key


def test_they_have_no_options():
    with pytest.raises(InputError, match="no options"):
        create_network(NetworkPlan("nnunet", 1, 2, (8, 8, 8), synapse_plan("nnunet").stages[:1], options={"depth": 3}))
