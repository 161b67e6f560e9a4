"""Whole volumes for benchmarks: made up, segmented by networks with random weights, which cost what trained ones cost."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from MambaSegLib.networks import create_network
from MambaSegLib.plan import NetworkPlan, Plan
from MambaSegLib.predictor import Prediction, Predictor
from MambaSegLib.volume import Geometry, Volume
from MambaSegLib.volume_io import read_volume

CT_SHAPE, CT_SPACING_MM = (150, 512, 512), (3.0, 0.76, 0.76)
"""A CT of the Synapse data set's size."""
AXIAL = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
PHASES = ("read", "preprocess", "predict", "postprocess", "write", "total")


def tissue_in_air(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> Volume:
    """A body of soft tissue in air, in Hounsfield units, with noise."""
    generator = np.random.default_rng(0)
    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    body = ((y - shape[1] / 2) / (0.4 * shape[1])) ** 2 + ((x - shape[2] / 2) / (0.45 * shape[2])) ** 2 < 1
    array = np.where(body & (z >= 0), 40, -1000) + generator.integers(-60, 60, shape)
    return Volume(array.astype(np.int16)[None], Geometry(shape, spacing_mm, (0.0, 0.0, 0.0), AXIAL))


def narrowed(plan: Plan, divisor: int) -> Plan:
    """The plan with a network of fewer channels, at least 4."""
    stages = tuple(replace(stage, features=max(4, stage.features // divisor)) for stage in plan.network.stages)
    return plan if divisor == 1 else replace(plan, network=replace(plan.network, stages=stages))


def tiny(plan: NetworkPlan) -> NetworkPlan:
    """The same network with two stages and few features."""
    stages = tuple(
        replace(stage, features=4 * (k + 1), stride=(2, 2, 2) if k else (1, 1, 1), blocks=1, decoder_blocks=1)
        for k, stage in enumerate(plan.stages[:2])
    )
    return replace(plan, stages=stages, patch_size=(4, 8, 8))


def random_bundle(plan: Plan) -> Any:
    """A model that was never trained nor written."""
    torch.manual_seed(0)
    network = create_network(plan.network)
    manifest = SimpleNamespace(plan=plan, name="benchmark", version="0")
    return SimpleNamespace(manifest=manifest, fold_indices=(0,), sha256="", load_network=lambda fold: network)


def from_file_to_file(predictor: Predictor, source: Path, target: Path) -> tuple[Prediction, Mapping[str, float]]:
    """Segment a file into a file; seconds of each of `PHASES`."""
    names = tuple(channel.name for channel in predictor.bundle.manifest.plan.channels)
    start = time.perf_counter()
    volume = replace(read_volume(source), channels=names)
    read = time.perf_counter()
    prediction = predictor.predict(volume)
    predicted = time.perf_counter()
    prediction.labels.write(target)
    end = time.perf_counter()
    s = prediction.seconds
    values = (read - start, s.preprocessing, s.prediction, s.postprocessing, end - predicted, end - start)
    return prediction, dict(zip(PHASES, values, strict=True))
