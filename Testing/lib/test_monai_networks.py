"""UNETR and Swin UNETR on MONAI: counts, patches, and what is said where MONAI is missing."""

from importlib import util

import pytest
import torch

from MambaSegLib.errors import EnvironmentProblemError, InputError
from MambaSegLib.networks import create_network, fit_patch
from MambaSegLib.networks.monai_parts import monai_network
from MambaSegLib.plan import NetworkPlan

UNETR_SMALL = {"feature_size": 2, "hidden_size": 12, "mlp_size": 12, "heads": 2}


def parameters(plan: NetworkPlan) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in create_network(plan).parameters())


def test_unetr_has_the_parameters_of_its_publications():
    # The first as trained by its authors, on the paper's Synapse patch; the second is the 92.49 M of many tables.
    assert parameters(NetworkPlan("unetr", 1, 14, (48, 192, 192), ())) == 92_949_934
    assert parameters(NetworkPlan("unetr", 1, 14, (64, 128, 128), (), options={"conv_block": False})) == 92_482_990


def test_swin_unetr_has_the_published_parameters():
    assert parameters(NetworkPlan("swin_unetr", 1, 14, (64, 128, 128), ())) == 62_187_296


@pytest.mark.parametrize(
    ("name", "patch", "fitting"),
    [
        ("unetr", (48, 192, 192), (48, 192, 192)),
        ("unetr", (14, 256, 224), (16, 256, 224)),
        ("unetr", (32, 48, 32), (32, 48, 32)),
        ("swin_unetr", (48, 192, 192), (64, 192, 192)),
        ("swin_unetr", (14, 256, 224), (32, 256, 224)),
        ("swin_unetr", (32, 48, 32), (32, 64, 32)),
        ("swin_unetr", (32, 32, 32), (32, 32, 64)),
    ],
)
def test_a_patch_they_cannot_take_is_refused_with_one_they_can(name, patch, fitting):
    plan = NetworkPlan(name, 1, 2, patch, ())
    assert fit_patch(plan).patch_size == fitting
    if patch != fitting:
        with pytest.raises(InputError, match=str(fitting[0])):
            create_network(plan)


def test_unetr_computes_what_monais_does_with_its_weights():
    torch.manual_seed(0)
    network = create_network(NetworkPlan("unetr", 1, 2, (16, 16, 32), (), options=UNETR_SMALL)).eval()
    peer = monai_network("unetr", "UNETR", "unetr")(
        1, 2, (16, 16, 32), 2, hidden_size=12, mlp_dim=12, num_heads=2
    ).eval()
    unused = network.body.load_state_dict(peer.state_dict(), strict=False).unexpected_keys
    assert all("norm_cross_attn" in key for key in unused)
    image = torch.randn(1, 1, 16, 16, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(image)[0], peer(image), rtol=0, atol=0)


def test_unetr_takes_its_own_patch_only():
    network = create_network(NetworkPlan("unetr", 1, 2, (16, 16, 32), (), options=UNETR_SMALL))
    with pytest.raises(ValueError, match="learned positions"):
        network(torch.zeros(1, 1, 16, 32, 16))


@pytest.mark.parametrize("name", ["unetr", "swin_unetr"])
def test_heads_that_do_not_divide_the_width_are_refused(name):
    options = {"unetr": {"heads": 7}, "swin_unetr": {"heads": (5, 6, 12, 24)}}[name]
    with pytest.raises(InputError, match="heads"):
        create_network(NetworkPlan(name, 1, 2, (32, 32, 64), (), options=options))


def test_without_monai_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(
        "MambaSegLib.networks.monai_parts.find_spec", lambda name: None if name == "monai" else util.find_spec(name)
    )
    with pytest.raises(EnvironmentProblemError, match="pip install 'monai"):
        monai_network("unetr", "UNETR", "unetr")
