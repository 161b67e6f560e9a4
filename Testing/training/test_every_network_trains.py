"""Every network of the table learns one case by heart and segments it again, by the commands a person would type.

Sizes that were chosen so that all of them together take about three minutes of one core: images of 16 x 32 x 16 voxels,
two stages of 8 and 16 channels, and the options below for networks whose widths are no matter of the plan's stages. A
network that is not named there is trained at the widths its builder gives it. 120 steps, unless `TRAINING` says otherwise.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from MambaSegTraining.__main__ import main as mambaseg_train
from MambaSegTraining.run_folder import RunFolder

from MambaSegLib.__main__ import main as mambaseg
from MambaSegLib.networks import NETWORKS
from MambaSegLib.volume import Array
from MambaSegLib.volume_io import read_labels

SHAPE = (16, 32, 16)
REQUIRED_DSC = 0.95

OPTIONS: dict[str, dict[str, object]] = {
    "mamba_unet_multidirectional": {"d_state_max": 8},
    "mednext_m_k3": {"width": 4},
    "mednext_m_k5": {"width": 4},
    "unetr": {"feature_size": 8, "hidden_size": 24, "mlp_size": 48, "heads": 2},
    "swin_unetr": {"feature_size": 12, "depths": (1, 1, 1, 1)},
    "cotr": {"width": 8, "layers": 1, "heads": 2},
    "nnformer": {"width": 24, "heads": (2, 2, 2, 2), "windows": (4, 4, 4, 4)},
    "segmamba": {"width": 8, "depths": (1, 1, 1, 1)},
    "nnmamba": {"width": 8, "blocks": 2},
    "transunet": {"depth": 1, "hidden_size": 24, "mlp_size": 48, "heads": 2},
}

TRAINING = {
    "swin_unetr": (60, 1e-2),  # takes no patch below 32 x 32 x 64, eight times the others' voxels
    "segmamba": (80, 1e-2),
    "nnmamba": (200, 3e-2),  # ends in a norm and a ReLU: its logits grow slowly
}
"""Steps and highest learning rate."""
STEPS, RATE = 120, 1e-2

CONFIG = """
[dataset]
name = "One case"
modality = "MR"
folds = 2
license = "CC0-1.0"
[plan]
mirror_axes = []
[network]
name = "{network}"
features = [8, 16]
blocks = [1, 1]
decoder_blocks = 1
{options}
[recipe]
optimizer = "adamw"
learning_rate = {rate}
schedule = "onecycle"
epochs = 1
iterations_per_epoch = {iterations}
batch_size = 1
augmentation = "none"
amp = "off"
validation_batches = 1
[bundle]
name = "{network}.one_case"
description = "One case."
weights_license = "CC0-1.0"
intended_use = "Tests."
limits = "One case only."
"""


def painted_case(bend: float) -> tuple[Array, Array]:
    """A bent tube in noise, its front half one structure, its back half the other, as in the hippocampus."""
    z, y, x = np.indices(SHAPE)
    inside = (z - 8 - bend * np.sin(y / 6)) ** 2 + (x - 8 + bend * np.cos(y / 6)) ** 2 < 12
    inside &= (y > 3) & (y < 29)
    labels = np.where(inside, np.where(y > 17, 1, 2), 0).astype(np.uint8)
    image = np.where(inside, 150 + 2 * y, 50) + np.random.default_rng(0).normal(0, 15, SHAPE)
    return image.astype(np.float32), labels


def real_case(shared_data: Path, number: str) -> tuple[Array, Array]:
    """The middle of a hippocampus crop of the Medical Segmentation Decathlon."""
    folder = shared_data / "hippocampus" / "Dataset004_Hippocampus"
    files = (
        folder / "imagesTr" / f"hippocampus_{number}_0000.nii.gz",
        folder / "labelsTr" / f"hippocampus_{number}.nii.gz",
    )
    image, labels = (SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file))) for file in files)
    lower, upper = np.argwhere(labels > 0).min(0), np.argwhere(labels > 0).max(0)
    starts = [
        max(0, min(n - k, (a + b - k) // 2)) for n, k, a, b in zip(labels.shape, SHAPE, lower, upper, strict=True)
    ]
    box = tuple(slice(start, start + length) for start, length in zip(starts, SHAPE, strict=True))
    return image[box].astype(np.float32), labels[box].astype(np.uint8)


def write_dataset(folder: Path, cases: dict[str, tuple[Array, Array]]) -> Path:
    for name, (image, labels) in cases.items():
        for part, array in ((f"imagesTr/{name}_0000", image), (f"labelsTr/{name}", labels)):
            path = folder / f"{part}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(path))
    description = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "front": 1, "back": 2},
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def as_toml(value: object) -> str:
    return json.dumps(list(value)) if isinstance(value, tuple) else json.dumps(value)


def learn_by_heart(network: str, dataset: Path, folder: Path, patience: float = 1.0) -> tuple[float, float]:
    """Plan, preprocess, train, validate, export and segment; DSC of both structures of the case that was trained.

    Trains `patience` times as long as the table says.
    """
    options = ", ".join(f"{name} = {as_toml(value)}" for name, value in OPTIONS.get(network, {}).items())
    config, run, bundle = folder / "config.toml", folder / "run", folder / "bundle"
    steps, rate = TRAINING.get(network, (STEPS, RATE))
    config.write_text(
        CONFIG.format(
            network=network, options=f"options = {{ {options} }}", iterations=round(patience * steps), rate=rate
        )
    )
    for step in (
        ["plan", str(dataset), str(run), "--config", str(config), "--workers", "0"],
        ["preprocess", str(run), "--workers", "0"],
        ["train", str(run), "--fold", "0", "--device", "cpu", "--workers", "0"],
        ["validate", str(run), "--fold", "0", "--device", "cpu"],
        ["export", str(run), str(bundle)],
    ):
        assert mambaseg_train(step) == 0, step
    (case,) = RunFolder(run).read_fold(0).train
    result = folder / f"{case}.nii.gz"
    image = dataset / "imagesTr" / f"{case}_0000.nii.gz"
    assert mambaseg(["segment", str(image), "-o", str(result), "--model", str(bundle), "--device", "cpu"]) == 0
    found, true = (read_labels(path).array for path in (result, dataset / "labelsTr" / f"{case}.nii.gz"))
    first, second = (
        2 * float(((found == value) & (true == value)).sum()) / float((found == value).sum() + (true == value).sum())
        for value in (1, 2)
    )
    return first, second


@pytest.mark.parametrize("network", NETWORKS)
def test_each_learns_a_painted_case_by_heart(network: str, tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data", {"one": painted_case(3), "other": painted_case(-3)})
    assert min(learn_by_heart(network, dataset, tmp_path)) >= REQUIRED_DSC


@pytest.mark.shared_data
class TestRealCase:
    """A class, so that another process can take these long tests."""

    @pytest.mark.parametrize("network", NETWORKS)
    def test_each_learns_a_hippocampus_by_heart(self, network: str, tmp_path: Path, shared_data: Path) -> None:
        cases = {"one": real_case(shared_data, "001"), "other": real_case(shared_data, "003")}
        dataset = write_dataset(tmp_path / "data", cases)
        assert min(learn_by_heart(network, dataset, tmp_path, patience=1.5)) >= REQUIRED_DSC
