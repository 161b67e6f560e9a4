"""The scan's CUDA backends on a real GPU, against the specification in float64 on the same device."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
import torch

from MambaSegLib.networks.mamba import MambaBlock, MambaLayer3d
from MambaSegLib.scan import causal_conv1d, fuses_blocks, list_backends, pytorch_backend, selective_scan
from MambaSegLib.scan.arguments import Scan
from MambaSegLib.scan.order import ALL_LETTERS, NATURAL_ORDER, ScanOrder, ScanPath

if TYPE_CHECKING:
    from torch import Tensor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this computer"),
]

CUDA = "cuda"
ORDERS = [ScanOrder(axes, backward) for axes in itertools.permutations(range(3)) for backward in (False, True)]
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
BACKENDS = ("triton", "mamba_ssm")
# float32 in and out; exponentials of the special function unit are good to 2e-7. mamba_ssm's fast exp is coarser.
FORWARD_TOLERANCE = {"triton": 2e-6, "mamba_ssm": 1e-5}
GRADIENT_TOLERANCE = {"triton": 1e-5, "mamba_ssm": 5e-5}
HALF_TOLERANCE = 1e-2


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    status = {s.name: s for s in list_backends(CUDA, needs_gradient=True)}[request.param]
    if not status.available:
        pytest.skip(f"{status.name}: {status.reason}")
    return status.name


def tensors(channels: int, states: int, length: int, batch: int = 1) -> dict[str, Tensor]:
    """As layers have them: transposed rows, u and z in one tensor, B and C in one; steps of a fresh network."""
    generator = torch.Generator(CUDA).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=CUDA)

    xz, projected = random(batch, length, 2 * channels), random(batch, length, 2 * states)
    steps = torch.exp(torch.rand(channels, generator=generator, device=CUDA) * 4.6 - 6.9)
    return {
        "u": xz[..., :channels].transpose(1, 2),
        "delta": (0.5 * random(batch, length, channels)).transpose(1, 2),
        "A": -torch.arange(1.0, states + 1, device=CUDA).repeat(channels, 1),
        "B": projected[..., :states].transpose(1, 2),
        "C": projected[..., states:].transpose(1, 2),
        "D": random(channels),
        "z": xz[..., channels:].transpose(1, 2),
        "delta_bias": steps + torch.log(-torch.expm1(-steps)),
    }


def results(
    made: dict[str, Tensor], backend: str | None, grid: tuple[int, int, int], order: ScanOrder
) -> dict[str, Tensor]:
    """Output and every gradient; without a backend from the specification, in float64."""
    leaves = {name: (t.double() if backend is None else t).detach().requires_grad_() for name, t in made.items()}
    if backend is None:
        output, _ = pytorch_backend.selective_scan(Scan(*(leaves[n] for n in NAMES), True, grid, order))
    else:
        output = selective_scan(**leaves, delta_softplus=True, grid=grid, order=order, backend=backend)
    weights = torch.randn(output.shape, generator=torch.Generator(CUDA).manual_seed(1), device=CUDA)
    output.backward(weights.to(output.dtype))
    return {"output": output.detach()} | {name: leaf.grad for name, leaf in leaves.items()}


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """The error itself where the reference is zero, as the gradient of A is for a single token."""
    difference = (found.detach().double() - wanted.detach().double()).norm()
    return float(difference) / (float(wanted.detach().double().norm()) or 1.0)


def assert_agree(found: dict[str, Tensor], wanted: dict[str, Tensor], backend: str) -> None:
    for name, value in wanted.items():
        tolerance = FORWARD_TOLERANCE[backend] if name == "output" else GRADIENT_TOLERANCE[backend]
        error = relative_error(found[name], value)
        assert error <= tolerance, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize(
    ("channels", "states", "length"),
    [(64, 16, 20_000), (64, 32, 20_000), (128, 64, 8_000), (256, 128, 4_000), (512, 256, 2_000), (640, 256, 864),
     (100, 24, 3_001), (5, 3, 7), (64, 32, 1), (320, 8, 100)],
)  # fmt: skip
def test_every_stage_and_odd_sizes_match_the_specification(backend, channels, states, length):
    made = tensors(channels, states, length, batch=2)
    grid = (1, 1, length)
    assert_agree(results(made, backend, grid, NATURAL_ORDER), results(made, None, grid, NATURAL_ORDER), backend)


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_every_order_matches_the_specification(backend, order):
    grid = (12, 17, 23)
    made = tensors(48, 20, 12 * 17 * 23)
    assert_agree(results(made, backend, grid, order), results(made, None, grid, order), backend)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_stay_close_and_come_back_in_kind(backend, dtype):
    if dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU has no bfloat16")
    made = tensors(64, 32, 10_000)
    half = {name: t.to(dtype) if t.ndim == 3 else t for name, t in made.items()}
    grid = (1, 1, 10_000)
    found, wanted = results(half, backend, grid, NATURAL_ORDER), results(half, None, grid, NATURAL_ORDER)
    for name, value in wanted.items():
        assert found[name].dtype == (half[name].dtype if name in half else dtype)
        assert relative_error(found[name], value) <= HALF_TOLERANCE, name


def test_convolutions_of_all_orders_match(backend):
    x, weight = torch.randn(2, 48, 1001, device=CUDA), torch.randn(48, 4, device=CUDA)
    for order in ORDERS:
        leaves = [t.detach().clone().requires_grad_() for t in (x, weight)]
        doubles = [t.detach().double().requires_grad_() for t in (x, weight)]
        found = causal_conv1d(*leaves, None, "silu", grid=(7, 11, 13), order=order, backend=backend)
        wanted = causal_conv1d(*doubles, None, "silu", grid=(7, 11, 13), order=order, backend="pytorch")
        found.sum().backward()
        wanted.sum().backward()
        assert relative_error(found, wanted) <= 1e-6
        for leaf, double in zip(leaves, doubles, strict=True):
            assert relative_error(leaf.grad, double.grad) <= 1e-5


@pytest.mark.parametrize("order", ORDERS[::3], ids=str)
def test_a_mamba_block_matches_the_specification_with_every_gradient(backend, order):
    """With mamba_ssm it is one function of theirs."""
    torch.manual_seed(0)
    block = MambaBlock(32, 16).to(CUDA)
    twin = MambaBlock(32, 16).to(CUDA)
    twin.load_state_dict(block.state_dict())
    twin.double()
    block.scan_backend, twin.scan_backend = backend, "pytorch"
    tokens = torch.randn(2, 5 * 6 * 7, 32, device=CUDA)
    made = {}
    for kind, one in (("found", block), ("wanted", twin)):
        own = tokens.detach().to(one.D.dtype).requires_grad_()
        output = one(own, (5, 6, 7), order)
        output.square().sum().backward()
        made[kind] = {"output": output.detach(), "tokens": own.grad} | {n: p.grad for n, p in one.named_parameters()}
    assert_agree(made["found"], made["wanted"], backend)
    if backend == "mamba_ssm":
        assert fuses_blocks(tokens, 4, backend)


def _triton() -> None:
    status = {s.name: s for s in list_backends(CUDA, needs_gradient=True)}["triton"]
    if not status.available:
        pytest.skip(status.reason)


def test_triton_gives_the_same_bits_every_time():
    _triton()
    made = tensors(64, 32, 50_000)
    first, second = (results(made, "triton", (1, 1, 50_000), ORDERS[1]) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_tuned_divisions_compute_what_the_rules_do(tmp_path, monkeypatch):
    _triton()
    from MambaSegLib.scan import triton_search, triton_tuning

    made = tensors(64, 16, 4096)
    walk = (1, 1, 4096), NATURAL_ORDER
    by_rule = results(made, "triton", *walk)
    every = triton_tuning.candidates
    monkeypatch.setattr(triton_tuning, "candidates", lambda *problem: every(*problem)[:4])
    monkeypatch.setattr(triton_tuning, "cache_file", lambda: tmp_path / "scan.json")
    problems = [triton_tuning.Problem(kind, 64, 16, 4096, 1, torch.float32) for kind in ("forward", "backward")]
    found = list(triton_search.tune(problems, torch.device(CUDA)))
    assert all(one.tried > 1 and one.gain >= 1 for one in found)
    assert (tmp_path / "scan.json").is_file()
    assert_agree(results(made, "triton", *walk), by_rule, "triton")
    triton_tuning._measured.cache_clear()
    triton_tuning._measured_or_rule.cache_clear()


def test_offsets_beyond_32_bits_are_right():
    """2**31 values and more in one tensor: the last tokens are computed as if they were alone with their past."""
    _triton()
    channels, states, length = 64, 1, 2**25 + 2**20
    needed = 4 * channels * length * 2
    if torch.cuda.mem_get_info()[0] < needed * 1.2:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of free GPU memory")
    u = torch.ones(1, length, channels, dtype=torch.bfloat16, device=CUDA).transpose(1, 2)
    B = torch.ones(1, length, states, dtype=torch.bfloat16, device=CUDA).transpose(1, 2)
    A = -torch.full((channels, states), 2.0, device=CUDA)
    u[:, :, -1000:] = torch.linspace(0, 1, 1000, device=CUDA).to(u.dtype)
    with torch.no_grad():
        whole = selective_scan(u, u, A, B, B, delta_softplus=True, backend="triton")[:, :, -500:]
        end = u[:, :, -1000:]
        alone = selective_scan(end, end, A, B[:, :, -1000:], B[:, :, -1000:], delta_softplus=True, backend="triton")
    torch.testing.assert_close(whole, alone[:, :, -500:])


@pytest.mark.parametrize("texts", [("HWD:forward",), tuple(f"{letters}:both" for letters in ALL_LETTERS)])
def test_a_layer_with_all_directions_side_by_side_is_the_layer_on_the_cpu(texts):
    _triton()
    torch.manual_seed(0)
    layer = MambaLayer3d(32, [ScanPath.parse(text) for text in texts], 16, outer_norm=True, head="linear")
    features = torch.randn(2, 32, 6, 10, 14)
    wanted = layer(features)
    wanted.square().mean().backward()
    gradients = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    found = layer.to(CUDA)(features.to(CUDA))
    found.square().mean().backward()
    assert relative_error(found.cpu(), wanted) < 1e-5
    for parameter, gradient in zip(layer.parameters(), gradients, strict=True):
        assert relative_error(parameter.grad.cpu(), gradient) < 1e-3
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        assert relative_error(layer(features.to(CUDA)).cpu(), wanted) < 2e-2
