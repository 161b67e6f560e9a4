"""The store of preprocessed cases: made once, in parallel, continued where it was interrupted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from MambaSegLib.plan import Plan
from MambaSegLib.preprocessing import preprocess_with_labels
from MambaSegLib.schema import to_json
from MambaSegLib.volume_io import read_channels, read_labels
from MambaSegTraining.dataset import Case
from MambaSegTraining.store import is_stored, store_case

STORE_VERSION = 1
"""Counts up when preprocessing or the form of the store changes."""


def preprocess_cases(
    cases: Sequence[Case], plan: Plan, store: Path, workers: int = 0, on_case: Callable[[str], None] = lambda name: None
) -> int:
    """Preprocess the cases that are missing in the store, or were made from other files or with another plan.

    Args:
        cases: All cases.
        plan: The plan.
        store: Folder of the store.
        workers: Processes; each holds one case at a time. 0 works here.
        on_case: Called with the name of each case that is done.

    Returns:
        How many cases were made; the others were there already.

    Raises:
        InputError: At the first case that cannot be preprocessed; the ones before it stay.
    """
    store.mkdir(parents=True, exist_ok=True)
    missing = [case for case in cases if not is_stored(store, case.name, case_key(case, plan))]
    function = partial(preprocess_case, plan, store)
    if workers == 0:
        for case in missing:
            on_case(function(case))
        return len(missing)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for name in pool.map(function, missing):
            on_case(name)
    return len(missing)


def preprocess_case(plan: Plan, store: Path, case: Case) -> str:
    """Preprocess one case and return its name."""
    channels = {channel.name: path for channel, path in zip(plan.channels, case.images, strict=True)}
    volume, labels = read_channels(channels), read_labels(case.labels)
    preprocessed, classes = preprocess_with_labels(volume, labels, plan)
    store_case(store, case.name, case_key(case, plan), preprocessed.array, classes)
    return case.name


def case_key(case: Case, plan: Plan) -> str:
    """Hash of what the preprocessed arrays depend on: part of the plan, and size and time of the files."""
    stated = to_json(plan)
    relevant = {name: stated[name] for name in ("orientation", "spacing_mm", "channels", "crop_to_nonzero")}
    files = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in (*case.images, case.labels)]
    values = [label.value for label in plan.labels]
    text = json.dumps([STORE_VERSION, relevant, values, files], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
