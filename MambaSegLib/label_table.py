"""What the values of a data set's label maps mean: labels, regions made of them, and the ignore label, as nnU-Net v2 has them.

Source:
    nnU-Net v2, documentation/region_based_training.md and ignore_label.md, and its `LabelManager`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from MambaSegLib.errors import InputError
from MambaSegLib.manifest_check import region_problems
from MambaSegLib.plan import IntTriple, Label, Region

BACKGROUND, IGNORE = "background", "ignore"
COLORS: tuple[IntTriple, ...] = (
    (216, 101, 79), (128, 174, 128), (241, 214, 145), (177, 122, 101), (111, 184, 210), (221, 130, 101),
    (144, 238, 144), (192, 104, 88), (220, 245, 20), (78, 63, 0), (255, 250, 220), (230, 220, 70), (200, 200, 235),
)  # fmt: skip
"""Of structures nobody has chosen a color for, in their order and then again from the start."""


@dataclass(frozen=True)
class LabelTable:
    """The part of dataset.json about labels.

    Attributes:
        labels: Name per value, background and ignore left out.
        regions: What the network is to find instead of the labels; () for the labels themselves.
        ignore_value: Value of voxels that nobody labelled.
    """

    labels: Mapping[int, str]
    regions: tuple[Region, ...] = ()
    ignore_value: int | None = None


def parse_labels(description: Mapping[str, Any]) -> LabelTable:
    """Read `labels`, `regions_class_order` and, where they are given, `label_names` of a dataset.json.

    nnU-Net names regions only. `label_names` (name per value, as text) is an addition that it ignores.

    Raises:
        InputError: At what nnU-Net would refuse, and at regions that could never appear in a prediction.
    """
    entries = {name: _values(name, entry) for name, entry in description["labels"].items()}
    ignored = entries.pop(IGNORE, None)
    if entries.pop(BACKGROUND, None) != (0,):
        msg = f"labels must begin with {BACKGROUND} = 0; found {description['labels']}"
        raise InputError(msg)
    values = sorted({value for entry in entries.values() for value in entry})
    if not values or values != list(range(1, len(values) + 1)):
        msg = f"labels must be background = 0 and then 1, 2, ... without gaps; found {description['labels']}"
        raise InputError(msg)
    if ignored not in (None, (len(values) + 1,)):
        msg = f'the label "{IGNORE}" must be the highest value, {len(values) + 1} here; found {description["labels"][IGNORE]}'
        raise InputError(msg)
    ignore_value = ignored[0] if ignored else None
    if all(len(entry) == 1 for entry in entries.values()):
        if len(entries) != len(values):
            msg = f"labels must have different values; found {description['labels']}"
            raise InputError(msg)
        names = {entry[0]: name for name, entry in entries.items()}
        return LabelTable({value: names[value] for value in values}, ignore_value=ignore_value)
    regions = _regions(entries, description.get("regions_class_order"), values)
    given = {int(value): str(name) for value, name in dict(description.get("label_names") or {}).items()}
    return LabelTable({value: given.get(value) or name_of(value, regions) for value in values}, regions, ignore_value)


def plain_label(value: int, name: str) -> Label:
    """A structure of which no more is known than its name."""
    return Label(value, name, COLORS[(value - 1) % len(COLORS)])


def name_of(value: int, regions: Sequence[Region]) -> str:
    """Name of a label that has none: the smallest region it is in, less those inside that it is not in."""
    around = min((region for region in regions if value in region.labels), key=lambda region: len(region.labels))
    inside = [region for region in regions if set(region.labels) < set(around.labels) and value not in region.labels]
    largest = [region.name for region in inside if not any(set(region.labels) < set(other.labels) for other in inside)]
    name = f"{around.name} outside {', '.join(largest)}" if largest else around.name
    # Labels that lie in the same regions cannot be told apart; what the region becomes has the name.
    return name if value == around.value or (value,) == around.labels else f"{name} (label {value})"


def _values(name: str, entry: Any) -> tuple[int, ...]:
    listed = entry if isinstance(entry, list) else [entry]
    if not listed or not all(isinstance(value, int) and not isinstance(value, bool) for value in listed):
        msg = f"labels must map each name to a whole number, or to a list of them for a region; found {name}: {entry}"
        raise InputError(msg)
    return tuple(sorted(set(listed)))


def _regions(entries: Mapping[str, tuple[int, ...]], order: Any, values: Sequence[int]) -> tuple[Region, ...]:
    if not isinstance(order, list) or len(order) != len(entries) or not all(isinstance(value, int) for value in order):
        msg = (
            f"regions need regions_class_order: for each of {', '.join(entries)} the value its voxels become, surrounding "
            f"regions first; found {order}"
        )
        raise InputError(msg)
    regions = tuple(Region(name, entry, value) for (name, entry), value in zip(entries.items(), order, strict=True))
    for path, text in region_problems(regions, values):
        msg = f"{path}: {text}"
        raise InputError(msg)
    return regions
