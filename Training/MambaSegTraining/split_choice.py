"""Which folds a data set gets: those of a file, published ones by name, or new ones drawn by subject."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from MambaSegLib.errors import InputError
from MambaSegTraining.dataset import Dataset
from MambaSegTraining.published_splits import apply_published_split, find_published_split
from MambaSegTraining.settings import DatasetSettings, Settings
from MambaSegTraining.splits import (
    Splits,
    check_folds,
    make_folds,
    read_nnunet_splits,
    read_subjects,
    some,
    subjects_from_names,
)

SUBJECTS_FILE = "subjects.csv"


def splits_of(dataset: Dataset, settings: Settings) -> Splits:
    """The folds of a data set as the settings say. Nothing is checked for leaks: see `leakage`.

    Raises:
        InputError: If files are missing, do not fit the data set, or the settings contradict each other.
    """
    names = [case.name for case in dataset.cases]
    about, seed = settings.dataset, settings.recipe.seed
    known = _known_subjects(dataset, about, names)
    subjects = known or {name: name for name in names}
    grouped_by = "subject" if known else "case"
    if about.published_split:
        return _published(about, names, subjects, seed)
    if about.splits_file:
        folds, source = read_nnunet_splits(_existing(dataset.folder / about.splits_file)), about.splits_file
    else:
        folds, source = make_folds(subjects, about.folds, seed), f"drawn with seed {seed}"
    check_folds(folds, subjects)
    return Splits(folds, source, grouped_by, subjects)


def _published(about: DatasetSettings, names: Sequence[str], subjects: dict[str, str], seed: int) -> Splits:
    name, _, split = about.published_split.partition(":")
    if not split or about.splits_file:
        msg = (
            f"dataset.published_split is {about.published_split!r} and dataset.splits_file {about.splits_file!r}: "
            "give one of them, a published split as data set and name, such as acdc:released."
        )
        raise InputError(msg)
    return apply_published_split(find_published_split(name, split), names, subjects, seed)


def _known_subjects(dataset: Dataset, about: DatasetSettings, names: Sequence[str]) -> dict[str, str]:
    """Subject per case; empty where nothing tells."""
    table = dataset.folder / (about.subjects_file or SUBJECTS_FILE)
    if about.subject_pattern and not about.subjects_file:
        return subjects_from_names(names, about.subject_pattern)
    if not about.subjects_file and not table.is_file():
        return {}
    listed = read_subjects(_existing(table))
    missing = sorted(set(names) - set(listed))
    if missing:
        msg = f"{table.name} names no subject for {some(missing)}."
        raise InputError(msg)
    return {name: listed[name] for name in names}


def _existing(path: Path) -> Path:
    if not path.is_file():
        msg = f"{path} does not exist; correct dataset.subjects_file or dataset.splits_file in the configuration."
        raise InputError(msg)
    return path
