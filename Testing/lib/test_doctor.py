"""`mambaseg doctor` tells what is here, finds a backend that computes wrongly, and predicts time and memory."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from MambaSegLib import machine, scan
from MambaSegLib.__main__ import main
from MambaSegLib.bundle import Bundle
from MambaSegLib.commands import backend_check, scan_tuning
from MambaSegLib.commands.backend_check import check_backends
from MambaSegLib.commands.estimate import estimate
from MambaSegLib.predictor import Predictor
from MambaSegLib.scan import pytorch_backend
from MambaSegLib.scan.arguments import Scan
from MambaSegLib.sliding_window import Ensemble
from MambaSegLib.volume import Geometry, Volume
from MambaSegLib.volume_io import write_volume

IDENTITY = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One backend that needs no compilation, and a short timing."""
    monkeypatch.setattr(backend_check, "_SPEED_GRID", (8, 8, 8))
    listed = scan.list_backends("cpu")
    assert [status.name for status in listed] == list(scan.BACKENDS)
    monkeypatch.setattr(backend_check, "list_backends", lambda device: [s for s in listed if s.name != "numba"])


def test_a_right_backend_passes_with_its_speed_and_a_missing_one_has_its_reason() -> None:
    by_name = {check.name: check for check in check_backends("cpu")}
    right = by_name["pytorch"]
    assert right.passed
    assert right.error is not None
    assert 0 < right.error < backend_check.TOLERANCE
    assert right.tokens_per_s is not None
    assert right.tokens_per_s > 0
    if not torch.cuda.is_available():
        assert not by_name["mamba_ssm"].available
        assert by_name["mamba_ssm"].reason


def test_a_backend_that_computes_wrongly_fails_the_doctor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    true = pytorch_backend.selective_scan

    def slightly_wrong(*arguments: Any) -> Any:
        out, last = true(*arguments)
        out[..., -1] += 0.01
        return out, last

    monkeypatch.setattr(pytorch_backend, "selective_scan", slightly_wrong)
    assert main(["doctor"]) == 3
    assert "pytorch on cpu       WRONG, do not use" in capsys.readouterr().out


def test_a_backend_that_computes_no_numbers_in_one_order_fails_the_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    true = pytorch_backend.selective_scan

    def without_numbers(scan: Scan) -> Any:
        out, last = true(scan)
        return (out * float("nan") if scan.order.backward else out), last

    monkeypatch.setattr(pytorch_backend, "selective_scan", without_numbers)
    (check,) = [check for check in check_backends("cpu", speed=False) if check.name == "pytorch"]
    assert not check.passed
    assert not json.loads(json.dumps(asdict(check), allow_nan=False))["passed"]  # as `--events` writes it


def test_a_backend_that_breaks_when_it_runs_is_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        message = "undefined symbol"
        raise RuntimeError(message)

    monkeypatch.setattr(pytorch_backend, "selective_scan", broken)
    (check,) = [check for check in check_backends("cpu") if check.name == "pytorch"]
    assert not check.available
    assert "undefined symbol" in check.reason


def test_the_doctor_lists_versions_and_devices_as_text_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert f"torch          {torch.__version__}" in text
    assert "Devices    cpu" in text
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["machine"]["packages"]["numpy"] == np.__version__
    assert report["estimate"] is None
    assert {check["name"] for check in report["backends"]} >= {"pytorch", "triton"}


def test_a_quick_look_computes_nothing_and_says_why_a_device_is_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend_check, "_check", None)  # would fail if anything was computed
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["doctor", "--quick", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert "cuda is not there" in report["unavailable_devices"]["cuda"]
    assert {check["name"]: check["available"] for check in report["backends"]}["pytorch"]
    assert main(["doctor", "--quick", "--events"]) == 0
    assert json.loads(capsys.readouterr().out)["backends"] == report["backends"]
    assert main(["doctor", "--quick"]) == 0
    assert "available, not tested" in capsys.readouterr().out


def test_a_missing_package_fails_the_doctor_with_its_cure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "_PACKAGES", ("numpy", "no_such_package"))
    assert main(["doctor"]) == 3
    assert "MISSING: pip install no_such_package" in capsys.readouterr().out


def test_memory_and_cores_are_plausible() -> None:
    found = machine.look_around()
    assert found.cores >= 1
    assert 2**28 < found.memory_total_bytes < 2**50
    assert 0 <= found.memory_free_bytes <= found.memory_total_bytes
    assert found.processor


def test_the_estimate_counts_tiles_and_is_of_the_right_size(tiny_bundle: Bundle) -> None:
    predictor = Predictor(tiny_bundle, device="cpu", scan="pytorch", folds=[0])
    # At 1.5 x 1 x 1 mm the grid has 32 x 16 x 24 voxels: 3 x 1 x 2 tiles of 16 that overlap by half.
    geometry = Geometry((48, 16, 24), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), IDENTITY)
    image = np.random.default_rng(0).random((1, 48, 16, 24), dtype=np.float32)
    need = estimate(predictor, Volume(image, geometry))
    assert need.working_shape == (32, 16, 24)
    assert need.tiles == 6
    assert 6 * need.seconds_per_tile < need.seconds < 60
    assert 2**20 < need.memory_bytes < 2**36
    tile = torch.zeros(1, 1, 16, 16, 16)
    start = time.perf_counter()
    predictor.ensemble.tile_probabilities(tile, False)
    # Loose, as the computer may be busy: it is the order of magnitude that a person plans with.
    assert 0.02 < need.seconds_per_tile / (time.perf_counter() - start) < 50


def test_the_estimate_counts_what_is_computed_and_a_grid_alone_whole(tiny_bundle: Bundle) -> None:
    predictor = Predictor(tiny_bundle, device="cpu", scan="pytorch", folds=[0])
    geometry = Geometry((48, 16, 24), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), IDENTITY)
    image = np.zeros((1, 48, 16, 24), np.float32)
    assert estimate(predictor, Volume(image, geometry)).tiles == 6
    image[:, :20, :, :14] = np.random.default_rng(0).random((20, 16, 14))
    reports: list[int] = []
    predictor.predict(Volume(image, geometry), lambda progress: reports.append(progress.total))
    assert estimate(predictor, Volume(image, geometry)).tiles == max(reports) < 6


def test_the_doctor_estimates_a_given_volume(
    tmp_path: Path, tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    geometry = Geometry((16, 16, 16), (1.5, 1.0, 1.0), (0.0, 0.0, 0.0), IDENTITY)
    write_volume(np.random.default_rng(0).random(geometry.shape, dtype=np.float32), geometry, tmp_path / "i.nii.gz")
    words = ["doctor", "--model", str(tiny_bundle.path), "--input", str(tmp_path / "i.nii.gz"), "--scan", "pytorch"]
    assert main(words) == 0
    assert "1 tiles at the model's spacing (16 x 16 x 16 voxels)" in capsys.readouterr().out


def test_scans_are_tuned_on_a_gpu_only(capsys: pytest.CaptureFixture[str], tiny_bundle: Bundle) -> None:
    words = ["doctor", "--quick", "--tune", "--model", str(tiny_bundle.path), "--device", "cpu", "--scan", "pytorch"]
    assert main(words) == 3
    assert "on an NVIDIA GPU; here" in capsys.readouterr().err


def test_scans_of_as_many_tiles_as_fit_are_tuned(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Bundle) -> None:
    pytest.importorskip("triton")
    from MambaSegLib.scan.triton_tuning import config_for

    def at_most_two(self: Ensemble, tiles: torch.Tensor, with_entropy: bool) -> None:
        config_for("forward", torch.zeros(1, len(tiles), 16, 4), 2)  # as the scans ask
        if len(tiles) > 2:
            msg = "CUDA out of memory"
            raise torch.OutOfMemoryError(msg)

    monkeypatch.setattr(Ensemble, "tile_probabilities", at_most_two)
    predictor = Predictor(tiny_bundle, device="cpu", scan="pytorch", tile_batch=8)
    assert {problem.pairs for problem in scan_tuning._scans_of(predictor)} == {1, 2}


def test_the_doctor_tells_what_tuning_gained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_bundle: Bundle
) -> None:
    pytest.importorskip("triton")
    from MambaSegLib.scan import triton_search
    from MambaSegLib.scan.triton_tuning import Problem, ScanConfig

    problems = [Problem("forward", 8, 4, length, 1, torch.float32) for length in (4096, 4090, 512)]
    watched = []

    def scans_of(predictor: Predictor) -> set[Problem]:
        watched.append(in_truth(predictor))
        return set(problems)

    def tune(asked: list[Problem], device: torch.device) -> Iterator[triton_search.Finding]:
        for problem in asked:
            yield triton_search.Finding(problem, ScanConfig(4, 4, 64), 1.25, 30)

    in_truth = scan_tuning._scans_of
    monkeypatch.setattr(scan_tuning, "_scans_of", scans_of)
    monkeypatch.setattr(triton_search, "tune", tune)
    monkeypatch.setattr(Predictor, "_backend_on", lambda self, device: "triton")
    words = ["doctor", "--quick", "--tune", "--model", str(tiny_bundle.path), "--device", "cpu", "--scan", "pytorch"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert printed.count("1.25 times as fast as by rule (30 divisions tried)") == 2
    assert "forward 8x4 4096 x1 float32" in printed
    assert watched == [set()]  # the CPU's scan is divided otherwise
