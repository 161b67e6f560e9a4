"""Folds of a cross-validation, grouped by subject."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from MambaSegLib.errors import InputError
from MambaSegLib.schema import to_json
from MambaSegTraining.json_hash import json_hash


@dataclass(frozen=True)
class Fold:
    """One way to divide the cases.

    Attributes:
        train: Cases the network learns from.
        val: Cases it is measured on.
    """

    train: tuple[str, ...]
    val: tuple[str, ...]


@dataclass(frozen=True)
class Splits:
    """The folds, and how they came about.

    Attributes:
        folds: In order.
        source: The file they were read from, or how they were drawn.
        grouped_by: What never lies on both sides of a fold: "subject", or "case" where no subjects are known.
        subjects: Subject per case.
        test: Cases held out from all folds.
        note: What to know about them, as published.
    """

    folds: tuple[Fold, ...]
    source: str
    grouped_by: str
    subjects: Mapping[str, str]
    test: tuple[str, ...] = ()
    note: str = ""

    @property
    def sha256(self) -> str:
        """Hash of the folds alone: equal for equal folds, wherever they came from."""
        return json_hash(to_json(self)["folds"])


def read_nnunet_splits(path: Path) -> tuple[Fold, ...]:
    """Read nnU-Net's splits_final.json: a list of {"train": [...], "val": [...]}.

    Raises:
        InputError: If it is not that.
    """
    try:
        folds = json.loads(path.read_text(encoding="utf-8"))
        return tuple(Fold(tuple(map(str, fold["train"])), tuple(map(str, fold["val"]))) for fold in folds)
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{path} is not a list of folds with the keys train and val ({error!r})."
        raise InputError(msg) from error


def read_subjects(path: Path) -> dict[str, str]:
    """Read a CSV with the columns `case` and `subject`.

    Raises:
        InputError: If a column is missing.
    """
    with path.open(encoding="utf-8-sig", newline="") as handle:
        reader = csv.DictReader(handle)
        missing = {"case", "subject"} - set(reader.fieldnames or ())
        if missing:
            msg = f"{path} lacks the column {', '.join(sorted(missing))}; it has {', '.join(reader.fieldnames or ())}."
            raise InputError(msg)
        return {row["case"]: row["subject"] for row in reader}


def subjects_from_names(names: Sequence[str], pattern: str) -> dict[str, str]:
    """Subject of each case by a regular expression's first group.

    Raises:
        InputError: If the pattern has no group or does not fit a name.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        msg = f"subject_pattern {pattern!r} is not a regular expression: {error}."
        raise InputError(msg) from error
    subjects = {}
    for name in names:
        found = expression.search(name)
        if not found or not found.groups():
            msg = f"subject_pattern {pattern!r} finds no subject (first group) in the case name {name}."
            raise InputError(msg)
        subjects[name] = found.group(1)
    return subjects


def make_folds(subjects: Mapping[str, str], count: int, seed: int) -> tuple[Fold, ...]:
    """Divide the subjects at random into folds of as equal size, in cases, as whole subjects allow.

    Args:
        subjects: Subject per case.
        count: Folds.
        seed: Seed of the draw.

    Raises:
        InputError: If there are fewer subjects than folds.
    """
    groups: dict[str, list[str]] = {}
    for case in sorted(subjects):
        groups.setdefault(subjects[case], []).append(case)
    if len(groups) < count:
        msg = f"{len(groups)} subject(s) cannot be divided into {count} folds; ask for fewer folds or add data."
        raise InputError(msg)
    order = [sorted(groups)[index] for index in np.random.default_rng(seed).permutation(len(groups))]
    order.sort(key=lambda subject: -len(groups[subject]))  # stable: the large ones first, so that the rest evens out
    parts: list[list[str]] = [[] for _ in range(count)]
    for subject in order:
        min(parts, key=len).extend(groups[subject])
    everything = sorted(subjects)
    return tuple(Fold(tuple(c for c in everything if c not in part), tuple(sorted(part))) for part in parts)


def check_folds(folds: Sequence[Fold], subjects: Mapping[str, str]) -> None:
    """Refuse folds that do not fit the data set. Leaks are the business of `leakage.check_leakage`.

    Args:
        folds: The folds.
        subjects: Subject per case, all cases of the data set.

    Raises:
        InputError: Listing empty sides, unknown cases, and cases that are validated twice.
    """
    problems = []
    for number, fold in enumerate(folds):
        unknown = sorted({*fold.train, *fold.val} - set(subjects))
        if unknown:
            problems.append(f"fold {number} names cases the data set does not have: {some(unknown)}")
            continue
        if not fold.train or not fold.val:
            problems.append(f"fold {number} has {len(fold.train)} training and {len(fold.val)} validation cases")
    twice = _repeated([case for fold in folds for case in fold.val])
    if twice:
        problems.append(f"cases validated in more than one fold: {some(twice)}")
    if problems:
        listed = "\n  ".join(problems)
        msg = f"The folds cannot be used:\n  {listed}\nCorrect the file, or leave it out to have folds made by subject."
        raise InputError(msg)


def _repeated(names: Sequence[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})


def some(names: Sequence[str], limit: int = 8) -> str:
    """Some of the names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
