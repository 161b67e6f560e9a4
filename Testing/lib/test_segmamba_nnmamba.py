"""SegMamba and nnMamba: parameter counts, and their Mamba layers against plain Mamba blocks on rearranged tokens."""

from itertools import product
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from MambaSegLib.errors import InputError
from MambaSegLib.networks import create_network
from MambaSegLib.networks.mamba import MambaBlock
from MambaSegLib.networks.nnmamba import SiameseMamba
from MambaSegLib.networks.segmamba import ResidualBlock, TriOrientedMamba
from MambaSegLib.plan import NetworkPlan, StagePlan
from MambaSegLib.predictor import Predictor
from MambaSegLib.scan.order import NATURAL_ORDER

GRID = (2, 3, 4)


def parameters(plan: NetworkPlan) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in create_network(plan).parameters())


def test_segmamba_has_the_parameters_papers_print_for_it():
    # 67.42 M with BraTS' four channels and classes, 67.36 M with one channel.
    assert parameters(NetworkPlan("segmamba", 4, 4, (128, 128, 128), ())) == 67_416_196
    assert parameters(NetworkPlan("segmamba", 1, 4, (128, 128, 128), ())) == 67_362_772


def test_nnmamba_has_the_parameters_of_the_released_code():
    # Counted by hand from nnMamba.py for AMOS. The paper prints 15.55 M, which that code has not.
    plan = NetworkPlan("nnmamba", 1, 16, (128, 128, 128), (), deep_supervision=False)
    assert parameters(plan) == 15_959_598
    heads = sum(width * 16 + 16 for width in (32, 64, 128))
    assert parameters(NetworkPlan("nnmamba", 1, 16, (128, 128, 128), ())) == 15_959_598 + heads


@pytest.mark.parametrize("name", ["segmamba", "nnmamba"])
def test_the_count_does_not_depend_on_the_patch_unless_an_axis_cannot_be_halved(name):
    counts = {patch: parameters(NetworkPlan(name, 1, 4, patch, ())) for patch in ((48, 192, 192), (128, 128, 128))}
    assert len(set(counts.values())) == 1


def test_three_scans_are_three_mamba_blocks_on_rearranged_tokens_with_common_projections():
    torch.manual_seed(0)
    layer = TriOrientedMamba(4)
    features = torch.randn(2, 4, *GRID)
    voxels = list(product(*map(range, GRID)))
    forward = list(range(len(voxels)))
    across = sorted(forward, key=lambda index: (voxels[index][1], voxels[index][2], voxels[index][0]))
    with torch.no_grad():
        for parameter in layer.directions.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        tokens = layer.norm(features.flatten(2).transpose(1, 2))
        expected = torch.zeros_like(tokens)
        for direction, order in zip(layer.directions, (forward, forward[::-1], across), strict=True):
            block = MambaBlock(4, 16)
            block.load_state_dict(
                {
                    "in_proj.weight": layer.in_proj.weight,
                    "out_proj.weight": layer.out_proj.weight,
                    **direction.state_dict(),
                }
            )
            expected[:, order] += block(tokens[:, order], (1, 1, len(order)), NATURAL_ORDER)
        result = layer(features).flatten(2).transpose(1, 2)
        torch.testing.assert_close(result, expected + features.flatten(2).transpose(1, 2), rtol=1e-5, atol=1e-5)


def test_the_siamese_mamba_is_the_published_mean_over_flips():
    torch.manual_seed(0)
    layer = SiameseMamba(4).eval()
    layer.enter, layer.leave = nn.Identity(), nn.Identity()
    features = torch.randn(2, 4, *GRID)
    with torch.no_grad():
        tokens = features.flatten(2).transpose(1, 2)
        total = torch.zeros_like(tokens)
        for axes in ((), (1,), (2,), (1, 2)):
            flipped = tokens.flip(axes) if axes else tokens
            mixed = layer.mamba(flipped.contiguous(), (1, 1, 24), NATURAL_ORDER)
            total += mixed.flip(axes) if axes else mixed
        expected = (total / 4 + tokens).transpose(1, 2).reshape(features.shape)
        torch.testing.assert_close(layer(features), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [(3, 3), (3, 5)])
def test_segmambas_residual_block_is_monais_with_the_same_weights(channels):
    blocks = pytest.importorskip("monai.networks.blocks.dynunet_block")
    torch.manual_seed(0)
    peer, block = blocks.UnetResBlock(3, *channels, 3, 1, "instance"), ResidualBlock(*channels)
    with torch.no_grad():
        for ours, theirs in zip(block.parameters(), peer.parameters(), strict=True):
            ours.copy_(theirs)
        features = torch.randn(2, channels[0], 4, 5, 6)
        torch.testing.assert_close(block(features), peer(features), rtol=1e-5, atol=1e-5)


def test_the_blocks_of_an_nnmamba_stage_share_their_mamba_layer():
    network = create_network(NetworkPlan("nnmamba", 1, 2, (16, 32, 32), (), options={"width": 2, "blocks": 4}))
    layers = [module for module in network.modules() if isinstance(module, SiameseMamba)]
    assert len(layers) == 3
    calls = []
    layers[0].register_forward_hook(lambda *_: calls.append(1))
    network.eval()(torch.zeros(1, 1, 16, 32, 32))
    assert len(calls) == 3  # all blocks but the first


@pytest.mark.parametrize(
    ("name", "options"), [("segmamba", {"depths": (2, 2)}), ("segmamba", {"width": 0}), ("nnmamba", {"blocks": 1})]
)
def test_options_that_cannot_be_built_are_refused(name, options):
    with pytest.raises(InputError, match="at least"):
        create_network(NetworkPlan(name, 1, 2, (32, 32, 32), (), options=options))


@pytest.mark.parametrize(("name", "backend"), [("segmamba", "pytorch"), ("nnmamba", "pytorch"), ("nnunet", "none")])
def test_a_prediction_names_the_backend_of_every_network_that_scans(name, backend):
    stages = (StagePlan(4, (1, 1, 1), (3, 3, 3), 1), StagePlan(4, (2, 2, 2), (3, 3, 3), 1)) if name == "nnunet" else ()
    plan = NetworkPlan(name, 1, 2, (32, 32, 32), stages)
    with torch.device("meta"):
        loaded = SimpleNamespace(_networks=(create_network(plan),), _scan="pytorch")
    assert Predictor._backend_on(loaded, torch.device("cpu")) == backend
