"""Planning a run again: allowed as long as trained folds stay what they are."""

from __future__ import annotations

from dataclasses import replace

from MambaSegLib.errors import InputError
from MambaSegLib.plan import Plan
from MambaSegLib.schema import to_json
from MambaSegTraining.plan_identity import deciding_part
from MambaSegTraining.run_folder import CHECKPOINT_FILE, WEIGHTS_FILE, RunFolder
from MambaSegTraining.splits import Splits


def check_trained_folds(run: RunFolder, plan: Plan, splits: Splits) -> None:
    """Refuse a plan or folds that networks of this run were not trained with: they would be measured as if they were.

    Names, colors and codes of labels, modalities and the fingerprint may change.

    Raises:
        InputError: Naming the folds and what differs.
    """
    if not (run.plan_file.is_file() and run.splits_file.is_file()):
        return
    before = run.read_splits()
    begun = [
        fold
        for fold in range(len(before.folds))
        if any((run.fold(fold) / name).is_file() for name in (CHECKPOINT_FILE, WEIGHTS_FILE))
    ]
    then, now = _relevant(run.read_plan()), _relevant(plan)
    changed = [name for name in then if then[name] != now[name]]
    changed += [f"fold {fold}" for fold in begun if before.folds[fold] != dict(enumerate(splits.folds)).get(fold)]
    if begun and changed:
        listed = ", ".join(map(str, begun))
        msg = (
            f"Fold {listed} of {run.path} was trained with other settings ({', '.join(changed)}). Plan into another folder, or "
            f"remove the folders fold_<k> first."
        )
        raise InputError(msg)


def _relevant(plan: Plan) -> dict[str, object]:
    return deciding_part(to_json(replace(plan, keep_largest=())))
