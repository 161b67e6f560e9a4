"""The leakage check of a run's folds, as `plan` stored it, and whether it is about the folds the run has now."""

from __future__ import annotations

from MambaSegLib.errors import InputError
from MambaSegTraining.files import read_json
from MambaSegTraining.leakage import LeakageRecord, check_leakage
from MambaSegTraining.run_folder import RunFolder


def checked_leakage(run: RunFolder) -> LeakageRecord:
    """What the check of the run's folds found; where none is stored, cases and patients are compared by name here.

    Raises:
        InputError: If the folds are not those that were checked.
    """
    splits = run.read_splits()
    if not run.leakage_file.is_file():
        return check_leakage(splits, force=True)
    record = read_json(LeakageRecord, run.leakage_file)
    if record.splits_sha256 != splits.sha256:
        msg = (
            f"{run.splits_file} was changed after its folds were checked for leaks. Name the folds in the configuration "
            "(dataset.splits_file) and run mambaseg-train plan again."
        )
        raise InputError(msg)
    return record
