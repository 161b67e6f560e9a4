"""Where and with what a fold was trained: written beside its weights, carried into the bundle."""

from __future__ import annotations

import platform
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from MambaSegLib import __version__
from MambaSegLib.manifest import utc_now

PACKAGES = ("torch", "numpy", "numba", "SimpleITK", "batchgeneratorsv2", "mamba_ssm", "triton")


@dataclass(frozen=True)
class Environment:
    """One entry per start of a training.

    Attributes:
        started: Date and time, UTC, ISO 8601.
        code_version: Version of this software, with the commit where it is known.
        seed: Seed of the fold.
        device: Where the network was.
        hardware: Name of that device.
        threads: Threads PyTorch computed with.
        scan: Backend of the selective scan.
        software: Versions that matter.
        platform: Operating system.
    """

    started: str
    code_version: str
    seed: int
    device: str
    hardware: str
    threads: int
    scan: str
    software: tuple[str, ...]
    platform: str


@dataclass(frozen=True)
class Environments:
    """All starts of one training, the first one first."""

    starts: tuple[Environment, ...]


def describe_environment(seed: int, device: str, scan: str) -> Environment:
    """Describe the present process."""
    import torch

    return Environment(
        started=utc_now(),
        code_version=code_version(),
        seed=seed,
        device=device,
        hardware=hardware_name(device),
        threads=torch.get_num_threads(),
        scan=scan,
        software=software_versions(),
        platform=platform.platform(),
    )


def code_version() -> str:
    """Version, and the commit of the source tree it runs from."""
    folder = Path(__file__).resolve().parent
    command = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__}+{commit}"


def software_versions() -> tuple[str, ...]:
    """Python and the packages that matter, as "name version"."""
    versions = [f"python {platform.python_version()}"]
    for package in PACKAGES:
        with suppress(PackageNotFoundError):  # optional
            versions.append(f"{package} {version(package)}")
    return tuple(versions)


def hardware_name(device: str) -> str:
    """Name of the GPU, or of the processor with its cores."""
    import os

    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores of {names[0] if names else platform.processor() or platform.machine()}"
