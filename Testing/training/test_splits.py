"""Folds keep subjects together, and folds that do not are refused."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from MambaSegTraining.dataset import read_dataset
from MambaSegTraining.settings import DatasetSettings, Settings
from MambaSegTraining.split_choice import splits_of
from MambaSegTraining.splits import (
    Fold,
    check_folds,
    make_folds,
    read_nnunet_splits,
    read_subjects,
    subjects_from_names,
)

from MambaSegLib.errors import InputError

PAIRS = {f"case_{index:02d}": f"S{index // 2}" for index in range(20)}


def test_every_case_is_validated_once_and_no_subject_is_on_both_sides():
    folds = make_folds(PAIRS, 5, seed=1)
    assert Counter(case for fold in folds for case in fold.val) == Counter(list(PAIRS))
    assert all(len(fold.val) == 4 for fold in folds)
    for fold in folds:
        assert {PAIRS[case] for case in fold.train}.isdisjoint({PAIRS[case] for case in fold.val})
        assert sorted({*fold.train, *fold.val}) == sorted(PAIRS)


def test_folds_depend_on_the_seed_only():
    assert make_folds(PAIRS, 5, seed=1) == make_folds(dict(reversed(PAIRS.items())), 5, seed=1)
    assert make_folds(PAIRS, 5, seed=1) != make_folds(PAIRS, 5, seed=2)


def test_large_subjects_do_not_unbalance_the_folds():
    subjects = {f"big_{index}": "big" for index in range(4)} | {f"small_{index}": f"s{index}" for index in range(8)}
    assert sorted(len(fold.val) for fold in make_folds(subjects, 3, seed=0)) == [4, 4, 4]


def test_fewer_subjects_than_folds_are_refused():
    with pytest.raises(InputError, match="2 subject"):
        make_folds({"a": "1", "b": "1", "c": "2"}, 5, seed=0)


def test_unknown_cases_empty_sides_and_repeated_validation_are_refused():
    folds = [Fold(("case_00",), ("ghost",)), Fold((), ("case_02",)), Fold(("case_00",), ("case_02",))]
    with pytest.raises(InputError) as error:
        check_folds(folds, PAIRS)
    for part in ("does not have: ghost", "fold 1 has 0 training", "more than one fold: case_02"):
        assert part in str(error.value)


def test_subjects_come_from_a_pattern_or_a_table(tmp_path):
    assert subjects_from_names(["patient007_frame01"], r"patient(\d+)") == {"patient007_frame01": "007"}
    with pytest.raises(InputError, match="finds no subject"):
        subjects_from_names(["x"], r"patient(\d+)")
    table = tmp_path / "subjects.csv"
    table.write_text("case,subject\na,1\nb,1\n")
    assert read_subjects(table) == {"a": "1", "b": "1"}
    table.write_text("case,patient\na,1\n")
    with pytest.raises(InputError, match="lacks the column subject"):
        read_subjects(table)


def test_nnunet_split_files_are_read_and_others_refused(tmp_path):
    path = tmp_path / "splits_final.json"
    path.write_text(json.dumps([{"train": ["a"], "val": ["b"]}]))
    assert read_nnunet_splits(path) == (Fold(("a",), ("b",)),)
    path.write_text(json.dumps({"train": ["a"]}))
    with pytest.raises(InputError, match="not a list of folds"):
        read_nnunet_splits(path)


def test_a_subject_table_beside_the_data_is_used_unasked(ball_dataset):
    dataset = read_dataset(ball_dataset)
    settings = Settings(dataset=DatasetSettings(folds=2))
    assert splits_of(dataset, settings).grouped_by == "case"
    rows = [f"{case.name},{case.name[-1]}" for case in dataset.cases]  # all a's are one subject, all b's another
    (ball_dataset / "subjects.csv").write_text("\n".join(["case,subject", *rows]))
    splits = splits_of(dataset, settings)
    assert splits.grouped_by == "subject"
    assert sorted(fold.val for fold in splits.folds) == [("s0_a", "s1_a", "s2_a"), ("s0_b", "s1_b", "s2_b")]
    (ball_dataset / "subjects.csv").write_text("case,subject\ns0_a,1\n")
    with pytest.raises(InputError, match="no subject for s0_b"):
        splits_of(dataset, settings)


@pytest.mark.shared_data
def test_the_folds_that_come_with_the_hippocampus_data_keep_both_sides_of_a_brain_together(shared_data):
    folder = shared_data / "hippocampus" / "Dataset004_Hippocampus"
    folds = read_nnunet_splits(folder / "splits_final.json")
    check_folds(folds, read_subjects(folder / "subjects.csv"))
    assert sum(len(fold.val) for fold in folds) == 208
