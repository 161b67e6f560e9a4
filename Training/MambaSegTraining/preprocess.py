"""The store of preprocessed cases: made once, in parallel, continued where it was interrupted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from MambaSegLib.errors import InputError
from MambaSegLib.plan import Plan
from MambaSegLib.preprocessing import preprocess_with_labels
from MambaSegLib.readout import readout_of
from MambaSegLib.volume_io import read_channels, read_labels
from MambaSegTraining.case_pool import map_cases
from MambaSegTraining.case_sources import is_current, origin_of
from MambaSegTraining.dataset import Case, read_dataset
from MambaSegTraining.files import read_json, remove_leftovers
from MambaSegTraining.fingerprint import DatasetFingerprint
from MambaSegTraining.run_folder import RunFolder
from MambaSegTraining.store import is_stored, store_case


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
        InputError: If cases cannot be preprocessed, with a list of them; all others are done.
        EnvironmentProblemError: At once, if the disk is full; the cases before stay.
    """
    store.mkdir(parents=True, exist_ok=True)
    remove_leftovers(store)
    missing = [case for case in cases if not is_current(store, case, plan)]
    problems = []
    for case, problem in zip(missing, map_cases(partial(_attempt, plan, store), missing, workers), strict=True):
        problems += [problem] if problem else []
        on_case(case.name)
    if problems:
        listed = "\n  ".join(problems)
        msg = f"{len(problems)} of {len(missing)} case(s) could not be preprocessed, the others are done:\n  {listed}"
        raise InputError(msg)
    return len(missing)


def _attempt(plan: Plan, store: Path, case: Case) -> str:
    """Preprocess one case; returns what is wrong with it, "" if nothing is."""
    try:
        preprocess_case(plan, store, case)
    except InputError as error:
        return f"{case.name}: {error}"
    return ""


def preprocess_case(plan: Plan, store: Path, case: Case) -> None:
    """Preprocess one case."""
    origin = origin_of(case, plan)
    channels = {channel.name: path for channel, path in zip(plan.channels, case.images, strict=True)}
    volume, labels = read_channels(channels), read_labels(case.labels)
    preprocessed, classes = preprocess_with_labels(volume, labels, plan)
    store_case(store, origin, preprocessed.array, classes, readout_of(plan))


def check_store(run: RunFolder, names: Sequence[str]) -> None:
    """Refuse to train on cases that are missing in the store, or were made with another plan or from other files.

    Whether files changed is not asked where the data set itself is out of reach, as on a cluster's compute node.

    Raises:
        InputError: Naming the cases.
    """
    folder = Path(read_json(DatasetFingerprint, run.fingerprint_file).folder)
    if folder.is_dir():
        plan, wanted = run.read_plan(), set(names)
        cases = [case for case in read_dataset(folder).cases if case.name in wanted]
        unusable = [case.name for case in cases if not is_current(run.store, case, plan)]
    else:
        unusable = [name for name in names if not is_stored(run.store, name)]
    if unusable:
        listed = ", ".join(unusable[:8]) + (f" and {len(unusable) - 8} more" if len(unusable) > 8 else "")
        msg = f"Not preprocessed, or with other settings or files: {listed}. Run: mambaseg-train preprocess {run.path}"
        raise InputError(msg)
