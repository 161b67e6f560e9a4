"""What `bundle.json` says about a trained model: how to use it, what it was trained on, how well it does.

The records are stored with the codec of `schema.py`; `manifest_check.py` refuses the ones that make no sense.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Literal

from MambaSegLib.plan import Plan

SCHEMA_VERSION = 3
"""2: regions and an ignored value in the plan, leaks in the provenance; 3: volumes of the structures in the fingerprint, thick
slices in the plan. Files of older versions lack them and are read as before.

Counts up when an older program could misread a newer file. A new optional key alone counts, too: unknown keys are
refused, because a setting that is not understood is a setting that is not applied."""

WeightType = Literal["float32", "float16"]

_NOT_MEASURED = "none"
"""Name of what stands in the place of a metric."""


@dataclass(frozen=True)
class FoldFile:
    """The weights of one fold.

    Attributes:
        index: Fold of the cross-validation, 0 or more.
        file: File name in the bundle, `fold_<index>.safetensors`.
        sha256: SHA-256 of the file, 64 lower-case hexadecimal digits; checked before the file is parsed.
        bytes: Size of the file.
        dtype: How floating-point weights are stored; they are float32 once loaded.
    """

    index: int
    file: str
    sha256: str
    bytes: int
    dtype: WeightType = "float32"


@dataclass(frozen=True)
class Provenance:
    """Where the weights come from.

    Attributes:
        dataset: Name of the training data.
        dataset_license: Its license, SPDX where there is one, e.g. "CC-BY-SA-4.0".
        weights_license: License of the weights.
        splits_sha256: SHA-256 of the split file, so that two models can be compared on equal folds; "" where all
            cases were trained on.
        recipe: Name of the training recipe, e.g. "lumetti2025".
        code_version: Version of MambaSegmentation that trained, with the commit where it is known.
        seeds: Seed per fold.
        created: Date and time of the export, ISO 8601, e.g. "2026-11-23T10:15:00Z".
        hardware: What it was trained on, e.g. "1 x NVIDIA A100 80GB".
        dataset_attribution: The sentence the data's license asks for: who made it, where it is, what was changed.
        dataset_url: Where the data is.
        training_cases: Cases trained on, all folds together; 0 where unknown.
        epochs: Epochs per fold; 0 where unknown.
        software: Versions that matter, e.g. ("python 3.12.4", "torch 2.11.0").
        leakage: What the check for leaks between training and measured cases found, with the hash of its record.
    """

    dataset: str
    dataset_license: str
    weights_license: str
    splits_sha256: str
    recipe: str
    code_version: str
    seeds: tuple[int, ...]
    created: str
    hardware: str = ""
    dataset_attribution: str = ""
    dataset_url: str = ""
    training_cases: int = 0
    epochs: int = 0
    software: tuple[str, ...] = ()
    leakage: str = ""


@dataclass(frozen=True)
class Metric:
    """One measured number with the words that make it comparable.

    Attributes:
        name: Short name, e.g. "DSC".
        definition: What it is and how empty masks count, in a sentence.
        label: Structure it is about; "mean" for the mean over all structures.
        mean: Mean over the cases.
        std: Standard deviation over the cases.
        n: Cases that count.
        unit: "mm", "ml"; "" for a ratio.
        excluded: Cases left out because the metric is undefined there, e.g. both masks empty.
        ci_low: Lower end of the 95 % confidence interval of the mean.
        ci_high: Upper end.
        protocol: On which cases, e.g. "out-of-fold, 5-fold cross-validation grouped by patient".
    """

    name: str
    definition: str
    label: str
    mean: float
    std: float
    n: int
    unit: str = ""
    excluded: int = 0
    ci_low: float | None = None
    ci_high: float | None = None
    protocol: str = ""

    @property
    def is_measured(self) -> bool:
        """Whether there are numbers; else the definition alone is to be shown, which says why there are none."""
        return self.name != _NOT_MEASURED


def not_measured(reason: str) -> Metric:
    """What stands in the place of the metrics of a model whose quality nobody measured."""
    return Metric(_NOT_MEASURED, reason, "mean", 0.0, 0.0, 1)


def utc_now() -> str:
    """Date and time as `Provenance.created` has it: ISO 8601, to the second."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class BundleManifest:
    """The whole of `bundle.json`.

    Attributes:
        schema_version: Version of this format, see `SCHEMA_VERSION`.
        name: `network.dataset`, e.g. "mamba_unet_multidirectional.hippocampus".
        version: Version of the weights, e.g. "1.0.0".
        description: One or two sentences for the person who chooses a model.
        plan: How a volume becomes network input and network output becomes labels.
        folds: Weight files, by increasing index.
        provenance: Where the weights come from.
        metrics: How well the model does.
        intended_use: What it is for.
        limits: Where it must not be trusted.
        references: Publications to cite.
    """

    schema_version: int
    name: str
    version: str
    description: str
    plan: Plan
    folds: tuple[FoldFile, ...]
    provenance: Provenance
    metrics: tuple[Metric, ...]
    intended_use: str
    limits: str
    references: tuple[str, ...] = ()
