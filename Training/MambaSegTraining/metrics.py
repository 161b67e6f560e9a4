"""How well two label maps agree, and what a mean over cases is worth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from MambaSegLib.volume import Array

DICE_DEFINITION = (
    "Dice similarity coefficient 2|P and R| / (|P| + |R|) of the voxels of one structure on the image's own grid. "
    "Both masks empty: the case is left out and counted as excluded; one empty: 0."
)
BOOTSTRAP_DRAWS = 2000
BOOTSTRAP_SEED = 20251


def dice(prediction: Array, reference: Array) -> float:
    """Dice similarity coefficient of two masks.

    Args:
        prediction: Boolean mask.
        reference: Boolean mask of the same shape.

    Returns:
        0 to 1; nan if both masks are empty.

    Raises:
        ValueError: If the shapes differ.
    """
    if prediction.shape != reference.shape:
        msg = f"The masks have the shapes {prediction.shape} and {reference.shape}."
        raise ValueError(msg)
    voxels = int(prediction.sum()) + int(reference.sum())
    if not voxels:
        return math.nan
    return 2 * int((prediction & reference).sum()) / voxels


@dataclass(frozen=True)
class Summary:
    """Mean of one number over cases.

    Attributes:
        mean: Mean of the cases that count; nan without any.
        std: Their standard deviation (n - 1 in the denominator); 0 for one case.
        median: Their median.
        n: How many count.
        excluded: How many do not, because the number is undefined there.
        ci_low: Lower end of the 95 % interval of the mean (bootstrap over subjects).
        ci_high: Its upper end.
    """

    mean: float
    std: float
    median: float
    n: int
    excluded: int
    ci_low: float
    ci_high: float


def summarize_values(values: Mapping[str, float], subjects: Mapping[str, str]) -> Summary:
    """Summarize one number per case.

    Args:
        values: Per case; nan where it is undefined.
        subjects: Subject per case. Cases of one subject are drawn together: they are no independent evidence.
    """
    counted = {case: value for case, value in values.items() if not math.isnan(value)}
    if not counted:
        return Summary(math.nan, 0.0, math.nan, 0, len(values), math.nan, math.nan)
    numbers = np.array(list(counted.values()))
    groups: dict[str, list[float]] = {}
    for case, value in counted.items():
        groups.setdefault(subjects.get(case, case), []).append(value)
    low, high = _bootstrap_interval(list(groups.values()))
    std = float(numbers.std(ddof=1)) if len(numbers) > 1 else 0.0
    excluded = len(values) - len(counted)
    return Summary(float(numbers.mean()), std, float(np.median(numbers)), len(numbers), excluded, low, high)


def _bootstrap_interval(groups: Sequence[Sequence[float]]) -> tuple[float, float]:
    """2.5th and 97.5th percentile of the means of groups drawn with replacement."""
    sums, sizes = np.array([sum(group) for group in groups]), np.array([len(group) for group in groups])
    draws = np.random.default_rng(BOOTSTRAP_SEED).integers(len(groups), size=(BOOTSTRAP_DRAWS, len(groups)))
    low, high = np.percentile(sums[draws].sum(1) / sizes[draws].sum(1), (2.5, 97.5))
    return float(low), float(high)
