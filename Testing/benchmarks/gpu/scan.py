"""The scan at every stage of a 48 x 192 x 192 patch: pytorch, mamba_ssm and triton, forward and (bfloat16) with gradients.

Also eight directions in one launch (triton) against eight sequences in one batch (mamba_ssm, given them for nothing), and
every backend's error against a float64 scan of the first tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from measuring import Row, Run, Settings, failure, race
from torch import Tensor

from MambaSegLib.scan import list_backends, selective_scan
from MambaSegLib.scan.arguments import Scans
from MambaSegLib.scan.order import ScanOrder

STAGES = {
    "s1 N16": (48 * 192 * 192, 64, 16),
    "s1 N32": (48 * 192 * 192, 64, 32),
    "s2": (48 * 96 * 96, 128, 64),
    "s3": (24 * 48 * 48, 256, 128),
    "s4": (12 * 24 * 24, 512, 256),
    "s5": (6 * 12 * 12, 640, 256),
    "s6": (3 * 6 * 6, 640, 256),
}
"""Tokens, channels, states."""
TINY_STAGES = {"tiny": (24, 4, 3)}
FORMS = ("mamba_ssm", "triton", "pytorch")
CHECKED_TOKENS = 4096
MOST_KEPT = 1 << 30
"""State updates up to which PyTorch's own gradients are tried: it keeps the states of every token."""
DIRECTIONS = 8


def tensors(stage: tuple[int, int, int], dtype: torch.dtype, device: str, batch: int = 1) -> list[Tensor]:
    """u, delta, A, B, C, D, z, delta_bias of a fresh network; rows of tokens, seen as the scan's signature has them."""
    length, channels, states = stage
    generator = torch.Generator(device).manual_seed(0)

    def rows(width: int) -> Tensor:
        made = torch.randn(batch, length, width, generator=generator, device=device, dtype=torch.float32)
        return made.to(dtype).transpose(1, 2)

    steps = torch.exp(torch.rand(channels, generator=generator, device=device) * 4.6 - 6.9)  # 1e-3 to 1e-1
    bias = steps + torch.log(-torch.expm1(-steps))
    A = -torch.arange(1.0, states + 1, device=device).repeat(channels, 1)
    ones = torch.ones(channels, device=device)
    return [rows(channels), 0.5 * rows(channels), A, rows(states), rows(states), ones, rows(channels), bias]


def _runner(backend: str, made: list[Tensor], gradient: bool) -> Run:
    leaves = [t.detach().requires_grad_(gradient) for t in made]
    weights = torch.ones_like(made[0])

    def run() -> None:
        with torch.set_grad_enabled(gradient):
            output = selective_scan(*leaves, True, backend=backend)
        if gradient:
            output.backward(weights)
            for leaf in leaves:
                leaf.grad = None

    return run


def _error(backend: str, made: list[Tensor]) -> str:
    """Against float64, on the first tokens."""
    start = [t[..., :CHECKED_TOKENS] if t.ndim == 3 else t for t in made]
    with torch.no_grad():
        found = selective_scan(*start, True, backend=backend).double()
        wanted = selective_scan(*(t.double() for t in start), True, backend="pytorch")
    return f"error {float((found - wanted).norm() / wanted.norm()):.1e}"


def _directions(made: list[Tensor], gradient: bool) -> Run:
    """Eight directions of a volume in one launch, whose rows are those of `made`, seen eight times."""
    from MambaSegLib.scan.triton_backend import scan_rows

    repeated = [
        (t.transpose(1, 2) if t.ndim == 3 else t).expand(DIRECTIONS, *(-1,) * t.ndim).detach().requires_grad_(gradient)
        for t in made
    ]
    walks = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (2, 0, 1))
    orders = tuple(ScanOrder(axes, backward) for axes in walks for backward in (False, True))
    length = made[0].shape[2]
    slices = max(n for n in (48, 24, 12, 6, 3, 1) if length % (n * 4) == 0)
    grid = (slices, 4, length // slices // 4)

    def run() -> None:
        with torch.set_grad_enabled(gradient):
            output, _ = scan_rows(Scans(*repeated, True, grid, orders))
        if gradient:
            output.backward(torch.ones_like(output))
            for leaf in repeated:
                leaf.grad = None

    return run


def measure(settings: Settings) -> Iterator[list[Row]]:
    """One table after the other."""
    for name, stage in (TINY_STAGES if settings.tiny else STAGES).items():
        for dtype, gradient in ((torch.bfloat16, False), (torch.bfloat16, True), (torch.float32, False)):
            made = tensors(stage, dtype, settings.device)
            case = f"{name} {str(dtype)[6:]} {'forward + backward' if gradient else 'forward'}"
            yield _one(case, stage, made, gradient, settings)
            if dtype == torch.bfloat16:
                yield _eight(case, stage, gradient, settings)


def _one(case: str, stage: tuple[int, int, int], made: list[Tensor], gradient: bool, settings: Settings) -> list[Row]:
    available = {s.name: s for s in list_backends(settings.device, needs_gradient=True)}
    variants: dict[str, Run | str] = {}
    notes = {}
    for name in FORMS:
        if not available[name].available:
            variants[name] = available[name].reason
        elif name == "pytorch" and gradient and math.prod(stage) > MOST_KEPT:
            variants[name] = "would keep the states of every token"
        else:
            try:
                notes[name] = _error(name, made)
            except Exception as error:  # noqa: BLE001 - as in `race`
                variants[name] = failure(error)
            else:
                variants[name] = _runner(name, made, gradient)
    return race(case, variants, settings, notes)


def _eight(case: str, stage: tuple[int, int, int], gradient: bool, settings: Settings) -> list[Row]:
    available = {s.name: s for s in list_backends(settings.device, needs_gradient=True)}
    variants: dict[str, Run | str] = {}
    for name in ("mamba_ssm", "triton"):
        if not available[name].available:
            variants[name] = available[name].reason
        elif name == "triton":
            variants[name] = _directions(tensors(stage, torch.bfloat16, settings.device), gradient)
        else:
            made = tensors(stage, torch.bfloat16, settings.device, DIRECTIONS)
            contiguous = [t.contiguous() if t.ndim == 3 else t for t in made]  # the layout it wants, for nothing
            variants[name] = _runner(name, contiguous, gradient)
    return race(f"{case}, eight directions", variants, settings)


def tune(settings: Settings) -> Iterator[str]:
    """Measure the divisions of `triton_tuning.candidates` at every stage, and keep the fastest for this GPU."""
    from MambaSegLib.scan.triton_search import tune as search
    from MambaSegLib.scan.triton_tuning import Problem

    problems = [
        Problem(kind, channels, states, length, pairs, torch.bfloat16)
        for length, channels, states in STAGES.values()
        for pairs in (1, 2, 8)  # one direction, one both ways or in two images, the eight of a released layer
        for kind in ("forward", "backward")
    ]
    for found in search(problems, torch.device(settings.device)):
        yield f"{found.problem.key}: {found.best}, {found.gain:.2f} x the rule's"
