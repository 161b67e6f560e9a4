"""What a preprocessed case was made from: sizes and times of files for a quick look, contents where only times differ.

Times alone change when a data set is copied, mounted elsewhere or checked out again.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from MambaSegLib.errors import EnvironmentProblemError
from MambaSegLib.plan import Plan
from MambaSegLib.schema import to_json
from MambaSegTraining.dataset import Case
from MambaSegTraining.json_hash import json_hash
from MambaSegTraining.store import CaseOrigin, read_record, write_record

STORE_VERSION = 1
"""Counts up when preprocessing or the form of the store changes."""
PIECE = 1 << 24


def is_current(store: Path, case: Case, plan: Plan) -> bool:
    """Whether a case is stored as this plan and these source files make it.

    Files of another time are read, and if their contents are the same, their times are noted in the store for the next
    time.

    Args:
        store: Folder of the store.
        case: The case.
        plan: The plan.
    """
    record = read_record(store, case.name)
    if record is None:
        return False
    key = case_key(case, plan)
    if record.key == key:
        return True
    if not record.content or record.settings != settings_hash(plan) or record.content != content_hash(case):
        return False
    with suppress(EnvironmentProblemError, OSError):  # a store that only others may write is good as it is
        write_record(store, replace(record, key=key))
    return True


def origin_of(case: Case, plan: Plan) -> CaseOrigin:
    """What a case is about to be made from. To be asked before its files are read: a later change must not go unnoticed."""
    return CaseOrigin(case.name, case_key(case, plan), settings_hash(plan), content_hash(case))


def known_content_hash(store: Path, case: Case, plan: Plan) -> str:
    """`content_hash` of a case, from the store if that has looked at the same files."""
    record = read_record(store, case.name)
    return record.content if record and record.content and record.key == case_key(case, plan) else content_hash(case)


def content_hash(case: Case) -> str:
    """Hash of the bytes of all files of a case."""
    total = hashlib.sha256()
    for path in (*case.images, case.labels):
        one = hashlib.sha256()
        with path.open("rb") as stream:
            while piece := stream.read(PIECE):
                one.update(piece)
        total.update(one.digest())
    return total.hexdigest()


def case_key(case: Case, plan: Plan) -> str:
    """Hash of what the preprocessed arrays depend on: part of the plan, and names, sizes and times of the files."""
    files = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in (*case.images, case.labels)]
    return json_hash([*_relevant(plan), files])


def settings_hash(plan: Plan) -> str:
    """Hash of the part of the plan that the preprocessed arrays depend on."""
    return json_hash(_relevant(plan))


def _relevant(plan: Plan) -> list[object]:
    stated = to_json(plan)
    relevant = {name: stated[name] for name in ("orientation", "spacing_mm", "channels", "crop_to_nonzero")}
    values: list[object] = [label.value for label in plan.labels]
    if plan.regions or plan.ignore_value is not None:
        values += [stated["regions"], plan.ignore_value]
    return [STORE_VERSION, relevant, values]
