"""A CT of Synapse's size (150 slices of 512 x 512, 3 x 0.76 x 0.76 mm) from file to file, phase by phase.

The network is the full-width Multidirectional one with random weights: they cost what trained ones cost.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from MambaSegTraining.named_plans import named_plan
from measuring import Row, Settings
from networks import tiny

from MambaSegLib.label_writing import write_volume
from MambaSegLib.networks import create_network
from MambaSegLib.predictor import Predictor
from MambaSegLib.volume import Geometry, Volume
from MambaSegLib.volume_io import read_volume

SHAPE, SPACING_MM = (150, 512, 512), (3.0, 0.76, 0.76)
TINY_SHAPE = (6, 12, 12)
NETWORK = "mamba_unet_multidirectional"


def write_ct(file: Path, shape: tuple[int, int, int]) -> None:
    """A body of soft tissue in air, with noise."""
    generator = np.random.default_rng(0)
    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    body = ((y - shape[1] / 2) / (0.4 * shape[1])) ** 2 + ((x - shape[2] / 2) / (0.45 * shape[2])) ** 2 < 1
    array = np.where(body & (z >= 0), 40, -1000) + generator.integers(-60, 60, shape)
    direction = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    geometry = Geometry(shape, SPACING_MM, (0.0, 0.0, 0.0), direction)
    write_volume(array.astype(np.int16), geometry, file)


def measure(settings: Settings) -> Iterator[list[Row]]:
    """One table; every phase is a row."""
    plan = named_plan("synapse", NETWORK).plan
    if settings.tiny:
        plan = replace(plan, network=tiny(plan.network))
    torch.manual_seed(0)
    network = create_network(plan.network)
    bundle = SimpleNamespace(
        manifest=SimpleNamespace(plan=plan, name="benchmark", version="0"),
        fold_indices=(0,), sha256="", load_network=lambda fold: network,
    )  # fmt: skip
    predictor = Predictor(bundle, device=settings.device)
    phases: dict[str, list[float]] = {
        name: [] for name in ("read", "preprocess", "predict", "postprocess", "write", "total")
    }
    notices: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        write_ct(Path(folder) / "ct.nii.gz", TINY_SHAPE if settings.tiny else SHAPE)
        for round_ in range(settings.repeats + 1):
            start = time.perf_counter()
            volume = read_volume(Path(folder) / "ct.nii.gz")
            read = time.perf_counter()
            prediction = predictor.predict(_named(volume, plan))
            predicted = time.perf_counter()
            prediction.labels.write(Path(folder) / f"out_{round_}.seg.nrrd")
            end = time.perf_counter()
            notices.update(prediction.notices)
            if round_ == 0:  # compiles
                continue
            s = prediction.seconds
            values = (read - start, s.preprocessing, s.prediction, s.postprocessing, end - predicted, end - start)
            for name, value in zip(phases, values, strict=True):
                phases[name].append(value)
    case = (
        f"CT {'x'.join(map(str, TINY_SHAPE if settings.tiny else SHAPE))}, {prediction.backend} on {prediction.device}"
    )
    yield [Row(f"{case}: {name}", NETWORK, tuple(values)) for name, values in phases.items()]


def _named(volume: Volume, plan) -> Volume:
    return replace(volume, channels=tuple(channel.name for channel in plan.channels))
