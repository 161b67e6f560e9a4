"""Reading a .zip from anywhere: files one by one, into memory; nothing is ever unpacked by name.

An archive with a path that climbs, a link, a bomb, a name twice or more files than it may have is refused whole.
"""

from __future__ import annotations

import contextlib
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from MambaSegLib.errors import BundleError

MIB = 1024**2
MAX_RATIO = 100
"""Weights hardly compress and text compresses about tenfold; a thousandfold is an archive made to fill a disk."""
WRITTEN_BY_FILE_MANAGERS = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
_RATIO_MATTERS_BYTES = MIB
_MAX_DIRECTORY_BYTES = MIB
_END_SEARCHED_BYTES = 2**16 + 22 + 76


class SafeZip:
    """The files of an archive, listed and checked; what file managers add is passed over.

    Attributes:
        path: The archive.
        names: Its files as it names them.
    """

    def __init__(self, path: Path, max_entries: int) -> None:
        """List the archive.

        Raises:
            BundleError: If it cannot be read, is made to do harm, or has more entries than `max_entries`.
        """
        self.path = path
        with _refuse_damage(f"{path.name} is not a .zip archive that can be read"):
            _check_directory_size(path)
            with zipfile.ZipFile(path) as archive:
                self._entries = _checked_entries(path, archive.infolist(), max_entries)
        self.names: tuple[str, ...] = tuple(self._entries)

    def size(self, name: str) -> int:
        """Bytes of a file once unpacked, as the archive states it."""
        return self._entries[name].file_size

    def read(self, name: str) -> bytes:
        """Whole content of a file.

        Raises:
            BundleError: If it is damaged, or not of the size that is stated.
        """
        shown = name.rpartition("/")[2]
        with (
            _refuse_damage(f"{shown} in {self.path.name} is damaged"),
            zipfile.ZipFile(self.path) as archive,
            archive.open(self._entries[name]) as stream,
        ):
            return exactly(stream.read(self.size(name) + 1), self.size(name), shown)


def exactly(data: bytes, expected: int, name: str) -> bytes:
    """The data, if it has the length that was stated.

    Raises:
        BundleError: If not.
    """
    if len(data) != expected:
        message = f"{name} does not have the {expected} bytes it should have. Download the model again."
        raise BundleError(message)
    return data


@contextlib.contextmanager
def _refuse_damage(what: str) -> Iterator[None]:
    """Turn what `zipfile` raises on damaged bytes into a message; found by damaging archives at random."""
    try:
        yield
    except (BundleError, FileNotFoundError, PermissionError):
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, RuntimeError, ValueError, LookupError) as error:
        message = f"{what}: {error}. Download the model again."
        raise BundleError(message) from None
    except (OSError, OverflowError) as error:  # a position before the start or far beyond the end of the file
        message = f"{what}: {error}. Download the model again."
        raise BundleError(message) from None


def _check_directory_size(path: Path) -> None:
    """Refuse an archive whose directory would fill the memory: `zipfile` reads it whole before anything can be counted.

    Finds the end record as `zipfile` does: at the very end, or before a comment; a zip64 record lies just before it.
    """
    with path.open("rb") as stream:
        length = stream.seek(0, 2)
        stream.seek(max(0, length - _END_SEARCHED_BYTES))
        tail = stream.read()
    at = len(tail) - 22
    if tail[at : at + 4] != b"PK\5\6" or tail[-2:] != b"\0\0":
        at = tail.rfind(b"PK\5\6")
    size = int.from_bytes(tail[at + 12 : at + 16], "little")
    if at >= 76 and tail[at - 76 : at - 72] == b"PK\6\6":
        size = int.from_bytes(tail[at - 36 : at - 28], "little")
    if at >= 0 and size > _MAX_DIRECTORY_BYTES:
        message = f"{path.name} holds far more files than a model. It is refused."
        raise BundleError(message)


def _checked_entries(path: Path, infos: list[zipfile.ZipInfo], max_entries: int) -> dict[str, zipfile.ZipInfo]:
    if len(infos) > max_entries:
        message = f"{path.name} holds more than {max_entries} files. It is not a model."
        raise BundleError(message)
    wanted = [info for info in infos if not _written_by_system(info.filename)]
    for info in wanted:
        _check_entry(path, info)
    files = [info for info in wanted if not info.is_dir()]
    if len({info.filename.lower() for info in files}) != len(files):
        message = f"{path.name} holds two files of the same name. It is refused."
        raise BundleError(message)
    return {info.filename: info for info in files}


def _written_by_system(name: str) -> bool:
    """Whether an entry is a file manager's own (macOS, Windows)."""
    return name.startswith("__MACOSX/") or name.rpartition("/")[2] in WRITTEN_BY_FILE_MANAGERS


def _check_entry(path: Path, info: zipfile.ZipInfo) -> None:
    # `orig_filename` is what the archive says; `filename` is already adapted to this system (backslashes, null bytes).
    shown = info.orig_filename[:100].encode("unicode_escape").decode("ascii")
    parts = info.orig_filename.removesuffix("/").split("/")
    if set("\0\\:") & set(info.orig_filename) or {"", ".", ".."} & set(parts):
        message = f'{path.name} holds an unsafe path, "{shown}". It is refused.'
        raise BundleError(message)
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        message = f'{path.name} holds a link or a special file, "{shown}". It is refused.'
        raise BundleError(message)
    if info.flag_bits & 0x1:
        message = f"{path.name} is encrypted. Unpack it and give the folder."
        raise BundleError(message)
    if info.file_size > max(_RATIO_MATTERS_BYTES, MAX_RATIO * info.compress_size):
        message = f'{path.name} unpacks to more than {MAX_RATIO} times its size at "{shown}". It is refused.'
        raise BundleError(message)
