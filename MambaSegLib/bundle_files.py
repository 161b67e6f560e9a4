"""The files of a bundle, read from a folder or straight from a .zip; nothing is ever unpacked by name.

A bundle may come from anywhere. Only names on a short list are looked at, sizes are capped before memory is asked for,
and an archive with anything that has no business in a model (a path that climbs, a link, a pickle) is refused whole.
"""

from __future__ import annotations

import contextlib
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from MambaSegLib.errors import BundleError

MANIFEST_FILE = "bundle.json"
CARD_FILE = "MODEL_CARD.md"
MIB = 1024**2
MAX_ENTRIES = 200
MAX_TOTAL_BYTES = 16 * 1024 * MIB
MAX_RATIO = 100
"""Weights hardly compress and text compresses about tenfold; a thousandfold is an archive made to fill a disk."""
_RATIO_MATTERS_BYTES = MIB
_MAX_DIRECTORY_BYTES = MIB
_END_SEARCHED_BYTES = 2**16 + 22 + 76
_WRITTEN_BY_FILE_MANAGERS = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
_FILE_LIMITS: tuple[tuple[re.Pattern[str], int], ...] = (
    (re.compile(r"bundle\.json"), 4 * MIB),
    (re.compile(r"MODEL_CARD\.md"), 4 * MIB),
    (re.compile(r"LICENSE([._-][A-Za-z0-9._-]{1,60})?"), 4 * MIB),
    (re.compile(r"fold_(0|[1-9][0-9]?)\.safetensors"), 8 * 1024 * MIB),
    (re.compile(r"figures/[A-Za-z0-9_-]{1,80}\.(png|jpg)"), 32 * MIB),
)


class BundleFiles(Protocol):
    """Where the files of one bundle are."""

    path: Path

    def names(self) -> tuple[str, ...]:
        """Files of the bundle, relative, with forward slashes."""

    def size(self, name: str) -> int:
        """Bytes of a file as the folder or archive states it."""

    def read(self, name: str) -> bytes:
        """Whole content of a file.

        Raises:
            BundleError: If it is missing, longer than stated, or damaged.
        """


def open_bundle_files(path: Path) -> BundleFiles:
    """Look at a folder or .zip without reading any weights.

    Raises:
        BundleError: If it is neither, or holds what a bundle may not hold.
    """
    if path.is_dir():
        return FolderFiles(path)
    if path.is_file():
        return ZipFiles(path)
    message = f"{path} does not exist. Give the folder or the .zip file of a model."
    raise BundleError(message)


def max_bytes(name: str) -> int | None:
    """Largest size a file of this name may have; None if a bundle may not hold such a file."""
    for pattern, limit in _FILE_LIMITS:
        if pattern.fullmatch(name):
            return limit
    return None


class FolderFiles:
    """A bundle in a folder."""

    def __init__(self, path: Path) -> None:
        """List the folder; raises BundleError if it holds what it may not hold."""
        self.path = path
        self._sizes = {name: (path / name).stat().st_size for name in _folder_names(path)}
        _check_sizes(path, self._sizes)

    def names(self) -> tuple[str, ...]:
        """Files of the bundle."""
        return tuple(self._sizes)

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return _stated_size(self.path, self._sizes, name)

    def read(self, name: str) -> bytes:
        """Whole content of a file."""
        expected = self.size(name)
        with (self.path / name).open("rb") as stream:
            return _exactly(stream.read(expected + 1), expected, name)


class ZipFiles:
    """A bundle in a .zip, with its files at the top or in one folder."""

    def __init__(self, path: Path) -> None:
        """List the archive; raises BundleError if it holds what it may not hold."""
        self.path = path
        with _refuse_damage(f"{path.name} is not a .zip archive that can be read"):
            _check_directory_size(path)
            with zipfile.ZipFile(path) as archive:
                self._entries = _checked_entries(path, archive.infolist())
        self._sizes = {name: entry.file_size for name, entry in self._entries.items()}
        _check_sizes(path, self._sizes)

    def names(self) -> tuple[str, ...]:
        """Files of the bundle."""
        return tuple(self._sizes)

    def size(self, name: str) -> int:
        """Bytes of a file once unpacked, as the archive states it."""
        return _stated_size(self.path, self._sizes, name)

    def read(self, name: str) -> bytes:
        """Whole content of a file."""
        expected = self.size(name)
        with (
            _refuse_damage(f"{name} in {self.path.name} is damaged"),
            zipfile.ZipFile(self.path) as archive,
            archive.open(self._entries[name]) as stream,
        ):
            return _exactly(stream.read(expected + 1), expected, name)


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


def _folder_names(path: Path) -> list[str]:
    names = []
    for entry in _entries_of(path):
        name = entry.relative_to(path).as_posix()
        if entry.is_symlink():
            message = f"{name} in {path} is a link. Put the file itself into the folder."
            raise BundleError(message)
        if entry.is_dir() or entry.name in _WRITTEN_BY_FILE_MANAGERS:
            continue
        if not entry.is_file():
            message = f"{name} in {path} is no ordinary file. Put the file itself into the folder."
            raise BundleError(message)
        names.append(name)
    _check_names(path, names)
    return sorted(names)


def _entries_of(path: Path) -> list[Path]:
    entries = [*path.iterdir(), *(path / "figures").glob("*")]
    if len(entries) > MAX_ENTRIES:
        message = f"{path} holds more than {MAX_ENTRIES} files. It is not the folder of a model."
        raise BundleError(message)
    return entries


def _checked_entries(path: Path, infos: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    if len(infos) > MAX_ENTRIES:
        message = f"{path.name} holds more than {MAX_ENTRIES} files. It is not a model."
        raise BundleError(message)
    wanted = [info for info in infos if not _written_by_system(info.filename)]
    for info in wanted:
        _check_entry(path, info)
    files = [info for info in wanted if not info.is_dir()]
    top = _top_folder([info.filename for info in files])
    entries = {info.filename.removeprefix(top): info for info in files}
    if len({info.filename.lower() for info in files}) != len(files):
        message = f"{path.name} holds two files of the same name. It is refused."
        raise BundleError(message)
    _check_names(path, entries)
    return entries


def _written_by_system(name: str) -> bool:
    """Whether an entry is a file manager's own (macOS, Windows): passed over, never unpacked."""
    return name.startswith("__MACOSX/") or name.rpartition("/")[2] in _WRITTEN_BY_FILE_MANAGERS


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


def _top_folder(names: list[str]) -> str:
    """The one folder that holds all files, with its slash; "" if they lie at the top."""
    tops = {name.partition("/")[0] for name in names if "/" in name}
    manifests = [name for name in names if name.rpartition("/")[2] == MANIFEST_FILE]
    if len(manifests) == 1 and len(tops) == 1 and manifests[0].count("/") == 1:
        return tops.pop() + "/"
    return ""


def _check_names(path: Path, names: Iterable[str]) -> None:
    listed = list(names)
    if MANIFEST_FILE not in listed:
        message = f"{path} holds no {MANIFEST_FILE}. It is not a MambaSegmentation model."
        raise BundleError(message)
    for name in listed:
        if max_bytes(name) is None:
            shown = name[:100].encode("unicode_escape").decode("ascii")
            message = f'{path} holds "{shown}", a file that has no place in a model. It is refused.'
            raise BundleError(message)


def _check_sizes(path: Path, sizes: dict[str, int]) -> None:
    for name, size in sizes.items():
        limit = max_bytes(name)
        if limit is not None and size > limit:
            message = f"{name} in {path} has {size} bytes; at most {limit} are read."
            raise BundleError(message)
    if sum(sizes.values()) > MAX_TOTAL_BYTES:
        message = f"{path} holds {sum(sizes.values())} bytes; at most {MAX_TOTAL_BYTES} are read."
        raise BundleError(message)


def _stated_size(path: Path, sizes: dict[str, int], name: str) -> int:
    if name not in sizes:
        message = f"{name} is missing from {path}. Download or export the model again."
        raise BundleError(message)
    return sizes[name]


def _exactly(data: bytes, expected: int, name: str) -> bytes:
    if len(data) != expected:
        message = f"{name} does not have the {expected} bytes it should have. Download the model again."
        raise BundleError(message)
    return data
