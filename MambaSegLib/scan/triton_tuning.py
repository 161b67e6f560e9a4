"""How the Triton kernels divide a scan: block sizes by rule, or as measured on this GPU.

The rule gives a program one warp with 32 or 64 states per thread (two in the backward pass of many states) and makes enough
programs to fill a large GPU. It depends on sizes alone, so that equal scans are cut, and rounded, alike. `search` times a few alternatives; what it finds
is kept in a file by GPU, and used from then on unless PyTorch is asked for deterministic algorithms.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from MambaSegLib.atomic import new_file
from MambaSegLib.remembered import cache_folder

Pass = Literal["forward", "backward"]


PROGRAMS_WANTED = 16384
"""Several times as many as an H200's 132 multiprocessors hold, so that the last ones to finish cost little."""
SHORTEST_CHUNK, LONGEST_CHUNK = 64, 512
BACKWARD_CHUNK = 64
"""The backward pass keeps states of a chunk in memory; short chunks are still in the cache when they are needed."""
CONVOLUTION_BLOCK = (32, 64)
"""Positions and channels of one program of the convolution."""

log = logging.getLogger(__name__)

_tried: dict[str, ScanConfig] = {}


@dataclass(frozen=True)
class ScanConfig:
    """How one pass is divided.

    Attributes:
        block_channels: Channels of one program for outputs or gradients, a power of 2.
        boundary_channels: The same for what crosses between chunks.
        chunk: Positions of one program, a power of 2.
        warps: Warps of one program.
        unroll: Steps written out in the loops that keep no states; divides `chunk`.
        kept_every: Steps whose states the backward pass holds in registers; divides `chunk`.
    """

    block_channels: int
    boundary_channels: int
    chunk: int
    warps: int = 1
    unroll: int = 1
    kept_every: int = 1

    def __post_init__(self) -> None:
        """Refuse what the kernels cannot divide."""
        sizes = (self.block_channels, self.boundary_channels, self.chunk, self.warps)
        if (
            any(size < 1 or size & (size - 1) for size in sizes)
            or self.chunk % self.unroll
            or self.chunk % self.kept_every
        ):
            msg = f"block sizes must be powers of 2 and divide each other, got {self}"
            raise ValueError(msg)


def rule(kind: Pass, channels: int, states: int, length: int, pairs: int) -> ScanConfig:
    """Division by rule, which is within a few percent of the fastest on an H200; `pairs` is directions x batch."""
    wide = 1 << (states - 1).bit_length()
    widest = 1 << (channels - 1).bit_length()
    boundary = max(4, min(64 if wide <= 16 else 32, 2048 // wide, widest))
    if kind == "backward":
        block = max(4, min(32, 2048 // wide, widest))
        chunk = 2 * BACKWARD_CHUNK if wide <= 32 else BACKWARD_CHUNK
        return ScanConfig(block, boundary, chunk, 1 if wide <= 32 else 2, 1, 2 if wide <= 32 else 1)
    wanted = max(1, length * math.ceil(channels / boundary) * pairs // PROGRAMS_WANTED)
    chunk = 1 << max(0, wanted - 1).bit_length()
    return ScanConfig(boundary, boundary, min(max(chunk, SHORTEST_CHUNK), LONGEST_CHUNK), unroll=2 if wide == 32 else 1)


def candidates(kind: Pass, channels: int, states: int, length: int, pairs: int) -> tuple[ScanConfig, ...]:
    """The rule's division, and its neighbors that are worth a measurement."""
    base = rule(kind, channels, states, length, pairs)
    wide = 1 << (states - 1).bit_length()
    found = [base]
    for block, warps, chunk in product((0.5, 1, 2), (1, 2, 4), (0.5, 1, 2)):
        config = replace(
            base, block_channels=int(base.block_channels * block), chunk=int(base.chunk * chunk), warps=warps
        )
        if (
            config.block_channels >= 4
            and config.chunk >= SHORTEST_CHUNK
            and 8 <= config.block_channels * wide // (32 * warps) <= 64
        ):
            found.append(config)
    if kind == "backward":
        found += [replace(config, kept_every=kept) for config in found for kept in (1, 4)]
    return tuple(dict.fromkeys(found))


def config_for(kind: Pass, u: Tensor, states: int) -> ScanConfig:
    """Division of a scan of rows u (directions, B, L, D): measured if there is a measurement, else by rule."""
    groups, batch, length, channels = u.shape
    key = problem_key(kind, channels, states, length, groups * batch, u.dtype)
    if key in _tried:
        return _tried[key]
    if u.is_cuda and not torch.are_deterministic_algorithms_enabled():
        measured = _measured(torch.cuda.get_device_name(u.device)).get(key)
        if measured is not None:
            return measured
    return rule(kind, channels, states, length, groups * batch)


@contextmanager
def override(key: str, config: ScanConfig) -> Iterator[None]:
    """Divide one kind of scan like this for a while: how a search tries its options."""
    _tried[key] = config
    try:
        yield
    finally:
        del _tried[key]


def problem_key(kind: Pass, channels: int, states: int, length: int, pairs: int, dtype: torch.dtype) -> str:
    """Scans that share one measurement: lengths within a factor of 2 do."""
    size = str(dtype).removeprefix("torch.")
    return f"{kind} {channels}x{states} 2^{(length - 1).bit_length()} x{pairs} {size}"


def search(
    options: Iterable[ScanConfig], seconds: Callable[[ScanConfig], float]
) -> tuple[ScanConfig, dict[ScanConfig, float]]:
    """The fastest of some divisions; one that does not compile or fit is left out.

    Args:
        options: At least one that works.
        seconds: Measures one.

    Raises:
        RuntimeError: If none works.
    """
    times: dict[ScanConfig, float] = {}
    for config in options:
        try:
            times[config] = seconds(config)
        except (RuntimeError, ValueError) as error:  # noqa: PERF203 - out of registers, shared or device memory
            log.info("%s does not work here: %s", config, str(error).splitlines()[0] if str(error) else error)
    if not times:
        msg = "no division of the scan works on this GPU"
        raise RuntimeError(msg)
    return min(times, key=lambda config: times[config]), times


def cache_file() -> Path:
    """Where measurements are kept: the user's cache folder."""
    return cache_folder() / "triton_scan.json"


def remember(gpu: str, found: dict[str, ScanConfig], file: Path | None = None) -> None:
    """Add measurements of a GPU to the file."""
    file = file or cache_file()
    content = _read(file)
    content.setdefault(gpu, {}).update({key: asdict(config) for key, config in found.items()})
    file.parent.mkdir(parents=True, exist_ok=True)
    with new_file(file) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    _measured.cache_clear()


@lru_cache(maxsize=8)
def _measured(gpu: str) -> dict[str, ScanConfig]:
    try:
        return {key: ScanConfig(**values) for key, values in _read(cache_file()).get(gpu, {}).items()}
    except (TypeError, ValueError, AttributeError) as error:
        log.warning("%s is damaged and not used: %s", cache_file(), error)
        return {}


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
