"""Work that one process at a time may do in a folder; the system lets go when the process ends, however it ends."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from MambaSegLib.errors import InputError
from MambaSegTraining.files import remove_leftovers

HELD = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)

log = logging.getLogger(__name__)


@contextmanager
def own_folder(folder: Path, work: str, what: str) -> Iterator[None]:
    """Make a folder, keep other processes from the same work in it, and remove what a killed one left half-written.

    Args:
        folder: The folder.
        work: Name of the work: "train", "validate".
        what: What is done, for the message, such as "Fold 0 is trained".

    Raises:
        InputError: If another process does it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with held_by_one(folder / f"{work}.lock", what):
        remove_leftovers(folder)
        yield


@contextmanager
def held_by_one(path: Path, what: str) -> Iterator[None]:
    """Hold a file while something is done that two processes must not do at once.

    Where the file system knows no locks, as some of clusters do, it goes on without.

    Args:
        path: The file; made if it is not there, and left there.
        what: What is done, for the message.

    Raises:
        InputError: If another process holds the file.
    """
    with path.open("ab") as stream:
        try:
            _lock(stream.fileno())
        except OSError as error:
            if error.errno in HELD:
                msg = f"{what} in another process already ({path} is locked). Wait for it, or end it first."
                raise InputError(msg) from error
            log.debug("%s cannot be locked: %s", path, error)
        yield


def _lock(file: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        os.lseek(file, 0, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
