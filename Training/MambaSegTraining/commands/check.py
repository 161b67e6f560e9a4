"""`mambaseg-train check`: everything that is wrong with a data set and its folds, in one list."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from MambaSegTraining.commands import AddStep

if TYPE_CHECKING:
    from MambaSegTraining.dataset import Dataset
    from MambaSegTraining.settings import Settings
    from MambaSegTraining.splits import Splits


def add_check(step: AddStep) -> None:
    """Add the step."""
    check = step(
        "check", run_check, "List everything that is wrong with a data set, copies and leaking folds included."
    )
    check.add_argument("dataset", type=Path, help="folder in nnU-Net v2's raw layout (dataset.json)")
    check.add_argument("--config", type=Path, help="TOML file that names subjects and folds")
    check.add_argument("--published-split", metavar="DATASET:NAME", help="check this split, such as acdc:released")
    check.add_argument("--force", action="store_true", help="report leaks without failing")
    check.add_argument("--workers", type=int, help="processes that read cases (default: one per core)")


def run_check(options: argparse.Namespace) -> int:
    """Step `check`; ends with 2 if anything is wrong."""
    from MambaSegTraining.dataset import DatasetError, read_dataset
    from MambaSegTraining.fingerprint import default_workers, take_fingerprint
    from MambaSegTraining.leakage import check_leakage, read_contents, similar_pairs

    dataset = read_dataset(options.dataset.resolve())
    workers = default_workers() if options.workers is None else options.workers
    problems: list[str] = []
    try:
        take_fingerprint(dataset, workers)
    except DatasetError as error:
        problems += error.problems
    splits, test = _splits(options, dataset)
    contents = [] if problems else read_contents(dataset, workers)
    record = check_leakage(splits, contents, test=test, force=True)
    problems += [str(pair) for pair in similar_pairs(contents, splits.subjects)[0]]
    for problem in problems:
        print(problem)
    print(f"{len(problems)} problem(s) in {len(dataset.cases)} case(s) of {dataset.folder}.")
    print(record.describe())
    return 2 if problems or (record.leaks and not options.force) else 0


def _splits(options: argparse.Namespace, dataset: Dataset) -> tuple[Splits, tuple[str, ...]]:
    """Folds, and cases held out from all of them."""
    from MambaSegLib.errors import InputError
    from MambaSegTraining.published_splits import apply_published_split, find_published_split
    from MambaSegTraining.settings import Settings, read_settings
    from MambaSegTraining.splits import splits_of

    settings = read_settings(options.config) if options.config else Settings()
    if not options.published_split:
        return splits_of(dataset, settings), ()
    name, _, split = options.published_split.partition(":")
    if not split:
        msg = f"--published-split takes a data set and a name, such as acdc:released; found {options.published_split}."
        raise InputError(msg)
    found = find_published_split(name, split)
    cases = [case.name for case in dataset.cases]
    applied = apply_published_split(found, cases, _subjects(dataset, settings), settings.recipe.seed)
    return applied.splits, applied.test


def _subjects(dataset: Dataset, settings: Settings) -> dict[str, str]:
    """Subject per case: as the settings say, else by the subjects.csv a conversion wrote, else one each."""
    from MambaSegTraining.splits import read_subjects, subjects_from_names

    names = [case.name for case in dataset.cases]
    file = dataset.folder / (settings.dataset.subjects_file or "subjects.csv")
    if settings.dataset.subject_pattern:
        return subjects_from_names(names, settings.dataset.subject_pattern)
    listed = read_subjects(file) if file.is_file() else {}
    return {name: listed.get(name, name) for name in names}
