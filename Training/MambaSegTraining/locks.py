"""A file that one process at a time can hold; the system lets go of it when the process ends, however it ends."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from MambaSegLib.errors import InputError

HELD = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)

log = logging.getLogger(__name__)


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
