"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Fill a folder under another name and give it its own at the end; on any error nothing is left.

    An old folder of that name is put aside first and removed last: a kill between the two renames leaves the old one
    and the new one in a `.tmp-` folder beside it.

    Args:
        target: The folder to make or replace. Its parent is made where it is missing.

    Yields:
        The folder to write into, beside `target`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".tmp-", dir=target.parent))
    try:
        content = work / "new"
        content.mkdir()
        yield content
        for file in content.rglob("*"):
            if file.is_file():
                _flush(file)
        _swap(content, target, work / "old")
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """Write a file under another name beside it and give it its own at the end; on any error nothing is left.

    Yields:
        The path to write, with the last two suffixes of `target`.
    """
    work = target.parent / f".tmp-{secrets.token_hex(4)}{''.join(target.suffixes[-2:])}"
    work.touch(exist_ok=False)  # not mkstemp, whose files only their owner can read
    try:
        yield work
        _flush(work)
        work.replace(target)
    finally:
        work.unlink(missing_ok=True)


def _swap(content: Path, target: Path, aside: Path) -> None:
    if target.exists():
        target.rename(aside)
    try:
        content.rename(target)
    except OSError:
        if aside.exists():
            aside.rename(target)
        raise


def _flush(file: Path) -> None:
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())
