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


def describe_leakage(run: RunFolder) -> str:
    """What is known about knowledge of the measured cases in what they are measured with, for reports and bundles.

    Raises:
        InputError: As `checked_leakage`.
    """
    named = run.read_settings().plan.named
    from_data = not named and any(channel.normalization.scheme == "ct" for channel in run.read_plan().channels)
    window = (
        "The CT window and the mean and standard deviation that CTs are normalized with are those of the structures in all "
        "cases of the folds, as in nnU-Net: measured cases have a share in them."
    )
    parts = (checked_leakage(run).describe(), run.read_splits().note, window if from_data else "")
    return " ".join(text for text in parts if text)
