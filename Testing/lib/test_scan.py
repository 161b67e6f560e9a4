"""Every scan backend that runs here against the sequential specification in float64."""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")

from MambaSegLib.errors import BackendUnavailableError
from MambaSegLib.scan import BACKENDS, causal_conv1d, list_backends, resolve_backend, selective_scan
from MambaSegLib.scan.arguments import Scan
from MambaSegLib.scan.order import NATURAL_ORDER, ScanOrder
from MambaSegLib.scan.pytorch_backend import selective_scan_sequential

if TYPE_CHECKING:
    from torch import Tensor

GRID = (3, 4, 5)
ORDERS = [ScanOrder(axes, backward) for axes in itertools.permutations(range(3)) for backward in (False, True)]
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
# float32 rounds to 6e-8; the numba backend's exp2 is good to 1.5e-7, and a state is a product of many of them.
FORWARD_TOLERANCE = 5e-7
# Gradients go through the same factors twice, and those of A and the bias sum terms of both signs.
GRADIENT_TOLERANCE = 5e-6

AVAILABLE = [status.name for status in list_backends("cpu", needs_gradient=True) if status.available]
backends = pytest.mark.parametrize("backend", AVAILABLE)


@dataclass(frozen=True)
class Case:
    batch: int = 2
    channels: int = 16
    states: int = 8
    length: int = 60
    softplus: bool = True
    absent: tuple[str, ...] = ()
    grid: tuple[int, int, int] | None = None
    order: ScanOrder | None = None


def tensors_of(case: Case, seed: int = 0) -> dict[str, Tensor | None]:
    """Random tensors as networks have them: rows of tokens seen transposed, B and C inside one wider projection."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    b, d, n, length = case.batch, case.channels, case.states, case.length
    xz, projected = random(b, length, 2 * d), random(b, length, 3 + 2 * n)
    delta = 0.5 * random(b, length, d) - 1
    made = {
        "u": xz[..., :d].transpose(1, 2),
        "delta": (delta if case.softplus else delta.exp() * 0.1).transpose(1, 2),
        "A": -torch.arange(1, n + 1).float() * torch.exp(0.3 * random(d, n)),
        "B": projected[..., 3 : 3 + n].transpose(1, 2),
        "C": projected[..., 3 + n :].transpose(1, 2),
        "D": random(d),
        "z": xz[..., d:].transpose(1, 2),
        "delta_bias": 0.3 * random(d) if case.softplus else 0.01 * random(d).abs(),
    }
    return {name: None if name in case.absent else tensor for name, tensor in made.items()}


def results(case: Case, backend: str, made: dict[str, Tensor | None]) -> dict[str, Tensor]:
    """Output, last state and every gradient."""
    leaves = {name: None if t is None else t.detach().requires_grad_() for name, t in made.items()}
    output, last_state = selective_scan(
        **leaves,
        delta_softplus=case.softplus,
        return_last_state=True,
        grid=case.grid,
        order=case.order,
        backend=backend,
    )
    return {"output": output.detach(), "last_state": last_state} | gradients(output, leaves)


def wanted(case: Case, made: dict[str, Tensor | None]) -> dict[str, Tensor]:
    """The same from the specification, in float64, in the order the tensors are in."""
    leaves = {name: None if t is None else t.detach().double().requires_grad_() for name, t in made.items()}
    output, last_state = selective_scan_sequential(
        Scan(*(leaves[name] for name in NAMES), case.softplus, (1, 1, case.length), NATURAL_ORDER)
    )
    return {"output": output.detach(), "last_state": last_state} | gradients(output, leaves)


def gradients(output: Tensor, leaves: dict[str, Tensor | None]) -> dict[str, Tensor]:
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    output.backward(weights.to(output.dtype))
    return {f"gradient of {name}": t.grad for name, t in leaves.items() if t is not None and t.grad is not None}


def relative_error(found: Tensor, reference: Tensor) -> float:
    """Of a whole tensor; the error itself where the reference is zero, as the gradient of A is for a single token."""
    scale = float(reference.double().norm())
    return float((found.double() - reference).norm()) / (scale or 1.0)


def assert_agree(found: dict[str, Tensor], reference: dict[str, Tensor]) -> None:
    assert found.keys() == reference.keys()
    for name, value in reference.items():
        # The last state is rounded like a gradient: nothing averages over its states.
        tolerance = FORWARD_TOLERANCE if name == "output" else GRADIENT_TOLERANCE
        error = relative_error(found[name], value)
        assert error <= tolerance, f"{name}: relative error {error:.1e}"  # NaN fails, too


def assert_matches_specification(case: Case, backend: str) -> None:
    made = tensors_of(case)
    assert_agree(results(case, backend, made), wanted(case, made))


@backends
@pytest.mark.parametrize("channels", [5, 16, 40])
@pytest.mark.parametrize("states", [1, 3, 8, 16, 33])
def test_output_and_every_gradient_match_for_any_number_of_channels_and_states(backend, channels, states):
    assert_matches_specification(Case(channels=channels, states=states, length=70), backend)


@backends
@pytest.mark.parametrize("length", [1, 2, 3, 63, 64, 65, 200])
def test_output_and_every_gradient_match_for_any_length(backend, length):
    assert_matches_specification(
        Case(channels=20, states=5, length=length, absent=("z",) if length == 2 else ()), backend
    )


@backends
@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("absent", [(), ("z",), ("D",), ("delta_bias",), ("z", "D", "delta_bias")])
def test_output_and_every_gradient_match_with_and_without_the_optional_tensors(backend, softplus, absent):
    for channels in (16, 5):
        assert_matches_specification(Case(channels=channels, length=33, softplus=softplus, absent=absent), backend)


def in_scan_order(tensor: Tensor, order: ScanOrder) -> Tensor:
    """An explicit copy: permute the axes, flatten, flip."""
    sequence = tensor.reshape(*tensor.shape[:2], *GRID).permute(0, 1, *(2 + axis for axis in order.axes)).flatten(2)
    return sequence.flip(2) if order.backward else sequence


@backends
@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_each_order_equals_a_scan_of_permuted_and_flipped_copies(backend, order):
    case = Case(channels=20, states=6, grid=GRID, order=order)
    made = tensors_of(case)
    copies = {
        name: in_scan_order(t, order).contiguous() if t is not None and t.ndim == 3 else t for name, t in made.items()
    }
    weights = torch.randn(2, 20, 60, generator=torch.Generator().manual_seed(2))

    leaves = {name: t.detach().requires_grad_() for name, t in made.items()}
    output = selective_scan(**leaves, delta_softplus=True, grid=GRID, order=order, backend=backend)
    output.backward(weights)
    copied = {name: t.detach().double().requires_grad_() for name, t in copies.items()}
    reference, _ = selective_scan_sequential(Scan(*(copied[n] for n in NAMES), True, (1, 1, 60), NATURAL_ORDER))
    reference.backward(in_scan_order(weights, order).double())

    assert relative_error(in_scan_order(output.detach(), order), reference.detach()) <= FORWARD_TOLERANCE
    for name, leaf in leaves.items():
        found = in_scan_order(leaf.grad, order) if leaf.ndim == 3 else leaf.grad
        assert relative_error(found, copied[name].grad) <= GRADIENT_TOLERANCE, name


@backends
def test_tensors_with_contiguous_tokens_give_the_same_as_rows_of_channels(backend):
    case = Case(channels=24, states=5)
    made = tensors_of(case)
    contiguous = {name: None if t is None else t.contiguous() for name, t in made.items()}
    assert_agree(results(case, backend, contiguous), wanted(case, made))


@backends
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_come_back_as_they_went_in_and_are_scanned_in_float32(backend, dtype):
    made = {name: t.to(dtype) for name, t in tensors_of(Case()).items()}
    exact = {name: t.float() for name, t in made.items()}
    output = selective_scan(**made, delta_softplus=True, backend=backend)
    reference = selective_scan(**exact, delta_softplus=True, backend=backend)
    assert output.dtype == dtype
    assert torch.equal(output, reference.to(dtype))


@backends
@pytest.mark.parametrize("default", ["float64", "meta"])
def test_what_pytorch_makes_tensors_of_by_default_changes_nothing(backend, default):
    """Type and device by default are the whole process's, which may be another program's."""
    made, x, taps = tensors_of(Case(channels=20)), torch.randn(2, 20, 60), torch.randn(20, 4)

    def everything() -> list[Tensor]:
        leaves = {name: t.detach().requires_grad_() for name, t in made.items()}
        rows, weight = x.detach().requires_grad_(), taps.detach().requires_grad_()
        scanned = selective_scan(**leaves, delta_softplus=True, backend=backend)
        convolved = causal_conv1d(rows, weight, None, "silu", backend=backend)
        torch.autograd.backward([scanned, convolved], [torch.ones_like(scanned), torch.ones_like(convolved)])
        return [scanned, convolved, *(t.grad for t in (*leaves.values(), rows, weight))]

    wanted = everything()
    try:
        torch.set_default_dtype(torch.float64 if default == "float64" else torch.float32)
        with torch.device("meta" if default == "meta" else "cpu"):
            found = everything()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@backends
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_convolved_in_float32(backend, dtype):
    x, weight = torch.randn(2, 20, 60).to(dtype), torch.randn(20, 4)
    output = causal_conv1d(x, weight, None, "silu", backend=backend)
    assert torch.equal(output, causal_conv1d(x.float(), weight, None, "silu", backend=backend).to(dtype))


@backends
def test_nothing_is_read_from_memory_that_was_not_written(backend, poisoned_memory):
    for case in (Case(channels=20, states=6), Case(channels=20, states=6, grid=GRID, order=ORDERS[5])):
        found = results(case, backend, tensors_of(case))
        for name, value in found.items():
            assert torch.isfinite(value).all(), name
    x, weight = torch.randn(2, 20, 60).requires_grad_(), torch.randn(20, 4).requires_grad_()
    y = causal_conv1d(x, weight, None, "silu", backend=backend)
    y.sum().backward()
    for value in (y, x.grad, weight.grad):
        assert torch.isfinite(value).all()


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is allocated without a value holds NaN."""
    import numpy as np

    real_empty, real_empty_like, real_numpy_empty = torch.empty, torch.empty_like, np.empty

    def poison(tensor: Tensor) -> Tensor:
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    def numpy_empty(shape, dtype=float):
        array = real_numpy_empty(shape, dtype)
        array.fill(np.nan)
        return array

    monkeypatch.setattr(torch, "empty", lambda *a, **k: poison(real_empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poison(real_empty_like(*a, **k)))
    numba_tasks = pytest.importorskip("MambaSegLib.scan.numba_tasks")
    monkeypatch.setattr(numba_tasks.np, "empty", numpy_empty)


@backends
def test_memory_around_views_is_left_alone(backend):
    """The tensors are windows of larger ones; a write past a window's edge would show in the frame."""
    case = Case(channels=5, states=3, length=67)
    frames = {}
    windows = {}
    for name, tensor in tensors_of(case).items():
        rows = tensor.transpose(1, 2) if tensor.ndim == 3 else tensor
        frame = torch.full([size + 2 for size in rows.shape], float("nan"))
        window = frame[tuple(slice(1, -1) for _ in rows.shape)]
        window.copy_(rows)
        frames[name] = frame
        windows[name] = window.transpose(1, 2) if tensor.ndim == 3 else window
    assert_agree(results(case, backend, windows), wanted(case, tensors_of(case)))
    for name, frame in frames.items():
        inside = windows[name].numel()
        assert int(frame.isnan().sum()) == frame.numel() - inside, name


def test_scans_on_two_python_threads_at_once_do_not_disturb_each_other():
    case = Case(batch=1, channels=40, states=8, length=300)
    made = [tensors_of(case, seed) for seed in range(2)]
    reference = [results(case, "auto", tensors)["output"] for tensors in made]
    failures: list[int] = []

    def repeat(number: int) -> None:
        for _ in range(20):
            found = results(case, "auto", made[number])["output"]
            if not torch.equal(found, reference[number]):
                failures.append(number)

    threads = [threading.Thread(target=repeat, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_the_last_state_has_no_gradient_and_continues_the_scan():
    case = Case(batch=1, channels=4, states=2, length=2, absent=("z", "D"), softplus=False)
    made = tensors_of(case)
    _, last_state = selective_scan(**made, return_last_state=True)
    u, delta, B = made["u"][0], made["delta"][0] + made["delta_bias"][:, None], made["B"][0]
    first = (delta[:, 0] * u[:, 0])[:, None] * B[:, 0]
    second = torch.exp(delta[:, 1][:, None] * made["A"]) * first + (delta[:, 1] * u[:, 1])[:, None] * B[:, 1]
    torch.testing.assert_close(last_state[0], second)
    assert not last_state.requires_grad


def test_auto_scans_float64_in_float64():
    made = {name: t.double() for name, t in tensors_of(Case(length=9)).items()}
    reference, _ = selective_scan_sequential(Scan(*made.values(), True, (1, 1, 9), NATURAL_ORDER))
    torch.testing.assert_close(selective_scan(**made, delta_softplus=True), reference, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_auto_scans_in_float64_if_any_tensor_is(name):
    made = tensors_of(Case(length=9))
    made[name] = made[name].double()
    exact = Scan(*(t.double() for t in made.values()), True, (1, 1, 9), NATURAL_ORDER)
    found = selective_scan(**made, delta_softplus=True)
    assert found.dtype == made["u"].dtype
    torch.testing.assert_close(found, selective_scan_sequential(exact)[0].to(found.dtype), rtol=2e-7, atol=1e-12)


def test_gradients_are_those_of_finite_differences():
    case = Case(batch=1, channels=3, states=2, length=5)
    made = {name: t.double().requires_grad_() for name, t in tensors_of(case).items()}

    def scan(*tensors: Tensor) -> Tensor:
        return selective_scan(*tensors, delta_softplus=True, backend="pytorch")

    assert torch.autograd.gradcheck(scan, tuple(made.values()))


# -- choosing a backend ----------------------------------------------------------------------------------------------


def test_every_backend_says_whether_it_can_run_and_if_not_why():
    statuses = list_backends("cpu")
    assert tuple(status.name for status in statuses) == BACKENDS
    for status in statuses:
        assert status.available == (status.reason == "")


def test_a_backend_asked_for_by_name_that_cannot_run_raises_with_its_reason():
    unavailable = [status for status in list_backends("cpu") if not status.available]
    assert {"mamba_ssm", "triton"} <= {status.name for status in unavailable}
    for status in unavailable:
        with pytest.raises(BackendUnavailableError, match=status.name) as error:
            resolve_backend(status.name, "cpu")
        assert status.reason in str(error.value)


def test_an_unknown_backend_is_refused_with_the_names_that_exist():
    with pytest.raises(ValueError, match="auto, triton, mamba_ssm, numba, pytorch"):
        resolve_backend("cuda", "cpu")


def test_auto_is_the_first_available_backend_and_is_logged_once(caplog):
    from MambaSegLib.scan import _fastest

    _fastest.cache_clear()
    with caplog.at_level("INFO", logger="MambaSegLib.scan"):
        names = {resolve_backend("auto", "cpu") for _ in range(3)}
    assert names == {AVAILABLE[0]}
    assert [record.getMessage() for record in caplog.records] == [f"scan backend on cpu: {AVAILABLE[0]}"]


def test_a_backend_asked_for_by_name_is_probed_once_if_it_can_run_and_again_if_it_cannot(monkeypatch):
    from MambaSegLib.scan import pytorch_backend

    answers, asked = ["the GPU is busy", None], []

    def why_unavailable(device: str, needs_gradient: bool) -> str | None:
        asked.append(device)
        return answers.pop(0)

    monkeypatch.setattr(pytorch_backend, "why_unavailable", why_unavailable)
    with pytest.raises(BackendUnavailableError, match="busy"):
        resolve_backend("pytorch", "meta:9")
    assert [resolve_backend("pytorch", "meta:9") for _ in range(3)] == 3 * ["pytorch"]
    assert asked == 2 * ["meta:9"]


def test_pytorch_is_available_on_any_device():
    assert resolve_backend("pytorch", "meta", needs_gradient=True) == "pytorch"


# -- arguments that do not fit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("delta", (2, 16, 59)),
        ("A", (15, 8)),
        ("B", (2, 60, 8)),
        ("C", (1, 8, 60)),
        ("D", (8,)),
        ("z", (2, 16)),
        ("delta_bias", (1, 16)),
    ],
)
def test_a_tensor_of_the_wrong_shape_is_named(name, shape):
    made = tensors_of(Case()) | {name: torch.zeros(shape)}
    with pytest.raises(ValueError, match=f"{name} must"):
        selective_scan(**made)


def test_a_grid_that_does_not_hold_the_tokens_is_refused():
    with pytest.raises(ValueError, match="has 59 voxels, the sequence has 60 tokens"):
        selective_scan(**tensors_of(Case()), grid=(1, 1, 59))


def test_an_order_without_a_grid_is_refused():
    with pytest.raises(ValueError, match="needs the grid"):
        selective_scan(**tensors_of(Case()), order=ScanOrder((2, 1, 0)))


def test_backward_order_needs_no_grid():
    made = tensors_of(Case())
    flipped = {name: t.flip(2) if t.ndim == 3 else t for name, t in made.items()}
    found = selective_scan(**made, delta_softplus=True, order=ScanOrder(backward=True))
    torch.testing.assert_close(found, selective_scan(**flipped, delta_softplus=True).flip(2))


def test_integers_and_empty_sequences_are_refused():
    made = tensors_of(Case())
    with pytest.raises(ValueError, match="floating-point"):
        selective_scan(**(made | {"u": torch.zeros(2, 16, 60, dtype=torch.int64)}))
    with pytest.raises(ValueError, match="at least one"):
        selective_scan(**{name: t[..., :0] if t.ndim == 3 else t for name, t in made.items()})


# -- the causal convolution ------------------------------------------------------------------------------------------


def convolution_by_hand(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    """Tap by tap, on a sequence in scan order."""
    total = torch.zeros_like(x) if bias is None else bias[:, None].expand_as(x).clone()
    taps = weight.shape[1]
    for tap in range(taps):
        back = taps - 1 - tap
        if back < x.shape[2]:
            total[:, :, back:] += weight[:, tap, None] * x[:, :, : x.shape[2] - back]
    return total * torch.sigmoid(total) if activation else total


@backends
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("taps", [1, 3, 4, 7])
@pytest.mark.parametrize(("channels", "length"), [(16, 60), (5, 60), (40, 131), (16, 1), (5, 3)])
def test_convolution_and_every_gradient_match(backend, activation, taps, channels, length):
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(*s, generator=generator) for s in ((2, length, channels), (channels, taps), (channels,))]
    made[0] = made[0].transpose(1, 2)
    weights = torch.randn(2, channels, length, generator=generator)
    leaves = [t.detach().requires_grad_() for t in made]
    doubles = [t.detach().double().requires_grad_() for t in made]
    found = causal_conv1d(*leaves, activation, backend=backend)
    reference = convolution_by_hand(*doubles, activation)
    found.backward(weights)
    reference.backward(weights.double())
    assert relative_error(found.detach(), reference.detach()) <= FORWARD_TOLERANCE
    for leaf, double in zip(leaves, doubles, strict=True):
        assert relative_error(leaf.grad, double.grad) <= GRADIENT_TOLERANCE


@backends
@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_convolution_along_each_order_equals_that_of_copies(backend, order):
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 20, 60, generator=generator), torch.randn(20, 4, generator=generator)
    leaf = x.clone().requires_grad_()
    found = causal_conv1d(leaf, weight, None, "silu", grid=GRID, order=order, backend=backend)
    double = in_scan_order(x, order).double().requires_grad_()
    reference = convolution_by_hand(double, weight.double(), None, "silu")
    assert relative_error(in_scan_order(found.detach(), order), reference.detach()) <= FORWARD_TOLERANCE
    found.backward(torch.ones_like(found))
    reference.backward(torch.ones_like(reference))
    assert relative_error(in_scan_order(leaf.grad, order), double.grad) <= GRADIENT_TOLERANCE


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="gelu"):
        causal_conv1d(torch.zeros(1, 2, 3), torch.zeros(2, 4), activation="gelu")
