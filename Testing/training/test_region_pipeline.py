"""From a data set with regions, or with an ignore label, to `mambaseg segment`, by commands only."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from MambaSegTraining.__main__ import main
from MambaSegTraining.costs.plot import mean_dsc
from MambaSegTraining.run_folder import RunFolder

from MambaSegLib.__main__ import main as mambaseg
from MambaSegLib.bundle import load_bundle
from MambaSegLib.volume_io import read_labels

SHAPE, SPACING = (12, 22, 20), (2.0, 1.0, 1.0)
CENTERS = ((5, 7, 7), (6, 14, 12), (5, 8, 13), (6, 14, 6))
CONFIG = """
[dataset]
name = "Balls"
modality = "MR"
folds = 2
license = "CC0-1.0"
[plan]
patch_size = [8, 16, 16]
[network]
name = "mamba_unet_unidirectional"
features = [4, 8]
blocks = [1, 1]
[recipe]
optimizer = "adamw"
learning_rate = 2e-2
schedule = "onecycle"
epochs = 2
iterations_per_epoch = 16
batch_size = 2
amp = "off"
augmentation = "none"
validation_batches = 2
deterministic = true
picture_every = 2
[bundle]
name = "mamba_unet_unidirectional.balls"
description = "Balls."
weights_license = "CC0-1.0"
intended_use = "Tests."
limits = "Balls only."
"""


def _write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(SPACING[::-1])
    SimpleITK.WriteImage(image, str(path))


def _make_dataset(folder: Path, channels: int, description: dict[str, object], unlabelled: slice | None = None) -> None:
    """Four cases: a ball (1) with a bright core (2), which only the last channel tells from the ball."""
    for number in range(4):
        generator = np.random.default_rng(number)
        center = CENTERS[number]
        distance = np.linalg.norm((np.moveaxis(np.indices(SHAPE), 0, -1) - center) * SPACING, axis=-1)
        labels = np.where(distance < 3.5, 2, np.where(distance < 6, 1, 0)).astype(np.uint8)
        for channel in range(channels):
            seen = np.minimum(labels, 1) if channel < channels - 1 else labels
            _write(folder / "imagesTr" / f"c{number}_{channel:04d}.nii.gz",
                   (100 * seen + generator.normal(0, 10, SHAPE) + 50).astype(np.float32))  # fmt: skip
        if unlabelled is not None:
            labels[unlabelled] = 3
        _write(folder / "labelsTr" / f"c{number}.nii.gz", labels)
    names = {str(channel): f"MR{channel}" for channel in range(channels)}
    common = {"channel_names": names, "numTraining": 4, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(common | description))


def _train(folder: Path) -> Path:
    """Plan to export, one fold; returns the bundle."""
    run, bundle = folder / "run", folder / "bundle"
    (folder / "config.toml").write_text(CONFIG)
    for words in (
        ["check", folder / "data", "--config", folder / "config.toml", "--workers", "0"],
        ["plan", folder / "data", run, "--config", folder / "config.toml", "--workers", "0"],
        ["preprocess", run, "--workers", "0"],
        ["train", run, "--fold", "0", "--device", "cpu", "--workers", "0"],
        ["validate", run, "--device", "cpu"],
        ["export", run, bundle],
        ["report", run, "-o", folder / "report"],
    ):
        assert main([str(word) for word in words]) == 0
    return bundle


def _segment(folder: Path, case: str, output: Path) -> None:
    images = sorted((folder / "data" / "imagesTr").glob(f"{case}_*.nii.gz"))
    words = [f"MR{channel}={path}" for channel, path in enumerate(images)]
    words += ["-o", str(output), "--model", str(folder / "bundle"), "--device", "cpu"]
    assert mambaseg(["segment", *words, "--statistics", str(output.with_name("statistics.csv"))]) == 0


def _validated(folder: Path) -> tuple[str, np.ndarray, list[dict[str, str]]]:
    """A validation case with its predicted labels, and all scores."""
    path = min((folder / "run" / "fold_0" / "validation").glob("*.nii.gz"))
    with (folder / "run" / "validation" / "scores.csv").open() as stream:
        return path.name.removesuffix(".nii.gz"), read_labels(path).array, list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def region_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("regions")
    labels = {"background": 0, "whole": [1, 2], "core": [2]}
    _make_dataset(folder / "data", 2, {"labels": labels, "regions_class_order": [1, 2]})
    _train(folder)
    return folder


@pytest.fixture(scope="module")
def sparse_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sparse")
    labels = {"background": 0, "ball": 1, "core": 2, "ignore": 3}
    _make_dataset(folder / "data", 1, {"labels": labels}, unlabelled=slice(6, None))
    _train(folder)
    return folder


def test_regions_of_a_two_channel_image_are_learned_measured_exported_and_segmented_alike(region_run):
    case, stored, scores = _validated(region_run)
    assert {score["label"] for score in scores} == {"whole", "core"}
    header = (region_run / "run" / "fold_0" / "log.csv").read_text().splitlines()[0]
    assert header.endswith("patch_dice_whole,patch_dice_core")
    bundle = load_bundle(region_run / "bundle")
    assert bundle.manifest.plan.regions[0].labels == (1, 2)
    assert {metric.label for metric in bundle.manifest.metrics} == {"whole", "core", "mean"}

    output = region_run / "labels.seg.nrrd"
    _segment(region_run, case, output)
    found = read_labels(output)
    assert [label.name for label in found.table] == ["whole outside core", "core"]
    assert len(np.unique(stored)) == 3  # a comparison of empty label maps would say nothing
    np.testing.assert_array_equal(found.array, stored)
    with (region_run / "statistics.csv").open() as stream:
        rows = {row["name"]: row for row in csv.DictReader(stream)}
    assert rows["whole"]["value"] == "1+2"
    assert int(rows["whole"]["voxels"]) == np.count_nonzero(stored)


def test_the_accuracy_beside_the_costs_is_that_of_the_regions(region_run):
    run = RunFolder(region_run / "run")
    scores = [float(score["dice"]) for score in _validated(region_run)[2]]
    assert mean_dsc(run) == pytest.approx(np.mean(scores))


def test_region_scores_are_those_of_the_label_maps(region_run):
    case, stored, scores = _validated(region_run)
    reference = read_labels(region_run / "data" / "labelsTr" / f"{case}.nii.gz").array
    for name, values in (("whole", (1, 2)), ("core", (2,))):
        found, true = np.isin(stored, values), np.isin(reference, values)
        expected = 2 * np.count_nonzero(found & true) / (np.count_nonzero(found) + np.count_nonzero(true))
        (score,) = [score for score in scores if (score["case"], score["label"]) == (case, name)]
        assert float(score["dice"]) == pytest.approx(expected)


def test_with_an_ignore_label_everything_is_predicted_and_only_labelled_voxels_are_measured(sparse_run):
    case, stored, scores = _validated(sparse_run)
    assert stored.max() <= 2
    assert (stored[6:] > 0).any()
    _segment(sparse_run, case, sparse_run / "labels.nii.gz")
    np.testing.assert_array_equal(read_labels(sparse_run / "labels.nii.gz").array, stored)
    reference = read_labels(sparse_run / "data" / "labelsTr" / f"{case}.nii.gz").array
    found, true = stored[:6] == 1, reference[:6] == 1
    (score,) = [score for score in scores if (score["case"], score["label"]) == (case, "ball")]
    expected = 2 * np.count_nonzero(found & true) / (np.count_nonzero(found) + np.count_nonzero(true))
    assert float(score["dice"]) == pytest.approx(expected)
    assert float(score["predicted_ml"]) == pytest.approx(np.count_nonzero(found) * 2 / 1000)
    assert (
        "voxels labelled ignore, and surface that touches them, left out"
        in (sparse_run / "run" / "validation" / "summary.md").read_text()
    )
    metric = load_bundle(sparse_run / "bundle").manifest.metrics[0]
    assert "voxels labelled ignore, and surface that touches them, left out" in metric.protocol
