"""A CT of Synapse's size (150 slices of 512 x 512, 3 x 0.76 x 0.76 mm) from file to file, phase by phase.

The network is the full-width Multidirectional one with random weights: they cost what trained ones cost.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from MambaSegTraining.named_plans import named_plan
from measuring import Row, Settings
from volumes import CT_SHAPE, CT_SPACING_MM, PHASES, from_file_to_file, random_bundle, tiny, tissue_in_air

from MambaSegLib.label_writing import write_volume
from MambaSegLib.predictor import Predictor

TINY_SHAPE = (6, 12, 12)
NETWORK = "mamba_unet_multidirectional"


def measure(settings: Settings) -> Iterator[list[Row]]:
    """One table; every phase is a row."""
    plan = named_plan("synapse", NETWORK).plan
    if settings.tiny:
        plan = replace(plan, network=tiny(plan.network))
    predictor = Predictor(random_bundle(plan), device=settings.device)
    phases: dict[str, list[float]] = {name: [] for name in PHASES}
    shape = TINY_SHAPE if settings.tiny else CT_SHAPE
    with tempfile.TemporaryDirectory() as folder:
        source, volume = Path(folder) / "ct.nii.gz", tissue_in_air(shape, CT_SPACING_MM)
        write_volume(volume.array[0], volume.geometry, source)
        for round_ in range(settings.repeats + 1):
            prediction, seconds = from_file_to_file(predictor, source, Path(folder) / f"out_{round_}.seg.nrrd")
            if round_ == 0:  # compiles
                continue
            for name, value in seconds.items():
                phases[name].append(value)
    case = f"CT {'x'.join(map(str, shape))}, {prediction.backend} on {prediction.device}"
    yield [Row(f"{case}: {name}", NETWORK, tuple(values)) for name, values in phases.items()]
