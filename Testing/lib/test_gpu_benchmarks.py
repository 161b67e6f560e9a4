"""The GPU benchmarks run here in a tiny form, so that they are not found broken on the day a GPU is at hand."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

torch = pytest.importorskip("torch")

from MambaSegLib.networks.mamba import MambaLayer3d
from MambaSegLib.scan.order import ScanPath

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
RELEASED = ("HWD:both", "HDW:both", "WHD:both", "DHW:both")


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / "gpu" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_part_measures_what_runs_here_and_says_why_the_rest_does_not(tmp_path):
    command = [sys.executable, BENCHMARKS / "bench_gpu.py", "--device", "cpu", "--tiny", "--repeats", "1"]
    environment = os.environ | {"HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--output", tmp_path / "figures"], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "figures.json").read_text())["rows"]
    ran = {(row["case"], row["variant"]) for row in rows if row["seconds"]}
    assert all(row["seconds"] or row["note"] for row in rows)
    cases = {case for case, _ in ran}
    assert ("tiny bfloat16 forward + backward", "pytorch") in ran
    assert "tiny multidirectional forward + backward" in cases
    assert any("nnunet training step" in case for case in cases)
    assert {"read", "preprocess", "predict", "postprocess", "write", "total"} <= {
        case.rsplit(": ")[-1] for case in cases
    }
    assert (tmp_path / "figures.md").read_text().count("\n") >= len(rows)


@pytest.mark.parametrize("texts", [RELEASED, ("DWH:backward",), ("WHD:forward", "HDW:both")])
@pytest.mark.parametrize("outer_norm", [False, True])
def test_the_baseline_computes_what_the_layer_does(texts, outer_norm):
    """Its copies lead to the same numbers, so the two are comparable."""
    released = loaded("released")
    torch.manual_seed(0)
    layer = MambaLayer3d(6, [ScanPath.parse(text) for text in texts], 5, outer_norm, "linear")
    baseline = released.ReleasedLayer3d(layer, "pytorch")
    features = torch.randn(2, 6, 3, 4, 5)
    with torch.no_grad():
        torch.testing.assert_close(baseline(features), layer(features), rtol=1e-5, atol=1e-5)


def test_a_race_tells_medians_failures_and_ratios():
    measuring = loaded("measuring")

    def hungry() -> None:
        msg = "too large"
        raise torch.OutOfMemoryError(msg)

    def broken() -> None:
        msg = "no kernel image\nis available"
        raise RuntimeError(msg)

    settings = measuring.Settings("cpu", repeats=3)
    variants = {"a": lambda: None, "b": hungry, "c": "no GPU", "d": broken}
    rows = measuring.race("case", variants, settings, {"a": "remark"})
    assert [(len(row.seconds), row.note) for row in rows] == [
        (3, "remark"),
        (0, "out of memory"),
        (0, "no GPU"),
        (0, "failed: RuntimeError: no kernel image is available"),
    ]
    table = measuring.markdown([measuring.Row("x", "slow", (2.0, 4.0, 9.0)), measuring.Row("x", "fast", (1.0,))])
    assert "| x | slow | 4000.00 | 1.00 | 0.00 |" in table
    assert "| x | fast | 1000.00 | 4.00 | 0.00 |" in table


def test_a_brief_variant_is_timed_when_it_runs_a_second_time_in_a_row():
    """As the first one after another variant it would pay for what that left in the processor's caches."""
    measuring = loaded("measuring")
    order = []
    settings = measuring.Settings("cpu", repeats=2)
    measuring.race("case", {name: lambda name=name: order.append(name) for name in "ab"}, settings)
    assert "".join(order) == "aabb" + 2 * "aabb"  # compiles, and is asked for its peak memory; then two rounds


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("script", "options", "code"),
    [("bench_gpu", (), 0), ("bench_gpu", ("--device", "cuda"), 3), ("bench_volume", ("--device", "cuda"), 3)],
)
def test_without_a_gpu_a_benchmark_says_so_in_one_line_and_measures_nothing(tmp_path, script, options, code):
    command = [sys.executable, BENCHMARKS / f"{script}.py", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == code
    assert done.stdout.startswith("the device cuda is not there")
    assert not done.stderr
    assert not list(tmp_path.iterdir())
