"""Where a trained model of nnU-Net v2 lies: its results folder, or the .zip that `nnUNetv2_export_model_to_zip` writes.

Only the files named here are ever opened; pickles are not, and nothing is unpacked to disk.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from MambaSegLib.errors import BundleError, InputError
from MambaSegLib.safe_zip import MIB, SafeZip

PLANS, DATASET, FINGERPRINT, CHECKPOINT = (
    "plans.json",
    "dataset.json",
    "dataset_fingerprint.json",
    "checkpoint_final.pth",
)
ALL_CASES = "all"
"""nnU-Net's name of the fold that is trained on every case."""
_MAX_FILES = 10_000
_MAX_JSON_BYTES = 64 * MIB
_MAX_CHECKPOINT_BYTES = 8 * 1024 * MIB
_DEPTHS = ("", "*/", "*/*/")
"""A configuration's folder, a data set's, and that of all results."""
_LOOKED_AT = (
    PLANS,
    DATASET,
    FINGERPRINT,
    "fold_*/checkpoint_*.pth",
    "crossval_results_*/postprocessing.pkl",
    "plans.pkl",
)
_FOLD = re.compile(rf"(?P<top>(.*/)?)fold_(?P<fold>0|[1-9][0-9]?|{ALL_CASES})/{re.escape(CHECKPOINT)}")


class _Files(Protocol):
    path: Path

    @property
    def names(self) -> Sequence[str]: ...

    def size(self, name: str) -> int: ...

    def read(self, name: str) -> bytes: ...


@dataclass(frozen=True)
class TrainedModel:
    """The trained folds of one configuration.

    Attributes:
        folder: nnU-Net's name of it, `TRAINER__PLANS__CONFIGURATION`; that of the input if it lies at the top.
        folds: "0", "1", ... or "all", by increasing number.
    """

    folder: str
    folds: tuple[str, ...]
    _files: _Files
    _top: str

    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return self._top + name in self._files.names

    def read_json(self, name: str) -> dict[str, Any]:
        """Content of one of the JSON files.

        Raises:
            InputError: If it is missing, too large, or no JSON object.
        """
        return json_object(self._read(name, _MAX_JSON_BYTES), f"{name} in {self._files.path}")

    def read_checkpoint(self, fold: str) -> bytes:
        """The checkpoint of a fold, unopened.

        Raises:
            InputError: If it is too large.
        """
        return self._read(checkpoint_name(fold), _MAX_CHECKPOINT_BYTES)

    @property
    def postprocessing(self) -> str:
        """Name of the file with nnU-Net's postprocessing, a pickle; "" if there is none."""
        parts = (name.removeprefix(self._top) for name in self._files.names if name.startswith(self._top))
        return next((name for name in parts if re.fullmatch(r"crossval_results_\w+/postprocessing\.pkl", name)), "")

    def _read(self, name: str, limit: int) -> bytes:
        if not self.has(name):
            msg = f"{name} is missing from {self._files.path}; a trained model of nnU-Net v2 has it."
            raise InputError(msg)
        size = self._files.size(self._top + name)
        if size > limit:
            msg = f"{name} in {self._files.path} has {size} bytes; at most {limit} are read."
            raise InputError(msg)
        return self._files.read(self._top + name)


def json_object(text: str | bytes, name: str) -> dict[str, Any]:
    """Content of one of nnU-Net's JSON files.

    Args:
        text: The file's content.
        name: What to call it in a message.

    Raises:
        InputError: If it is no JSON object.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        msg = f"{name} cannot be read as JSON: {error}."
        raise InputError(msg) from None
    if not isinstance(content, dict):
        msg = f"{name} must hold an object."
        raise InputError(msg)
    return content


def checkpoint_name(fold: str) -> str:
    """Where nnU-Net keeps the weights of a fold."""
    return f"fold_{fold}/{CHECKPOINT}"


def open_trained(path: Path, configuration: str = "") -> TrainedModel:
    """Find the trained model in a folder or .zip.

    Args:
        path: A configuration's folder, one of the folders above it, or a .zip of one.
        configuration: Which, if there are several; "" takes the only one, or 3d_fullres.

    Raises:
        InputError: If there is none, or the choice is open.
        BundleError: If a .zip is damaged or hostile.
    """
    files = _open(path)
    folds: dict[str, list[str]] = {}
    for match in filter(None, map(_FOLD.fullmatch, files.names)):
        if f"{match['top']}{PLANS}" in files.names:
            folds.setdefault(match["top"], []).append(match["fold"])
    if not folds:
        raise BundleError(_nothing_there(path, files.names))
    folders = {top: top.rstrip("/").rpartition("/")[2] or path.name for top in folds}
    top = _chosen(path, folders, configuration)
    return TrainedModel(folders[top], tuple(sorted(folds[top], key=_by_number)), files, top)


def is_trained_nnunet(path: Path, names: Sequence[str]) -> bool:
    """Whether a folder or .zip that holds these files is nnU-Net's, to tell its owner what to do."""
    inside = any(name.rpartition("/")[2] == PLANS for name in names)
    return inside or (path.is_dir() and any(path.glob(f"*/{PLANS}")))


def _by_number(fold: str) -> tuple[bool, int]:
    return (fold == ALL_CASES, 0 if fold == ALL_CASES else int(fold))


def _open(path: Path) -> _Files:
    if path.is_dir():
        return _Folder(path)
    if path.is_file():
        return SafeZip(path, _MAX_FILES)
    msg = f"{path} does not exist. Give a trained model of nnU-Net: its folder or its .zip."
    raise InputError(msg)


def _chosen(path: Path, folders: dict[str, str], configuration: str) -> str:
    wanted = configuration or ("3d_fullres" if len(folders) > 1 else "")
    found = [top for top, name in folders.items() if not wanted or len(folders) == 1 or name.endswith(f"__{wanted}")]
    if len(found) != 1:
        listed = ", ".join(sorted(folders.values()))
        msg = f"{path} holds several trained models: {listed}. Choose one with --configuration, or give its own folder."
        raise InputError(msg)
    return found[0]


def _nothing_there(path: Path, names: Sequence[str]) -> str:
    if any(name.endswith("plans.pkl") for name in names):
        return f"{path} is a model of nnU-Net's first version. Only models of nnU-Net v2 can be converted."
    if any(_FOLD.fullmatch(name) for name in names):
        return f"{path} holds {CHECKPOINT}, but no {PLANS} beside its fold: copy all of the folder that nnU-Net made."
    if any(name.endswith(".pth") for name in names):
        return f"{path} holds no {CHECKPOINT}: its training is not finished, or not all files were copied."
    return f"{path} holds no trained model of nnU-Net v2: {PLANS}, {DATASET} and {checkpoint_name('0')}, for example."


class _Folder:
    def __init__(self, path: Path) -> None:
        self.path = path
        found = {
            entry for depth in _DEPTHS for kind in _LOOKED_AT for entry in path.glob(depth + kind) if entry.is_file()
        }
        self.names = tuple(sorted(entry.relative_to(path).as_posix() for entry in found))

    def size(self, name: str) -> int:
        return (self.path / name).stat().st_size

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()
