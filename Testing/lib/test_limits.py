"""Memory and processors inside a container: read from trees of files as Linux shows them there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest
import torch

from MambaSegLib import limits
from MambaSegLib.limits import MemoryLimit, computing_threads, memory_limits, set_threads, usable_processors
from MambaSegLib.machine import memory_bytes

GIB = 1 << 30
ROOT = Path(__file__).resolve().parents[2]
V2 = "sys/fs/cgroup"
V1 = "sys/fs/cgroup/memory"

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="control groups are Linux'")


def computer(tmp_path: Path, files: Mapping[str, str]) -> Path:
    """A folder with files of /proc and /sys."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_without_a_limit_there_is_none(tmp_path: Path) -> None:
    assert memory_limits(tmp_path) == ()
    assert usable_processors(tmp_path) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("path", ["/", "/job", "/../../elsewhere/container"])
def test_a_container_of_version_2_has_what_its_group_leaves_and_files_that_were_read_make_room(
    tmp_path: Path, path: str
) -> None:
    system = computer(
        tmp_path,
        {
            "proc/self/cgroup": f"0::{path}\n",
            f"{V2}/memory.max": f"{8 * GIB}\n",
            f"{V2}/memory.current": f"{5 * GIB}\n",
            f"{V2}/memory.stat": f"anon {2 * GIB}\ninactive_file {3 * GIB}\nactive_file 0\n",
        },
    )
    assert memory_limits(system) == (MemoryLimit(8 * GIB, 6 * GIB),)


def test_the_tightest_of_nested_groups_counts(tmp_path: Path) -> None:
    system = computer(
        tmp_path,
        {
            "proc/meminfo": f"MemTotal: {1 << 40} kB\nMemAvailable: {1 << 40} kB\n",
            "proc/self/cgroup": "0::/batch/job_7/step_0\n",
            f"{V2}/batch/memory.max": f"{64 * GIB}\n",
            f"{V2}/batch/memory.current": f"{63 * GIB}\n",
            f"{V2}/batch/job_7/memory.max": f"{GIB}\n",
            f"{V2}/batch/job_7/memory.current": f"{GIB // 4}\n",
            f"{V2}/batch/job_7/step_0/memory.max": "max\n",
            f"{V2}/batch/job_7/step_0/memory.current": f"{GIB // 4}\n",
        },
    )
    assert memory_bytes(system) == (GIB, GIB * 3 // 4)


def test_a_group_of_version_1_is_found_and_its_largest_number_is_no_limit(tmp_path: Path) -> None:
    system = computer(
        tmp_path,
        {
            "proc/self/cgroup": "9:name=systemd:/\n4:memory:/docker/0a1b\n1:cpu,cpuacct:/docker/0a1b\n0::/\n",
            f"{V1}/memory.limit_in_bytes": "9223372036854771712\n",
            f"{V1}/memory.usage_in_bytes": f"{GIB}\n",
            f"{V1}/docker/0a1b/memory.limit_in_bytes": f"{4 * GIB}\n",
            f"{V1}/docker/0a1b/memory.usage_in_bytes": f"{3 * GIB}\n",
            f"{V1}/docker/0a1b/memory.stat": f"inactive_file 0\ntotal_inactive_file {GIB}\n",
        },
    )
    assert memory_limits(system) == (MemoryLimit(4 * GIB, 2 * GIB),)


@pytest.mark.parametrize("text", ["", "nonsense\n", "0::\n", "4:memory:\n\n::\n"])
def test_files_nobody_expected_are_no_limit(tmp_path: Path, text: str) -> None:
    system = computer(tmp_path, {"proc/self/cgroup": text, f"{V2}/memory.max": "a lot\n", f"{V2}/cpu.max": "max\n"})
    assert memory_limits(system) == ()
    assert usable_processors(system) == len(os.sched_getaffinity(0))


def test_a_limit_of_the_address_space_is_told() -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
        "from MambaSegLib.limits import memory_limits; limit = memory_limits()[-1]\n"
        "print(limit.total_bytes, limit.free_bytes)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    total, free = map(int, done.stdout.split())
    assert total == 2 * GIB
    assert GIB < free < 2 * GIB


@pytest.mark.parametrize(
    ("files", "processors"),
    [
        ({"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "max 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/a/b\n", f"{V2}/a/cpu.max": "250000 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "6400000 100000\n"}, 8),
        (
            {
                "proc/self/cgroup": "1:cpu,cpuacct:/docker/x\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "400000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            8,
        ),
    ],
)
def test_time_that_is_rationed_is_as_many_processors_as_it_keeps_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: Mapping[str, str], processors: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert usable_processors(computer(tmp_path, files)) == processors


def test_threads_can_be_asked_for_while_another_thread_imports_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "usable_processors", lambda: 3)
    assert computing_threads() == torch.get_num_threads()
    for state in (None, ModuleType("torch")):  # not there, and not yet executed
        monkeypatch.setitem(sys.modules, "torch", state)  # type: ignore[arg-type]
        assert computing_threads() == 3


def test_no_more_threads_compute_than_may_run_unless_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(limits, "usable_processors", lambda: 3)
    try:
        for at_first, wanted, expected in ((8, None, 3), (2, None, 2), (2, 5, 5)):
            torch.set_num_threads(at_first)
            set_threads(wanted)
            assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)
