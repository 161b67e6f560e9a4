"""What a report is made from: results of models as values, wherever they were computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from MambaSegLib.volume import Labels, Volume
from MambaSegTraining.largest_component import ComponentChoice
from MambaSegTraining.metrics.legacy import LegacyScore
from MambaSegTraining.metrics.scores import LabelScore, Structure
from MambaSegTraining.training_log import EpochRecord

Family = Literal["CNNs", "Transformers", "Mamba"]


@dataclass(frozen=True)
class Cost:
    """What a model needs, measured on one computer; None where it was not measured.

    Attributes:
        parameters: Trainable numbers.
        gmacs: Billions of multiply-adds of a forward pass over one patch; see `costs.counting.CONVENTION`.
        training_memory_gb: Peak memory of a training step, in 10^9 bytes.
        step_s: Time of a training step.
        volume_s: Time of the network on a typical image; reading, resampling and writing left out.
        hardware: What memory and the times above were measured on, and how.
        training_hours: Time of the whole training, all folds together, as its logs have it.
        training_hardware: What was trained on.
    """

    parameters: int | None = None
    gmacs: float | None = None
    training_memory_gb: float | None = None
    step_s: float | None = None
    volume_s: float | None = None
    hardware: str = ""
    training_hours: float | None = None
    training_hardware: str = ""


@dataclass(frozen=True)
class CaseImages:
    """The images of one case, all on one grid.

    Attributes:
        volume: The image.
        reference: Its label map.
        prediction: The predicted one.
        ignore_value: Value of `reference` where nobody labelled; None where there is no such.
    """

    volume: Volume
    reference: Labels
    prediction: Labels
    ignore_value: int | None = None


@dataclass(frozen=True)
class ModelRun:
    """One model on one data set.

    Attributes:
        name: What to call the model.
        dataset: What to call the data set.
        protocol: On which cases it was measured, in words.
        structures: What was measured.
        scores: Per case and structure, every case once.
        subjects: Subject per case.
        leakage: What the check for leaks between training and measured cases found, in words.
        provenance: Hashes, versions and settings, in the order they are shown.
        family: Kind of network.
        cost: What it needs.
        curves: Per fold, what happened in training.
        legacy: Scores by the convention of the paper's scripts; () leaves them out.
        components: Decisions on keeping the largest component.
        load_case: Gives the images of a case, for pictures; None makes a report without.
    """

    name: str
    dataset: str
    protocol: str
    structures: tuple[Structure, ...]
    scores: tuple[LabelScore, ...]
    subjects: Mapping[str, str]
    leakage: str
    provenance: Mapping[str, str]
    family: Family = "Mamba"
    cost: Cost = field(default_factory=Cost)
    curves: Mapping[int, tuple[EpochRecord, ...]] = field(default_factory=dict)
    legacy: tuple[LegacyScore, ...] = ()
    components: tuple[ComponentChoice, ...] = ()
    load_case: Callable[[str], CaseImages] | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the structures."""
        return tuple(structure.name for structure in self.structures)
