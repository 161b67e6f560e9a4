"""Compressed data by all processors at once: pieces that follow one another in one ordinary gzip or zlib stream.

Each piece knows the 32 KiB in front of it, so the stream is hardly larger than one made in one go. It depends on the data and
the level alone, not on the number of processors.
Source: RFC 1950 (zlib), 1951 (deflate) and 1952 (gzip); the division into pieces is that of the program pigz.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from functools import partial

from MambaSegLib.limits import computing_threads
from MambaSegLib.scan.parallel import run_tasks

PIECE_BYTES = 1 << 20
"""Compressed at a time; a piece costs 5 bytes for its end."""

WINDOW_BYTES = 1 << 15
"""How far back deflate refers."""

_AT_ONCE = 128
"""Pieces held in memory."""

Data = bytes | memoryview


def gzip_stream(parts: Sequence[Data], level: int, threads: int | None = None) -> Iterator[bytes]:
    """A gzip file with some data one after another in it, without name and time: the same data give the same file.

    Args:
        parts: The data; memoryviews of bytes.
        level: 0 (none) to 9 (smallest).
        threads: None takes those PyTorch computes with.
    """
    yield b"\x1f\x8b\x08\x00" + bytes(4) + b"\x00\xff"
    yield from _deflate(parts, level, threads)
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    yield struct.pack("<II", checksum, sum(map(len, parts)) & 0xFFFFFFFF)


def zlib_stream(data: Data, level: int, threads: int | None = None) -> Iterator[bytes]:
    """Data as zlib.compress makes of them; see `gzip_stream`."""
    yield b"\x78\x9c"
    yield from _deflate([data], level, threads)
    yield struct.pack(">I", zlib.adler32(data))


def _deflate(parts: Sequence[Data], level: int, threads: int | None) -> Iterator[bytes]:
    pieces = [(part, start) for part in parts for start in range(0, len(part), PIECE_BYTES)] or [(b"", 0)]
    threads = threads or computing_threads()
    for first in range(0, len(pieces), _AT_ONCE):
        some = pieces[first : first + _AT_ONCE]
        packed = [b""] * len(some)
        tasks = [
            partial(_pack, packed, k, part, start, level, last=first + k == len(pieces) - 1)
            for k, (part, start) in enumerate(some)
        ]
        run_tasks(tasks, threads)
        yield from packed


def _pack(packed: list[bytes], place: int, part: Data, start: int, level: int, *, last: bool) -> None:
    before = bytes(part[max(0, start - WINDOW_BYTES) : start])
    settings = (level, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_DEFAULT_STRATEGY)
    packer = zlib.compressobj(*settings, zdict=before) if before else zlib.compressobj(*settings)
    content = packer.compress(part[start : start + PIECE_BYTES])
    packed[place] = content + packer.flush(zlib.Z_FINISH if last else zlib.Z_SYNC_FLUSH)
