"""The fastest division of a scan on this GPU: measured when somebody asks, kept in a file, used from then on.

Which scans there are is found out by watching a network at work: `triton_tuning.problems_met`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from MambaSegLib.scan import triton_tuning
from MambaSegLib.scan.arguments import Scans
from MambaSegLib.scan.order import NATURAL_ORDER
from MambaSegLib.scan.triton_backend import scan_rows
from MambaSegLib.scan.triton_tuning import Problem, ScanConfig

log = logging.getLogger(__name__)

REPEATS = 3


@dataclass(frozen=True)
class Finding:
    """What the search found for one kind of scan.

    Attributes:
        problem: The scan.
        best: Its fastest division.
        gain: How many times as fast it is as the rule's.
        tried: Divisions that were measured.
    """

    problem: Problem
    best: ScanConfig
    gain: float
    tried: int


def tune(problems: Iterable[Problem], device: torch.device) -> Iterator[Finding]:
    """Measure the divisions of `triton_tuning.candidates`, and remember the fastest for this GPU.

    Args:
        problems: Scans of one key share their measurement. One that does not fit into the GPU's memory is left out.
        device: A CUDA device on which the kernels run.

    Raises:
        RuntimeError: If no division of a scan works.
    """
    for problem in problems:
        try:
            run = _runner(problem, device)
        except torch.OutOfMemoryError:
            log.warning("no memory to tune %s", problem.key)
            continue
        options = triton_tuning.candidates(*problem[:5])
        best, times = triton_tuning.search(options, partial(_seconds, run, problem.key, device))
        triton_tuning.remember(_gpu(device), {problem.key: best})
        yield Finding(problem, best, times.get(options[0], float("nan")) / times[best], len(times))


def _gpu(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)


def _seconds(run: Callable[[], None], key: str, device: torch.device, config: ScanConfig) -> float:
    """Least of some runs, after one that compiles."""
    with triton_tuning.override(key, config):
        return min([_once(run, device) for _ in range(1 + REPEATS)][1:])


def _once(run: Callable[[], None], device: torch.device) -> float:
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _runner(problem: Problem, device: torch.device) -> Callable[[], None]:
    """The scan, on the numbers of a fresh network; with gradients if those are what is divided."""
    generator = torch.Generator(device).manual_seed(0)
    gradient = problem.kind == "backward"

    def rows(width: int) -> Tensor:
        made = torch.empty(1, problem.pairs, problem.length, width, dtype=problem.dtype, device=device)
        return made.normal_(0, 0.5, generator=generator).requires_grad_(gradient)

    u, delta, z = (rows(problem.channels) for _ in range(3))
    B, C = rows(problem.states), rows(problem.states)
    A = -torch.arange(1.0, problem.states + 1, device=device).repeat(1, problem.channels, 1).requires_grad_(gradient)
    skip, bias = torch.ones(1, problem.channels, device=device), torch.full((1, problem.channels), -4.0, device=device)
    scans = Scans(u, delta, A, B, C, skip, z, bias, True, (1, 1, problem.length), (NATURAL_ORDER,))

    def run() -> None:
        with torch.set_grad_enabled(gradient):
            output, _ = scan_rows(scans)
        if gradient:
            torch.autograd.grad(output, (u, delta, A, B, C, z), output.detach())

    return run
