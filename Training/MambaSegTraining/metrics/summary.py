"""What a number measured on many cases comes to, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from MambaSegLib.errors import InputError
from MambaSegLib.volume import Array
from MambaSegTraining.metrics.definitions import DEFINITIONS, MetricDefinition
from MambaSegTraining.metrics.scores import LabelScore

BOOTSTRAP_DRAWS = 2000
BOOTSTRAP_SEED = 20251
MEAN = "mean"
"""Name of the mean over all structures of a case, in place of a structure's name."""


@dataclass(frozen=True)
class Summary:
    """One number over cases.

    Attributes:
        mean: Mean of the cases that count; nan without any.
        std: Their standard deviation (n - 1 in the denominator); 0 for one case.
        median: Their median.
        n: How many count.
        excluded: How many do not, because the number is undefined there.
        ci_low: Lower end of the 95 % interval of the mean (bootstrap over subjects).
        ci_high: Its upper end.
        quartile_low: A quarter of the cases lies below.
        quartile_high: A quarter of the cases lies above.
    """

    mean: float
    std: float
    median: float
    n: int
    excluded: int
    ci_low: float
    ci_high: float
    quartile_low: float
    quartile_high: float


@dataclass(frozen=True)
class MetricSummary:
    """A summary with what it is about.

    Attributes:
        metric: Id of its definition.
        label: Structure, or "mean": the mean over the structures of each case.
        flagged: Cases in which exactly one mask is empty.
        summary: The numbers; None without a case that counts.
    """

    metric: str
    label: str
    flagged: int
    summary: Summary | None


def shown_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """What tables have lines about: each structure, and the mean over them where it is not the only one again."""
    return (*labels, MEAN) if len(labels) > 1 else tuple(labels)


def summarize_values(values: Mapping[str, float], subjects: Mapping[str, str]) -> Summary:
    """Summarize one number per case.

    Args:
        values: Per case; nan where it is undefined.
        subjects: Subject per case. Cases of one subject are drawn together: they are no independent evidence.
    """
    counted = {case: value for case, value in values.items() if not math.isnan(value)}
    if not counted:
        return Summary(math.nan, 0.0, math.nan, 0, len(values), *(math.nan,) * 4)
    numbers = np.array(list(counted.values()))
    quarter, median, three_quarters = (float(value) for value in np.percentile(numbers, (25, 50, 75)))
    low, high = bootstrap_interval(grouped(counted, subjects))
    std = float(numbers.std(ddof=1)) if len(numbers) > 1 else 0.0
    excluded = len(values) - len(counted)
    return Summary(float(numbers.mean()), std, median, len(numbers), excluded, low, high, quarter, three_quarters)


def summarize_scores(
    scores: Sequence[LabelScore], labels: Sequence[str], subjects: Mapping[str, str]
) -> tuple[MetricSummary, ...]:
    """Summarize every measure, per structure and over the structures; folds are pooled.

    Args:
        scores: Of all folds, every case once.
        labels: Structures, in order.
        subjects: Subject per case.

    Raises:
        InputError: If a case is there twice.
    """
    return tuple(
        _summarize(scores, label, metric, labels, subjects) for label in (*labels, MEAN) for metric in DEFINITIONS
    )


def values_by_case(scores: Sequence[LabelScore], label: str, field: str, labels: Sequence[str]) -> dict[str, float]:
    """One number per case; nan where it is undefined.

    Args:
        scores: Of all cases.
        label: Structure, or "mean": the mean over those of `labels` for which the number is defined in the case.
        field: Name of the number in `LabelScore`.
        labels: All structures.
    """
    if label != MEAN:
        return {score.case: _number(getattr(score, field)) for score in scores if score.label == label}
    lists: dict[str, list[float]] = {}
    for score in scores:
        if score.label in labels:
            lists.setdefault(score.case, []).append(_number(getattr(score, field)))
    return {case: _mean_of_defined(values) for case, values in lists.items()}


def grouped(values: Mapping[str, float], subjects: Mapping[str, str]) -> list[list[float]]:
    """The numbers of each subject; a case without a known subject is one of its own."""
    groups: dict[str, list[float]] = {}
    for case, value in values.items():
        groups.setdefault(subjects.get(case, case), []).append(value)
    return list(groups.values())


def bootstrap_interval(groups: Sequence[Sequence[float]]) -> tuple[float, float]:
    """2.5th and 97.5th percentile of the means of as many groups, drawn with replacement by a fixed seed."""
    sums, sizes = np.array([sum(group) for group in groups]), np.array([len(group) for group in groups])
    generator = np.random.default_rng(BOOTSTRAP_SEED)
    means: Array = np.empty(BOOTSTRAP_DRAWS)
    for draw in range(BOOTSTRAP_DRAWS):  # one at a time: thousands of subjects need no memory
        chosen = generator.integers(len(groups), size=len(groups))
        means[draw] = sums[chosen].sum() / sizes[chosen].sum()
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def _summarize(
    scores: Sequence[LabelScore],
    label: str,
    metric: MetricDefinition,
    labels: Sequence[str],
    subjects: Mapping[str, str],
) -> MetricSummary:
    about = [score for score in scores if label in (MEAN, score.label)]
    _refuse_repeated(about)
    summary = summarize_values(values_by_case(scores, label, metric.field, labels), subjects)
    flagged = len({score.case for score in about if score.is_flagged})
    return MetricSummary(metric.id, label, flagged, summary if summary.n else None)


def _refuse_repeated(scores: Sequence[LabelScore]) -> None:
    seen: set[tuple[str, str]] = set()
    for score in scores:
        if (score.case, score.label) in seen:
            msg = f"{score.case} is scored twice for {score.label}; out of fold, every case is predicted once"
            raise InputError(msg)
        seen.add((score.case, score.label))


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _mean_of_defined(values: Sequence[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan
