"""Whether one model is better than another on the same patients, or the difference is noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from MambaSegLib.errors import InputError
from MambaSegLib.volume import Array
from MambaSegTraining.metrics.definitions import DSC, HD95, NSD, MetricDefinition
from MambaSegTraining.metrics.scores import LabelScore
from MambaSegTraining.metrics.summary import MEAN, bootstrap_interval, values_by_case

SIGNIFICANCE = 0.05
SMALLEST_P = 1e-4
"""Below it, digits of a p-value only pretend precision."""
TESTED_METRICS = (DSC, NSD, HD95)


@dataclass(frozen=True)
class PairedComparison:
    """Two models on the same patients, one measure of one structure.

    Attributes:
        first: Name of a model.
        second: Name of the other.
        metric: Id of the measure's definition.
        label: Structure, or "mean".
        subjects: Patients that both models were measured on; a patient's cases are averaged first.
        difference: Mean of first minus second over the patients.
        ci_low: Lower end of its 95 % interval (bootstrap over patients).
        ci_high: Its upper end.
        effect: Matched-pairs rank-biserial correlation: 1 if the first's value is the higher one for every patient,
            -1 if it never is, 0 for neither.
        p_value: Two-sided Wilcoxon signed-rank test.
        p_holm: The same after Holm's correction for all comparisons of the report.
        verdict: What this means, in a sentence.
    """

    first: str
    second: str
    metric: str
    label: str
    subjects: int
    difference: float
    ci_low: float
    ci_high: float
    effect: float
    p_value: float
    p_holm: float
    verdict: str


def compare_models(
    scores: Mapping[str, Sequence[LabelScore]],
    labels: Sequence[str],
    subjects: Mapping[str, str],
    metrics: Sequence[MetricDefinition] = TESTED_METRICS,
) -> tuple[PairedComparison, ...]:
    """Compare every pair of models by the mean over structures; Holm's correction covers all of the tests.

    Args:
        scores: Per model, out of fold.
        labels: Structures that the mean is taken over.
        subjects: Subject per case.
        metrics: Measures to compare by; one that is defined for no case of both is left out.

    Raises:
        InputError: If two models have no case in common.
    """
    names = list(scores)
    found = [
        _compare((first, second), scores, labels, subjects, metric)
        for index, first in enumerate(names)
        for second in names[index + 1 :]
        for metric in metrics
    ]
    tests = [test for test in found if test is not None]
    corrected = holm([test.p_value for test in tests])
    return tuple(_with_verdict(replace(test, p_holm=p)) for test, p in zip(tests, corrected, strict=True))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p-values that may be compared with 0.05 however many tests there are."""
    order = np.argsort(p_values, kind="stable")
    corrected, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        corrected[index] = largest
    return corrected


def signed_rank_test(differences: Array) -> tuple[float, float]:
    """Wilcoxon's two-sided signed-rank test; zero differences are left out.

    Returns:
        The p-value, and the matched-pairs rank-biserial correlation (Kerby 2014); (1, 0) if all differences are zero.
    """
    from scipy.stats import rankdata, wilcoxon

    nonzero = differences[differences != 0]
    if not len(nonzero):
        return 1.0, 0.0
    ranks = rankdata(np.abs(nonzero))
    effect = float((ranks * np.sign(nonzero)).sum() / ranks.sum())
    tied = len(set(np.abs(nonzero).tolist())) < len(nonzero)
    # The exact distribution holds without ties only; then it is the one to use for as few patients as there usually are.
    method = "asymptotic" if tied or len(nonzero) > 50 else "exact"
    return float(wilcoxon(nonzero, method=method).pvalue), effect


def _compare(
    pair: tuple[str, str],
    scores: Mapping[str, Sequence[LabelScore]],
    labels: Sequence[str],
    subjects: Mapping[str, str],
    metric: MetricDefinition,
) -> PairedComparison | None:
    """One test; None if the measure is defined for no common case, as surface distances are not in single slices."""
    first, second = (values_by_case(scores[name], MEAN, metric.field, labels) for name in pair)
    common = first.keys() & second.keys()
    if not common:
        msg = f"{pair[0]} and {pair[1]} were measured on no common case, so they cannot be compared"
        raise InputError(msg)
    groups: dict[str, list[float]] = {}
    for case in common:
        difference = first[case] - second[case]
        if not math.isnan(difference):
            groups.setdefault(subjects.get(case, case), []).append(difference)
    if not groups:
        return None
    # Sorted, so that neither the order of files nor of sets changes the interval; rounded, so that 0.3 - 0.2 - 0.1 is 0.
    means = np.round([np.mean(groups[subject]) for subject in sorted(groups)], 12)
    p_value, effect = signed_rank_test(means)
    low, high = bootstrap_interval([[float(value)] for value in means])
    return PairedComparison(
        *pair, metric.id, MEAN, len(means), float(means.mean()), low, high, effect, p_value, p_value, ""
    )


def _with_verdict(test: PairedComparison) -> PairedComparison:
    metric = next(metric for metric in TESTED_METRICS if metric.id == test.metric)
    return replace(test, verdict=verdict(test, metric))


def verdict(test: PairedComparison, metric: MetricDefinition) -> str:
    """Say what a test found to someone who does not know statistics."""
    unit = f" {metric.unit}" if metric.unit else ""
    size = f"{abs(test.difference):.3g}{unit}"
    if test.subjects < 6:  # 2 / 2^5 = 0.06: even five equal signs prove nothing
        return f"Only {test.subjects} patients: too few to tell a difference of {size} from noise."
    if test.p_holm >= SIGNIFICANCE:
        return f"The difference of {size} is within the noise between patients (p = {p_text(test.p_holm)})."
    higher_is_better = metric.better == "higher"
    better = test.first if (test.effect > 0) == higher_is_better else test.second
    chance = f"p {p_text(test.p_holm)}" if test.p_holm < SMALLEST_P else f"p = {p_text(test.p_holm)}"
    if test.effect * test.difference < 0:
        other = test.second if better == test.first else test.first
        return (
            f"{better} is better for most patients, which is unlikely to be noise ({chance}); a few patients with large "
            f"errors make {other} better by {size} on average. Look at the worst cases."
        )
    return f"{better} is better, by {size} on average; a difference this consistent is unlikely to be noise ({chance})."


def p_text(p_value: float) -> str:
    """A p-value with the digits that mean something."""
    return f"< {SMALLEST_P:.4f}" if p_value < SMALLEST_P else f"{p_value:.2g}"
