"""Which of two ways to compute a network's convolutions is faster on this computer: measured once, then remembered.

Both give the same result to rounding, so what is chosen changes the time only.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from MambaSegLib.atomic import new_file

if TYPE_CHECKING:
    from collections.abc import Callable

Engine = Literal["fused", "pytorch"]
ENGINES: tuple[Engine, ...] = ("fused", "pytorch")
"""How the layers of a network are computed on a CPU: normalization fused into convolutions, or layer by layer."""

_REPEATS = 3
_log = logging.getLogger(__name__)


def choices_file() -> Path:
    """Where choices are remembered: the place this system keeps what a program can find out again."""
    home = Path.home()
    if sys.platform == "win32":
        folder = home / "AppData" / "Local"
    elif sys.platform == "darwin":
        folder = home / "Library" / "Caches"
    else:
        folder = home / ".cache"
    return folder / "MambaSegmentation" / "cpu_engine.json"


def faster_engine(
    threads: int, file: Path | None = None, measure: Callable[[int], dict[Engine, float]] | None = None
) -> Engine:
    """The faster engine with a number of threads, from `file` if it was measured before on this processor.

    A file that cannot be read is measured again, one that cannot be written is left: neither stops the work.

    Args:
        threads: Threads that compute.
        file: Where choices are remembered; None takes `choices_file`.
        measure: Seconds per engine; None takes `measure_engines`.
    """
    place = file or choices_file()
    key = f"{_computer()}, {threads} threads"
    remembered = _read(place)
    known = remembered.get(key)
    if known in ENGINES:
        return known
    seconds = (measure or measure_engines)(threads)
    engine = min(seconds, key=seconds.__getitem__)
    _log.info("CPU engine: %s (%s)", engine, ", ".join(f"{name} {s * 1000:.0f} ms" for name, s in seconds.items()))
    _write(place, {**remembered, key: engine})
    return engine


def measure_engines(threads: int) -> dict[Engine, float]:
    """Seconds of a residual block of 32 channels on 8 x 64 x 64 voxels, the best of three."""
    import numpy as np
    import torch

    from MambaSegLib.cpu.layers import FeatureMap, Workspace
    from MambaSegLib.cpu.unet import FusedBlock, Run
    from MambaSegLib.networks.unet import ResidualBlock

    block = ResidualBlock(32, 32, (3, 3, 3)).eval().requires_grad_(False)
    image = torch.randn((1, 32, 8, 64, 64), generator=torch.Generator().manual_seed(0))
    voxels = FeatureMap(np.ascontiguousarray(image[0].permute(1, 2, 3, 0).numpy()), 32)
    run, twin = Run(Workspace(), threads), FusedBlock(block, (32,))
    with torch.inference_mode():
        return {
            "fused": _best(lambda: run.give(twin.run((voxels,), run))),
            "pytorch": _best(lambda: block(image)),
        }


def _best(work: Callable[[], object]) -> float:
    work()  # compiles, and touches memory
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _computer() -> str:
    """What a choice depends on."""
    import numba
    import torch

    from MambaSegLib.commands.machine import processor_name

    return f"{processor_name()}, torch {torch.__version__}, numba {numba.__version__}"


def _read(file: Path) -> dict[str, object]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        _log.debug("no remembered choices: %s", problem)
        return {}
    return content if isinstance(content, dict) else {}


def _write(file: Path, choices: dict[str, object]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with new_file(file) as work:
            work.write_text(json.dumps(choices, indent=1), encoding="utf-8")
    except OSError as problem:
        _log.debug("the choice is not remembered: %s", problem)
