"""Multiply-adds: by hand, by PyTorch's own counter, and as known for the released networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from MambaSegTraining.costs.counting import count_forward, count_macs, count_parameters
from MambaSegTraining.costs.records import MacCount, Measurement, NetworkCost, read_cost, write_cost
from MambaSegTraining.named_plans import named_plan
from MambaSegTraining.run_folder import RunFolder
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from MambaSegLib.errors import BackendUnavailableError
from MambaSegLib.networks import create_network, fit_patch, list_networks, set_scan_backend
from MambaSegLib.networks.mamba import MambaBlock
from MambaSegLib.plan import NetworkPlan, OptionValue, StagePlan
from MambaSegLib.scan import SHAPES, causal_conv1d
from MambaSegLib.scan.order import NATURAL_ORDER

NAMES = [entry.name for entry in list_networks()]


class Computes(nn.Module):
    """A module from modules and a function of them and the input."""

    def __init__(self, forward: Callable[..., Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.parts)


def counted(build: Callable[[], nn.Module], *shape: int) -> MacCount:
    with FakeTensorMode():
        return count_forward(build(), torch.empty(shape))


def test_convolutions_by_hand() -> None:
    """Outputs times the inputs each of them is made from; transposed, inputs times outputs."""
    assert counted(lambda: nn.Conv3d(4, 6, 3, padding=1), 1, 4, 5, 6, 7) == MacCount(convolution=6 * 210 * 4 * 27)
    strided = counted(lambda: nn.Conv3d(4, 6, (1, 3, 3), (1, 2, 2), (0, 1, 1)), 2, 4, 5, 6, 8)
    assert strided == MacCount(convolution=2 * 6 * (5 * 3 * 4) * 4 * 9)
    grouped = counted(lambda: nn.Conv3d(4, 6, 3, padding=1, groups=2), 1, 4, 5, 6, 7)
    assert grouped == MacCount(convolution=6 * 210 * 2 * 27)
    assert counted(lambda: nn.ConvTranspose3d(4, 6, 2, 2), 1, 4, 5, 6, 7) == MacCount(convolution=4 * 210 * 6 * 8)


@pytest.mark.parametrize("fused", [False, True])
def test_attention_by_hand(fused: bool) -> None:
    """3 sequences of 10 tokens, 8 features in 2 heads: four projections; scores and values 10 x 10 x 4 per head."""

    def attend(x: Tensor, attention: nn.MultiheadAttention) -> Tensor:
        return attention(x, x, x, need_weights=not fused)[0]

    found = counted(lambda: Computes(attend, nn.MultiheadAttention(8, 2, batch_first=True)), 3, 10, 8)
    assert found == MacCount(linear=3 * 10 * 8 * 8 * 4, attention=3 * 2 * (10 * 10 * 4) * 2)


def test_sampling_at_learned_positions_takes_eight_corners_per_value() -> None:
    def sample(x: Tensor) -> Tensor:
        return functional.grid_sample(x, torch.empty(2, 1, 1, 9, 3), align_corners=False)

    assert counted(lambda: Computes(sample), 2, 4, 5, 6, 7) == MacCount(sampling=8 * 2 * 4 * 9)


def test_a_mamba_block_by_hand() -> None:
    """8 channels, 16 inside, 5 states, rank 1, 4 taps; 60 tokens."""

    def build() -> nn.Module:
        block = MambaBlock(8, 5)
        block.scan_backend = SHAPES
        return Computes(lambda x, part: part(x, (3, 4, 5), NATURAL_ORDER), block)

    assert counted(build, 2, 60, 8) == MacCount(
        convolution=2 * 60 * 16 * 4,
        linear=2 * 60 * (8 * 32 + 16 * (1 + 2 * 5) + 1 * 16 + 16 * 8),
        scan=2 * 60 * 16 * (4 * 5 + 3),
    )


# What is known of the released networks at 48 x 192 x 192, in billions: convolutions and linear layers, no scan.
@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ("nnunet", 474.7),
        ("nnunet_resenc", 883.0),
        ("umamba_bot", 811.3),
        ("umamba_enc", 849.7),
        ("mamba_unet_unidirectional", 979.2),
        ("mamba_unet_bidirectional", 1037.2),
    ],
)
def test_released_networks_have_their_known_multiply_adds(network: str, expected: float) -> None:
    macs = count_macs(named_plan("synapse", network).plan.network)
    assert round((macs.convolution + macs.linear) / 1e9, 1) == expected
    assert (macs.scan > 0) == ("mamba" in network)


# Counted by others with norms included (fvcore), which add less than 1 %, for one channel and 14 classes.
@pytest.mark.parametrize(
    ("network", "options", "expected"),
    [
        ("unetr", {"conv_block": False}, 75.69),
        ("swin_unetr", {}, 384.18),
        ("nnformer", {}, 213.37),
        ("cotr", {}, 334.6),
    ],
)
def test_transformers_have_their_known_multiply_adds(
    network: str, options: dict[str, OptionValue], expected: float
) -> None:
    plan = replace(named_plan("synapse", network, options).plan.network, patch_size=(64, 128, 128))
    macs = count_macs(plan)
    assert expected * 0.99 < macs.total / 1e9 < expected
    assert macs.attention > 0
    assert (macs.sampling > 0) == (network == "cotr")


def small_plan(name: str, options: dict[str, object] | None = None) -> NetworkPlan:
    stages = (StagePlan(4, (1, 1, 1), (3, 3, 3), 1, 1), StagePlan(8, (2, 2, 2), (3, 3, 3), 1, 1))
    return fit_patch(NetworkPlan(name, 2, 3, (8, 8, 8), stages, options=options or {}))


@pytest.mark.parametrize("name", NAMES)
def test_shapes_give_the_same_counts_as_pytorchs_counter_on_real_tensors(
    name: str, narrow_options: dict[str, dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small_plan(name, narrow_options.get(name))
    network = create_network(plan).train()
    set_scan_backend(network, "numba")  # hides the scan and its convolution from PyTorch, nothing else
    hidden = note_causal_convolutions(monkeypatch)
    # PyTorch's counter does not know the fused attention of processors; in its plain form it sees the products.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        network(torch.zeros(1, plan.in_channels, *plan.patch_size))
    unseen = sum(hidden)  # before the shapes are counted, which goes the same way
    macs = count_macs(plan)
    assert 2 * (macs.convolution + macs.linear + macs.attention - unseen) == counter.get_total_flops()
    assert count_parameters(plan) == sum(parameter.numel() for parameter in network.parameters())


def note_causal_convolutions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Products of each causal convolution, which the compiled backend does not show."""
    counts: list[int] = []

    def noted(x: Tensor, taps: Tensor, *arguments: object, **settings: object) -> Tensor:
        counts.append(x.numel() * taps.shape[1])
        return causal_conv1d(x, taps, *arguments, **settings)

    monkeypatch.setattr("MambaSegLib.networks.mamba.causal_conv1d", noted)
    return counts


def test_nobody_segments_with_the_backend_that_only_counts() -> None:
    network = create_network(small_plan(NAMES[0]))
    set_scan_backend(network, SHAPES)
    with pytest.raises(BackendUnavailableError, match="only counts"):
        network(torch.zeros(1, 2, 8, 8, 8))


def test_a_run_keeps_its_cost(tmp_path) -> None:
    run = RunFolder(tmp_path)
    assert read_cost(run) is None
    measured = Measurement(
        "a processor", ("torch 2",), "cpu", 2, "numba", "off", False, 2, (8, 8, 8), 0.5, 10**9, 0.1, 10**8,
        (10.0, 20.0, 20.0), 18, 3,
    )  # fmt: skip
    cost = NetworkCost("nnunet", "Balls", (8, 8, 8), 1000, MacCount(convolution=2 * 10**9, scan=10**9), measured)
    write_cost(run, cost)
    assert read_cost(run) == cost
    assert (cost.gmacs, measured.volume_s) == (3.0, pytest.approx(1.8))
