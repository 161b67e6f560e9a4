"""Call the GPU's code where there is none: every kernel is compiled as its call asks for it, and nothing is launched.

    python Testing/benchmarks/gpu/dry_run.py                          # unusual calls, compiled for sm_75, sm_80 and sm_90
    python Testing/benchmarks/gpu/dry_run.py --architectures 120 --only layer
    python Testing/benchmarks/gpu/dry_run.py --cost                   # what the Python of a call takes, few tokens

Triton compiles anew for each combination of types, of steps that are 1, divide by 16 or need 64 bits, and of addresses that divide
by 16. `triton_code.py` compiles the usual one; this goes through the launcher itself, with a driver that pretends. Tensors are
meta tensors or small ones whose values nobody computes, so that "--cost" measures Python alone: no launch by the driver, no
allocation on a device. Written for the driver of Triton 3.9.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import torch
import triton
from torch import Tensor, nn
from triton.backends.compiler import GPUTarget

from MambaSegLib.networks import fused_norm, mamba
from MambaSegLib.scan import directions, row_norms, triton_backend
from MambaSegLib.scan.arguments import Scans
from MambaSegLib.scan.order import NATURAL_ORDER, ScanPath

SHARED_BYTES = {75: 64 << 10, 80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
"""Shared memory a program may have, by architecture (CUDA C++ Programming Guide, "Technical specifications")."""


class PretendedDriver:
    """What Triton asks its driver when it launches."""

    def __init__(self, architecture: int) -> None:
        self.architecture, self.launched = architecture, list[str]()
        self.utils = self

    def get_current_device(self) -> int:
        return self.architecture  # what is compiled is kept by device

    def get_current_stream(self, device: int) -> int:
        return device

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_device_properties(self, _: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED_BYTES[self.architecture]}

    def load_binary(self, *_: Any) -> tuple[object, int, int, int, int]:
        return object(), 0, 0, 0, 1024

    def unload_module(self, _: object) -> None:
        pass

    def launcher_cls(self, _: object, metadata: Any) -> Callable[..., None]:
        return lambda *_: self.launched.append(metadata.name)


def rows(shape: tuple[int, ...], kind: torch.dtype, from_column: int = 0, device: str = "meta") -> Tensor:
    """Rows inside wider ones: with a column left out in front, neither address nor steps divide by anything."""
    return torch.empty((*shape[:-1], shape[-1] + from_column), dtype=kind, device=device)[..., from_column:]


def scan(
    u: Tensor, delta: Tensor, B: Tensor, C: Tensor, z: Tensor | None, softplus: bool = True, shared: bool = True
) -> None:
    """Scan forward and backward; `shared`: with skip and bias."""
    groups, _, length, channels = u.shape
    A = torch.empty(groups, channels, B.shape[3], device=u.device)
    skip, bias = (torch.empty(groups, channels, device=u.device) if shared else None for _ in range(2))
    leaves = [None if t is None else t.detach().requires_grad_() for t in (u, delta, A, B, C, skip, z, bias)]
    output, _ = triton_backend.scan_rows(Scans(*leaves, softplus, (1, 1, length), (NATURAL_ORDER,) * groups))  # type: ignore[arg-type]
    output.backward(torch.empty_like(output))


def types_of_their_own(half: torch.dtype) -> None:
    u, C = rows((1, 2, 300, 64), half), rows((1, 2, 300, 32), half)
    scan(u, u.float(), C.float(), C, u.to(torch.float16))


def no_common_divisors(half: torch.dtype) -> None:
    # Meta tensors lie at address 0, which divides by everything.
    u, B = rows((2, 1, 300, 21), half, 1, "cpu"), rows((2, 1, 300, 9), torch.float32, 1, "cpu")
    scan(u, u, B, B, None, softplus=False, shared=False)


def one_channel_and_one_state(half: torch.dtype) -> None:
    u = rows((1, 1, 300, 1), half)
    scan(u, u, u, u, u)


def steps_of_64_bits(half: torch.dtype) -> None:
    u, B = (torch.empty_strided((2, 1, 300, k), (2**40, 2**34, 2**32, 1), dtype=half, device="meta") for k in (64, 16))
    scan(u, u, B, B, u)


def convolutions(half: torch.dtype) -> None:
    for channels, taps, first in ((1, 1, 0), (70, 4, 1), (64, 7, 0)):
        x, weight = rows((2, 1, 50, channels), half, first, "cpu"), torch.empty(2, channels, taps)
        y = triton_backend.convolve_rows(
            x.detach().requires_grad_(), weight.requires_grad_(), None, True, (1, 1, 50), (NATURAL_ORDER,) * 2
        )
        y.backward(torch.empty_like(y))


def layer(half: torch.dtype) -> None:
    """A Mamba layer as a training step has it: paths of one and of two directions, gradients that are one number repeated."""
    made = mamba.MambaLayer3d(24, [ScanPath.parse(t) for t in ("HWD:both", "DHW:forward")], 16, True, "mlp")
    for path in made.paths:
        path.recompute = True
    kernels = (
        mock.patch.object(mamba, "share_launches", return_value=True),
        mock.patch.object(mamba, "half_precision", return_value=half),
        mock.patch.object(directions, "_is_triton", return_value=True),
        mock.patch.object(row_norms, "uses_kernels", return_value=True),
    )
    for one in kernels:
        one.start()
    output = made(torch.randn(2, 24, 3, 5, 7).requires_grad_())
    output.backward(torch.ones(1).expand(output.shape))
    mock.patch.stopall()


def instance_norms(half: torch.dtype) -> None:
    """Rows in one block and in pieces, channels first and last, a residual of another type."""
    for shape in ((2, 3, 3, 5, 7), (1, 5, 20, 21, 22)):
        for form in (torch.contiguous_format, torch.channels_last_3d):
            x = torch.empty(shape, dtype=half, memory_format=form).requires_grad_()
            residual = torch.empty(shape, memory_format=form).requires_grad_()
            y = fused_norm.norm_activation(x, nn.InstanceNorm3d(shape[1], affine=True), residual, 0.01)
            y.backward(torch.ones(1).expand(y.shape))


CALLS = {
    call.__name__: call
    for call in (
        types_of_their_own,
        no_common_divisors,
        one_channel_and_one_state,
        steps_of_64_bits,
        convolutions,
        layer,
        instance_norms,
    )
}


def compile_all(architecture: int, names: Iterable[str]) -> None:
    """Every call, for one kind of GPU; a kernel that does not compile or fit raises."""
    driver = PretendedDriver(architecture)
    triton.runtime.driver.set_active(driver)
    for name in names:
        driver.launched.clear()
        start = time.perf_counter()
        CALLS[name](torch.bfloat16 if architecture >= 80 else torch.float16)
        seconds = time.perf_counter() - start
        print(f"sm_{architecture} {name}: {len(driver.launched)} launches, compiled in {seconds:.1f} s", flush=True)


def cost(repeats: int) -> None:
    """Microseconds of Python of a scan by the signature of all backends."""
    from MambaSegLib.scan import selective_scan

    driver = PretendedDriver(90)
    triton.runtime.driver.set_active(driver)
    print("| tokens | pass | launches | median us | least us |\n|--:|---|--:|--:|--:|")
    for length in (864, 108):
        u, B = rows((1, length, 640), torch.bfloat16), rows((1, length, 256), torch.bfloat16)
        vectors = torch.empty(3, 640, device="meta")
        made = [u, u, torch.empty(640, 256, device="meta"), B, B, vectors[0], u, vectors[1]]
        leaves = [(t.transpose(1, 2) if t.ndim == 3 else t).detach() for t in made]
        for gradient in (False, True):
            leaves = [t.detach().requires_grad_(gradient) for t in leaves]

            def run(leaves: list[Tensor] = leaves, gradient: bool = gradient) -> None:
                output = selective_scan(*leaves, True, backend="triton")
                if gradient:
                    output.backward(output)
                    for leaf in leaves:
                        leaf.grad = None

            run()
            driver.launched.clear()
            run()
            launches, found = len(driver.launched), sorted(_seconds(run) for _ in range(repeats))
            what = "forward + backward" if gradient else "forward"
            print(
                f"| {length} | {what} | {launches} | {statistics.median(found) * 1e6:.0f} | {found[0] * 1e6:.0f} |",
                flush=True,
            )


def _seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> int:
    """Compile, or measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", nargs="+", type=int, choices=SHARED_BYTES, default=[75, 80, 90])
    parser.add_argument("--only", nargs="+", choices=CALLS, default=list(CALLS))
    parser.add_argument("--cost", action="store_true", help="the Python of calls that are compiled already")
    parser.add_argument("--repeats", type=int, default=500)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.cost:
        with mock.patch.object(triton_backend, "why_unavailable", return_value=None):
            cost(options.repeats)
        return 0
    for architecture in options.architectures:
        compile_all(architecture, options.only)
    return 0


if __name__ == "__main__":
    sys.exit(main())
