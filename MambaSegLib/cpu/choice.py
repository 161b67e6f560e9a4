"""Which of two ways to compute a network's convolutions is faster on this computer: measured once, then remembered.

Both give the same result to rounding, so what is chosen changes the time only.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Literal

from MambaSegLib import remembered

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Engine = Literal["fused", "pytorch"]
ENGINES: tuple[Engine, ...] = ("fused", "pytorch")
"""How the layers of a network are computed on a CPU: normalization fused into convolutions, or layer by layer."""

_REPEATS = 3
_log = logging.getLogger(__name__)


def faster_engine(
    threads: int, file: Path | None = None, measure: Callable[[int], dict[Engine, float]] | None = None
) -> Engine:
    """The faster engine with a number of threads, from `file` if it was measured before on this processor.

    A file that cannot be read is measured again, one that cannot be written is left: neither stops the work.

    Args:
        threads: Threads that compute.
        file: Where choices are remembered; None takes a file in `remembered.cache_folder`.
        measure: Seconds per engine; None takes `measure_engines`.
    """
    place = file or remembered.cache_folder() / "cpu_engine.json"
    key = f"{computer()}, {threads} threads"
    known = remembered.recall(place).get(key)
    if known in ENGINES:
        return known
    seconds = (measure or measure_engines)(threads)
    engine = min(seconds, key=seconds.__getitem__)
    _log.info("CPU engine: %s (%s)", engine, ", ".join(f"{name} {s * 1000:.0f} ms" for name, s in seconds.items()))
    remembered.remember(place, key, engine)
    return engine


def measure_engines(threads: int) -> dict[Engine, float]:
    """Seconds of a residual block of 32 channels on 8 x 64 x 64 voxels, the best of three."""
    import numpy as np
    import torch

    from MambaSegLib.cpu.layers import FeatureMap, Workspace
    from MambaSegLib.cpu.unet import FusedBlock, Run
    from MambaSegLib.networks.unet import ResidualBlock

    # Whatever PyTorch makes tensors of by default, networks are float32 on a CPU.
    block = ResidualBlock(32, 32, (3, 3, 3)).to("cpu", torch.float32).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn((1, 32, 8, 64, 64), generator=generator, dtype=torch.float32, device="cpu")
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


def computer() -> str:
    """What speed depends on: processor and versions of the packages that compute."""
    import torch

    from MambaSegLib.machine import processor_name, version_of

    return f"{processor_name()}, torch {torch.__version__}, numba {version_of('numba')}"
