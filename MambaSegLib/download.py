"""Fetching one file from an address, with a limit on everything: size, silence, redirects."""

from __future__ import annotations

import hashlib
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from MambaSegLib.errors import EnvironmentProblemError, InputError

MAX_DOWNLOAD_BYTES = 4 * 1024**3
DEFAULT_TIMEOUT_S = 30.0
_CHUNK_BYTES = 1024**2
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_LOCAL_HOSTS = frozenset({"", "localhost"})


def is_address(text: str) -> bool:
    """Whether a text is an address (has a scheme) rather than a path; one drive letter does not make a scheme."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", text) is not None and not Path(text).exists()


def download(
    address: str,
    target: Path,
    *,
    sha256: str | None = None,
    limit: int = MAX_DOWNLOAD_BYTES,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    on_progress: Callable[[int, int | None], None] | None = None,
) -> None:
    """Write what an https, http or file address holds to a file; nothing is left on failure.

    Args:
        address: Where the file is.
        target: Where to put it.
        sha256: Expected SHA-256; required for http.
        limit: Most bytes to accept.
        timeout_s: How long the server may stay silent.
        on_progress: Called with (bytes so far, bytes in all or None).

    Raises:
        InputError: If the scheme is not allowed, the file is too large or the hash differs.
        EnvironmentProblemError: If the address cannot be read.
    """
    _check_address(address, sha256)
    opener = urllib.request.build_opener(_SafeRedirects(secure=urlsplit(address).scheme == "https"))
    try:
        with opener.open(address, timeout=timeout_s) as response, target.open("wb") as stream:
            digest = _copy(response, stream, limit, on_progress)
        _compare(address, digest, sha256)
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        target.unlink(missing_ok=True)
        reason = getattr(error, "reason", error)
        message = f"{address} cannot be read: {reason}. Check the address and the network, or install from a file."
        raise EnvironmentProblemError(message) from None
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as lower-case hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for chunk in iter(lambda: stream.read(_CHUNK_BYTES), b""):
            digest.update(chunk)
    return digest.hexdigest()


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to web addresses only, and never from https down to http."""

    def __init__(self, *, secure: bool) -> None:
        self._schemes = ("https",) if secure else ("https", "http")

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme not in self._schemes:
            message = f"{req.full_url} leads to {newurl}, which is not followed."
            raise InputError(message)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_address(address: str, sha256: str | None) -> None:
    parts = urlsplit(address)
    if parts.scheme not in ("https", "http", "file"):
        message = f'Models are installed from https, http or file addresses, not from "{parts.scheme}:".'
        raise InputError(message)
    if parts.scheme == "file" and parts.netloc not in _LOCAL_HOSTS:
        message = f"{address} names another computer. A file address has three slashes: file:///folder/model.zip."
        raise InputError(message)
    if parts.scheme == "http" and sha256 is None:
        message = f"{address} is not encrypted: anybody on the way could change the model. Use https, or give --sha256."
        raise InputError(message)
    if sha256 is not None and not _SHA256.fullmatch(sha256):
        message = f'"{sha256}" is not a SHA-256: expected 64 hexadecimal digits.'
        raise InputError(message)


def _copy(response: Any, stream: IO[bytes], limit: int, on_progress: Callable[[int, int | None], None] | None) -> str:
    stated = response.headers.get("Content-Length", "")
    total = int(stated) if stated.isdigit() else None
    _check_size(total or 0, limit)
    if total is not None and shutil.disk_usage(Path(stream.name).parent).free < total:
        message = f"There is no room for {total >> 20} MiB in {Path(stream.name).parent}. Free some space."
        raise EnvironmentProblemError(message)
    digest = hashlib.sha256()
    done = 0
    while chunk := response.read(_CHUNK_BYTES):
        done += len(chunk)
        _check_size(done, limit)
        digest.update(chunk)
        stream.write(chunk)
        if on_progress is not None:
            on_progress(done, total)
    if total is not None and done != total:
        message = f"The connection ended after {done} of {total} bytes. Try again."
        raise EnvironmentProblemError(message)
    return digest.hexdigest()


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        message = f"The file is larger than {limit >> 20} MiB, the most that is downloaded."
        raise InputError(message)


def _compare(address: str, digest: str, sha256: str | None) -> None:
    if sha256 is not None and digest != sha256.lower():
        message = f"{address} has SHA-256 {digest}, expected {sha256.lower()}. It is not the file you were promised."
        raise InputError(message)
