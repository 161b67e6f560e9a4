"""How much memory and how many processors this process may use, which in a container is less than the computer has.

Source: Linux' documentation of cgroup-v2.rst (memory.max, memory.current, memory.stat, cpu.max), of cgroup-v1/memory.rst
and of scheduler/sched-bwc.rst (cpu.cfs_quota_us), and proc(5).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path

SYSTEM = Path("/")
"""Where the system's own files are."""

_UNLIMITED = 1 << 60
"""From here on a limit is none: version 1 says "none" with the largest multiple of a page in 63 bits."""


@dataclass(frozen=True)
class MemoryLimit:
    """Memory somebody has set a limit to.

    Attributes:
        total_bytes: The limit.
        free_bytes: What of it is left.
    """

    total_bytes: int
    free_bytes: int


def memory_limits(system: Path = SYSTEM) -> tuple[MemoryLimit, ...]:
    """All limits that hold for this process: of the control groups it is in, and of its address space.

    Args:
        system: Where /proc and /sys are.
    """
    return (*_group_limits(system), *_address_space(system))


def usable_processors(system: Path = SYSTEM) -> int:
    """Threads that can compute at a time: processors this process is bound to, or fewer if its time is rationed.

    Args:
        system: Where /proc and /sys are.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # More threads than that would all be put to sleep for the rest of each period.
    rations = (max(1, ceil(quota / period)) for quota, period in _quotas(system) if quota > 0 and period > 0)
    return min([bound, *rations])


def set_threads(wanted: int | None = None) -> None:
    """Set how many threads PyTorch, and with it our compiled kernels, compute with; for a program's own start.

    Args:
        wanted: How many; None for what PyTorch takes, but no more than can compute at a time.

    Raises:
        ImportError: If there is no PyTorch.
    """
    import torch

    threads = wanted or min(torch.get_num_threads(), usable_processors())
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)


def computing_threads() -> int:
    """Threads for work beside the networks': those PyTorch computes with where it is loaded, as a person may have set them."""
    # Another thread may just be importing it.
    told = getattr(sys.modules.get("torch"), "get_num_threads", None)
    return int(told()) if told is not None else usable_processors()


def _group_limits(system: Path) -> Iterator[MemoryLimit]:
    for folder in _folders(system, "memory"):
        for limit_file, used_file, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, used = _number(folder / limit_file), _number(folder / used_file)
            if limit is not None and used is not None and limit < _UNLIMITED:
                # Files that were read count as used, but make room for whoever needs it.
                used -= _statistic(folder / "memory.stat", cache)
                yield MemoryLimit(limit, max(0, limit - used))


def _address_space(system: Path) -> Iterator[MemoryLimit]:
    if sys.platform == "win32":
        return
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY or limit >= _UNLIMITED:
        return
    words = _text(system / "proc/self/statm").split()
    used = int(words[0]) * os.sysconf("SC_PAGE_SIZE") if words else 0
    yield MemoryLimit(limit, max(0, limit - used))


def _quotas(system: Path) -> Iterator[tuple[int, int]]:
    """Time per period, in microseconds, of every group that has a ration."""
    for folder in _folders(system, "cpu"):
        words = _text(folder / "cpu.max").split()
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit():
            yield int(words[0]), int(words[1])
        quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if quota is not None and period is not None:
            yield quota, period


def _folders(system: Path, controller: str) -> Iterator[Path]:
    """Folders of the groups this process is in and of those around them: the tightest limit counts.

    Inside a container its own group is usually the root of what is mounted, whatever /proc calls it: names that do not
    exist there lead up to that root.
    """
    mounts = system / "sys/fs/cgroup"
    for line in _text(system / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            roots = [mounts, mounts / "unified"]
        elif controller in controllers.split(","):
            roots = [mounts / name for name in dict.fromkeys((controllers, controller))]
        else:
            continue
        parts = [part for part in path.split("/") if part and part != ".."]
        for root in roots:
            for depth in range(len(parts), -1, -1):
                yield root.joinpath(*parts[:depth])


def _statistic(file: Path, name: str) -> int:
    for line in _text(file).splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdigit():
            return int(value)
    return 0


def _number(file: Path) -> int | None:
    text = _text(file).strip()
    return int(text) if text.removeprefix("-").isdigit() else None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
