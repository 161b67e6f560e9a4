"""`mambaseg-train check`: everything that is wrong with a data set and its folds, in one list."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from MambaSegTraining.commands import AddStep


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
    from MambaSegTraining.leakage import CaseContent, check_leakage, similar_pairs
    from MambaSegTraining.settings import Settings, read_settings
    from MambaSegTraining.split_choice import splits_of

    settings = read_settings(options.config) if options.config else Settings()
    if options.published_split:
        chosen = replace(settings.dataset, published_split=options.published_split, splits_file="")
        settings = replace(settings, dataset=chosen)
    dataset = read_dataset(options.dataset.resolve())
    workers = default_workers() if options.workers is None else options.workers
    splits = splits_of(dataset, settings)
    problems: list[str] = []
    contents: list[CaseContent] = []
    try:
        take_fingerprint(dataset, workers, on_content=contents.append)
    except DatasetError as error:
        problems += error.problems
    record = check_leakage(splits, contents, force=True)
    problems += [str(pair) for pair in similar_pairs(contents, splits.subjects)[0]]
    for problem in problems:
        print(problem)
    print(f"{len(problems)} problem(s) in {len(dataset.cases)} case(s) of {dataset.folder}.")
    print(record.describe())
    return 2 if problems or (record.leaks and not options.force) else 0
