"""The CPU's whole-volume benchmarks run here in a tiny form, so that they are not found broken when they are needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from MambaSegLib.bundle import Bundle
from MambaSegLib.label_writing import write_volume
from MambaSegLib.volume import Geometry

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
AXIAL = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))


def rows_of(name: str, folder: Path, *words: object) -> list[dict[str, object]]:
    command = [sys.executable, BENCHMARKS / f"{name}.py", *words, "--threads", "1", "--engine", "pytorch"]
    environment = os.environ | {"HOME": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*map(str, command), "--output", str(folder / "figures")],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    content: list[dict[str, object]] = json.loads((folder / "figures.json").read_text())["rows"]
    assert (folder / "figures.md").read_text().count("\n") >= len(content)
    return content


def test_volumes_are_segmented_from_file_to_file_and_every_phase_is_timed(tmp_path: Path) -> None:
    fast, standard = rows_of(
        "bench_volume", tmp_path, "--tiny", "--only", "abdominal CT", "--quality", "fast", "standard"
    )
    assert set(fast["seconds"]) == {"read", "preprocess", "predict", "postprocess", "write", "total"}
    for row in (fast, standard):
        seconds = {phase: values[0] for phase, values in row["seconds"].items()}
        total = seconds.pop("total")
        assert 0.9 * total < sum(seconds.values()) <= total
        assert 0.05 < row["peak_gib"] < 4
        assert 0 < row["processor_s"][0] < 60
    # 6 x 20 x 20 voxels in tiles of 4 x 8 x 8: (2, 3, 3) that overlap by a quarter, (2, 4, 4) by half.
    assert (fast["tiles"], standard["tiles"]) == (18, 32)


def test_an_estimate_is_compared_with_what_a_volume_takes(tmp_path: Path) -> None:
    (row,) = rows_of("bench_estimate", tmp_path, "--tiny")
    assert row["predicted_tiles"] == row["tiles"] > 1
    assert row["ratio"] == row["predicted_s"] / row["true_s"] > 0


def test_overlaps_are_compared_image_by_image(tmp_path: Path, tiny_bundle: Bundle) -> None:
    data = tmp_path / "Dataset001_Noise"
    (data / "imagesTr").mkdir(parents=True)
    (data / "labelsTr").mkdir()
    (data / "dataset.json").write_text(json.dumps({"file_ending": ".nii.gz"}))
    generator = np.random.default_rng(0)
    geometry = Geometry((16, 16, 40), (1.5, 1.0, 1.0), (0.0, 0.0, 0.0), AXIAL)
    for name in ("a", "b"):
        image = generator.random(geometry.shape, dtype=np.float32)
        write_volume(image, geometry, data / "imagesTr" / f"{name}_0000.nii.gz")
        write_volume((image > 0.5).astype(np.uint8), geometry, data / "labelsTr" / f"{name}.nii.gz")
    rows = rows_of("bench_overlap", tmp_path, "--model", tiny_bundle.path, "--data", data, "--overlaps", 0.25, 0.5)
    assert [(row["case"], row["overlap"], row["tiles"]) for row in rows] == [
        ("a", 0.5, 4), ("a", 0.25, 3), ("b", 0.5, 4), ("b", 0.25, 3)
    ]  # fmt: skip
    assert all(0 <= row["dice"] <= 1 and row["seconds"] > 0 for row in rows)
    assert [row["differing_voxels"] == 0 for row in rows][::2] == [True, True]
