"""The Triton kernels, run step by step in Triton's interpreter: everything but speed can be tested without a GPU.

The interpreter takes milliseconds per scan position, so sizes are tiny and chunks are 4 positions long: that still crosses
chunks, blocks of channels and the ends of all of them.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

if torch.cuda.is_available():
    pytest.skip("the kernels are compiled here; Testing/gpu tests them", allow_module_level=True)

from MambaSegLib.scan import triton_backend, triton_launch, triton_search, triton_tuning
from MambaSegLib.scan.arguments import Convolution, Scan, Scans
from MambaSegLib.scan.order import NATURAL_ORDER, ScanOrder
from MambaSegLib.scan.pytorch_backend import causal_conv1d, selective_scan_sequential
from MambaSegLib.scan.triton_tuning import Problem, ScanConfig

if TYPE_CHECKING:
    from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
ORDERS = tuple(ScanOrder(axes, backward) for axes in itertools.permutations(range(3)) for backward in (False, True))
# float32 rounds to 6e-8; a state is a product of many factors.
FORWARD_TOLERANCE = 5e-7
# Gradients go through the same factors twice, and those of A and the bias sum terms of both signs.
GRADIENT_TOLERANCE = 5e-6
BY_RULE = triton_tuning.config_for
TINY = ScanConfig(block_channels=4, boundary_channels=4, chunk=4, unroll=2, kept_every=2)


@pytest.fixture(autouse=True)
def _tiny_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_tuning, "config_for", lambda kind, u, states: TINY)
    monkeypatch.setattr(triton_tuning, "CONVOLUTION_BLOCK", (8, 8))


@dataclass(frozen=True)
class Case:
    orders: tuple[ScanOrder, ...] = (NATURAL_ORDER,)
    grid: tuple[int, int, int] = (1, 1, 6)
    batch: int = 1
    channels: int = 3
    states: int = 3
    softplus: bool = True
    absent: tuple[str, ...] = ()

    @property
    def length(self) -> int:
        return self.grid[0] * self.grid[1] * self.grid[2]


def tensors_of(case: Case) -> dict[str, Tensor | None]:
    """Rows as networks have them: u and z inside one tensor, B and C inside another."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    g, b, d, n, length = len(case.orders), case.batch, case.channels, case.states, case.length
    xz, projected = random(b, length, g, 2 * d).permute(2, 0, 1, 3), random(g, b, length, 3 + 2 * n)
    made = {
        "u": xz[..., :d],
        "delta": 0.5 * random(g, b, length, d) - 1 if case.softplus else 0.1 * random(g, b, length, d).abs(),
        "B": projected[..., 3 : 3 + n],
        "C": projected[..., 3 + n :],
        "z": xz[..., d:],
        "A": -torch.arange(1, n + 1).float() * torch.exp(0.3 * random(g, d, n)),
        "D": random(g, d),
        "delta_bias": 0.3 * random(g, d) if case.softplus else 0.01 * random(g, d).abs(),
    }
    return {name: None if name in case.absent else tensor for name, tensor in made.items()}


def results(case: Case, made: dict[str, Tensor | None]) -> dict[str, Tensor]:
    """Outputs, last states and every gradient, from the kernels."""
    leaves = {name: None if t is None else t.detach().requires_grad_() for name, t in made.items()}
    output, last = triton_backend.scan_rows(Scans(**leaves, softplus=case.softplus, grid=case.grid, orders=case.orders))
    return collect(output, last, leaves)


def wanted(case: Case, made: dict[str, Tensor | None]) -> dict[str, Tensor]:
    """The same from the specification in float64, one direction after the other."""
    leaves = {name: None if t is None else t.detach().double().requires_grad_() for name, t in made.items()}
    scans = Scans(**leaves, softplus=case.softplus, grid=case.grid, orders=case.orders)
    outputs, states = zip(*(selective_scan_sequential(scan) for scan in scans.one_by_one()), strict=True)
    outputs = [output.transpose(1, 2) for output in outputs]
    return collect(torch.stack(outputs), torch.stack(states), leaves)


def collect(output: Tensor, last: Tensor, leaves: dict[str, Tensor | None]) -> dict[str, Tensor]:
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    output.backward(weights.to(output.dtype))
    gradients = {f"gradient of {name}": t.grad for name, t in leaves.items() if t is not None}
    return {"output": output.detach(), "last state": last} | gradients


def relative_error(found: Tensor, reference: Tensor) -> float:
    """Of a whole tensor; the error itself where the reference is zero, as the gradient of A is for a single token."""
    scale = float(reference.double().norm())
    return float((found.double() - reference.double()).norm()) / (scale or 1.0)


def assert_agree(found: dict[str, Tensor], reference: dict[str, Tensor]) -> None:
    assert found.keys() == reference.keys()
    for name, value in reference.items():
        tolerance = FORWARD_TOLERANCE if name == "output" else GRADIENT_TOLERANCE
        error = relative_error(found[name], value)
        assert error <= tolerance, f"{name}: relative error {error:.1e}"  # NaN fails, too


def test_twelve_directions_in_one_launch_match_the_specification_with_every_gradient():
    case = Case(ORDERS, (2, 2, 3), channels=2, states=2)
    made = tensors_of(case)
    assert_agree(results(case, made), wanted(case, made))


CASES = {
    "a single token": Case(grid=(1, 1, 1)),
    "a chunk and a half, two blocks of channels": Case(channels=5),
    "a whole number of chunks, two batch entries": Case(grid=(1, 1, 8), batch=2, channels=2),
    "a single state": Case(states=1),
    "no gate": Case(absent=("z",)),
    "no skip": Case(absent=("D",)),
    "no bias": Case(absent=("delta_bias",)),
    "delta as it is": Case(softplus=False, absent=("delta_bias",)),
}


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_match_the_specification_in_float64(name):
    made = tensors_of(CASES[name])
    assert_agree(results(CASES[name], made), wanted(CASES[name], made))


def test_blocks_of_channels_may_differ_between_the_kernels(monkeypatch):
    monkeypatch.setattr(triton_tuning, "config_for", lambda kind, u, states: replace(TINY, boundary_channels=2))
    case = Case(channels=3)
    made = tensors_of(case)
    assert_agree(results(case, made), wanted(case, made))


def test_a_backward_pass_in_several_pieces_is_the_same(monkeypatch):
    case = Case(grid=(1, 1, 10), absent=("z",))
    made = tensors_of(case)
    whole = results(case, made)
    monkeypatch.setattr(triton_tuning, "SCRATCH_BYTES", 1)
    pieces = results(case, made)
    for name, value in whole.items():
        assert torch.equal(pieces[name], value), name


@pytest.mark.parametrize(
    "case",
    [
        Case((ORDERS[3], ORDERS[4], ORDERS[7]), (1, 3, 3), channels=5),
        Case((ORDERS[1],), (1, 1, 7), batch=2, channels=2, absent=("z", "D")),
        Case(grid=(1, 1, 1), batch=2),
    ],
    ids=["three directions", "two images, backward", "single tokens"],
)
def test_a_scan_in_one_chunk_is_the_same_with_every_gradient(case, monkeypatch):
    """Of 12 positions, more than there are tokens: nothing is carried, and one launch is the whole forward pass."""
    whole = replace(TINY, chunk=12)
    monkeypatch.setattr(triton_tuning, "config_for", lambda kind, u, states: whole)
    made = tensors_of(case)
    reference = wanted(case, made)

    def refuse(*_: Any) -> None:
        msg = "nothing to carry"
        raise AssertionError(msg)

    monkeypatch.setattr(triton_launch._Scan, "join", refuse)
    assert_agree(results(case, made), reference)


def test_no_images_have_no_output_and_gradients_of_zero():
    case = Case(batch=0)
    for name, value in results(case, tensors_of(case)).items():
        assert not value.any(), name


def test_an_output_whose_reader_hands_no_gradient_back_has_none():
    class Ignored(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> None:
            return None

    case = Case(grid=(1, 1, 2), channels=1, states=1)
    leaves = {name: t.requires_grad_() for name, t in tensors_of(case).items()}
    output, _ = triton_backend.scan_rows(Scans(**leaves, softplus=True, grid=case.grid, orders=case.orders))
    Ignored.apply(output).sum().backward()
    assert all(t.grad is None for t in leaves.values())


def test_a_time_step_that_is_no_number_makes_all_that_follows_no_number():
    case = Case(grid=(1, 1, 6), channels=3, absent=("z", "D"))
    made = tensors_of(case)
    made["delta"][0, 0, 2, 1] = float("nan")
    output = results(case, made)["output"]
    assert output[0, 0, 2:, 1].isnan().all()
    assert output[0, 0, :, [0, 2]].isfinite().all()
    assert output[0, 0, :2].isfinite().all()


def test_the_signature_of_all_backends_leads_to_the_same_numbers():
    case = Case(grid=(1, 2, 3), orders=(ScanOrder((2, 0, 1), True),), batch=2)
    made = {name: t[0] for name, t in tensors_of(case).items()}
    rows = {name: t.transpose(1, 2) if t.ndim == 3 else t for name, t in made.items()}
    arguments = [rows[n] for n in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")]
    walk = case.grid, case.orders[0]
    found, last = triton_backend.selective_scan(Scan(*arguments, True, *walk))
    reference, last_state = selective_scan_sequential(Scan(*(t.double() for t in arguments), True, *walk))
    assert relative_error(found, reference) <= FORWARD_TOLERANCE
    assert relative_error(last, last_state) <= FORWARD_TOLERANCE
    assert not last.requires_grad
    contiguous = [t.contiguous() for t in arguments]
    assert torch.equal(triton_backend.selective_scan(Scan(*contiguous, True, *walk))[0], found)


def test_half_types_are_scanned_in_float32_and_their_gradients_come_back_in_kind():
    case = Case(grid=(1, 1, 5), channels=2, states=2)
    half = {name: t.bfloat16() for name, t in tensors_of(case).items()}
    found, exact = results(case, half), results(case, {name: t.float() for name, t in half.items()})
    # 8 bits: a GPU rounds to the nearest, the interpreter cuts off.
    torch.testing.assert_close(found["output"].float(), exact["output"], rtol=2**-7, atol=0)
    assert found["output"].dtype == torch.bfloat16
    for name in half:
        gradient = found[f"gradient of {name}"]
        assert gradient.dtype == torch.bfloat16
        # The gradient of the output is rounded to 8 bits before it comes in.
        assert relative_error(gradient, exact[f"gradient of {name}"]) <= 2**-7


def test_small_time_steps_keep_their_digits():
    """A network starts with steps of 1e-3; log(1 + e) without care is off by 1e-4 there."""
    case = Case(grid=(1, 1, 4), channels=4, states=2, absent=("delta_bias",))
    made = tensors_of(case)
    made["delta"] = torch.tensor([-12.0, -7.0, -4.0, 25.0]).expand(1, 1, 4, 4).clone()
    assert_agree(results(case, made), wanted(case, made))


def test_nothing_is_read_or_returned_from_memory_that_was_not_written(monkeypatch):
    real_empty = torch.empty

    def poisoned(*arguments: Any, **options: Any) -> Tensor:
        tensor = real_empty(*arguments, **options)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(triton_launch.torch, "empty", poisoned)
    case = Case((ORDERS[5],), (1, 2, 3), channels=5)
    for name, value in results(case, tensors_of(case)).items():
        assert torch.isfinite(value).all(), name
    x, weight = torch.randn(1, 1, 5, 3, requires_grad=True), torch.randn(1, 3, 4, requires_grad=True)
    y = triton_backend.convolve_rows(x, weight, None, True, (1, 1, 5), (NATURAL_ORDER,))
    y.sum().backward()
    for value in (y, x.grad, weight.grad):
        assert torch.isfinite(value).all()


def test_memory_around_the_tensors_is_neither_used_nor_touched():
    case = Case(grid=(1, 1, 5), states=2)
    frames, windows = {}, {}
    for name, tensor in tensors_of(case).items():
        frame = torch.full([size + 2 for size in tensor.shape], float("nan"))
        window = frame[tuple(slice(1, -1) for _ in tensor.shape)]
        window.copy_(tensor)
        frames[name], windows[name] = frame, window
    assert_agree(results(case, windows), wanted(case, tensors_of(case)))
    for name, frame in frames.items():
        assert int(frame.isnan().sum()) == frame.numel() - windows[name].numel(), name


def test_float64_and_too_many_tokens_or_sequences_are_refused():
    doubles = {name: t.double() for name, t in tensors_of(Case()).items()}
    with pytest.raises(ValueError, match="float64"):
        triton_backend.scan_rows(Scans(**doubles, softplus=True, grid=(1, 1, 6), orders=(NATURAL_ORDER,)))
    with pytest.raises(ValueError, match="smaller patch"):
        triton_backend.convolve_rows(
            torch.zeros(1, 1, 1, 1).expand(1, 1, 2**31, 1), torch.zeros(1, 1, 4), None, False, (1, 1, 2**31), ()
        )
    with pytest.raises(ValueError, match="smaller batch"):
        triton_backend.convolve_rows(
            torch.zeros(1, 1, 1, 1).expand(1, 2**16, 1, 1), torch.zeros(1, 1, 4), None, False, (1, 1, 1), ()
        )


# -- the causal convolution ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("taps", "grid", "channels", "batch", "orders", "silu"),
    [
        (4, (2, 2, 3), 3, 1, ORDERS, True),
        (4, (1, 1, 9), 9, 2, ORDERS[:1], False),
        (1, (1, 1, 9), 3, 1, ORDERS[:2], True),
        (7, (1, 1, 3), 2, 1, ORDERS[:1], True),
    ],
)
def test_convolutions_match_those_of_copies_with_every_gradient(taps, grid, channels, batch, orders, silu):
    generator = torch.Generator().manual_seed(0)
    length, groups = grid[0] * grid[1] * grid[2], len(orders)
    shapes = ((groups, batch, length, channels), (groups, channels, taps), (groups, channels))
    leaves = [torch.randn(*shape, generator=generator).requires_grad_() for shape in shapes]
    doubles = [t.detach().double().requires_grad_() for t in leaves]
    weights = torch.randn(shapes[0], generator=generator)
    found = triton_backend.convolve_rows(*leaves, silu, grid, orders)
    reference = torch.stack(
        [
            causal_conv1d(Convolution(x.transpose(1, 2), w, b, silu, grid, order)).transpose(1, 2)
            for x, w, b, order in zip(*doubles, orders, strict=True)
        ]
    )
    found.backward(weights)
    reference.backward(weights.double())
    assert relative_error(found.detach(), reference.detach()) <= FORWARD_TOLERANCE
    for leaf, double in zip(leaves, doubles, strict=True):
        assert relative_error(leaf.grad, double.grad) <= GRADIENT_TOLERANCE


def test_the_convolution_of_all_backends_leads_to_the_same_numbers():
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*s, generator=generator) for s in ((2, 3, 12), (3, 4), (3,)))
    convolution = Convolution(x, weight, bias, True, (2, 2, 3), ORDERS[7])
    torch.testing.assert_close(triton_backend.causal_conv1d(convolution), causal_conv1d(convolution))


# -- availability and divisions --------------------------------------------------------------------------------------


def test_it_says_why_it_cannot_run_here():
    assert "need an NVIDIA GPU" in triton_backend.why_unavailable("cpu", needs_gradient=True)
    assert "no CUDA device" in triton_backend.why_unavailable("cuda", needs_gradient=False)


def test_it_refuses_gpus_triton_does_not_compile_for_and_kernels_that_compute_nonsense(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    assert "6.1" in triton_backend.why_unavailable("cuda", needs_gradient=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    reason = triton_backend.why_unavailable("cuda:7", needs_gradient=False)  # no such device: the probe fails
    assert reason.startswith("a tiny scan failed on cuda:7")


@pytest.mark.parametrize("broken", ["run_forward", "run_backward"])
def test_the_probe_runs_the_kernels_for_one_chunk_and_those_for_several(monkeypatch, broken):
    monkeypatch.setattr(triton_tuning, "config_for", BY_RULE)
    assert triton_backend._probe_failure.__wrapped__("cpu", needs_gradient=True) is None
    in_truth, chunks = getattr(triton_launch, broken), []

    def run(operands: Any, *arguments: Any) -> Any:
        kind = broken.removeprefix("run_")
        chunks.append(-(-operands.u.shape[2] // BY_RULE(kind, operands.u, operands.A.shape[1]).chunk))
        return in_truth(operands, *arguments)

    monkeypatch.setattr(triton_launch, broken, run)
    monkeypatch.setattr(triton_launch._Scan, "join", lambda *arguments, **named: None)
    assert "off by" in triton_backend._probe_failure.__wrapped__("cpu", needs_gradient=True)
    assert chunks == [1, 3]


def test_it_asks_for_a_triton_that_takes_its_kernels(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    monkeypatch.setattr("triton.__version__", "3.2.0")
    reason = triton_backend.why_unavailable("cuda:6", needs_gradient=False)
    assert "triton 3.2.0 is too old" in reason
    assert "PyTorch 2.7" in reason
    monkeypatch.setattr("triton.__version__", "3.10.0+git1234")
    assert triton_backend.why_no_triton("cuda:6") is None


@pytest.mark.parametrize("states", [1, 8, 32, 100, 256])
@pytest.mark.parametrize(
    ("channels", "length"), [(1, 1), (64, 1_769_472), (640, 864), (100, triton_backend.MOST_TOKENS)]
)
def test_the_rule_divides_any_scan(states, channels, length):
    for kind in ("forward", "backward"):
        for config in triton_tuning.candidates(kind, channels, states, length, pairs=8):
            assert config.chunk % config.unroll == 0
            assert config.chunk % config.kept_every == 0
            assert length + 2 * config.chunk < 2**31  # positions are counted in 32 bits
    assert triton_tuning.rule("forward", channels, states, length, 8).block_channels <= max(4, 2 * channels)


def test_few_tokens_are_one_chunk_that_hardly_exceeds_them():
    for length in (1, 7, 27, 108, 128):
        for kind in ("forward", "backward"):
            chunk = triton_tuning.rule(kind, 640, 256, length, 1).chunk
            assert length <= chunk <= max(8, 1.125 * length + 8)


def test_a_scan_that_fills_the_gpu_without_chunks_has_none():
    assert triton_tuning.rule("forward", 512, 256, 6912, 8).chunk >= 6912
    assert triton_tuning.rule("forward", 512, 256, 6912, 1).chunk == triton_tuning.SHORTEST_CHUNK
    assert triton_tuning.rule("forward", 64, 32, 1_769_472, 8).chunk == triton_tuning.LONGEST_CHUNK


def test_a_search_tries_one_chunk_wherever_that_is_possible():
    for length, pairs in ((864, 1), (6912, 1), (108, 8)):
        found = triton_tuning.candidates("forward", 640, 256, length, pairs)
        assert any(config.chunk >= length for config in found)
        assert found[0] == triton_tuning.rule("forward", 640, 256, length, pairs)
        assert any(config.chunk < length for config in found)


def test_the_backward_pass_is_one_chunk_only_if_its_states_fit_into_the_scratch_memory():
    assert triton_tuning.rule("backward", 640, 256, 108, 1).chunk >= 108
    assert triton_tuning.rule("backward", 640, 256, 108, 8).chunk == triton_tuning.BACKWARD_CHUNK


def test_a_search_takes_the_fastest_and_passes_over_what_fails():
    options = [ScanConfig(4, 4, 32), ScanConfig(8, 4, 32), ScanConfig(16, 4, 32)]

    def seconds(config: ScanConfig) -> float:
        if config.block_channels == 16:
            msg = "too large"
            raise torch.OutOfMemoryError(msg)
        return 1.0 / config.block_channels

    best, times = triton_tuning.search(options, seconds)
    assert best == options[1]
    assert len(times) == 2
    with pytest.raises(RuntimeError, match="no division"):
        triton_tuning.search(options[2:], seconds)


def test_scans_that_share_a_measurement_fit_into_its_one_chunk():
    def key(length: int) -> str:
        return Problem("forward", 64, 32, length, 1, torch.bfloat16).key

    assert key(864) == key(896) == "forward 64x32 896 x1 bfloat16"
    assert key(864) != key(1000)
    assert key(1_769_472) == key(1_200_000) == "forward 64x32 2^21 x1 bfloat16"


def test_the_scans_a_network_makes_are_tuned_and_used_from_then_on(tmp_path, monkeypatch):
    monkeypatch.setattr(triton_tuning, "config_for", BY_RULE)
    case = Case(grid=(1, 1, 6), channels=2, states=2)
    with triton_tuning.problems_met() as met:
        results(case, tensors_of(case))
    results(case, tensors_of(case))  # nobody watches any more
    problems = [Problem(kind, 2, 2, 6, 1, torch.float32) for kind in ("backward", "forward")]
    assert sorted(met) == problems
    slow, fast, failing = ScanConfig(4, 4, 8), ScanConfig(4, 4, 4), ScanConfig(8, 4, 4)
    compute, measured = triton_search._once, []

    def once(run: Any, device: Any) -> float:
        (config,) = triton_tuning._tried.values()
        if config == failing:
            msg = "out of resources: registers"
            raise RuntimeError(msg)
        compute(run, device)
        measured.append(config)
        return 1.0 if config == fast else 2.0

    monkeypatch.setattr(triton_search, "_once", once)
    monkeypatch.setattr(triton_search, "REPEATS", 1)
    monkeypatch.setattr(triton_tuning, "candidates", lambda *_: (slow, failing, fast))
    monkeypatch.setattr(triton_tuning, "cache_file", lambda: tmp_path / "scan.json")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    found = list(triton_search.tune(problems, torch.device("cpu")))
    assert [(one.problem, one.best, one.gain, one.tried) for one in found] == [(p, fast, 2.0, 2) for p in problems]
    assert measured == 2 * [slow, slow, fast, fast]
    for problem in problems:
        assert triton_tuning._measured_or_rule(*problem, torch.device("cuda:5")) == fast
    triton_tuning._measured.cache_clear()
    triton_tuning._measured_or_rule.cache_clear()


def test_what_was_measured_is_remembered_by_gpu_and_a_damaged_file_is_passed_over(tmp_path, monkeypatch, caplog):
    file = tmp_path / "cache" / "scan.json"
    monkeypatch.setattr(triton_tuning, "cache_file", lambda: file)
    triton_tuning.remember("H100", {"a": ScanConfig(8, 8, 64)})
    triton_tuning.remember("H100", {"b": ScanConfig(16, 8, 64)})
    assert triton_tuning._measured("H100") == {"a": ScanConfig(8, 8, 64), "b": ScanConfig(16, 8, 64)}
    assert triton_tuning._measured("A100") == {}
    file.write_text(json.dumps({"H100": {"a": {"block_channels": 3, "boundary_channels": 4, "chunk": 64}}}))
    triton_tuning._measured.cache_clear()
    assert triton_tuning._measured("H100") == {}
    assert "damaged" in caplog.text
    triton_tuning._measured.cache_clear()


def compiled(folder: Path, script: str, *options: str | Path) -> str:
    """What a script that compiles the kernels prints."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, ROOT / "Testing" / "benchmarks" / "gpu" / script, *options],
        capture_output=True, text=True, check=False, env=environment | {"HOME": str(folder)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_calls_compile_whatever_the_types_steps_and_addresses_of_their_tensors(tmp_path):
    """The launcher itself decides what is compiled: steps that are 1, steps of 64 bits, a type for each tensor."""
    calls = ("types_of_their_own", "no_common_divisors", "one_channel_and_one_state", "steps_of_64_bits", "layer")
    printed = compiled(tmp_path, "dry_run.py", "--architectures", "80", "--only", *calls)
    assert [line.split()[1].rstrip(":") for line in printed.splitlines()] == list(calls)


def test_every_kernel_compiles_without_a_gpu_and_the_forward_ones_spill_no_registers(tmp_path):
    """In a process of its own: this one interprets, and accepts Python that the compiler does not."""
    compiled(tmp_path, "triton_code.py", "--stages", "s1n16", "--architectures", "80", "--output", tmp_path / "code")
    codes = json.loads((tmp_path / "code.json").read_text())
    backward = {"chunk_leaving", "chunk_gradients", "join_parts", "convolve_gradients"}
    norms = {"add_norm", "add_norm_gradients", "sum_paths", "sum_paths_gradients"}
    maps = {"normalize", "normalize_whole", "moments", "join_moments"}
    maps |= {"gradients", "gradients_whole", "gradient_sums", "join_sums"}
    assert {code["kernel"] for code in codes} == backward | norms | maps | {
        "chunk_ends",
        "chunk_outputs",
        "carry",
        "convolve",
    }
    assert all(code["spilled_bytes"] == 0 for code in codes if code["kernel"] != "chunk_gradients")
