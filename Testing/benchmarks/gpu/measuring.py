"""Variants of one computation, timed in turns in one process, with their peak memory."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch

Run = Callable[[], object]

BRIEF_SECONDS = 0.05


@dataclass(frozen=True)
class Settings:
    """How the benchmarks run.

    Attributes:
        device: "cuda", "cuda:1"; "cpu" to see that they work.
        repeats: Rounds whose median counts.
        tiny: Sizes that take seconds on a CPU; the figures mean nothing then.
        plans: Named plans whose networks are measured.
        networks: Names of networks; () for all of the paper's comparison.
    """

    device: str
    repeats: int = 5
    tiny: bool = False
    plans: tuple[str, ...] = ("synapse", "acdc", "braintumour")
    networks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One variant of one case.

    Attributes:
        case: What is computed.
        variant: How.
        seconds: Every round; empty if it could not run.
        peak_bytes: GPU memory beyond what was there before, 0 on a CPU.
        note: Why it could not run, an error against a reference, ...
    """

    case: str
    variant: str
    seconds: tuple[float, ...] = ()
    peak_bytes: int = 0
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def race(
    case: str, variants: Mapping[str, Run | str], settings: Settings, notes: Mapping[str, str] | None = None
) -> list[Row]:
    """Time variants in turns, so that a busy or hot moment of the device meets them alike.

    Args:
        case: What they compute.
        variants: By name: what to run, or why it cannot.
        settings: Device and rounds.
        notes: Remarks for the table, by variant.
    """
    failed, peaks, ready = {}, {}, {}
    for name, run in variants.items():
        if isinstance(run, str):
            failed[name] = run
            continue
        try:
            run()  # compiles, and finds the fastest convolutions
            peaks[name] = _peak_bytes(run, settings.device)
            ready[name] = run
        except Exception as error:  # noqa: BLE001 - one variant that fails must not cost the figures of all others
            failed[name] = failure(error)
    seconds: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(settings.repeats):
        for name, run in ready.items():
            seconds[name].append(_seconds(run, settings.device))
    remarks = notes or {}
    return [
        Row(case, name, tuple(seconds[name]), peaks[name], remarks.get(name, ""))
        if name in ready
        else Row(case, name, note=failed[name])
        for name in variants
    ]


def failure(error: Exception) -> str:
    """A remark for the table."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    return f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"


def wait(device: str) -> None:
    """Let the device finish."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _seconds(run: Run, device: str) -> float:
    """Of a second call where one is brief: what the variants before left in the processor's caches counts for nobody."""
    first = _seconds_of_one(run, device)
    return _seconds_of_one(run, device) if first < BRIEF_SECONDS else first


def _seconds_of_one(run: Run, device: str) -> float:
    wait(device)
    start = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - start


def _peak_bytes(run: Run, device: str) -> int:
    if not device.startswith("cuda"):
        run()
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    wait(device)
    return torch.cuda.max_memory_allocated(device) - before


def markdown(rows: list[Row]) -> str:
    """A table; "x first" is how many times faster than the first variant of the case that ran."""
    lines = ["| case | variant | median ms | x first | peak GiB | note |", "|---|---|--:|--:|--:|---|"]
    first: dict[str, float] = {}
    for row in rows:
        if not row.seconds:
            lines.append(f"| {row.case} | {row.variant} | | | | {row.note} |")
            continue
        base = first.setdefault(row.case, row.median)
        lines.append(
            f"| {row.case} | {row.variant} | {row.median * 1e3:.2f} | {base / row.median:.2f} "
            f"| {row.peak_bytes / 2**30:.2f} | {row.note} |"
        )
    return "\n".join(lines)


def as_json(rows: list[Row]) -> list[dict[str, object]]:
    """Every single measurement."""
    return [asdict(row) for row in rows]


def computer(device: str) -> dict[str, str]:
    """What was measured on."""
    try:
        import triton

        versions = f"torch {torch.__version__}, triton {triton.__version__}"
    except ImportError:
        versions = f"torch {torch.__version__}, no triton"
    gpu = (
        torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor() or platform.machine()
    )
    return {"device": gpu, "versions": versions, "python": platform.python_version()}
