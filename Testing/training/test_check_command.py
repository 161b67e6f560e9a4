"""`mambaseg-train check` lists everything that is wrong in one go, and says whether folds leak."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from MambaSegTraining.__main__ import main
from scipy import ndimage

from MambaSegLib.geometry import Geometry
from MambaSegLib.volume_io import write_volume


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Ten subjects with images that differ as images of different people do."""
    folder = tmp_path / "Dataset901_Clouds"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    grid = Geometry.from_matrix(np.eye(4), (20, 22, 24))
    for number in range(10):
        noise = np.random.default_rng(number).normal(size=grid.shape)
        image = (1000 * ndimage.gaussian_filter(noise, 2)).astype(np.float32)
        write_volume(image, grid, folder / "imagesTr" / f"case{number:03d}_0000.nii.gz")
        write_volume((image > 50).astype(np.uint8), grid, folder / "labelsTr" / f"case{number:03d}.nii.gz")
    description = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "cloud": 1}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def test_a_sound_data_set_passes(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(dataset), "--workers", "0"]) == 0
    told = capsys.readouterr().out
    assert "0 problem(s) in 10 case(s)" in told
    assert "No leak between training and measured cases (10 images compared" in told


def test_a_noisy_copy_under_another_name_is_listed_with_the_folds_it_spoils(
    dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from MambaSegLib.volume_io import read_volume

    volume = read_volume(dataset / "imagesTr" / "case004_0000.nii.gz")
    noisy = volume.array[0] + np.random.default_rng(99).normal(0, 5, volume.geometry.shape).astype(np.float32)
    write_volume(noisy.astype(np.float32), volume.geometry, dataset / "imagesTr" / "case010_0000.nii.gz")
    shutil.copy(dataset / "labelsTr" / "case004.nii.gz", dataset / "labelsTr" / "case010.nii.gz")
    assert main(["check", str(dataset), "--workers", "0"]) == 2
    told = capsys.readouterr().out
    assert "case010 is nearly the same image as case004" in told
    assert "1 problem(s) in 11 case(s)" in told


def test_a_published_split_that_does_not_fit_is_refused(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(dataset), "--published-split", "synapse:released", "--workers", "0"]) == 2
    assert "does not fit the published split" in capsys.readouterr().err


def test_cross_validation_refuses_a_fold_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cross-validate", str(tmp_path / "nothing")]) == 2
    assert "splits.json does not exist" in capsys.readouterr().err
