"""Time the selective scan's forms side by side on this computer's CPU, at the stage sizes of a 48 x 192 x 192 patch.

    python Testing/benchmarks/bench_scan.py                      # all stages, about ten minutes
    python Testing/benchmarks/bench_scan.py --stages s1n16 --repeats 3 --output results/scan

"reference" is the formula of mamba-ssm's `selective_scan_ref`; "sequential" is this library's own specification, which
holds one step at a time. Prints a Markdown table and writes it to OUTPUT.md, with every single measurement in OUTPUT.json. Sequences are shortened
(cost is linear in length), the sequential PyTorch loop more than the others: the unit is state updates per second.
"""

from __future__ import annotations

import argparse
import ctypes
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE / "common")]

import torch
from results import publish
from torch import Tensor
from torch.nn import functional

from MambaSegLib.scan import numba_backend, pytorch_backend
from MambaSegLib.scan.arguments import Scan
from MambaSegLib.scan.order import NATURAL_ORDER

Form = Callable[[Scan], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Stage:
    """One encoder stage: tokens of the whole patch, channels, states; lengths for the fast forms and for the loop."""

    tokens: int
    channels: int
    states: int
    length: int
    loop_length: int


STAGES = {
    "s1n16": Stage(1_769_472, 64, 16, 221_184, 6_912),
    "s1n32": Stage(1_769_472, 64, 32, 221_184, 6_912),
    "s2": Stage(442_368, 128, 64, 55_296, 3_456),
    "s3": Stage(55_296, 256, 128, 13_824, 1_728),
    "s4": Stage(6_912, 512, 256, 3_456, 432),
    "s5": Stage(864, 640, 256, 864, 216),
}


def _tensors(scan: Scan) -> tuple[Tensor, ...]:
    """All eight are there."""
    D, z, delta_bias = scan.D, scan.z, scan.delta_bias
    assert D is not None and z is not None and delta_bias is not None  # noqa: PT018
    return scan.u, scan.delta, scan.A, scan.B, scan.C, D, z, delta_bias


def reference_formula(scan: Scan) -> tuple[Tensor, Tensor]:
    """How mamba-ssm's `selective_scan_ref` computes, written anew: all decays and inputs at once, then a loop."""
    u, delta, A, B, C, D, z, delta_bias = _tensors(scan)
    delta = functional.softplus(delta + delta_bias[:, None])
    decays = torch.exp(torch.einsum("bdl,dn->bdln", delta, A))
    inputs = torch.einsum("bdl,bnl,bdl->bdln", delta, B, u)
    state = inputs.new_zeros(inputs.shape[0], *A.shape)
    outputs = []
    for t in range(u.shape[2]):
        state = decays[:, :, t] * state + inputs[:, :, t]
        outputs.append(torch.einsum("bdn,bn->bd", state, C[:, :, t]))
    return (torch.stack(outputs, 2) + u * D[:, None]) * functional.silu(z), state


def compiled_scan(folder: Path) -> Form | None:
    """`scan.cpp`, built by g++ into `folder`; None without g++. It has no backward pass."""
    if shutil.which("g++") is None:
        return None
    library = folder / "scan.so"
    flags = ["-O3", "-march=native", "-ffast-math", "-fopenmp", "-shared", "-fPIC"]
    subprocess.run(["g++", *flags, str(Path(__file__).with_name("scan.cpp")), "-o", str(library)], check=True)
    function = ctypes.CDLL(str(library)).scan

    def run(scan: Scan) -> tuple[Tensor, Tensor]:
        u, delta, A, B, C, D, z, delta_bias = _tensors(scan)
        tensors = [
            u.transpose(1, 2),
            delta.transpose(1, 2),
            A,
            B.transpose(1, 2),
            C.transpose(1, 2),
            D,
            z.transpose(1, 2),
        ]
        tensors = [t.contiguous() for t in [*tensors, delta_bias]]
        out = torch.empty_like(tensors[0])
        sizes = (ctypes.c_int64(n) for n in (u.shape[2], u.shape[1], A.shape[1]))
        function(*sizes, *(ctypes.c_void_p(t.data_ptr()) for t in [*tensors, out]))
        return out.transpose(1, 2), A

    return run


LOOPS = ("reference", "sequential")
FORMS: dict[str, Form] = {
    "reference": reference_formula,
    "sequential": pytorch_backend.selective_scan_sequential,
    "chunked": pytorch_backend.selective_scan,
    "numba": numba_backend.selective_scan,
}
COMPILED = "g++"
"""Name of the form that `compiled_scan` makes: the speed of light, where there is a compiler, forward only."""


@dataclass(frozen=True)
class Measurement:
    """Seconds of every repeat of one form at one stage."""

    stage: str
    form: str
    gradient: bool
    length: int
    updates: int
    seconds: list[float]

    @property
    def rate(self) -> float:
        """1e9 state updates per second, median."""
        return self.updates / statistics.median(self.seconds) / 1e9


def make(stage: Stage, length: int) -> list[Tensor]:
    """u, delta, A, B, C, D, z, delta_bias as a fresh network has them."""
    generator = torch.Generator().manual_seed(0)
    d, n = stage.channels, stage.states
    rows = [torch.randn(1, length, k, generator=generator) for k in (d, d, n, n, d)]
    u, delta, B, C, z = (row.transpose(1, 2) for row in rows)
    steps = torch.exp(torch.rand(d, generator=generator) * 4.6 - 6.9)  # 1e-3 to 1e-1, as mamba-ssm initializes
    bias = steps + torch.log(-torch.expm1(-steps))
    A = -torch.arange(1, n + 1).float().repeat(d, 1)
    return [u, 0.5 * delta, A, B, C, torch.ones(d), z, bias]


def runner(form: Form, tensors: list[Tensor], gradient: bool) -> Callable[[], None]:
    """One forward, or forward and backward, pass."""
    length = tensors[0].shape[2]
    leaves = [t.detach().requires_grad_(gradient) for t in tensors]
    weights = torch.ones(1, length, tensors[0].shape[1]).transpose(1, 2)

    def run() -> None:
        with torch.set_grad_enabled(gradient):
            output, _ = form(Scan(*leaves, True, (1, 1, length), NATURAL_ORDER))
        if gradient:
            output.backward(weights)
            for leaf in leaves:
                leaf.grad = None

    return run


def measure(name: str, stage: Stage, gradient: bool, repeats: int, compiled: Form | None) -> list[Measurement]:
    """All forms, taking turns, so that a busy moment of the computer meets them alike."""
    # The loops' backward passes keep every state, and the reference formula's takes time with the square of the length.
    loop_length = stage.loop_length // 8 if gradient else stage.loop_length
    forms = FORMS if compiled is None or gradient else {**FORMS, COMPILED: compiled}
    lengths = {form: loop_length if form in LOOPS else stage.length for form in forms}
    runners = {form: runner(forms[form], make(stage, lengths[form]), gradient) for form in forms}
    for run in runners.values():
        run()
    seconds: dict[str, list[float]] = {form: [] for form in forms}
    for _ in range(repeats):
        for form, run in runners.items():
            start = time.perf_counter()
            run()
            seconds[form].append(time.perf_counter() - start)
    per_token = stage.channels * stage.states
    return [Measurement(name, f, gradient, lengths[f], lengths[f] * per_token, seconds[f]) for f in forms]


def table(measurements: list[Measurement]) -> str:
    """Markdown: rates and how many times faster numba is."""
    lines = [
        "| stage | D x N | pass | reference G/s | sequential G/s | chunked G/s | numba G/s | g++ G/s | x reference "
        + "| x sequential | x chunked | x g++ |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, bool], dict[str, float]] = {}
    for m in measurements:
        groups.setdefault((m.stage, m.gradient), {})[m.form] = m.rate
    for (name, gradient), rates in groups.items():
        formula, loop, chunked, fast = (rates[form] for form in FORMS)
        stage, what = STAGES[name], "forward + backward" if gradient else "forward"
        light, ratio = (f"{rates[COMPILED]:.2f}", f"{fast / rates[COMPILED]:.2f}") if COMPILED in rates else ("", "")
        lines.append(
            f"| {name} | {stage.channels} x {stage.states} | {what} | {formula:.4f} | {loop:.4f} | {chunked:.3f} "
            f"| {fast:.2f} | {light} | {fast / formula:.0f} | {fast / loop:.0f} | {fast / chunked:.0f} | {ratio} |"
        )
    return "\n".join(lines)


def computer() -> dict[str, str]:
    """What the numbers were measured on."""
    import llvmlite
    import numba

    name = llvmlite.binding.get_host_cpu_name()
    versions = f"torch {torch.__version__}, numba {numba.__version__}, Python {platform.python_version()}"
    return {"processor": name, "threads": str(torch.get_num_threads()), "versions": versions}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--forward-only", action="store_true", help="leave the backward pass out")
    parser.add_argument("--threads", type=int, help="threads of PyTorch and numba (default: PyTorch's)")
    parser.add_argument("--output", type=Path, default=Path("bench_scan"), help="without suffix")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    measurements: list[Measurement] = []
    with tempfile.TemporaryDirectory() as folder:
        compiled = compiled_scan(Path(folder))
        for name in options.stages:
            for gradient in (False,) if options.forward_only else (False, True):
                found = measure(name, STAGES[name], gradient, options.repeats, compiled)
                print(table(found).splitlines()[-1], flush=True)
                measurements += found
    host = computer()
    text = f"{table(measurements)}\n\nMedians of {options.repeats}. {', '.join(f'{k}: {v}' for k, v in host.items())}\n"
    content = {"computer": host, "measurements": [asdict(m) for m in measurements]}
    publish(options.output, text, content)


if __name__ == "__main__":
    main()
