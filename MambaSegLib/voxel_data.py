"""Voxel bytes of NRRD and MetaImage files, checked to be complete.

Decoded here and not by ITK, whose readers fill what a damaged file lacks with zeros and only print about it.
"""

from __future__ import annotations

import bz2
import gzip
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from MambaSegLib.errors import InputError
from MambaSegLib.geometry import Array
from MambaSegLib.raw_image import allocate

_CHUNK = 1 << 22
_SPARE = 1 << 16
"""How far past the voxels a compressed stream is followed to its checksum."""


def read_voxels(path: Path, offset: int, encoding: str, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
    """Decode the voxels that start at a byte of a file.

    Args:
        path: The file.
        offset: First byte; -1 counts the voxels back from the file's end (raw only).
        encoding: "raw", "gzip", "zlib", "bzip2" or "ascii".
        shape: Axes, slowest first.
        dtype: As stored, byte order included.

    Returns:
        The array in native byte order.

    Raises:
        InputError: If bytes are missing or damaged.
    """
    array = allocate(path, shape, dtype)
    target = array.reshape(-1).view(np.uint8).data
    try:
        with path.open("rb") as stream:
            stream.seek(path.stat().st_size - array.nbytes if offset < 0 else offset)
            if encoding == "ascii":
                return _from_text(stream.read(), shape, dtype)
            done = _fill(stream, encoding, target)
    except (EOFError, zlib.error, gzip.BadGzipFile, ValueError, OverflowError, OSError) as error:
        msg = f"{path} is damaged or cut off: its voxels cannot be decoded ({error}); get it again"
        raise InputError(msg) from None
    if done < len(target):
        msg = f"{path} is cut off: {done} of {len(target)} bytes of voxels are there; get it again"
        raise InputError(msg)
    return array.astype(dtype.newbyteorder("="), copy=False)


def _from_text(text: bytes, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
    numbers = text.split()[: int(np.prod(shape))]
    parse: Callable[[bytes], float] = float if dtype.kind == "f" else int
    return np.array([parse(number) for number in numbers], dtype.newbyteorder("=")).reshape(tuple(shape))


def _fill(stream: Any, encoding: str, target: memoryview) -> int:
    if encoding == "raw":
        return _fill_from(stream, target)
    if encoding == "gzip":
        with gzip.GzipFile(fileobj=stream) as unpacked:
            done = _fill_from(unpacked, target)
            unpacked.read(_SPARE)  # at the end of the stream its checksum is compared
            return done
    if encoding == "bzip2":
        with bz2.BZ2File(stream) as unpacked:
            return _fill_from(unpacked, target)
    return _inflate(stream, target)


def _fill_from(stream: Any, target: memoryview) -> int:
    done = 0
    while done < len(target) and (step := stream.readinto(target[done : done + _CHUNK])):
        done += step
    return done


def _inflate(stream: Any, target: memoryview) -> int:
    """Zlib data, whose checksum zlib compares at their end."""
    unpacker = zlib.decompressobj()
    done, packed = 0, b""
    while not unpacker.eof and (packed := unpacker.unconsumed_tail or stream.read(_CHUNK)):
        part = unpacker.decompress(packed, max(1, min(_CHUNK, len(target) - done)))
        if done + len(part) > len(target):
            break
        target[done : done + len(part)] = part
        done += len(part)
    if not unpacker.eof and done == len(target):
        return done if unpacker.flush(_SPARE) == b"" and unpacker.eof else done - 1
    return done
