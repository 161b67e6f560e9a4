"""What only the numba backend has: chunks, checkpoints, a disk cache, vector arithmetic of its own."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
import time
import tracemalloc
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")
numba = pytest.importorskip("numba")

import numpy as np
from torch.utils.checkpoint import checkpoint

from MambaSegLib.scan import numba_tasks, pytorch_backend, selective_scan, vector_ir
from MambaSegLib.scan.arguments import Scan
from MambaSegLib.scan.numba_tiles import TILE, fill_rows
from MambaSegLib.scan.order import NATURAL_ORDER, ScanOrder
from MambaSegLib.scan.parallel import run_tasks
from MambaSegLib.scan.paths import path_numbers, to_scan_order

if TYPE_CHECKING:
    from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
FORWARD_TOLERANCE = 5e-7
GRADIENT_TOLERANCE = 5e-6


def make(length: int, decay: float, channels: int = 20, states: int = 6, batch: int = 1) -> list[Tensor]:
    """u, delta, A, B, C, D, z; `decay` scales A."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(batch, length, k, generator=generator) for k in (channels, channels, states, states, channels)]
    u, delta, B, C, z = (t.transpose(1, 2) for t in rows)
    A = -decay * torch.arange(1, states + 1).float().repeat(channels, 1)
    return [u, 0.3 * delta - 2, A, B, C, torch.randn(channels, generator=generator), z]


def everything(tensors: list[Tensor], order: ScanOrder | None = None, grid=None) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in tensors]
    out, last = selective_scan(*leaves, None, True, True, grid=grid, order=order, backend="numba")
    out.backward(torch.linspace(-1, 1, out.numel()).reshape(out.shape))
    return [out.detach(), last, *(leaf.grad for leaf in leaves)]


def reference(tensors: list[Tensor]) -> list[Tensor]:
    leaves = [t.detach().double().requires_grad_() for t in tensors]
    out, last = pytorch_backend.selective_scan(Scan(*leaves, None, True, (1, 1, tensors[0].shape[2]), NATURAL_ORDER))
    out.backward(torch.linspace(-1, 1, out.numel(), dtype=torch.float64).reshape(out.shape))
    return [out.detach(), last, *(leaf.grad for leaf in leaves)]


def assert_close(found: list[Tensor], wanted: list[Tensor]) -> None:
    for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
        error = float((a.double() - b).norm() / b.norm())
        assert error <= (FORWARD_TOLERANCE if i == 0 else GRADIENT_TOLERANCE), f"result {i}: {error:.1e}"


@pytest.fixture
def four_threads(monkeypatch: pytest.MonkeyPatch):
    """Four threads and short chunks, so that small tensors are divided too."""
    monkeypatch.setattr(numba_tasks, "SHORTEST_CHUNK", 2 * TILE)
    monkeypatch.setattr(numba_tasks, "LONG_SEQUENCE", 2 * TILE)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("decay", [3.0, 0.05, 0.0])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_sequence_in_chunks_gives_the_same_whether_states_fade_within_a_chunk_or_never(four_threads, decay, batch):
    tensors = make(11 * TILE + 17, decay, batch=batch)
    assert len(numba_tasks.forward_parts(batch, 2, tensors[0].shape[2], 4)[0]) > 1
    assert len(numba_tasks.backward_parts(batch, 2, tensors[0].shape[2], 4, TILE, 9)[0]) > 1
    assert_close(everything(tensors), reference(tensors))


def test_chunks_follow_the_scan_order(four_threads):
    grid, order = (9, 8, 11), ScanOrder((2, 0, 1), backward=True)
    tensors = make(9 * 8 * 11, 0.2)
    copies = [to_scan_order(t, grid, order) if t.ndim == 3 else t for t in tensors]
    found = everything(tensors, order, grid)[0]
    assert_close([to_scan_order(found, grid, order)], reference(copies)[:1])


@pytest.mark.parametrize("share", [0.15, 0.03])
def test_sparse_checkpoints_give_the_same_gradients(monkeypatch, share):
    tensors = make(9 * TILE + 5, 0.1, states=12)
    dense = everything(tensors)
    monkeypatch.setattr(numba_tasks, "FREE_CHECKPOINT_BYTES", 0)
    monkeypatch.setattr(numba_tasks, "CHECKPOINT_SHARE", share)
    assert numba_tasks.checkpoint_distance(tensors[0], 12) > TILE
    for a, b in zip(everything(tensors), dense, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("states", [1, 16, 32, 64, 128, 256])
def test_checkpoints_of_a_large_volume_take_at_most_their_share_of_u(states):
    volume = torch.empty(1, 48 * 192 * 192, 64, device="meta")
    distance = numba_tasks.checkpoint_distance(volume, states)
    assert distance % TILE == 0
    assert states / distance <= numba_tasks.CHECKPOINT_SHARE or distance == TILE


@pytest.mark.parametrize("threads", [1, 2, 3, 8, 16])
@pytest.mark.parametrize("length", [1, 100, 7000, 60000])
@pytest.mark.parametrize("blocks", [1, 4, 7, 40])
def test_parts_cover_every_position_of_every_block_once(threads, length, blocks):
    for runs in (
        numba_tasks.forward_parts(2, blocks, length, threads),
        numba_tasks.backward_parts(2, blocks, length, threads, 3 * TILE, most_runs=3),
    ):
        seen = np.zeros((2, blocks, length), int)
        for part in (part for run in runs for part in run):
            assert part.start % TILE == 0
            seen[part.batch, part.first_block : part.end_block, part.start : part.stop] += 1
        assert (seen == 1).all()


def test_results_do_not_depend_on_the_number_of_threads_beyond_rounding():
    tensors = make(2 * numba_tasks.SHORTEST_CHUNK + 100, 0.5, channels=16, states=4)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = everything(tensors)
        torch.set_num_threads(2)
        two = everything(tensors)
    finally:
        torch.set_num_threads(before)
    assert_close(two, [t.double() for t in one])


@pytest.mark.parametrize("order", [ScanOrder(), ScanOrder((1, 2, 0)), ScanOrder((2, 1, 0), backward=True)], ids=str)
def test_rows_are_the_tokens_in_scan_order(order):
    grid = (3, 4, 5)
    expected = to_scan_order(torch.arange(60), grid, order).numpy()
    for start in (0, 7, 59):
        rows = np.full(60, -1)
        fill_rows(path_numbers(grid, order), start, 60 - start, rows)
        assert rows[: 60 - start].tolist() == expected[start:].tolist()


def test_float64_is_refused_by_name():
    tensors = [t.double() for t in make(8, 1.0)]
    with pytest.raises(ValueError, match="backend='pytorch'"):
        selective_scan(*tensors, backend="numba")


def test_a_nan_in_the_input_is_not_hidden():
    tensors = make(100, 1.0)
    tensors[0] = tensors[0].clone()
    tensors[0][0, 3, 50] = float("nan")
    out = selective_scan(*tensors, None, True, backend="numba")
    assert out[0, 3, 50:].isnan().all()
    assert not out[0, 3, :50].isnan().any()
    assert not out[0, 4].isnan().any()


def test_growing_states_overflow_to_infinity_as_in_pytorch():
    tensors = make(40, -100.0, states=4)
    found = selective_scan(*tensors[:5], None, None, None, True, backend="numba")
    expected = selective_scan(*tensors[:5], None, None, None, True, backend="pytorch")
    assert not found[..., -1].isfinite().any()
    assert not expected[..., -1].isfinite().any()


def test_an_error_in_a_task_reaches_the_caller():
    def fail() -> None:
        msg = "broken"
        raise RuntimeError(msg)

    for threads in (1, 3):
        with pytest.raises(RuntimeError, match="broken"):
            run_tasks([lambda: None, lambda: None, fail], threads)


@pytest.mark.parametrize("threads", [1, 3])
def test_after_an_error_no_further_task_is_begun(threads):
    failed, begun = threading.Event(), []

    def fail() -> None:
        failed.set()
        raise KeyboardInterrupt

    def wait(number: int) -> None:
        begun.append(number)
        failed.wait()
        time.sleep(0.05)  # long enough for the error to be seen

    with pytest.raises(KeyboardInterrupt):
        run_tasks([fail, *(partial(wait, number) for number in range(50))], threads)
    assert len(begun) < threads


def test_a_scan_that_is_computed_again_keeps_no_states_until_then():
    tensors = [t.requires_grad_() for t in make(20 * TILE, 0.1, channels=32, states=16)]
    checkpoint_bytes = 20 * 32 * 16 * 4

    def held(scan) -> int:
        tracemalloc.start()
        try:
            output = scan(*tensors)
            size, _ = tracemalloc.get_traced_memory()
            output.sum().backward()
        finally:
            tracemalloc.stop()
        return size

    def scan(*tensors: Tensor) -> Tensor:
        return selective_scan(*tensors, None, True, backend="numba")

    again = partial(checkpoint, scan, use_reentrant=False)
    for first in (scan, again):
        held(first)  # imports and compiles
    assert held(scan) > checkpoint_bytes
    assert held(again) < checkpoint_bytes / 2


@pytest.mark.parametrize("threads", [1, 8, 128])
def test_many_threads_share_a_bounded_room_for_gradients(threads, monkeypatch):
    tensors = make(300, 0.5, channels=100, states=8)
    wanted = everything(tensors)
    made, real = [], numba_tasks.backward_parts
    monkeypatch.setattr(numba_tasks, "backward_parts", lambda *a: made.append(real(*a)) or made[-1])
    monkeypatch.setattr(numba_tasks, "SHARED_GRADIENT_BYTES", 3 * 2 * 4 * 300 * 8)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_close(everything(tensors), [t.double() for t in wanted])
    finally:
        torch.set_num_threads(before)
    assert len(made[0]) == min(threads, 3)


SECOND_START = """
import time, torch
from MambaSegLib.scan import selective_scan, causal_conv1d
import MambaSegLib.scan.numba_tasks, MambaSegLib.scan.numba_conv_tasks
start = time.perf_counter()
u = torch.randn(1, 16, 8, requires_grad=True)
u2 = causal_conv1d(u, torch.ones(16, 4), backend="numba")
y = selective_scan(u2, u, -torch.ones(16, 4), u[:, :4], u[:, :4], backend="numba")
y.sum().backward()
print(time.perf_counter() - start)
"""


def run_with_cache(folder: Path, code: str, settings: dict[str, str] | None = None) -> float:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(folder), "PYTHONPATH": str(ROOT)} | (settings or {})
    command = [sys.executable, "-c", code]  # which imports from where it is started, before PYTHONPATH
    result = subprocess.run(command, env=environment, cwd=folder.parent, capture_output=True, text=True, check=True)
    return float(result.stdout)


FILL_ROWS = """
import numpy as np
from MambaSegLib.scan.numba_tiles import fill_rows
fill_rows(np.array([1, 1, 4, 4, 4, 1, 0]), 0, 4, np.zeros(4, np.int64))
print(sum(fill_rows.stats.cache_hits.values()))
"""


def test_kernels_are_compiled_again_after_a_change_of_any_file_they_are_made_of(tmp_path):
    """An update may bring a new `vector_ir.py` and leave the file of the function that is called as it was."""
    library, cache = tmp_path / "MambaSegLib", tmp_path / "cache"
    shutil.copytree(
        ROOT / "MambaSegLib", library, ignore=lambda folder, names: {n for n in names if n in ("__pycache__", "models")}
    )
    settings = {"PYTHONPATH": str(tmp_path)}
    assert [run_with_cache(cache, FILL_ROWS, settings) for _ in range(2)] == [0, 1]
    before = {path: path.read_bytes() for path in cache.rglob("*.nbc")}
    with (library / "scan" / "vector_ir.py").open("a") as file:
        file.write("# changed\n")
    assert [run_with_cache(cache, FILL_ROWS, settings) for _ in range(2)] == [0, 1]
    # Whoever is killed between writing the index and the code must not leave one that names the old code.
    assert len(list(cache.rglob("*.nbc"))) == 2 * len(before)
    (library / "scan" / "paths.py").touch()
    assert run_with_cache(cache, FILL_ROWS, settings) == 1


@vector_ir.compiled
def doubled(x):
    return 2 * x


def test_kernels_run_without_room_for_them_on_disk_and_in_spite_of_damaged_files(monkeypatch, tmp_path):
    file, path = doubled._cache._cache_file, tmp_path / "cache.nbi"
    monkeypatch.setattr(file, "_index_path", str(path))
    path.write_bytes(b"damaged")
    assert doubled(3) == 6  # neither read nor written
    path.unlink()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(file, "save", full)
    assert doubled(3.5) == 7


def test_avx512_is_left_alone_where_numba_does_not_compile_for_it(monkeypatch):
    """numba switches AVX off on request and for virtual machines that name no processor; LLVM then ends the process."""
    monkeypatch.setattr(vector_ir.llvm, "get_host_cpu_features", lambda: {"avx512f": True})
    assert vector_ir.has_avx512()
    for setting, value in (("ENABLE_AVX", 0), ("CPU_NAME", "generic"), ("CPU_FEATURES", "+avx2")):
        with monkeypatch.context() as patched:
            patched.setattr(numba.config, setting, value)
            assert not vector_ir.has_avx512()


@pytest.mark.slow
def test_the_second_start_finds_the_compiled_kernels_on_disk(tmp_path):
    first = run_with_cache(tmp_path, SECOND_START)
    saved = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nbc")}
    time.sleep(0.01)
    second = run_with_cache(tmp_path, SECOND_START)
    assert saved
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nbc")} == saved, "kernels were compiled again"
    assert second < first / 3


ACCURACY = """
import numpy as np, torch
from MambaSegLib.scan import selective_scan
u = torch.zeros(1, 16, 2); u[..., 0] = 1
worst = 0
for exponent in np.linspace(-80, 80, 97):
    steps = torch.tensor([1.0, float(exponent)]).repeat(1, 16, 1)
    ones = torch.ones(1, 1, 2)
    y = selective_scan(u, steps, torch.ones(16, 1), ones, ones, backend="numba")[0, 0, 1].item()
    worst = max(worst, abs(y / np.exp(float(np.float32(exponent))) - 1) / max(1, abs(exponent)))
print(worst)
"""


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{}, {"NUMBA_CPU_NAME": "generic"}, {"NUMBA_ENABLE_AVX": "0"}], ids=str)
def test_the_exponential_is_accurate_on_processors_with_and_without_avx512(tmp_path, environment):
    # Rounding the exponent itself costs 6e-8 per unit of its size.
    assert run_with_cache(tmp_path, ACCURACY, environment) < 3e-7


# -- the streamed Mamba block ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [ScanOrder(), ScanOrder(backward=True), ScanOrder((2, 0, 1), True)], ids=str)
@pytest.mark.parametrize("stretch", [1, 2, 7, 64, 1000])
def test_a_streamed_block_equals_the_single_steps(order, stretch):
    from MambaSegLib.networks.mamba import MambaBlock
    from MambaSegLib.scan.arguments import BlockWeights
    from MambaSegLib.scan.numba_layer import stream_block

    torch.manual_seed(0)
    block = MambaBlock(12, 5)
    tokens = torch.randn(2, 60, 12)
    single = block(tokens, (3, 4, 5), order).detach()  # with gradients on, it runs step by step
    weights = BlockWeights(
        block.in_proj.weight,
        block.conv1d.weight.squeeze(1),
        block.conv1d.bias,
        block.x_proj.weight,
        block.dt_proj.weight,
        block.dt_proj.bias,
        -torch.exp(block.A_log),
        block.D,
        block.out_proj.weight,
    )
    with torch.no_grad():
        streamed = stream_block(tokens, weights, (3, 4, 5), order, stretch)
    assert float((streamed - single).norm() / single.norm()) <= 1e-6  # the same sums, cut at other places


def test_a_streamed_block_computes_in_float32_whatever_pytorch_does_by_default():
    from MambaSegLib.networks.mamba import MambaBlock

    torch.manual_seed(0)
    block, tokens = MambaBlock(12, 5), torch.randn(1, 60, 12)
    with torch.no_grad():
        wanted = block(tokens, (3, 4, 5), NATURAL_ORDER)
        torch.set_default_dtype(torch.float64)
        try:
            found = block(tokens, (3, 4, 5), NATURAL_ORDER)
        finally:
            torch.set_default_dtype(torch.float32)
    assert torch.equal(found, wanted)


def test_a_streamed_block_on_several_threads_equals_the_single_steps(four_threads):
    from MambaSegLib.networks.mamba import MambaBlock

    torch.manual_seed(0)
    block, tokens = MambaBlock(20, 6), torch.randn(1, 1200, 20)
    order = ScanOrder((1, 2, 0))
    single = block(tokens, (10, 10, 12), order).detach()
    with torch.no_grad():
        streamed = block(tokens, (10, 10, 12), order)
    assert float((streamed - single).norm() / single.norm()) <= 1e-6


def test_blocks_are_streamed_for_prediction_only():
    from MambaSegLib.scan import streams_blocks

    tokens = torch.zeros(1, 4, 2)
    assert not streams_blocks(tokens)  # gradients are on
    with torch.no_grad():
        assert streams_blocks(tokens)
        assert streams_blocks(tokens, "numba")
        assert not streams_blocks(tokens, "pytorch")
        assert not streams_blocks(tokens.double())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not streams_blocks(tokens)
