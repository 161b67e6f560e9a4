"""Deterministic training on a GPU: which networks can, told by the operations that they compute; no GPU is needed for that."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from MambaSegTraining.determinism import CUBLAS_WORKSPACE, deterministic_algorithms, require_determinism
from MambaSegTraining.losses import deep_supervision_loss
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from MambaSegLib.errors import InputError
from MambaSegLib.networks import create_network, fit_patch, list_networks
from MambaSegLib.networks.block_mean import BlockMean
from MambaSegLib.plan import NetworkPlan, StagePlan
from MambaSegLib.readout import exclusive_classes

REFUSED = (
    "avg_pool3d_backward", "adaptive_avg_pool2d_backward", "adaptive_avg_pool3d_backward", "adaptive_max_pool2d_backward",
    "fractional_max_pool2d_backward", "fractional_max_pool3d_backward", "max_unpool2d", "max_unpool3d",
    "upsample_linear1d_backward", "upsample_bilinear2d_backward", "upsample_bicubic2d_backward",
    "upsample_trilinear3d_backward", "reflection_pad1d_backward", "reflection_pad2d_backward",
    "reflection_pad3d_backward", "ctc_loss_backward", "embedding_bag_backward", "put", "histc", "median",
    "grid_sampler_2d_backward", "grid_sampler_3d_backward", "cumsum", "scatter_reduce",
)  # fmt: skip
"""What raises on a GPU where deterministic algorithms are asked for (documentation of `torch.use_deterministic_algorithms`,
PyTorch 2.13), by the names of the operations; the negative log likelihood is looked at by its reduction."""

STAGES = (
    StagePlan(4, (1, 1, 1), (1, 3, 3), 1),
    StagePlan(6, (1, 2, 2), (3, 3, 3), 2),
    StagePlan(8, (2, 2, 2), (3, 3, 3), 1),
    StagePlan(8, (1, 2, 2), (3, 3, 3), 1),
)

CASES = [(entry.name, {}) for entry in list_networks()] + [
    ("transunet", {"variant": name}) for name in ("decoder", "both")
]


class Refusals(TorchDispatchMode):
    """Notes the operations that would raise."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operation.overloadpacket.__name__.strip("_")
        if name in REFUSED or (name == "nll_loss2d_forward" and args[3] != 0):
            self.found.add(name)
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize(("name", "options"), CASES, ids=[" ".join([n, *o.values()]) for n, o in CASES])
def test_the_table_says_which_networks_can_be_trained_deterministically_on_a_gpu(
    name: str, options: dict[str, str], narrow_options: dict[str, dict[str, object]]
) -> None:
    plan = fit_patch(NetworkPlan(name, 1, 3, (4, 16, 16), STAGES, True, {**narrow_options.get(name, {}), **options}))
    network = create_network(plan)
    with deterministic_algorithms(wanted=True), Refusals() as refusals:
        outputs = network(torch.randn(2, 1, *plan.patch_size))
        labels = torch.randint(3, (2, *plan.patch_size))
        deep_supervision_loss(outputs, labels, exclusive_classes(3)).backward()
    entry = next(entry for entry in list_networks() if entry.name == name)
    assert (not refusals.found) == entry.deterministic_on_gpu, refusals.found


def test_operations_that_would_raise_are_noticed() -> None:
    image = torch.randn(1, 1, 4, 4, 4, requires_grad=True)
    with Refusals() as refusals:
        nn.functional.avg_pool3d(image, 2).sum().backward()
        nn.functional.nll_loss(torch.randn(1, 2, 3, 3), torch.zeros(1, 3, 3, dtype=torch.long))
        nn.functional.nll_loss(torch.randn(1, 2, 3, 3), torch.zeros(1, 3, 3, dtype=torch.long), reduction="none")
    assert refusals.found == {"avg_pool3d_backward", "nll_loss2d_forward"}


@pytest.mark.parametrize("size", [(1, 2, 2), (2, 2, 2), (3, 1, 2)])
def test_means_of_blocks_are_those_of_pooling_with_the_same_gradient(size: tuple[int, int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn((2, 3, 7, 6, 9), generator=generator, dtype=torch.float64)
    results = []
    for wanted in (False, True):
        x = image.clone().requires_grad_(True)
        with deterministic_algorithms(wanted):
            pooled = BlockMean(size)(x)
            (pooled * torch.arange(pooled.numel()).reshape(pooled.shape)).sum().backward()
        results.append((pooled.detach(), x.grad))
    torch.testing.assert_close(*results)
    torch.testing.assert_close(results[0][0], nn.functional.avg_pool3d(image, size))


@pytest.fixture
def a_network() -> Callable[[str], nn.Module]:
    return lambda name: create_network(NetworkPlan(name, 1, 2, (4, 8, 8), STAGES[:2]))


def test_what_cannot_be_deterministic_on_a_gpu_is_refused_at_the_start(
    a_network: Callable[[str], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("MambaSegTraining.determinism.resolve_backend", lambda scan, device, needs_gradient: scan)
    mamba, plain = a_network("mamba_unet_unidirectional"), a_network("nnunet")
    with pytest.raises(InputError, match="no deterministic gradient on a GPU for some of what cotr computes"):
        require_determinism("cotr", plain, "cuda:1", "triton")
    with pytest.raises(InputError, match=r"mamba_ssm vary in their last digits\. Take --scan triton"):
        require_determinism("mamba_unet_unidirectional", mamba, "cuda", "mamba_ssm")
    require_determinism("mamba_unet_unidirectional", mamba, "cuda", "triton")
    require_determinism("nnunet", plain, "cuda", "mamba_ssm")  # it scans nothing
    require_determinism("cotr", plain, "cpu", "auto")


def test_cublas_is_told_before_the_first_product_and_only_where_it_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with deterministic_algorithms(wanted=True, device="cpu"):
        assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    with deterministic_algorithms(wanted=True, device="cuda:1"):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == CUBLAS_WORKSPACE
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with deterministic_algorithms(wanted=True, device="cuda"):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
