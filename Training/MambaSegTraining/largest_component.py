"""Whether keeping only the largest connected component of a structure helps: decided on cases the network has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from MambaSegLib.errors import InputError
from MambaSegTraining.metrics.scores import LabelScore

ROUNDING = 1e-9


@dataclass(frozen=True)
class ComponentChoice:
    """The decision for one structure.

    Attributes:
        label: Name of the structure.
        keep_largest: Whether to keep only the largest component.
        cases: Cases it is based on: those where both masks hold voxels.
        dice_before: Mean Dice without; None without such cases.
        dice_after: Mean Dice with.
        hd95_before_mm: Mean HD95 without.
        hd95_after_mm: Mean HD95 with.
        reason: The decision in a sentence.
    """

    label: str
    keep_largest: bool
    cases: int
    dice_before: float | None
    dice_after: float | None
    hd95_before_mm: float | None
    hd95_after_mm: float | None
    reason: str


def choose_keep_largest(
    before: Sequence[LabelScore], after: Sequence[LabelScore], labels: Sequence[str]
) -> tuple[ComponentChoice, ...]:
    """Keep only the largest component of a structure if mean Dice or mean HD95 gets better and neither worse.

    Args:
        before: Out-of-fold scores of the predictions as they are.
        after: Scores of the same cases with only the largest component of every structure kept.
        labels: Structures to decide on.

    Raises:
        InputError: If the two are not about the same cases.
    """
    if {(score.case, score.label) for score in before} != {(score.case, score.label) for score in after}:
        msg = "post-processing can only be judged on the same cases and structures before and after it"
        raise InputError(msg)
    return tuple(_choose(label, _measured(before, label), _measured(after, label)) for label in labels)


def _measured(scores: Sequence[LabelScore], label: str) -> list[tuple[float, float]]:
    """Dice and HD95 of the cases with voxels in both masks; removing components never empties a mask."""
    about = [score for score in scores if score.label == label and score.empty == "none"]
    return [(score.dice, score.hd95_mm) for score in about if score.dice is not None and score.hd95_mm is not None]


def _choose(label: str, before: list[tuple[float, float]], after: list[tuple[float, float]]) -> ComponentChoice:
    if not before:
        return ComponentChoice(
            label, False, 0, None, None, None, None, "No case to decide on; all components are kept."
        )
    dice_before, hd95_before = (sum(values) / len(before) for values in zip(*before, strict=True))
    dice_after, hd95_after = (sum(values) / len(after) for values in zip(*after, strict=True))
    dice_gain, hd95_gain = dice_after - dice_before, hd95_before - hd95_after
    helps = min(dice_gain, hd95_gain) >= -ROUNDING and max(dice_gain, hd95_gain) > ROUNDING
    change = f"HD95 {hd95_before:.2f} to {hd95_after:.2f} mm, Dice {dice_before:.4f} to {dice_after:.4f}"
    if helps:
        reason = f"Only the largest component is kept: {change} on {len(before)} cases."
    else:
        reason = f"All components are kept: keeping the largest only does not help ({change} on {len(before)} cases)."
    return ComponentChoice(label, helps, len(before), dice_before, dice_after, hd95_before, hd95_after, reason)
