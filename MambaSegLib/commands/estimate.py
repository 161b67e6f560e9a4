"""How long a volume will take with a model on this computer, and how much memory: measured on one tile."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from MambaSegLib.plan import IntTriple

if TYPE_CHECKING:
    from MambaSegLib.geometry import Geometry
    from MambaSegLib.predictor import Predictor


_TILES, _LONG_ENOUGH_S = 5, 10.0
"""A single short tile says little on a computer that does something else beside; a long one has to do."""


@dataclass(frozen=True)
class Estimate:
    """What one volume will need.

    Attributes:
        tiles: Tiles the volume is cut into.
        seconds_per_tile: Time of one tile through all folds and mirrored versions.
        seconds: Time of all tiles; reading, resampling and writing come on top.
        memory_bytes: Most memory in use at a time, on the device that computes.
        working_shape: (Z, Y, X) of the volume at the model's spacing, before cropping.
    """

    tiles: int
    seconds_per_tile: float
    seconds: float
    memory_bytes: int
    working_shape: IntTriple


def estimate(predictor: Predictor, geometry: Geometry) -> Estimate:
    """Run one tile of noise and scale up.

    The volume counts whole: where its empty margin is cropped, it takes less.
    """
    from MambaSegLib.resampling import resampled_shape
    from MambaSegLib.sliding_window import accumulator_bytes, count_tiles

    plan = predictor.bundle.manifest.plan
    turned = geometry.reoriented(geometry.reorientation_to(plan.orientation))
    shape = resampled_shape(turned.shape, turned.spacing_mm, plan.spacing_mm)
    tiles = count_tiles(shape, plan.patch_size, predictor.overlap)
    seconds, tile_bytes = _measure_tile(predictor, plan.patch_size, len(plan.channels))
    voxels = shape[0] * shape[1] * shape[2]
    input_voxels = geometry.shape[0] * geometry.shape[1] * geometry.shape[2]
    on_device = tile_bytes + accumulator_bytes(predictor.ensemble, shape)
    # Network input and the image it is made of are float32; labels take 1 byte. On a GPU they stay in main memory.
    arrays = (4 * voxels + 4 * input_voxels) * len(plan.channels) + input_voxels
    memory = on_device + (arrays if predictor.device.type == "cpu" else 0)
    return Estimate(tiles, seconds, tiles * seconds, memory, shape)


def _measure_tile(predictor: Predictor, patch_size: IntTriple, channels: int) -> tuple[float, int]:
    import torch

    device = predictor.device
    ensemble = predictor.ensemble
    for network in ensemble.networks:
        network.to(device)
    tile = torch.randn((1, channels, *patch_size), generator=torch.Generator().manual_seed(0)).to(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    ensemble.tile_probabilities(tile, False)  # compiles and fills caches
    times: list[float] = []
    while len(times) < _TILES and sum(times) < _LONG_ENOUGH_S:
        start = time.perf_counter()
        float(ensemble.tile_probabilities(tile, False)[0].sum())  # reading a number waits for the device
        times.append(time.perf_counter() - start)
    seconds = median(times)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _peak_bytes()
    return seconds, int(peak)


def _peak_bytes() -> int:
    """Most main memory this process has used; 0 where the system does not tell."""
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
