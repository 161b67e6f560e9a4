"""How the Triton kernels divide a scan: block sizes by rule, or as measured on this GPU.

The rule gives a program one warp with 32 or 64 states per thread (two in the backward pass of many states) and makes enough
programs to fill a large GPU. It depends on sizes alone, so that equal scans are cut, and rounded, alike. `search` times a few
alternatives; what it finds is kept in a file by GPU, and used from then on unless PyTorch is asked for deterministic algorithms.

Chunks cost a second pass over the tokens and two more launches. A scan of few tokens, or of enough channels, directions and
images to fill the GPU without, is not cut: `_cycles` weighs that.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from MambaSegLib.atomic import new_file
from MambaSegLib.remembered import cache_folder, recall

Pass = Literal["forward", "backward"]


PROGRAMS_WANTED = 16384
"""Several times as many as an H200's 132 multiprocessors hold, so that the last ones to finish cost little."""
SHORTEST_CHUNK, LONGEST_CHUNK = 64, 512
"""Of scans in several chunks."""
LONGEST_WHOLE = 1 << 15
"""Tokens up to which a scan may be one chunk."""
BACKWARD_CHUNK = 64
"""The backward pass keeps states of a chunk in memory; short chunks are still in the cache when they are needed."""
BACKWARD_WHOLE = 128
"""Tokens up to which the backward pass is one chunk: four launches less outweigh that many more steps."""
SCRATCH_BYTES = 512 << 20
"""The backward pass does as many chunks at a time as need no more than this in states and partial sums."""
SCHEDULERS = 528
"""Warps that issue instructions at a time on an H100 or H200: 132 multiprocessors with 4 schedulers each."""
LAUNCH_CYCLES = 45_000
"""What one more launch costs the processor and the GPU, about 25 microseconds, in the GPU's cycles."""
CONVOLUTION_BLOCK = (32, 64)
"""Positions and channels of one program of the convolution."""

EVERY_SCAN = "every scan"

log = logging.getLogger(__name__)

_tried: dict[str, ScanConfig] = {}
_watching: list[set[Problem]] = []


class Problem(NamedTuple):
    """One kind of scan to divide; `pairs` is directions x batch."""

    kind: Pass
    channels: int
    states: int
    length: int
    pairs: int
    dtype: torch.dtype

    @property
    def key(self) -> str:
        """Scans that share one measurement: lengths within a factor of 2 do; those that one chunk may hold, an eighth."""
        kind, channels, states, length, pairs, dtype = self
        tokens = f"{_covering(length)}" if length <= LONGEST_WHOLE else f"2^{(length - 1).bit_length()}"
        return f"{kind} {channels}x{states} {tokens} x{pairs} {str(dtype).removeprefix('torch.')}"


@dataclass(frozen=True)
class ScanConfig:
    """How one pass is divided.

    Attributes:
        block_channels: Channels of one program for outputs or gradients, a power of 2.
        boundary_channels: The same for what crosses between chunks.
        chunk: Positions of one program.
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
        powers = (self.block_channels, self.boundary_channels, self.warps)
        if (
            any(size < 1 or size & (size - 1) for size in powers)
            or self.chunk < 1
            or self.chunk % self.unroll
            or self.chunk % self.kept_every
        ):
            msg = f"blocks and warps must be powers of 2, and a chunk a multiple of the steps written out, got {self}"
            raise ValueError(msg)


def power_of_2(size: int) -> int:
    """The smallest one that is not below `size`; Triton's own function for it takes microseconds."""
    return 1 << (size - 1).bit_length()


def pieces(size: int, each: int) -> int:
    """How many of `each` cover `size`; as above."""
    return -(-size // each)


@lru_cache(maxsize=256)
def rule(kind: Pass, channels: int, states: int, length: int, pairs: int) -> ScanConfig:
    """Division by rule; `pairs` is directions x batch.

    In several chunks it is within a few percent of the fastest on an H200; where one chunk is better is a model's word.
    """
    if kind == "backward":
        return _backward_rule(channels, states, length, pairs)
    options = [_chunked(channels, states, length, pairs), *_whole(channels, states, length)]
    return min(options, key=lambda config: _forward_cycles(config, channels, states, length, pairs))


def _backward_rule(channels: int, states: int, length: int, pairs: int) -> ScanConfig:
    few = power_of_2(states) <= 32
    chunk = 2 * BACKWARD_CHUNK if few else BACKWARD_CHUNK
    whole, kept_every = _covering(length), 2 if few else 1
    if whole <= chunk or (
        whole <= BACKWARD_WHOLE and 4 * pairs * (whole // kept_every) * states * channels <= SCRATCH_BYTES
    ):
        chunk = whole
    block = _block(channels, states, 32)
    return ScanConfig(block, _boundary(channels, states), chunk, 1 if few else 2, 1, kept_every)


def _boundary(channels: int, states: int) -> int:
    return _block(channels, states, 64 if power_of_2(states) <= 16 else 32)


def _block(channels: int, states: int, most: int) -> int:
    """Channels of a program of 2048 states at the most."""
    return max(4, min(most, 2048 // power_of_2(states), power_of_2(channels)))


def _chunked(channels: int, states: int, length: int, pairs: int) -> ScanConfig:
    """Forward, as many programs as are wanted."""
    block = _boundary(channels, states)
    wanted = max(1, length * pieces(channels, block) * pairs // PROGRAMS_WANTED)
    chunk = min(max(power_of_2(wanted), SHORTEST_CHUNK), LONGEST_CHUNK)
    return ScanConfig(block, block, chunk, unroll=_unroll(states))


def _whole(channels: int, states: int, length: int) -> list[ScanConfig]:
    """Forward, in one chunk; fewer channels per program make more programs."""
    block, unroll = _boundary(channels, states), _unroll(states)
    sizes = (block >> halvings for halvings in range(3)) if length <= LONGEST_WHOLE else ()
    return [ScanConfig(size, size, _covering(length), unroll=unroll) for size in sizes if size >= 4]


def _unroll(states: int) -> int:
    return 2 if power_of_2(states) == 32 else 1


def _covering(length: int) -> int:
    """Positions of a chunk that holds all: at most an eighth too many, so that kernels are compiled for few sizes."""
    grain = max(8, power_of_2(length) // 8)
    return pieces(length, grain) * grain


def _forward_cycles(config: ScanConfig, channels: int, states: int, length: int, pairs: int) -> int:
    """Estimate of a whole forward pass, beyond its first launch."""
    chunks, programs = pieces(length, config.chunk), pieces(channels, config.block_channels) * pairs
    own = config.block_channels * power_of_2(states) // (32 * config.warps)
    outputs = config.chunk * _cycles(programs * chunks, own)
    if chunks == 1:
        return outputs
    return outputs + config.chunk * _cycles(programs * (chunks - 1), own) + 2 * LAUNCH_CYCLES


def _cycles(programs: int, own: int) -> int:
    """Cycles until every one-warp program has made one step; `own` states are in each thread.

    A step is 170 + 6.6 own instructions (counted in sm_90 code), and warps that share a scheduler keep it two thirds busy, as
    measured on an H200: 240 + 9 own cycles each. A warp that has a scheduler to itself waits for its chain of exponentials
    and for the operands that it loads one step ahead: 500 + 12 own, a guess.
    """
    return max(pieces(programs, SCHEDULERS) * (240 + 9 * own), 500 + 12 * own)


def candidates(kind: Pass, channels: int, states: int, length: int, pairs: int) -> tuple[ScanConfig, ...]:
    """The rule's division, and others that are worth a measurement."""
    first = rule(kind, channels, states, length, pairs)
    base = _chunked(channels, states, length, pairs) if kind == "forward" else first
    found = [first]
    for block, warps, chunk in product((0.5, 1, 2), (1, 2, 4), (0.5, 1, 2)):
        size, positions = int(base.block_channels * block), int(base.chunk * chunk)
        if size >= 4 and positions >= SHORTEST_CHUNK and 8 <= size * power_of_2(states) // (32 * warps) <= 64:
            found.append(replace(base, block_channels=size, chunk=positions, warps=warps))
    if kind == "forward":
        whole = _whole(channels, states, length)
        found += [
            replace(config, warps=warps, unroll=unroll) for config in whole for warps in (1, 2) for unroll in (1, 2)
        ]
    else:
        found += [replace(config, kept_every=kept) for config in found for kept in (1, 4)]
    return tuple(dict.fromkeys(found))


def config_for(kind: Pass, u: Tensor, states: int) -> ScanConfig:
    """Division of a scan of rows u (directions, B, L, D): measured if there is a measurement, else by rule."""
    groups, batch, length, channels = u.shape
    pairs = groups * batch
    if _tried or _watching:
        problem = Problem(kind, channels, states, length, pairs, u.dtype)
        for met in _watching:
            met.add(problem)
        tried = _tried.get(EVERY_SCAN) or _tried.get(problem.key)
        if tried is not None:
            return tried
    if u.is_cuda and not torch.are_deterministic_algorithms_enabled():
        return _measured_or_rule(kind, channels, states, length, pairs, u.dtype, u.device)
    return rule(kind, channels, states, length, pairs)


@lru_cache(maxsize=256)
def _measured_or_rule(
    kind: Pass, channels: int, states: int, length: int, pairs: int, dtype: torch.dtype, device: torch.device
) -> ScanConfig:
    measured = _measured(torch.cuda.get_device_name(device))
    found = measured.get(Problem(kind, channels, states, length, pairs, dtype).key)
    return rule(kind, channels, states, length, pairs) if found is None else found


@contextmanager
def override(key: str, config: ScanConfig) -> Iterator[None]:
    """Divide one kind of scan, or `EVERY_SCAN`, like this for a while: how a search tries its options."""
    _tried[key] = config
    try:
        yield
    finally:
        _tried.pop(key, None)  # another thread may have probed the same device


@contextmanager
def problems_met() -> Iterator[set[Problem]]:
    """Collect the scans that are divided meanwhile."""
    met: set[Problem] = set()
    _watching.append(met)
    try:
        yield met
    finally:
        _watching[:] = [other for other in _watching if other is not met]


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
    content: dict[str, Any] = recall(file)
    content.setdefault(gpu, {}).update({key: asdict(config) for key, config in found.items()})
    file.parent.mkdir(parents=True, exist_ok=True)
    with new_file(file) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    _measured.cache_clear()
    _measured_or_rule.cache_clear()


@lru_cache(maxsize=8)
def _measured(gpu: str) -> dict[str, ScanConfig]:
    content: dict[str, Any] = recall(cache_file())
    try:
        return {key: ScanConfig(**values) for key, values in content.get(gpu, {}).items()}
    except (TypeError, ValueError, AttributeError) as error:
        log.warning("%s is damaged and not used: %s", cache_file(), error)
        return {}
