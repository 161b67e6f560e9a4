"""Data compressed piece by piece are an ordinary gzip or zlib stream, whatever the number of threads."""

from __future__ import annotations

import gzip
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest

from MambaSegLib import deflate
from MambaSegLib.deflate import gzip_stream, zlib_stream

SIZES = [0, 1, 1000, 4096, 4097, 30_000]


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deflate, "PIECE_BYTES", 4096)
    monkeypatch.setattr(deflate, "_AT_ONCE", 3)


def data_of(size: int) -> bytes:
    return np.random.default_rng(size).integers(0, 9, size, dtype=np.uint8).tobytes()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("level", [0, 1, 6])
def test_what_is_packed_comes_out_again(size: int, level: int) -> None:
    head, data = b"a header", memoryview(data_of(size))
    assert gzip.decompress(b"".join(gzip_stream([head, data], level))) == head + bytes(data)
    assert zlib.decompress(b"".join(zlib_stream(data, level))) == bytes(data)


def test_the_number_of_threads_changes_no_byte() -> None:
    data = data_of(100_000)
    assert len({b"".join(gzip_stream([data], 1, threads)) for threads in (1, 2, 5)}) == 1


def test_a_piece_refers_to_the_one_before() -> None:
    repeated = np.random.default_rng(0).integers(0, 256, 4096, dtype=np.uint8).tobytes() * 8
    assert len(b"".join(gzip_stream([repeated], 6))) < 1.05 * len(gzip.compress(repeated, 6))


def test_another_program_reads_it_and_finds_what_was_damaged(tmp_path: Path) -> None:
    packed = b"".join(gzip_stream([data_of(30_000)], 1))
    file = tmp_path / "a.gz"
    file.write_bytes(packed)
    try:
        whole = subprocess.run(["gzip", "-t", str(file)], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no gzip on this computer")
    assert whole.returncode == 0, whole.stderr
    for damaged in (packed[:-5], packed[:-6] + bytes([packed[-6] ^ 1]) + packed[-5:]):
        with pytest.raises((EOFError, gzip.BadGzipFile)):
            gzip.decompress(damaged)
