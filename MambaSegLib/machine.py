"""What this computer has: packages, processor, memory, devices. Nothing here computes."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from MambaSegLib.limits import SYSTEM, memory_limits, usable_processors

_PACKAGES = ("numpy", "torch", "SimpleITK", "numba", "scipy", "safetensors")
_ACCELERATORS = ("mamba_ssm", "causal_conv1d", "triton")
_VECTOR_FEATURES = ("avx2", "fma", "avx512f", "avx512vl", "neon", "sve")


@dataclass(frozen=True)
class Machine:
    """One computer.

    Attributes:
        packages: Version per package a prediction needs; "" where it is missing.
        accelerators: The same for packages that only make it faster.
        python: Version and place of the interpreter.
        system: Operating system.
        processor: Its name.
        cores: Processor threads this process may use.
        vector_features: Instruction sets the compiled scan can use; () where unknown.
        memory_total_bytes: Main memory, or what of it this process may have; 0 where unknown.
        memory_free_bytes: Of it, what this process may still take; 0 where unknown.
        devices: What networks can be computed on, e.g. "cuda:0 (NVIDIA H100, 78 GiB)".
    """

    packages: Mapping[str, str]
    accelerators: Mapping[str, str]
    python: str
    system: str
    processor: str
    cores: int
    vector_features: tuple[str, ...]
    memory_total_bytes: int
    memory_free_bytes: int
    devices: tuple[str, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """Packages a prediction needs and that are not there."""
        return tuple(name for name, version in self.packages.items() if not version)


def look_around() -> Machine:
    """Find out what this computer has."""
    total, free = memory_bytes()
    return Machine(
        packages={name: version_of(name) for name in _PACKAGES},
        accelerators={name: version_of(name) for name in _ACCELERATORS},
        python=f"{platform.python_version()} ({sys.executable})",
        system=platform.platform(),
        processor=processor_name(),
        cores=usable_processors(),
        vector_features=_vector_features(),
        memory_total_bytes=total,
        memory_free_bytes=free,
        devices=_devices(),
    )


def version_of(package: str) -> str:
    """Installed version, without importing the package; "" if it is not there."""
    if util.find_spec(package) is None:
        return ""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown version"


def processor_name() -> str:
    """E.g. "AMD EPYC 9354"; the architecture where the system does not tell more."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def memory_bytes(system: Path = SYSTEM) -> tuple[int, int]:
    """Main memory and what of it this process may still take, within the limits of a container; 0 where unknown.

    Args:
        system: Where /proc and /sys are.
    """
    if sys.platform == "win32":
        return _windows_memory()
    total, free = _main_memory(system)
    limits = memory_limits(system)
    totals = [limit.total_bytes for limit in limits] + ([total] if total else [])
    frees = [limit.free_bytes for limit in limits] + ([free] if free else [])
    return min(totals, default=0), min(frees, default=0)


def _main_memory(system: Path) -> tuple[int, int]:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0, 0
    info = system / "proc/meminfo"
    if info.is_file():
        for line in info.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("MemAvailable:"):
                return total, int(line.split()[1]) * 1024
    return total, 0


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX of the Windows API."""

    _fields_ = (
        ("dwLength", ctypes.c_ulong),
        ("dwMemoryLoad", ctypes.c_ulong),
        ("ullTotalPhys", ctypes.c_ulonglong),
        ("ullAvailPhys", ctypes.c_ulonglong),
        ("ullTotalPageFile", ctypes.c_ulonglong),
        ("ullAvailPageFile", ctypes.c_ulonglong),
        ("ullTotalVirtual", ctypes.c_ulonglong),
        ("ullAvailVirtual", ctypes.c_ulonglong),
        ("ullAvailExtendedVirtual", ctypes.c_ulonglong),
    )


def _windows_memory() -> tuple[int, int]:
    status = _MemoryStatus()
    status.dwLength = ctypes.sizeof(status)
    kernel = getattr(ctypes, "windll").kernel32  # noqa: B009 (absent on other systems, so a plain name is a type error)
    if not kernel.GlobalMemoryStatusEx(ctypes.byref(status)):
        return 0, 0
    return int(status.ullTotalPhys), int(status.ullAvailPhys)


def _vector_features() -> tuple[str, ...]:
    try:
        from llvmlite import binding
    except ImportError:
        return ()
    features = binding.get_host_cpu_features()
    return tuple(name for name in _VECTOR_FEATURES if features.get(name))


def _devices() -> tuple[str, ...]:
    try:
        import torch
    except ImportError:
        return ()
    devices = ["cpu"]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            devices.append(f"cuda:{index} ({properties.name}, {properties.total_memory / 2**30:.0f} GiB)")
    if torch.backends.mps.is_available():
        devices.append("mps")
    return tuple(devices)
