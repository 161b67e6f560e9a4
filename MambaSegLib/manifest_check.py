"""Checks of a manifest beyond its types: sizes in bounds, names safe, the parts in agreement with each other.

A manifest may come from anywhere, and the network it describes is allocated as described: the bounds here keep a
hostile or mistaken file from asking for the whole memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Sequence

from MambaSegLib.errors import BundleError
from MambaSegLib.manifest import SCHEMA_VERSION, BundleManifest
from MambaSegLib.networks import NETWORKS
from MambaSegLib.plan import Channel, Fingerprint, Label, NetworkPlan, Plan, Region

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*(\.[a-z0-9][a-z0-9_-]*)+")
_VERSION = re.compile(r"[0-9]+(\.[0-9]+){0,3}([-+.][A-Za-z0-9.-]+)?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_RESERVED = frozenset(
    {"con", "prn", "aux", "nul", *(f"{port}{digit}" for port in ("com", "lpt") for digit in range(10))}
)
_AXES = ("LR", "AP", "SI")
MAX_NAME = 100
MAX_TEXT = 20_000
MAX_FOLDS = 100
MAX_CLASSES = 1000
MAX_LABEL_VALUE = 65535
MAX_CHANNELS = 100
MAX_STAGES = 12
MAX_FEATURES = 4096
MAX_BLOCKS = 64
MAX_KERNEL = 31
MAX_PATCH_VOXELS = 512**3

Problem = tuple[str, str]
"""(path, text) of something wrong."""


def check_manifest(manifest: BundleManifest, name: str = "bundle.json") -> None:
    """Refuse a manifest that makes no sense.

    Args:
        manifest: The manifest; `folds` may still be empty, as before export.
        name: What to call it in the message.

    Raises:
        BundleError: At the first problem, with its place.
    """
    for check in _CHECKS:
        for path, text in check(manifest):
            message = f"{name}: {path}: {text}."
            raise BundleError(message)


def check_schema_version(data: object, name: str = "bundle.json") -> None:
    """Refuse a file of a version this program does not know, before its other keys are looked at.

    Raises:
        BundleError: If the version is missing, no whole number, or not known.
    """
    version = data.get("schema_version") if isinstance(data, dict) else None
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        message = f"{name}: schema_version: expected a whole number from 1; this is not a MambaSegmentation model."
        raise BundleError(message)
    if version > SCHEMA_VERSION:
        message = (
            f"{name} has schema version {version}, this program reads versions up to {SCHEMA_VERSION}: the model was "
            "made with a newer MambaSegmentation. Update MambaSegmentation to use it."
        )
        raise BundleError(message)


def is_model_name(name: str) -> bool:
    """Whether a text is a model name, safe as a folder name on every system: `network.dataset` in lower case."""
    return len(name) <= MAX_NAME and _NAME.fullmatch(name) is not None and name.split(".")[0] not in _RESERVED


def _check_identity(manifest: BundleManifest) -> Iterator[Problem]:
    if not 1 <= manifest.schema_version <= SCHEMA_VERSION:
        yield "schema_version", f"expected 1 to {SCHEMA_VERSION}, found {manifest.schema_version}"
    if not is_model_name(manifest.name):
        yield "name", f'"{manifest.name[:MAX_NAME]}" is not a model name; expected network.dataset in lower case'
    if not _VERSION.fullmatch(manifest.version) or len(manifest.version) > MAX_NAME:
        yield "version", f'"{manifest.version[:MAX_NAME]}" is not a version such as 1.0.0'


def _check_card(manifest: BundleManifest) -> Iterator[Problem]:
    texts = {
        "description": manifest.description,
        "intended_use": manifest.intended_use,
        "limits": manifest.limits,
        "provenance.dataset": manifest.provenance.dataset,
        "provenance.dataset_license": manifest.provenance.dataset_license,
        "provenance.weights_license": manifest.provenance.weights_license,
        "provenance.created": manifest.provenance.created,
    }
    for path, text in texts.items():
        if not text.strip():
            yield path, "is empty; a model is shared only with this stated"
        if len(text) > MAX_TEXT:
            yield path, f"has {len(text)} characters, at most {MAX_TEXT} are read"
    splits = manifest.provenance.splits_sha256
    if splits and not _SHA256.fullmatch(splits):
        yield "provenance.splits_sha256", "expected 64 lower-case hexadecimal digits"


def _check_metrics(manifest: BundleManifest) -> Iterator[Problem]:
    if not manifest.metrics:
        yield "metrics", "is empty; a model is shared only with its measured quality"
    for index, metric in enumerate(manifest.metrics):
        if not metric.name.strip() or not metric.definition.strip():
            yield f"metrics[{index}]", "a metric needs a name and a definition"
        if metric.n < 1 or metric.std < 0 or metric.excluded < 0:
            yield f"metrics[{index}]", "n must be 1 or more, std and excluded 0 or more"


def _check_folds(manifest: BundleManifest) -> Iterator[Problem]:
    if len(manifest.folds) > MAX_FOLDS:
        yield "folds", f"{len(manifest.folds)} folds, at most {MAX_FOLDS} are read"
    indices = [fold.index for fold in manifest.folds]
    if indices != sorted(set(indices)):
        yield "folds", "must be listed by increasing index, each once"
    for position, fold in enumerate(manifest.folds):
        path = f"folds[{position}]"
        if not 0 <= fold.index < MAX_FOLDS or fold.file != fold_file_name(fold.index):
            yield f"{path}.file", f'expected "fold_<index>.safetensors" for fold {fold.index}'
        if not _SHA256.fullmatch(fold.sha256):
            yield f"{path}.sha256", "expected 64 lower-case hexadecimal digits"
        if fold.bytes < 1:
            yield f"{path}.bytes", "must be 1 or more"


def fold_file_name(index: int) -> str:
    """Name of the file that holds the weights of a fold."""
    return f"fold_{index}.safetensors"


def _check_plan(manifest: BundleManifest) -> Iterator[Problem]:
    yield from plan_problems(manifest.plan)


def plan_problems(plan: Plan) -> Iterator[Problem]:
    """What is wrong with a plan; also asked when one is made."""
    if not is_orientation(plan.orientation):
        yield "plan.orientation", f'expected three letters, one of each pair L/R, A/P, S/I, found "{plan.orientation}"'
    if not all(0 < spacing < 1000 for spacing in plan.spacing_mm):
        yield "plan.spacing_mm", "must lie between 0 and 1000 mm"
    if len(set(plan.mirror_axes)) != len(plan.mirror_axes) or not set(plan.mirror_axes) <= {0, 1, 2}:
        yield "plan.mirror_axes", "expected different axes out of 0, 1, 2"
    values = [label.value for label in plan.labels]
    if not set(plan.keep_largest) <= set(values):
        yield "plan.keep_largest", "names a value that is not among the labels"
    yield from _check_labels(plan.labels)
    yield from _check_regions(plan)
    yield from _check_channels(plan.channels)
    yield from _check_agreement(plan)
    if plan.fingerprint is not None:
        yield from _check_fingerprint(plan.fingerprint, len(plan.channels), len(plan.labels))


def is_orientation(code: str) -> bool:
    """Whether a code names one direction of each anatomical axis, e.g. "SPL"."""
    return len(code) == 3 and all(sum(letter in axis for letter in code) == 1 for axis in _AXES)


def _check_labels(labels: Sequence[Label]) -> Iterator[Problem]:
    if not 1 <= len(labels) < MAX_CLASSES:
        yield "plan.labels", f"expected 1 to {MAX_CLASSES - 1} structures"
    values = [label.value for label in labels]
    if values != sorted(set(values)) or not all(1 <= value <= MAX_LABEL_VALUE for value in values):
        yield "plan.labels", f"must be listed by increasing value, each once, from 1 to {MAX_LABEL_VALUE}"
    names = [label.name for label in labels]
    if len(set(names)) != len(names) or not all(name.strip() and len(name) <= MAX_NAME for name in names):
        yield "plan.labels", f"names must be different and 1 to {MAX_NAME} characters long"
    for index, label in enumerate(labels):
        if not all(0 <= part <= 255 for part in label.color):
            yield f"plan.labels[{index}].color", "expected red, green, blue from 0 to 255"


def _check_regions(plan: Plan) -> Iterator[Problem]:
    if len(plan.regions) >= MAX_CLASSES:
        yield "plan.regions", f"expected at most {MAX_CLASSES - 1} regions"
    for path, text in region_problems(plan.regions, [label.value for label in plan.labels]):
        yield f"plan.{path}", text
    names = [region.name for region in plan.regions]
    if not all(name.strip() and len(name) <= MAX_NAME for name in names):
        yield "plan.regions", f"names must be 1 to {MAX_NAME} characters long"
    shown = [label.name for label in plan.labels] + [region.name for region in plan.compound_regions]
    if len(set(shown)) != len(shown):
        yield "plan.regions", "a region of several labels must have another name than each label"
    highest = max((label.value for label in plan.labels), default=0)
    if plan.ignore_value is not None and not highest < plan.ignore_value <= MAX_LABEL_VALUE:
        yield "plan.ignore_value", f"must be above all labels and at most {MAX_LABEL_VALUE}"


def region_problems(regions: Sequence[Region], values: Collection[int]) -> Iterator[Problem]:
    """What is wrong with regions of a label map that holds these values; also asked before a plan is made."""
    names, painted = [region.name for region in regions], [region.value for region in regions]
    if len(set(names)) != len(names) or len(set(painted)) != len(painted):
        yield "regions", "each needs a name and a value of its own"
    for index, region in enumerate(regions):
        path = f"regions[{index}] ({region.name[:MAX_NAME]})"
        if not region.labels or len(set(region.labels)) != len(region.labels) or not set(region.labels) <= set(values):
            yield path, f"labels {list(region.labels)} must be different ones of {sorted(values)}"
        if region.value not in region.labels:
            yield path, f"becomes the value {region.value}, which is none of its labels {list(region.labels)}"
        for later in regions[index + 1 :]:
            if set(region.labels) <= set(later.labels):
                yield path, f"would be painted over by {later.name[:MAX_NAME]}: list surrounding regions first"


def _check_channels(channels: Sequence[Channel]) -> Iterator[Problem]:
    names = [channel.name for channel in channels]
    if len(set(names)) != len(names) or not all(name.strip() and len(name) <= MAX_NAME for name in names):
        yield "plan.channels", f"names must be different and 1 to {MAX_NAME} characters long"
    for index, channel in enumerate(channels):
        norm = channel.normalization
        if norm.scheme == "ct" and not (norm.lower < norm.upper and norm.std > 0):
            yield f"plan.channels[{index}].normalization", "needs lower < upper and std > 0"


def _check_agreement(plan: Plan) -> Iterator[Problem]:
    network = plan.network
    if not 1 <= len(plan.channels) <= MAX_CHANNELS or network.in_channels != len(plan.channels):
        yield "plan.network.in_channels", f"is {network.in_channels}, but {len(plan.channels)} channels are listed"
    if network.out_channels != plan.outputs:
        made = f"{len(plan.regions)} regions" if plan.regions else f"{len(plan.labels)} structures and background"
        yield "plan.network.out_channels", f"is {network.out_channels}, but {made} make {plan.outputs}"
    yield from _check_network(network)


def _check_network(network: NetworkPlan) -> Iterator[Problem]:
    if network.name not in NETWORKS:
        yield "plan.network.name", f'there is no network "{network.name[:MAX_NAME]}"; known: {", ".join(NETWORKS)}'
    if min(network.patch_size) < 1 or math.prod(network.patch_size) > MAX_PATCH_VOXELS:
        yield "plan.network.patch_size", f"expected 1 to {MAX_PATCH_VOXELS} voxels"
    if len(network.stages) > MAX_STAGES:
        yield "plan.network.stages", f"expected at most {MAX_STAGES} stages"
    for index, stage in enumerate(network.stages):
        path = f"plan.network.stages[{index}]"
        if not 1 <= stage.features <= MAX_FEATURES:
            yield f"{path}.features", f"expected 1 to {MAX_FEATURES}"
        if not all(1 <= step <= 8 for step in stage.stride):
            yield f"{path}.stride", "expected 1 to 8 per axis"
        if not all(1 <= size <= MAX_KERNEL and size % 2 for size in stage.kernel):
            yield f"{path}.kernel", f"expected odd sizes from 1 to {MAX_KERNEL}"
        if not (1 <= stage.blocks <= MAX_BLOCKS and 0 <= stage.decoder_blocks <= MAX_BLOCKS):
            yield f"{path}.blocks", f"expected 1 to {MAX_BLOCKS}"


def _check_fingerprint(fingerprint: Fingerprint, channels: int, labels: int) -> Iterator[Problem]:
    if len(fingerprint.intensities) not in (0, channels):
        yield "plan.fingerprint.intensities", f"expected none or one per channel ({channels})"
    if len(fingerprint.volumes) not in (0, labels):
        yield "plan.fingerprint.volumes", f"expected none or one per label ({labels})"
    if not all(0 <= seen.smallest_ml <= seen.largest_ml for seen in fingerprint.volumes):
        yield "plan.fingerprint.volumes", "expected 0 <= smallest_ml <= largest_ml"


_CHECKS: tuple[Callable[[BundleManifest], Iterator[Problem]], ...] = (
    _check_identity,
    _check_card,
    _check_metrics,
    _check_folds,
    _check_plan,
)
