"""Unpacking of downloaded archives: nothing outside the target folder, no links, no devices."""

from __future__ import annotations

import contextlib
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from MambaSegLib.errors import EnvironmentProblemError, InputError


@contextlib.contextmanager
def unpacked(archive: Path, beside: Path) -> Iterator[Path]:
    """Unpack a .tar, .tar.gz or .zip into a temporary folder that is removed at the end.

    Args:
        archive: The archive.
        beside: Where the temporary folder is made: on the disk that the converted data goes to.

    Yields:
        The folder.

    Raises:
        InputError: If it is no such archive, is damaged, or holds a path that leads outside or an entry that is neither
            file nor folder.
        EnvironmentProblemError: If the disk is too small.
    """
    beside.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".tmp-unpack-", dir=beside))
    try:
        _unpack(archive, work)
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _unpack(archive: Path, folder: Path) -> None:
    try:
        if tarfile.is_tarfile(archive):
            with tarfile.open(archive) as tar:
                _unpack_tar(archive, tar, folder)
        elif zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:
                _unpack_zip(archive, packed, folder)
        else:
            msg = f"{archive} is neither a tar nor a zip archive; give the download or the folder unpacked from it."
            raise InputError(msg)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        msg = f"{archive} is damaged or cut off ({error}); download it again."
        raise InputError(msg) from error


def _unpack_tar(archive: Path, tar: tarfile.TarFile, folder: Path) -> None:
    for member in tar:
        target = _target(archive, member.name, folder)
        if member.isdir() or target is None:
            continue
        stream = tar.extractfile(member) if member.isfile() else None
        if stream is None:
            msg = f"{archive} holds {member.name!r}, which is neither a file nor a folder; it was not unpacked."
            raise InputError(msg)
        _require_space(archive, member.size, folder)
        _copy(stream, target)


def _unpack_zip(archive: Path, packed: zipfile.ZipFile, folder: Path) -> None:
    _require_space(archive, sum(info.file_size for info in packed.infolist()), folder)
    for info in packed.infolist():
        target = _target(archive, info.filename, folder)
        if info.is_dir() or target is None:
            continue
        with packed.open(info) as stream:  # a symbolic link in a zip is a file that holds its target's name
            _copy(stream, target)


def _target(archive: Path, name: str, folder: Path) -> Path | None:
    """Where an entry goes; None for the hidden files some systems add, such as ._image.nii.gz."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in name:
        msg = f"{archive} holds the path {name!r}, which leads outside its folder; it was not unpacked."
        raise InputError(msg)
    return None if path.name.startswith(".") else folder / path


def _require_space(archive: Path, size: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        msg = f"{archive} needs {size / 1e9:.1f} GB more to unpack, {folder} has {free / 1e9:.1f} GB free."
        raise EnvironmentProblemError(msg)


def _copy(stream: IO[bytes], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as out:
        shutil.copyfileobj(stream, out, 1 << 20)
