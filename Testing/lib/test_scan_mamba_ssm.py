"""What the mamba_ssm backend hands to the official packages, checked by stand-ins that compute by the formula.

The packages need a CUDA build, so these stand-ins repeat what their C++ refuses: `selective_scan.cpp` of mamba-ssm 2.3.2 and
`causal_conv1d.cpp` of causal-conv1d 1.7.0. Types, shapes and steps in memory that pass here pass there.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")


from MambaSegLib.networks.mamba import MambaBlock
from MambaSegLib.scan import _asked_for, mamba_ssm_backend, probe, pytorch_backend
from MambaSegLib.scan.arguments import Convolution, Scan
from MambaSegLib.scan.order import NATURAL_ORDER, ScanOrder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

GRID = (2, 3, 4)
ORDERS = [ScanOrder(axes, backward) for axes in itertools.permutations(range(3)) for backward in (False, True)]
TYPES = (torch.float32, torch.float16, torch.bfloat16)


def check(condition: bool, what: str) -> None:
    """TORCH_CHECK."""
    if not condition:
        raise RuntimeError(what)


def official_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Any:
    batch, channels, length = u.shape
    states = A.shape[1]
    check(u.dtype in TYPES, "u is float32, float16 or bfloat16")
    check(A.dtype == torch.float32 and A.shape == (channels, states), "A is (D, N) in float32")
    check(states <= 256, "selective_scan only supports state dimension <= 256")
    for name, tensor, width in (("delta", delta, channels), ("B", B, states), ("C", C, states), ("z", z, channels)):
        if tensor is not None:
            check(tensor.dtype == u.dtype, f"{name} is of the type of u")
            check(tensor.shape == (batch, width, length), f"{name} is ({batch}, {width}, {length})")
            check(tensor.stride(-1) == 1 or length == 1, f"{name} has contiguous tokens")
    for name, vector in (("D", D), ("delta_bias", delta_bias)):
        if vector is not None:
            check(vector.dtype == torch.float32 and vector.shape == (channels,), f"{name} is (D,) in float32")
            check(vector.stride(-1) == 1 or channels == 1, f"{name} is contiguous")
    out, last = pytorch_backend.selective_scan_sequential(
        Scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, (1, 1, length), NATURAL_ORDER)
    )
    return (out, last) if return_last_state else out


def official_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: None = None,
    initial_states: None = None,
    return_final_states: bool = False,
    final_states_out: None = None,
    activation: str | None = None,
) -> Tensor:
    assert seq_idx is initial_states is final_states_out is None
    assert not return_final_states
    _, channels, length = x.shape
    check(activation in (None, "silu", "swish"), "activation must be None, silu, or swish")
    check(x.dtype in TYPES and weight.dtype in TYPES, "types")
    check(
        weight.shape[0] == channels and 2 <= weight.shape[1] <= 4, "causal_conv1d only supports width between 2 and 4"
    )
    check(x.stride(2) == 1 or x.stride(1) == 1, "steps")
    if x.stride(1) == 1 and x.stride(2) > 1:  # channels last
        check(channels % 8 == 0 and x.stride(2) % 8 == 0 and x.stride(0) % 8 == 0, "multiples of 8")
    if bias is not None:
        check(bias.dtype == weight.dtype and bias.shape == (channels,), "bias")
        check(bias.stride(-1) == 1 or channels == 1, "bias is contiguous")
    return pytorch_backend.causal_conv1d(
        Convolution(x, weight, bias, activation is not None, (1, 1, length), NATURAL_ORDER)
    )


def official_inner(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: None = None,
    C: None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """(B, 2 D, L) to (B, L, C)."""
    assert B is C is None  # they come from x_proj
    check(xz.stride(-1) == 1, "tokens are contiguous, or it copies once more")
    taps = conv1d_weight.squeeze(1)
    check(conv1d_weight.shape == (xz.shape[1] // 2, 1, taps.shape[1]), "weight of the convolution's module")
    x, z = xz.chunk(2, dim=1)
    u = official_convolution(x, taps, conv1d_bias, activation="silu")
    states, rank = A.shape[1], delta_proj_weight.shape[1]
    dt, B, C = torch.split(x_proj_weight @ u, [rank, states, states], dim=1)
    y = official_scan(u, delta_proj_weight @ dt, A, B, C, D, z, delta_bias, delta_softplus)
    return torch.nn.functional.linear(y.transpose(1, 2), out_proj_weight, out_proj_bias)


@pytest.fixture
def official_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    interface = ModuleType("mamba_ssm.ops.selective_scan_interface")
    interface.selective_scan_fn = official_scan
    interface.mamba_inner_fn = official_inner
    convolution = ModuleType("causal_conv1d")
    convolution.causal_conv1d_fn = official_convolution
    ops, package = ModuleType("mamba_ssm.ops"), ModuleType("mamba_ssm")
    ops.selective_scan_interface, package.ops = interface, ops
    for module in (interface, convolution, ops, package, ModuleType("selective_scan_cuda")):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def arguments(dtype: torch.dtype = torch.float32, states: int = 5) -> list[Tensor]:
    """u, delta, A, B, C, D, z, delta_bias as a layer has them: transposed rows, views of wider tensors."""
    generator = torch.Generator().manual_seed(0)
    xz, projected = torch.randn(2, 24, 12, generator=generator), torch.randn(2, 24, 2 * states, generator=generator)
    delta, vectors = torch.randn(2, 24, 6, generator=generator), torch.randn(6, 2, generator=generator)
    A = -torch.rand(6, states, generator=generator) * 4
    rows = [t.to(dtype).transpose(1, 2) for t in (xz[..., :6], delta, projected[..., :states], projected[..., states:])]
    u, delta, B, C = rows
    return [u, delta, A, B, C, vectors[:, 0], xz[..., 6:].to(dtype).transpose(1, 2), vectors[:, 1]]


@pytest.mark.usefixtures("official_packages")
@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_each_order_gives_the_specifications_numbers_and_gradients(order):
    leaves = [t.detach().requires_grad_() for t in arguments()]
    doubles = [t.detach().double().requires_grad_() for t in arguments()]
    found, last = mamba_ssm_backend.selective_scan(Scan(*leaves, True, GRID, order))
    wanted, wanted_last = pytorch_backend.selective_scan_sequential(Scan(*doubles, True, GRID, order))
    torch.testing.assert_close(found, wanted.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(last, wanted_last.float(), rtol=1e-5, atol=1e-5)
    assert not last.requires_grad
    found.sum().backward()
    wanted.sum().backward()
    for leaf, double in zip(leaves, doubles, strict=True):
        torch.testing.assert_close(leaf.grad, double.grad.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("official_packages")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_and_parameters_of_other_types_reach_the_kernel_as_it_wants_them(dtype):
    mixed = arguments(dtype)
    mixed[3] = mixed[3].float()  # autocast leaves such mixtures
    mixed[2] = mixed[2].to(dtype)
    found, _ = mamba_ssm_backend.selective_scan(Scan(*mixed, True, GRID, ORDERS[3]))
    assert found.dtype == dtype
    x, taps, bias = mixed[0], torch.randn(6, 4), torch.randn(6, 2)[:, 0]
    assert mamba_ssm_backend.causal_conv1d(Convolution(x, taps, bias, True, GRID, ORDERS[3])).dtype == dtype


@pytest.mark.usefixtures("official_packages")
@pytest.mark.parametrize("taps", [1, 2, 4, 7])
def test_convolutions_give_the_specifications_numbers(taps):
    x, weight, bias = arguments()[0], torch.randn(6, taps), torch.randn(6, 2)[:, 0]
    for order in ORDERS[::3]:
        convolution = Convolution(x, weight, bias, True, GRID, order)
        found = mamba_ssm_backend.causal_conv1d(convolution)
        torch.testing.assert_close(found, pytorch_backend.causal_conv1d(convolution))


@pytest.fixture
def on_a_gpu(official_packages: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The stand-ins, chosen as the packages are on a GPU."""
    monkeypatch.setattr(mamba_ssm_backend, "why_unavailable", lambda device, needs_gradient: None)
    yield
    _asked_for.cache_clear()
    mamba_ssm_backend._block_failure.cache_clear()


def block_and_twin(states: int = 5, taps: int = 4) -> tuple[MambaBlock, MambaBlock]:
    torch.manual_seed(0)
    block, twin = MambaBlock(6, states, taps), MambaBlock(6, states, taps)
    twin.load_state_dict(block.state_dict())
    block.scan_backend, twin.scan_backend = "mamba_ssm", "pytorch"
    return block, twin


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("order", ORDERS[::3], ids=str)
def test_a_whole_block_is_one_official_function_with_the_specifications_numbers_and_gradients(order, monkeypatch):
    block, twin = block_and_twin()
    tokens = torch.randn(2, 24, 6)
    results = []
    for one in (block, twin):
        if one is block:
            monkeypatch.setattr(one, "scan", None)  # the single steps are not taken
        own = tokens.clone().requires_grad_()
        output = one(own, GRID, order)
        output.square().sum().backward()
        results.append([output.detach(), own.grad, *(p.grad for p in one.parameters())])
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("on_a_gpu")
def test_a_block_goes_step_by_step_where_the_official_function_is_wrong_or_would_round_differently(monkeypatch, caplog):
    monkeypatch.setattr(mamba_ssm_backend, "run_block", lambda *_: pytest.fail("not here"))
    tokens = torch.randn(1, 24, 6)
    with torch.no_grad():
        long, twin = block_and_twin(taps=5)
        torch.testing.assert_close(long(tokens, GRID, NATURAL_ORDER), twin(tokens, GRID, NATURAL_ORDER))
        block, twin = block_and_twin()
        with torch.autocast("cpu", torch.bfloat16):
            block(tokens, GRID, NATURAL_ORDER)
        monkeypatch.setattr(mamba_ssm_backend, "run_block", lambda xz, *_: 0.1 * xz[..., :2])
        with caplog.at_level("INFO"):
            torch.testing.assert_close(block(tokens, GRID, NATURAL_ORDER), twin(tokens, GRID, NATURAL_ORDER))
    assert "fused function is not used: a tiny Mamba block on cpu is off by" in caplog.text


@pytest.mark.usefixtures("on_a_gpu")
def test_a_block_of_too_many_states_is_refused_in_words():
    block, _ = block_and_twin(states=257)
    with pytest.raises(ValueError, match="at most 256 states, got 257"):
        block(torch.randn(1, 24, 6), GRID, NATURAL_ORDER)


@pytest.mark.usefixtures("official_packages")
def test_what_the_kernels_cannot_do_is_refused_in_words():
    with pytest.raises(ValueError, match="at most 256 states, got 257"):
        mamba_ssm_backend.selective_scan(Scan(*arguments(states=257), True, GRID, NATURAL_ORDER))
    doubles = [t.double() for t in arguments()]
    with pytest.raises(ValueError, match="float64"):
        mamba_ssm_backend.selective_scan(Scan(*doubles, True, GRID, NATURAL_ORDER))
    taps = torch.zeros(6, 4).double()
    with pytest.raises(ValueError, match="float64"):
        mamba_ssm_backend.causal_conv1d(Convolution(doubles[0], taps, None, False, GRID, NATURAL_ORDER))
    wide, taps = torch.zeros(1).expand(1, 4096, 2**20), torch.zeros(4096, 4)
    with pytest.raises(ValueError, match="smaller patch"):
        mamba_ssm_backend.causal_conv1d(Convolution(wide, taps, None, False, (1, 1, 2**20), NATURAL_ORDER))
    long = torch.zeros(1).expand(1, 4096, 2**23)  # views of one number: nothing of that size is made
    huge = (long, long, torch.zeros(4096, 256), long[:, :256], long[:, :256])
    with pytest.raises(ValueError, match="32-bit counters"):
        mamba_ssm_backend.selective_scan(Scan(*huge, None, None, None, True, (1, 1, 2**23), NATURAL_ORDER))


def test_it_says_which_part_is_missing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("causal_conv1d", "selective_scan_cuda"):
        monkeypatch.setitem(sys.modules, name, None)
    reason = mamba_ssm_backend.why_unavailable("cuda", needs_gradient=False)
    assert "causal_conv1d" in reason
    assert "MAMBA_KEEP_CUDA_BUILD" in reason


@pytest.mark.usefixtures("official_packages")
def test_a_probe_tells_wrong_numbers_and_wrong_gradients_from_right_ones():
    def doubled(scan: Scan) -> tuple[Tensor, Tensor]:
        output, last = pytorch_backend.selective_scan_sequential(scan)
        return 2 * output, last

    def without_gradient(scan: Scan) -> tuple[Tensor, Tensor]:
        output, last = pytorch_backend.selective_scan_sequential(replace(scan, u=scan.u.detach()))
        return output + 0 * scan.u, last

    def other_order(convolution: Convolution) -> Tensor:
        return pytorch_backend.causal_conv1d(replace(convolution, order=ScanOrder(backward=True)))

    def nothing(scan: Scan) -> tuple[Tensor, Tensor]:
        output, last = pytorch_backend.selective_scan_sequential(scan)
        return output * float("nan"), last

    scan, convolution = mamba_ssm_backend.selective_scan, mamba_ssm_backend.causal_conv1d
    assert probe.probe_failure(scan, convolution, "cpu", with_gradient=True) is None
    assert "off by nan" in probe.probe_failure(nothing, convolution, "cpu")
    with torch.autocast("cpu", torch.bfloat16):
        assert probe.probe_failure(scan, convolution, "cpu", with_gradient=True) is None
    assert "off by" in probe.probe_failure(doubled, convolution, "cpu")
    assert "off by" in probe.probe_failure(scan, other_order, "cpu")
    assert probe.probe_failure(without_gradient, convolution, "cpu") is None
    assert "off by" in probe.probe_failure(without_gradient, convolution, "cpu", with_gradient=True)
    assert "failed on nowhere" in probe.probe_failure(scan, convolution, "nowhere")


@pytest.mark.usefixtures("official_packages")
def test_a_probe_does_not_depend_on_what_the_program_around_it_set():
    scan, convolution = mamba_ssm_backend.selective_scan, mamba_ssm_backend.causal_conv1d
    with torch.inference_mode():
        assert probe.probe_failure(scan, convolution, "cpu", with_gradient=True) is None
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert probe.probe_failure(scan, convolution, "cpu", with_gradient=True) is None
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_probe_says_nothing_about_a_backend_while_memory_is_short():
    """Its answer is kept; a slower backend would be taken for good because another program held the GPU for a moment."""

    def without_memory(scan: Scan) -> tuple[Tensor, Tensor]:
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        probe.probe_failure(without_memory, pytorch_backend.causal_conv1d, "cpu")
