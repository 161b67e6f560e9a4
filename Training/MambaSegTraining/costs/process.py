"""What is measured in a process of its own: `python -m MambaSegTraining.costs.process training|prediction JOB RESULT`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch

from MambaSegLib.devices import place
from MambaSegLib.networks import create_network, set_recompute, set_scan_backend
from MambaSegLib.networks.contract import SegmentationNetwork
from MambaSegLib.plan import NetworkPlan, StagePlan
from MambaSegLib.readout import exclusive_classes
from MambaSegLib.scan import resolve_backend
from MambaSegLib.sliding_window import Ensemble
from MambaSegTraining.batches import Batch
from MambaSegTraining.costs.peak_memory import PeakMemory
from MambaSegTraining.files import read_json, write_json
from MambaSegTraining.fold_training import FoldJob, train_step
from MambaSegTraining.provenance import hardware_name, software_versions
from MambaSegTraining.recipe import Recipe
from MambaSegTraining.run_folder import RunFolder
from MambaSegTraining.training_state import TrainingState


@dataclass(frozen=True)
class MeasureJob:
    """What to measure.

    Attributes:
        network: Network and patch.
        recipe: Batch size, optimizer, precision and recomputation of the training step.
        device: "cpu", "cuda", "cuda:1", ...
        threads: Of the processor; 0 leaves PyTorch's choice.
        scan: Backend of the selective scan.
        repeats: Steps, or patches, whose median time counts; one more comes first.
    """

    network: NetworkPlan
    recipe: Recipe
    device: str = "cpu"
    threads: int = 0
    scan: str = "auto"
    repeats: int = 3


@dataclass(frozen=True)
class Sample:
    """What a process measured; the fields are those of `records.Measurement`."""

    seconds: float
    memory_bytes: int | None
    hardware: str
    software: tuple[str, ...]
    threads: int
    scan: str


def measure_training(job: MeasureJob) -> Sample:
    """Training steps as `fold_training` does them, on noise; without making batches."""
    _load_libraries(job)
    peak = PeakMemory(job.device)
    state = TrainingState(_network(job), job.recipe, job.device)
    plan, generator = job.network, torch.Generator().manual_seed(0)
    shape = (job.recipe.batch_size, plan.in_channels, *plan.patch_size)
    labels = torch.randint(plan.out_channels, (shape[0], *shape[2:]), generator=generator)
    batch = Batch(torch.randn(shape, generator=generator), labels)
    fold = FoldJob(RunFolder(Path()), 0, job.recipe, job.device, job.scan)
    seconds = _median_seconds(lambda: train_step(state, batch, fold, exclusive_classes(plan.out_channels)), job)
    return _sample(job, seconds, peak, needs_gradient=True)


def measure_prediction(job: MeasureJob) -> Sample:
    """Patches as the sliding window predicts them."""
    _load_libraries(job)
    peak = PeakMemory(job.device)
    network = _network(job).eval().requires_grad_(False)
    network.deep_supervision = False
    place(network, torch.device(job.device))
    plan = job.network
    ensemble = Ensemble((network,), exclusive_classes(plan.out_channels), plan.patch_size)
    tile = torch.randn((1, plan.in_channels, *plan.patch_size), generator=torch.Generator().manual_seed(0))
    tile = tile.to(job.device)
    seconds = _median_seconds(lambda: ensemble.tile_probabilities(tile, with_entropy=False), job)
    return _sample(job, seconds, peak, needs_gradient=False)


def _network(job: MeasureJob) -> SegmentationNetwork:
    torch.manual_seed(0)
    network = create_network(job.network)
    set_scan_backend(network, job.scan)
    set_recompute(network, job.recipe.recompute)
    return network


def _median_seconds(run: Callable[[], object], job: MeasureJob) -> float:
    seconds = []
    for _ in range(job.repeats + 1):
        start = time.perf_counter()
        run()
        if job.device.startswith("cuda"):
            torch.cuda.synchronize(job.device)
        seconds.append(time.perf_counter() - start)
    return median(seconds[1:])


def _load_libraries(job: MeasureJob) -> None:
    """A step of a tiny network first, so that libraries and compiled kernels do not count as the network's memory."""
    if job.threads:
        torch.set_num_threads(job.threads)
    stages = (StagePlan(4, (1, 1, 1), (3, 3, 3), 1), StagePlan(4, (2, 2, 2), (3, 3, 3), 1))
    plan = NetworkPlan("mamba_unet_unidirectional", 1, 2, (8, 8, 8), stages)
    network = _network(replace(job, network=plan)).to(job.device)
    image = torch.zeros((1, 1, 8, 8, 8), device=job.device)
    network(image)[0].sum().backward()
    with torch.no_grad():
        network(image)


def _sample(job: MeasureJob, seconds: float, peak: PeakMemory, needs_gradient: bool) -> Sample:
    return Sample(
        seconds=seconds,
        memory_bytes=peak.added(),
        hardware=hardware_name(job.device),
        software=software_versions(),
        threads=torch.get_num_threads(),
        scan=resolve_backend(job.scan, job.device, needs_gradient),
    )


def main(what: str, job_file: str, result_file: str) -> None:
    """Measure `what`, "training" or "prediction", and write a `Sample`."""
    job = read_json(MeasureJob, Path(job_file))
    measured = measure_training(job) if what == "training" else measure_prediction(job)
    write_json(Path(result_file), measured)


if __name__ == "__main__":
    main(*sys.argv[1:])
