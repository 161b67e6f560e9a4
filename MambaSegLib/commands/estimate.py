"""How long a volume will take with a model on this computer, and how much memory: measured on a piece of it."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from math import ceil, prod
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from MambaSegLib.geometry import Box
from MambaSegLib.plan import IntTriple
from MambaSegLib.volume import Volume

if TYPE_CHECKING:
    from MambaSegLib.geometry import Geometry
    from MambaSegLib.predictor import PhaseSeconds, Predictor


_RUNS, _LONG_ENOUGH_S = 5, 10.0
"""A single short run says little on a computer that does something else beside; a long one has to do."""


@dataclass(frozen=True)
class Estimate:
    """What one volume will need.

    Attributes:
        tiles: Tiles that will be computed.
        seconds_per_tile: Time of one tile through all folds and mirrored versions.
        seconds: Time from the image in memory to its labels; reading and writing come on top.
        memory_bytes: Most memory in use at a time, on the device that computes.
        working_shape: (Z, Y, X) of the volume at the model's spacing, before cropping.
    """

    tiles: int
    seconds_per_tile: float
    seconds: float
    memory_bytes: int
    working_shape: IntTriple


def estimate(predictor: Predictor, volume: Volume) -> Estimate:
    """Segment a piece of one tile's size with every step the whole takes, and scale each step up.

    The tiles of the volume are counted as they will be computed: without empty margins and blank ones. A volume without
    any contrast, or with fewer channels than the model's, stands for its grid alone, and counts whole.
    """
    from MambaSegLib.resampling import resampled_shape
    from MambaSegLib.sliding_window import accumulator_bytes

    plan = predictor.bundle.manifest.plan
    geometry = volume.geometry
    turned = geometry.reoriented(geometry.reorientation_to(plan.orientation))
    shape = resampled_shape(turned.shape, turned.spacing_mm, plan.spacing_mm)
    tiles = _tiles(predictor, volume, shape)
    piece = _piece(predictor, geometry)
    seconds, peak = _measure(predictor, piece)
    tile_s = _batched_tile_s(predictor, tiles) or seconds.prediction
    input_voxels, voxels = prod(geometry.shape), prod(shape)
    others = (seconds.preprocessing + seconds.postprocessing) * input_voxels / prod(piece.geometry.shape)
    # Network input and the image it is made of are float32; labels take 1 byte. On a GPU they stay in main memory.
    arrays = (4 * voxels + 4 * input_voxels) * len(plan.channels) + input_voxels
    memory = peak + accumulator_bytes(predictor.ensemble, shape) + (arrays if predictor.device.type == "cpu" else 0)
    return Estimate(tiles, tile_s, tiles * tile_s + others, memory, shape)


def _tiles(predictor: Predictor, volume: Volume, shape: IntTriple) -> int:
    from MambaSegLib.sliding_window import count_tiles

    plan = predictor.bundle.manifest.plan
    if len(volume.array) != len(plan.channels) or volume.array.min() == volume.array.max():
        return count_tiles(shape, plan.patch_size, predictor.overlap)
    return predictor.tiles(volume)


def _piece(predictor: Predictor, geometry: Geometry) -> Volume:
    """Noise on the part of a grid that is one tile at the model's spacing, or on all of a smaller one."""
    plan = predictor.bundle.manifest.plan
    turn = geometry.reorientation_to(plan.orientation)
    turned = geometry.reoriented(turn)
    sides = [
        min(n, max(1, int(patch * target / have)))
        for n, patch, target, have in zip(
            turned.shape, plan.patch_size, plan.spacing_mm, turned.spacing_mm, strict=True
        )
    ]
    part = turned.cropped(Box((0, 0, 0), (sides[0], sides[1], sides[2])))
    names = tuple(channel.name for channel in plan.channels)
    array = np.random.default_rng(0).normal(size=(len(names), *part.shape)).astype(np.float32)
    for one, channel in zip(array, plan.channels, strict=True):  # a CT's window shows all of it
        one *= channel.normalization.std
        one += channel.normalization.mean
    return Volume(array, part, names)


def _measure(predictor: Predictor, piece: Volume) -> tuple[PhaseSeconds, int]:
    """Seconds of each step of segmenting the piece, which is one tile, and the most memory in use."""
    import torch

    from MambaSegLib.predictor import PhaseSeconds

    device = predictor.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    predictor.predict(piece)  # compiles and fills caches
    runs: list[PhaseSeconds] = []
    while len(runs) < _RUNS and sum(run.total for run in runs) < _LONG_ENOUGH_S:
        runs.append(predictor.predict(piece).seconds)
    steps = ("preprocessing", "prediction", "postprocessing")
    seconds = PhaseSeconds(*(median(getattr(run, step) for run in runs) for step in steps))
    return seconds, int(torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _peak_bytes())


def _batched_tile_s(predictor: Predictor, tiles: int) -> float | None:
    """Time of a tile among those that are computed together; None where they are computed one by one."""
    import torch

    from MambaSegLib.memory_ladder import tiles_at_a_time

    ensemble, device = predictor.ensemble, predictor.device
    batch = min(tiles, predictor.tile_batch or tiles_at_a_time(device, prod(ensemble.patch_size)))
    if batch == 1:
        return None
    channels = len(predictor.bundle.manifest.plan.channels)
    noise = torch.randn((batch, channels, *ensemble.patch_size), generator=torch.Generator().manual_seed(0)).to(device)
    ensemble.tile_probabilities(noise, False)  # compiles and fills caches
    times: list[float] = []
    while len(times) < _RUNS and sum(times) < _LONG_ENOUGH_S:
        start = time.perf_counter()
        float(ensemble.tile_probabilities(noise, False)[0].sum())  # reading a number waits for the device
        times.append(time.perf_counter() - start)
    return median(times) / tiles * ceil(tiles / batch)


def _peak_bytes() -> int:
    """Most main memory this process has used; 0 where the system does not tell."""
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
