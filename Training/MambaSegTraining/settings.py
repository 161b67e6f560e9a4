"""The configuration file: what cannot be read off the images. Every key is checked; unknown ones are refused."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from MambaSegLib.errors import InputError
from MambaSegLib.plan import IntTriple, Label, OptionValue, Region, Triple
from MambaSegLib.schema import from_json
from MambaSegTraining.recipe import Recipe


@dataclass(frozen=True)
class DatasetSettings:
    """About the data set.

    Attributes:
        name: Short name; "" takes the one in dataset.json.
        modality: Modality of all channels, "MR", "CT", ...; may be empty.
        subjects_file: CSV in the data set's folder with the columns `case` and `subject`; "" takes subjects.csv where it
            is there.
        subject_pattern: Regular expression whose first group, found in a case's name, is its subject. Without it and
            without a CSV, each case is a subject of its own.
        splits_file: JSON with the folds in the data set's folder, in nnU-Net's form; "" draws them.
        published_split: A split that a publication used, as data set and name, such as "synapse:released"; "" takes
            `splits_file` or draws.
        folds: How many to draw.
        license: License of the data, SPDX where there is one.
        attribution: The sentence that license asks for.
        url: Where the data is.
    """

    name: str = ""
    modality: str = ""
    subjects_file: str = ""
    subject_pattern: str = ""
    splits_file: str = ""
    published_split: str = ""
    folds: int = 5
    license: str = ""
    attribution: str = ""
    url: str = ""


@dataclass(frozen=True)
class PlanSettings:
    """What replaces a value of the plan; empty values leave the rule's.

    Attributes:
        named: A plan that the paper's authors released: "acdc", "braintumour" or "synapse"; spacing, patch, stages and
            normalization are its, and cannot be given again.
        spacing_mm: Voxel size the network works at.
        patch_size: Voxels the network sees.
        mirror_axes: Axes (0 = Z, 1 = Y, 2 = X) along which training mirrors.
        crop_to_nonzero: Crop the zero margin first.
    """

    named: str = ""
    spacing_mm: Triple | None = None
    patch_size: IntTriple | None = None
    mirror_axes: tuple[int, ...] = (0, 1, 2)
    crop_to_nonzero: bool = True


@dataclass(frozen=True)
class NetworkSettings:
    """The network.

    Attributes:
        name: A name of the network table.
        features: Channels per stage; () doubles from 32 up to 320. Fewer than the planned stages leave out the deepest.
        blocks: Blocks per encoder stage; () takes 1, 3, 4, 6, 6, ... for residual encoders, else 2.
        decoder_blocks: Blocks per decoder stage; 0 takes 1 for residual encoders, else 2.
        memory_gb: GPU memory the patch size is chosen for, in 10^9 bytes: by nnU-Net's rule, and for Mamba U-Nets also
            so that a training step of the recipe fits by the memory model. A patch that is given stays as it is.
        options: Options of the network's builder.
    """

    name: str = "mamba_unet_multidirectional"
    features: tuple[int, ...] = ()
    blocks: tuple[int, ...] = ()
    decoder_blocks: int = 0
    memory_gb: float = 8.0
    options: Mapping[str, OptionValue] = field(default_factory=dict)


@dataclass(frozen=True)
class ValidationSettings:
    """How predictions are measured.

    Attributes:
        tolerance_mm: Deviation of a surface that the normalized surface distance (NSD) accepts.
        tolerances_mm: The same for single structures, by name; best taken from how far two readers differ.
    """

    tolerance_mm: float = 2.0
    tolerances_mm: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class BundleSettings:
    """What a bundle says about itself; `export` refuses empty ones.

    Attributes:
        name: `network.dataset`.
        version: Version of the weights.
        description: One or two sentences for the person who chooses a model.
        weights_license: License of the weights.
        intended_use: What it is for.
        limits: Where it must not be trusted.
        references: Publications to cite.
    """

    name: str = ""
    version: str = "1.0.0"
    description: str = ""
    weights_license: str = ""
    intended_use: str = ""
    limits: str = ""
    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """The whole configuration file.

    Attributes:
        name: What to call these settings, e.g. "paper"; the bundle names its recipe so.
        dataset: About the data set.
        labels: Names, colors and codes of the structures, by value; structures not listed get the name of
            dataset.json and a color of a fixed table.
        regions: What the network is to find instead of the labels, surrounding regions first: name, labels, and the value
            a region's voxels become; () takes those of dataset.json, if it has any.
        plan: Replacements in the plan.
        network: The network.
        recipe: How a fold is trained.
        validation: How predictions are measured.
        bundle: What the bundle says about itself.
    """

    name: str = "default"
    dataset: DatasetSettings = field(default_factory=DatasetSettings)
    labels: tuple[Label, ...] = ()
    regions: tuple[Region, ...] = ()
    plan: PlanSettings = field(default_factory=PlanSettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    recipe: Recipe = field(default_factory=Recipe)
    validation: ValidationSettings = field(default_factory=ValidationSettings)
    bundle: BundleSettings = field(default_factory=BundleSettings)


def completed(settings: Settings, name: str, license_text: str) -> Settings:
    """Settings with the data set's name and license where the configuration leaves them out."""
    about = settings.dataset
    return replace(settings, dataset=replace(about, name=about.name or name, license=about.license or license_text))


def read_settings(path: Path) -> Settings:
    """Read a TOML configuration file.

    `base = "other.toml"` at its top takes that file's settings first; its path is relative to this file. Each table then
    needs only the keys that differ.

    Raises:
        InputError: If it is missing, is not TOML, or says something unknown; the message names the place.
    """
    return from_json(Settings, _read_tables(path, ()), str(path))


def _read_tables(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    path = path.resolve()
    if path in above:
        msg = f"The configurations {', '.join(one.name for one in (*above, path))} are each other's base."
        raise InputError(msg)
    data = _read_toml(path)
    if "base" not in data:
        return data
    base = data.pop("base")
    if not isinstance(base, str):
        msg = f"{path}: base must be the path of another configuration, got {base!r}."
        raise InputError(msg)
    return _laid_over(_read_tables(path.parent / base, (*above, path)), data)


def _laid_over(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Top-level tables are merged key by key; a key's value, be it a list or a table such as network.options, is replaced."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(base.get(key), dict) and isinstance(value, dict)
        merged[key] = {**base[key], **value} if both else value
    return merged


def _read_toml(path: Path) -> dict[str, Any]:
    toml: Any
    if sys.version_info >= (3, 11):
        import tomllib as toml
    else:
        import tomli as toml
    try:
        tables: dict[str, Any] = toml.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        msg = f"The configuration {path} does not exist."
        raise InputError(msg) from error
    except (toml.TOMLDecodeError, UnicodeDecodeError) as error:
        msg = f"{path} is not TOML: {error}."
        raise InputError(msg) from error
    return tables
