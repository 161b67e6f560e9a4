"""What a network costs on a data set, as values, and the file `cost.json` they are kept in."""

from __future__ import annotations

from dataclasses import dataclass

from MambaSegLib.plan import IntTriple, Triple
from MambaSegTraining.files import read_json, write_json
from MambaSegTraining.run_folder import RunFolder

COST_FILE = "cost.json"


@dataclass(frozen=True)
class MacCount:
    """Multiply-adds of one forward pass over one patch, by what they are spent on; see `counting.CONVENTION`.

    Attributes:
        convolution: Convolutions of every kind, transposed and causal ones included.
        linear: Products of activations with weights outside convolutions.
        attention: Products of two activations: queries with keys, attention with values, masks with features.
        sampling: Interpolation at learned positions (deformable attention).
        scan: The selective scan.
    """

    convolution: int = 0
    linear: int = 0
    attention: int = 0
    sampling: int = 0
    scan: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.convolution + self.linear + self.attention + self.sampling + self.scan


@dataclass(frozen=True)
class Measurement:
    """What was measured, on one computer; processes of their own for training and for prediction.

    Attributes:
        hardware: Processor, and GPU where it did the work.
        software: Packages with versions.
        device: "cpu", "cuda", "cuda:1".
        threads: Of the processor.
        scan: Backend of the selective scan.
        precision: Autocast type of the training step: "bf16", "fp16" or "off".
        recompute: Whether Mamba layers were computed again in the backward pass.
        batch_size: Patches of a training step.
        patch_size: Patch that was measured; may be smaller than the plan's.
        training_step_s: Time of a training step with forward and backward pass and optimizer, median.
        training_memory_bytes: Most memory at once that network, optimizer and step add. On a GPU what PyTorch allocated;
            on the processor the growth of the process since the libraries were loaded; None where the system does not tell.
        tile_s: Time of predicting one patch, median.
        inference_memory_bytes: As `training_memory_bytes`, for network and prediction of one patch.
        volume_shape: The typical image, voxels at the plan's spacing.
        tiles: Overlapping patches of that image.
        repeats: Steps and patches that the medians are of; one more of each came first and does not count.
    """

    hardware: str
    software: tuple[str, ...]
    device: str
    threads: int
    scan: str
    precision: str
    recompute: bool
    batch_size: int
    patch_size: IntTriple
    training_step_s: float
    training_memory_bytes: int | None
    tile_s: float
    inference_memory_bytes: int | None
    volume_shape: Triple
    tiles: int
    repeats: int

    @property
    def volume_s(self) -> float:
        """Time of the network on the typical image: tiles times the time of one; no mirroring, reading or resampling."""
        return self.tiles * self.tile_s


@dataclass(frozen=True)
class NetworkCost:
    """One network on one data set's plan.

    `mambaseg-train cost --run RUN` writes this record into a run's folder (`write_cost`); a report reads it with `read_cost`:
    `parameters`, `gmacs`, and where `measured` is not None its `training_memory_bytes`, `volume_s` and `hardware`. The file may
    lack (`read_cost` gives None), and so may counts and measurements in it.

    Attributes:
        network: A name of the network table.
        dataset: The data set, or the named plan.
        patch_size: The plan's patch, which the multiply-adds are counted for.
        parameters: Trainable numbers, heads of deep supervision included; None if the network cannot be built.
        macs: Multiply-adds of a forward pass over one patch; None if the network cannot be built.
        measured: Memory and time; None if nothing was measured.
        problem: Why the network cannot be built for this plan, or could not be measured; "" if all is well.
    """

    network: str
    dataset: str
    patch_size: IntTriple
    parameters: int | None = None
    macs: MacCount | None = None
    measured: Measurement | None = None
    problem: str = ""

    @property
    def gmacs(self) -> float | None:
        """Billions of multiply-adds per patch: what papers print as "GFLOPs" when they count a multiply-add as one."""
        return None if self.macs is None else self.macs.total / 1e9


@dataclass(frozen=True)
class CostReport:
    """Costs of several networks, as `mambaseg-train cost --output` writes them.

    Attributes:
        created: Date and time, UTC, ISO 8601.
        code_version: Version of this software.
        convention: What a multiply-add is.
        costs: In the order in which they were asked for.
    """

    created: str
    code_version: str
    convention: str
    costs: tuple[NetworkCost, ...]


def write_cost(run: RunFolder, cost: NetworkCost) -> None:
    """Keep what a run's network costs in the run's folder."""
    write_json(run.path / COST_FILE, cost)


def read_cost(run: RunFolder) -> NetworkCost | None:
    """What `mambaseg-train cost` found for a run; None if it was not called.

    Raises:
        InputError: If the file is damaged.
    """
    path = run.path / COST_FILE
    return read_json(NetworkCost, path) if path.is_file() else None
