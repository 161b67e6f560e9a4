"""Memory and time of a network on the device at hand."""

from __future__ import annotations

import subprocess
import sys
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from MambaSegLib.errors import EnvironmentProblemError
from MambaSegLib.sliding_window import count_tiles
from MambaSegTraining.costs.records import Measurement
from MambaSegTraining.files import read_json, write_json

if TYPE_CHECKING:
    from MambaSegLib.plan import Triple
    from MambaSegTraining.costs.process import MeasureJob, Sample

OVERLAP = 0.5
"""Of neighboring patches, as in prediction."""


def measure(job: MeasureJob, volume_shape: Triple, timeout_s: float | None = None) -> Measurement:
    """Measure a training step and the prediction of a patch, each in a process of its own: a process keeps its peak.

    Args:
        job: What to measure.
        volume_shape: Typical image, voxels at the plan's spacing.
        timeout_s: For each of the two; None waits as long as it takes.

    Raises:
        EnvironmentProblemError: If memory or time did not suffice; the message says which.
    """
    training = _in_own_process("training", job, timeout_s)
    prediction = _in_own_process("prediction", job, timeout_s)
    plan, recipe = job.network, job.recipe
    return Measurement(
        hardware=training.hardware,
        software=training.software,
        device=job.device,
        threads=training.threads,
        scan=training.scan,
        precision=recipe.amp,
        recompute=recipe.recompute,
        batch_size=recipe.batch_size,
        patch_size=plan.patch_size,
        training_step_s=training.seconds,
        training_memory_bytes=training.memory_bytes,
        tile_s=prediction.seconds,
        inference_memory_bytes=prediction.memory_bytes,
        volume_shape=volume_shape,
        tiles=count_tiles([ceil(length) for length in volume_shape], plan.patch_size, OVERLAP),
        repeats=job.repeats,
    )


def _in_own_process(what: str, job: MeasureJob, timeout_s: float | None) -> Sample:
    from MambaSegTraining.costs.process import Sample

    with TemporaryDirectory() as folder:
        job_file, result_file = Path(folder) / "job.json", Path(folder) / "result.json"
        write_json(job_file, job)
        command = [sys.executable, "-m", "MambaSegTraining.costs.process", what, str(job_file), str(result_file)]
        try:
            done = subprocess.run(
                command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=timeout_s
            )
        except subprocess.TimeoutExpired as error:
            msg = f"{what}: not done after {timeout_s:g} s"
            raise EnvironmentProblemError(msg) from error
        if done.returncode == 0:
            return read_json(Sample, result_file)
    msg = f"{what}: {_reason(done.returncode, done.stderr)}"
    raise EnvironmentProblemError(msg)


def _reason(code: int, errors: str) -> str:
    from MambaSegLib.memory_ladder import DEVICE_SIGNS, HOST_SIGNS

    if code == -9:
        return "the system ended the process, as it does when memory runs out"
    last = errors.strip().splitlines()[-1] if errors.strip() else f"ended with code {code}"
    return "out of memory" if any(sign in errors for sign in (*DEVICE_SIGNS, *HOST_SIGNS, "MemoryError")) else last
