"""MedNeXt-M against the published counts, MONAI's blocks with the same weights, and patches that halve less often."""

import pytest
import torch
from torch import nn

from MambaSegLib.networks import create_network
from MambaSegLib.networks.mednext import EXPANSIONS
from MambaSegLib.plan import NetworkPlan

# The released code has one more, a tensor that only works around a defect of checkpointing.
COUNTS = {"mednext_m_k3": 17_562_854, "mednext_m_k5": 18_274_726}


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("patch", [(48, 192, 192), (14, 256, 224)])
def test_it_has_the_published_parameters_whatever_the_patch(name, patch):
    with torch.device("meta"):
        network = create_network(NetworkPlan(name, 1, 14, patch, ()))
    assert sum(parameter.numel() for parameter in network.parameters()) == COUNTS[name]


@pytest.mark.parametrize("name", COUNTS)
def test_with_monais_weights_every_output_is_monais(name):
    nets = pytest.importorskip("monai.networks.nets.mednext")
    torch.manual_seed(0)
    network = create_network(NetworkPlan(name, 2, 3, (32, 32, 32), (), options={"width": 4}))
    peer = _monai(nets, kernel=3 if name.endswith("3") else 5)
    own = [*network.stem.parameters(), *network.encoder[:-1].parameters(), *network.down.parameters()]
    own += [*network.encoder[-1].parameters(), *network.up.parameters(), *network.decoder.parameters()]
    own += network.heads.parameters()
    theirs = [*peer.stem.parameters(), *peer.enc_stages.parameters(), *peer.down_blocks.parameters()]
    theirs += [*peer.bottleneck.parameters(), *peer.up_blocks.parameters(), *peer.dec_stages.parameters()]
    theirs += [*peer.out_0.parameters(), *peer.out_blocks[::-1].parameters()]
    with torch.no_grad():
        for ours, other in zip(own, theirs, strict=True):
            assert ours.shape == other.shape
            ours.copy_(other)
        image = torch.randn(1, 2, 32, 32, 32)
        for logits, expected in zip(network(image), peer(image), strict=True):
            torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def _monai(nets, kernel: int) -> nn.Module:
    peer = nets.MedNeXt(
        init_filters=4,
        in_channels=2,
        out_channels=3,
        encoder_expansion_ratio=EXPANSIONS[:4],
        bottleneck_expansion_ratio=EXPANSIONS[4],
        decoder_expansion_ratio=EXPANSIONS[5:],
        kernel_size=kernel,
        deep_supervision=True,
        use_residual_connection=True,
        blocks_down=(3, 4, 4, 4),
        blocks_bottleneck=4,
        blocks_up=(4, 4, 4, 3),
    )
    for level in range(4):  # as published, not as MONAI: a downsampling expands like the stage it leads to
        peer.down_blocks[level] = nets.MedNeXtDownBlock(
            4 * 2**level, 8 * 2**level, EXPANSIONS[level + 1], kernel, use_residual_connection=True
        )
    return peer


@pytest.mark.parametrize("patch", [(7, 8, 12), (6, 16, 9)])
def test_patches_that_cannot_be_halved_four_times_work_too(patch):
    network = create_network(NetworkPlan("mednext_m_k3", 1, 2, patch, (), options={"width": 2}))
    assert tuple(network(torch.randn(1, 1, *patch))[0].shape) == (1, 2, *patch)
