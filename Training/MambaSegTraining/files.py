"""Files that are either whole or absent: records, what a training is continued from, final weights."""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from MambaSegLib.atomic import new_file
from MambaSegLib.errors import EnvironmentProblemError, InputError
from MambaSegLib.schema import format_json, from_json, parse_json, to_json

if TYPE_CHECKING:
    from torch import Tensor

Record = TypeVar("Record")

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SHORT_WRITES = (
    "unexpected pos",
    "PytorchStreamWriter",
    "requested and",
    *(f"os error {number}" for number in DISK_FULL),
)
"""How PyTorch, NumPy and safetensors say that a file could not be written to its end; only some give the system's number."""
LEFTOVER_S = 600


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """`new_file`, with a failure to write as a message for the person who can make room.

    Raises:
        EnvironmentProblemError: If the disk is full or fails; what was there before stays as it was.
    """
    from safetensors import SafetensorError

    try:
        with new_file(path) as work:
            yield work
    except EnvironmentProblemError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        is_full = getattr(error, "errno", None) in DISK_FULL or any(text in str(error) for text in SHORT_WRITES)
        if not is_full and not isinstance(error, OSError):
            raise
        reason = "the disk is full, or a limit for files is reached" if is_full else str(error)
        msg = f"{path} was not written: {reason}. Make room and run the same step again; what is finished is kept."
        raise EnvironmentProblemError(msg) from error


def remove_leftovers(folder: Path) -> None:
    """Remove unfinished files and folders that a killed process left minutes ago."""
    for path in folder.glob(".tmp-*"):
        with suppress(OSError):  # gone already
            if time.time() - path.stat().st_mtime <= LEFTOVER_S:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with whole_file(path) as work:
        work.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, record: object) -> None:
    """Write a record, whole or not at all, in the form `read_json` takes."""
    write_text(path, format_json(to_json(record)))


def read_json(cls: type[Record], path: Path) -> Record:
    """Read a record that `write_json` wrote.

    Raises:
        InputError: If the file is missing or does not fit the record.
    """
    if not path.is_file():
        msg = f"{path} does not exist. Run the step of mambaseg-train that writes it first."
        raise InputError(msg)
    return from_json(cls, parse_json(path.read_bytes(), str(path)), str(path))


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Save tensors, numbers, text and containers of them; nothing that would need unpickling of code."""
    import torch

    with whole_file(path) as work:
        torch.save(dict(content), work)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, into main memory.

    Not to the training's device: it would hold everything twice there, and PyTorch leaves the step counts of optimizers where
    they come from, so that on a GPU each step would wait for it once per parameter.

    Raises:
        InputError: If the file is damaged, or holds anything but data.
    """
    import pickle

    import torch

    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        msg = f"{path} cannot be read ({error}). Delete it to start this fold anew, or put back a good copy."
        raise InputError(msg) from error
    return content


def save_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write a state dictionary as safetensors."""
    from safetensors.torch import save_file

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    with whole_file(path) as work:
        save_file(contiguous, work)


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dictionary that `save_weights` wrote."""
    from safetensors.torch import load_file

    return load_file(path)
