"""A small data set with a known answer: bright balls (label 1) with a brighter core (label 2) in noise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from MambaSegTraining.__main__ import main

CASES, SHAPE = 6, (18, 22, 20)

CONFIG = """
name = "test"
[dataset]
name = "Balls"
modality = "MR"
subject_pattern = '(s\\d)'
folds = 3
license = "CC0-1.0"
[plan]
patch_size = [16, 16, 16]
mirror_axes = [2]
[network]
name = "mamba_unet_multidirectional"
features = [4, 8]
blocks = [1, 1]
[recipe]
optimizer = "adamw"
learning_rate = 1e-2
schedule = "onecycle"
epochs = 2
iterations_per_epoch = 2
batch_size = 2
amp = "off"
ema_decay = 0.5
validation_batches = 1
deterministic = true
[bundle]
name = "mamba_unet_multidirectional.balls"
description = "Balls."
weights_license = "CC0-1.0"
intended_use = "Tests."
limits = "Balls only."
"""


def write_image(path: Path, array: np.ndarray, spacing_zyx: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(spacing_zyx[::-1])
    SimpleITK.WriteImage(image, str(path))


def write_description(folder: Path, **changes: object) -> None:
    description = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "ball": 1, "core": 2},
        "numTraining": CASES,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description | changes))


def ball_case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    center = generator.uniform(8, 11, 3)
    distance = np.linalg.norm(np.moveaxis(np.indices(SHAPE), 0, -1) - center, axis=-1)
    labels = np.where(distance < 3, 2, np.where(distance < 6, 1, 0)).astype(np.uint8)
    image = 100 * labels + generator.normal(0, 10, SHAPE) + 50
    return image.astype(np.float32), labels


def make_ball_dataset(folder: Path) -> Path:
    """Three subjects with two cases each: s0_a, s0_b, s1_a, ..."""
    for index in range(CASES):
        name = f"s{index // 2}_{'ab'[index % 2]}"
        image, labels = ball_case(index)
        write_image(folder / "imagesTr" / f"{name}_0000.nii.gz", image)
        write_image(folder / "labelsTr" / f"{name}.nii.gz", labels)
    write_description(folder)
    return folder


@pytest.fixture
def ball_dataset(tmp_path: Path) -> Path:
    return make_ball_dataset(tmp_path / "Dataset900_Balls")


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(CONFIG)
    return path


def plan_run(folder: Path) -> Path:
    """Make data set and configuration in a folder, and plan a run in its subfolder `run`."""
    make_ball_dataset(folder / "Dataset900_Balls")
    (folder / "config.toml").write_text(CONFIG)
    arguments = ["plan", str(folder / "Dataset900_Balls"), str(folder / "run"), "--config", str(folder / "config.toml")]
    assert main([*arguments, "--workers", "0"]) == 0
    return folder / "run"


@pytest.fixture
def planned_run(tmp_path: Path) -> Path:
    return plan_run(tmp_path)


@pytest.fixture(scope="session")
def validated_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All folds trained and measured; not to be changed."""
    run = plan_run(tmp_path_factory.mktemp("validated"))
    assert main(["preprocess", str(run), "--workers", "0"]) == 0
    for fold in range(3):
        assert main(["train", str(run), "--fold", str(fold), "--device", "cpu", "--workers", "0"]) == 0
    assert main(["validate", str(run), "--device", "cpu"]) == 0
    return run
