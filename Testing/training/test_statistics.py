"""Summaries, comparisons and decisions over cases: answers by hand or by a slower way."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from MambaSegTraining.comparison import compare_models, holm, signed_rank_test
from MambaSegTraining.largest_component import choose_keep_largest
from MambaSegTraining.metrics import LabelScore, summarize_scores, summarize_values
from MambaSegTraining.metrics.definitions import DSC, HD95

from MambaSegLib.errors import InputError


def score(case: str, label: str = "liver", dice: float | None = 0.9, hd95_mm: float | None = 3.0) -> LabelScore:
    empty = "both" if dice is None else "none"
    return LabelScore(case, 0, label, empty, dice, dice, hd95_mm, hd95_mm, 0.0, 0.0, 1.0, 1.0, 1.0)  # type: ignore[arg-type]


def model(values: list[float], metric: str = "dice") -> list[LabelScore]:
    return [replace(score(f"case_{k}"), **{metric: value}) for k, value in enumerate(values)]


# Summaries


def test_a_summary_counts_the_cases_left_out() -> None:
    summary = summarize_values({"a": 0.5, "b": 1.0, "c": math.nan, "d": 0.0}, {})
    assert (summary.mean, summary.median, summary.n, summary.excluded) == (0.5, 0.5, 3, 1)
    assert summary.std == pytest.approx(0.5)
    assert (summary.quartile_low, summary.quartile_high) == (0.25, 0.75)


def test_a_summary_without_cases_is_not_a_number() -> None:
    summary = summarize_values({"a": math.nan}, {})
    assert math.isnan(summary.mean)
    assert (summary.n, summary.excluded) == (0, 1)


def test_the_interval_is_wider_when_cases_belong_to_the_same_patients() -> None:
    values = {f"{patient}{case}": float(patient % 2) for patient in range(10) for case in range(8)}
    alone = summarize_values(values, {})
    patients = summarize_values(values, {name: name[0] for name in values})
    assert alone.mean == patients.mean
    # 80 independent cases against 10 patients: the interval grows by about sqrt(8).
    ratio = (patients.ci_high - patients.ci_low) / (alone.ci_high - alone.ci_low)
    assert 2.2 < ratio < 3.5


def test_the_interval_is_that_of_all_possible_draws() -> None:
    values = [0.1, 0.4, 0.5, 0.9]
    means = [np.mean(draw) for draw in product(values, repeat=4)]
    summary = summarize_values({str(k): value for k, value in enumerate(values)}, {})
    assert (summary.ci_low, summary.ci_high) == pytest.approx(tuple(np.percentile(means, (2.5, 97.5))), abs=0.03)


def test_the_same_scores_give_the_same_interval() -> None:
    values = {str(k): k / 20 for k in range(20)}
    assert summarize_values(values, {}) == summarize_values(values, {})


def test_the_mean_over_structures_uses_those_defined_in_the_case() -> None:
    scores = [
        score("a", "liver", 0.8),
        score("a", "spleen", None, None),
        score("b", "liver", 0.6),
        score("b", "spleen", 0.2),
    ]
    found = {(entry.label, entry.metric): entry for entry in summarize_scores(scores, ["liver", "spleen"], {})}
    overall, spleen = found["mean", DSC.id].summary, found["spleen", DSC.id].summary
    assert overall is not None
    assert spleen is not None
    assert overall.mean == pytest.approx((0.8 + 0.4) / 2)
    assert (spleen.n, spleen.excluded) == (1, 1)


def test_a_case_scored_twice_is_refused() -> None:
    with pytest.raises(InputError, match="scored twice"):
        summarize_scores([score("a"), score("a")], ["liver"], {})


def test_missed_structures_are_counted() -> None:
    scores = [replace(score("a"), empty="prediction"), replace(score("b"), empty="reference"), score("c")]
    assert summarize_scores(scores, ["liver"], {})[0].flagged == 2


# Tests between models


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(-1000, 1000).filter(bool), min_size=1, max_size=7, unique_by=abs))
def test_the_signed_rank_test_counts_all_possible_signs(values: list[int]) -> None:
    ranks = np.argsort(np.argsort(np.abs(values))) + 1
    seen = abs(sum(rank * np.sign(value) for rank, value in zip(ranks, values, strict=True)))
    sums = [
        abs(sum(s * r for s, r in zip(signs, ranks, strict=True))) for signs in product((-1, 1), repeat=len(values))
    ]
    p_value, effect = signed_rank_test(np.array(values, float))
    assert p_value == pytest.approx(np.mean(np.array(sums) >= seen))
    assert abs(effect) == pytest.approx(seen / ranks.sum())


def test_equal_models_differ_by_noise() -> None:
    values = [0.5 + k / 100 for k in range(20)]
    for test in compare_models({"A": model(values), "B": model(values)}, ["liver"], {}):
        assert (test.difference, test.effect, test.p_holm) == (0, 0, 1)
        assert "noise" in test.verdict
        assert "better" not in test.verdict


def test_a_consistent_difference_is_found_and_said_in_the_right_direction() -> None:
    worse, better = [0.7 + k / 100 for k in range(20)], [0.72 + 1.01 * k / 100 for k in range(20)]
    (dice,) = compare_models({"A": model(worse), "B": model(better)}, ["liver"], {}, [DSC])
    assert dice.effect == -1
    assert dice.verdict.startswith("B is better, by 0.0209 on average")
    (distance,) = compare_models({"A": model(worse, "hd95_mm"), "B": model(better, "hd95_mm")}, ["liver"], {}, [HD95])
    assert distance.verdict.startswith("A is better, by 0.0209 mm")


def test_patients_not_cases_are_counted() -> None:
    first, second = model([0.9] * 20), model([0.8 + k / 1000 for k in range(20)])
    one_patient_each = {f"case_{k}": f"patient_{k // 5}" for k in range(20)}
    (test,) = compare_models({"A": first, "B": second}, ["liver"], one_patient_each, [DSC])
    assert test.subjects == 4
    assert test.verdict.startswith("Only 4 patients: too few")


def test_a_better_model_with_a_few_gross_errors_is_told_as_such() -> None:
    first = [2.0 - k / 100 for k in range(30)] + [80.0]
    second = [2.5 + k / 100 for k in range(30)] + [3.0]
    (test,) = compare_models({"A": model(first, "hd95_mm"), "B": model(second, "hd95_mm")}, ["liver"], {}, [HD95])
    assert test.difference > 0 > test.effect
    assert test.verdict.startswith("A is better for most patients")
    assert "B better" in test.verdict


def test_models_without_a_common_case_are_refused() -> None:
    with pytest.raises(InputError, match="no common case"):
        compare_models({"A": [score("a")], "B": [score("b")]}, ["liver"], {})


# Post-processing


def test_the_largest_component_is_kept_only_if_overlap_or_distances_get_better_and_neither_worse() -> None:
    labels = ("nearer", "overlapping more", "traded", "same")
    before = [score("a", label, 0.8, 9.0) for label in labels]
    measured = ((0.8, 4.0), (0.81, 9.0), (0.79, 4.0), (0.8, 9.0))
    after = [score("a", label, *values) for label, values in zip(labels, measured, strict=True)]
    choices = choose_keep_largest(before, after, labels)
    assert [choice.keep_largest for choice in choices] == [True, True, False, False]
    assert "9.00 to 4.00 mm" in choices[0].reason


def test_no_decision_is_made_on_cases_without_the_structure() -> None:
    (choice,) = choose_keep_largest(
        [score("a", dice=None, hd95_mm=None)], [score("a", dice=None, hd95_mm=None)], ["liver"]
    )
    assert (choice.keep_largest, choice.cases) == (False, 0)


def test_scores_of_other_cases_are_refused() -> None:
    with pytest.raises(InputError, match="same cases"):
        choose_keep_largest([score("a")], [score("b")], ["liver"])
