"""Fused instance normalization on a real GPU, against PyTorch's in float64 on the same device."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from MambaSegLib.networks import create_network, fused_norm
from MambaSegLib.plan import NetworkPlan, StagePlan

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this computer"),
]

CUDA = "cuda"
FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last_3d}
# Large enough for rows in pieces, small enough for rows in one block, sizes that divide by 16 and others.
SHAPES = [
    (1, 64, 24, 96, 96),
    (2, 32, 17, 33, 35),
    (1, 512, 12, 24, 24),
    (2, 320, 3, 6, 6),
    (1, 3, 5, 7, 9),
    (1, 70, 9, 40, 40),
]
# float32 rounds to 6e-8 in the sums and in the result; bfloat16 once in the result.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 4e-3}


def relative_error(found: torch.Tensor, reference: torch.Tensor) -> float:
    return float((found.double() - reference.double()).norm() / reference.double().norm())


def test_the_kernels_run_here():
    assert fused_norm.why_unavailable("cuda:0") is None


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@torch.no_grad()
def test_norm_residual_and_activation_are_those_of_pytorch(shape, layout, kind):
    torch.manual_seed(0)
    x, residual = (
        (3 * torch.randn(shape, device=CUDA) + 5).to(kind).contiguous(memory_format=FORMATS[layout]) for _ in range(2)
    )
    norm = nn.InstanceNorm3d(shape[1], affine=True, device=CUDA)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    plain = functional.instance_norm(x.double(), weight=norm.weight.double(), bias=norm.bias.double(), eps=norm.eps)
    for extra, slope in ((None, 1.0), (None, 0.01), (residual, 0.01)):
        wanted = functional.leaky_relu(plain if extra is None else plain + extra.double(), slope)
        found = fused_norm.norm_activation(x, norm, extra, slope)
        assert found.dtype == kind
        assert relative_error(found, wanted) <= TOLERANCE[kind]
        assert torch.equal(found, fused_norm.norm_activation(x, norm, extra, slope))
        assert torch.equal(found, fused_norm.norm_activation(x.clone(), norm, extra, slope, in_place=True))


def gradients(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    norm: nn.InstanceNorm3d,
    slope: float,
    positive: torch.Tensor | None = None,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Of x, weight, bias and the residual, and where the result is positive; in float64 by PyTorch if that is told.

    Among millions of voxels a few are so close to 0 that rounding decides their sign. The reference is computed in one layout:
    on a CPU, PyTorch 2.13's gradient of the norm is wrong where x and the gradient of the result lie differently.
    """
    kind = x.dtype if positive is None else torch.float64
    if positive is not None:
        x, positive = x.contiguous(), positive.contiguous()
        residual = None if residual is None else residual.contiguous()
    leaves = [t.to(kind).detach().requires_grad_() for t in (x, residual) if t is not None]
    extra = leaves[1] if len(leaves) == 2 else None
    own = nn.InstanceNorm3d(x.shape[1], norm.eps, affine=True, device=CUDA)
    own.load_state_dict(norm.state_dict())
    if positive is None:
        y = fused_norm.norm_activation(leaves[0], own, extra, slope)
        positive = y.detach() > 0
    else:
        own = own.double()
        y = own(leaves[0])
        y = y if extra is None else y + extra
        y = torch.where(positive, y, slope * y)
    outer = torch.randn(x.shape, device=CUDA, generator=torch.Generator(CUDA).manual_seed(1)).to(x.dtype)
    found = torch.autograd.grad(y, [leaves[0], own.weight, own.bias, *leaves[1:]], outer.to(kind))
    return list(found), positive


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_all_gradients_are_those_of_pytorch(shape, layout, kind):
    torch.manual_seed(0)
    x, residual = (torch.randn(shape, device=CUDA).to(kind).contiguous(memory_format=FORMATS[layout]) for _ in range(2))
    norm = nn.InstanceNorm3d(shape[1], affine=True, device=CUDA)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    for extra, slope in ((None, 1.0), (None, 0.01), (residual, 0.01)):
        found, positive = gradients(x, extra, norm, slope)
        for one, wanted in zip(found, gradients(x, extra, norm, slope, positive)[0], strict=True):
            assert relative_error(one, wanted) <= (1e-5 if kind == torch.float32 else 1e-2)
        again, _ = gradients(x, extra, norm, slope)
        assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))


@pytest.mark.parametrize("name", ["nnunet", "nnunet_resenc"])
@torch.inference_mode()
def test_networks_predict_the_same_fused(name, monkeypatch):
    torch.manual_seed(0)
    stages = (StagePlan(32, (1, 1, 1), (3, 3, 3), 2), StagePlan(64, (2, 2, 2), (3, 3, 3), 2))
    network = create_network(NetworkPlan(name, 1, 3, (16, 32, 32), stages, False)).eval().to(CUDA)
    x = torch.randn((2, 1, 16, 32, 32), device=CUDA)
    # TensorFloat-32 would round each of the two runs differently.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    fused = network(x)[0]
    monkeypatch.setattr(fused_norm, "is_available", lambda device: False)
    assert relative_error(fused, network(x)[0]) <= 1e-5
