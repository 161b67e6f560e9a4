"""The files of a bundle, read from a folder or straight from a .zip; nothing is ever unpacked by name.

A bundle may come from anywhere. Only names on a short list are looked at, sizes are capped before memory is asked for,
and an archive with anything that has no business in a model (a path that climbs, a link, a pickle) is refused whole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from MambaSegLib.errors import BundleError
from MambaSegLib.nnunet.files import is_trained_nnunet
from MambaSegLib.safe_zip import MIB, WRITTEN_BY_FILE_MANAGERS, SafeZip, exactly

MANIFEST_FILE = "bundle.json"
CARD_FILE = "MODEL_CARD.md"
MAX_ENTRIES = 200
MAX_TOTAL_BYTES = 16 * 1024 * MIB
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
            return exactly(stream.read(expected + 1), expected, name)


class ZipFiles:
    """A bundle in a .zip, with its files at the top or in one folder."""

    def __init__(self, path: Path) -> None:
        """List the archive; raises BundleError if it holds what it may not hold."""
        self.path = path
        self._archive = SafeZip(path, MAX_ENTRIES)
        top = _top_folder(self._archive.names)
        self._stored = {name.removeprefix(top): name for name in self._archive.names}
        _check_names(path, list(self._stored))
        self._sizes = {name: self._archive.size(stored) for name, stored in self._stored.items()}
        _check_sizes(path, self._sizes)

    def names(self) -> tuple[str, ...]:
        """Files of the bundle."""
        return tuple(self._sizes)

    def size(self, name: str) -> int:
        """Bytes of a file once unpacked, as the archive states it."""
        return _stated_size(self.path, self._sizes, name)

    def read(self, name: str) -> bytes:
        """Whole content of a file."""
        self.size(name)
        return self._archive.read(self._stored[name])


def _folder_names(path: Path) -> list[str]:
    names = []
    entries = _entries_of(path)
    _check_is_model(path, [entry.relative_to(path).as_posix() for entry in entries])
    for entry in entries:
        name = entry.relative_to(path).as_posix()
        if entry.is_symlink():
            message = f"{name} in {path} is a link. Put the file itself into the folder."
            raise BundleError(message)
        if entry.is_dir() or entry.name in WRITTEN_BY_FILE_MANAGERS:
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


def _top_folder(names: Sequence[str]) -> str:
    """The one folder that holds all files, with its slash; "" if they lie at the top."""
    tops = {name.partition("/")[0] for name in names if "/" in name}
    manifests = [name for name in names if name.rpartition("/")[2] == MANIFEST_FILE]
    if len(manifests) == 1 and len(tops) == 1 and manifests[0].count("/") == 1:
        return tops.pop() + "/"
    return ""


def _check_is_model(path: Path, names: Sequence[str]) -> None:
    if MANIFEST_FILE not in names:
        message = f"{path} holds no {MANIFEST_FILE}. It is not a MambaSegmentation model."
        if is_trained_nnunet(path, names):
            message = (
                f"{path} is a model of nnU-Net. Convert it first, from a file on this computer: mambaseg models convert "
                f"{path.name} -o BUNDLE"
            )
        raise BundleError(message)


def _check_names(path: Path, names: Sequence[str]) -> None:
    _check_is_model(path, names)
    for name in names:
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
