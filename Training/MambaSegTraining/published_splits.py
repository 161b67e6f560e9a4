"""Splits that publications used, by name: who is trained on and who is held out, and what is wrong with them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from MambaSegLib.errors import InputError
from MambaSegLib.schema import from_json
from MambaSegTraining.splits import Fold, Splits, make_folds

FOLDS = 5


@dataclass(frozen=True)
class PublishedSplit:
    """One division of a public data set.

    Attributes:
        dataset: "acdc", "synapse" or "braintumour".
        name: "transunet", "nnformer" or "released" (by the authors of the paper, with their code).
        train: Numbers of the cases (ACDC: patients) that networks learn from and folds are made of.
        test: Numbers of those held out.
        folds: Validation cases per fold, where folds were published: "21", or "21:2" for the second case (ACDC: frame)
            of number 21.
        source: Where it was published.
        note: What to know before using it.
    """

    dataset: str
    name: str
    train: tuple[int, ...]
    test: tuple[int, ...]
    folds: tuple[tuple[str, ...], ...]
    source: str
    note: str


def list_published_splits() -> tuple[PublishedSplit, ...]:
    """All of them."""
    text = files("MambaSegTraining").joinpath("published_splits.json").read_text(encoding="utf-8")
    return tuple(from_json(PublishedSplit, entry, "published_splits.json") for entry in json.loads(text))


def find_published_split(dataset: str, name: str) -> PublishedSplit:
    """One of them.

    Raises:
        InputError: If there is none of that name for the data set; the message lists what there is.
    """
    known = [split for split in list_published_splits() if split.dataset == dataset]
    for split in known:
        if split.name == name:
            return split
    if not known:
        datasets = sorted({split.dataset for split in list_published_splits()})
        msg = f"There is no published split of {dataset!r}; there are some of {', '.join(datasets)}."
        raise InputError(msg)
    msg = f"{dataset} has no published split {name!r}; it has {', '.join(split.name for split in known)}."
    if (dataset, name) == ("acdc", "transunet"):
        msg += " TransUNet published none of ACDC: what goes by that name is nnformer."
    raise InputError(msg)


def apply_published_split(
    split: PublishedSplit, cases: Sequence[str], subjects: Mapping[str, str], seed: int
) -> Splits:
    """Find the cases of a published split in a data set. Nothing is checked for leaks: see `leakage`.

    Args:
        split: The split.
        cases: Names of all cases; the first number in a name is what the split knows it by.
        subjects: Subject per case.
        seed: Seed of the folds, where none were published.

    Raises:
        InputError: If cases of the split are missing, or there are others.
    """
    by_number: dict[int, list[str]] = {}
    for case in sorted(cases):
        by_number.setdefault(_number(case), []).append(case)
    _require_numbers(split, by_number)
    trained = [case for number in split.train for case in by_number[number]]
    if split.folds:
        folds = tuple(_published_fold(fold, trained, by_number) for fold in split.folds)
    else:
        folds = make_folds({case: subjects[case] for case in trained}, FOLDS, seed)
    drawn = "" if split.folds else f", folds drawn with seed {seed}"
    source = f"published split {split.name!r} of {split.dataset}{drawn}"
    test = tuple(case for number in split.test for case in by_number[number])
    return Splits(folds, source, "case" if split.folds else "subject", dict(subjects), test, split.note)


def _number(case: str) -> int:
    found = re.search(r"\d+", case)
    if not found:
        msg = f"The case {case} has no number in its name, so no published split can know it."
        raise InputError(msg)
    return int(found.group())


def _require_numbers(split: PublishedSplit, by_number: Mapping[int, Sequence[str]]) -> None:
    wanted = {*split.train, *split.test}
    missing, others = sorted(wanted - set(by_number)), sorted(set(by_number) - wanted)
    if missing or others:
        msg = f"The data set does not fit the published split {split.name!r} of {split.dataset}: "
        parts = [f"{text} {numbers}" for text, numbers in (("it lacks", missing), ("it has also", others)) if numbers]
        raise InputError(msg + "; ".join(parts) + ".")


def _published_fold(entries: Sequence[str], trained: Sequence[str], by_number: Mapping[int, Sequence[str]]) -> Fold:
    val: set[str] = set()
    for entry in entries:
        number, _, position = entry.partition(":")
        found = by_number[int(number)]
        if position and int(position) > len(found):
            msg = f"The published fold has {position} cases of number {number}, the data set {len(found)}."
            raise InputError(msg)
        val.update([found[int(position) - 1]] if position else found)
    return Fold(tuple(case for case in trained if case not in val), tuple(sorted(val)))
