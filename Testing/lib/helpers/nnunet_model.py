"""A tiny trained model as nnU-Net v2 leaves it: plans in either form, dataset.json and a checkpoint, made without nnU-Net."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
KERNELS = [[1, 3, 3], [3, 3, 3], [3, 3, 3]]
BLOCKS, DECODER_BLOCKS = [1, 2, 1], [1, 2]
FEATURES = [4, 8, 10]
PATCH = [4, 8, 12]
KINDS = {"PlainConvUNet": "n_conv_per_stage", "ResidualEncoderUNet": "n_blocks_per_stage"}
RESAMPLING = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
FACTS = {"mean": 50.0, "std": 20.0, "median": 45.0, "percentile_00_5": -100.0, "percentile_99_5": 200.0}

Change = Callable[[dict[str, Any]], None]


@dataclass
class NnunetModel:
    """What the files are to hold; `write` writes them.

    Attributes:
        kind: Class of the network.
        old: Write plans as nnU-Net did before 2.4.
        plans: Change of plans.json.
        dataset: Change of dataset.json.
        checkpoint: Change of every checkpoint.
        configuration: Name in the folder and in the checkpoint.
        folds: Names of the folds.
        networks: The networks whose weights were written, by fold.
    """

    kind: str = "PlainConvUNet"
    old: bool = False
    plans: Change = lambda _: None
    dataset: Change = lambda _: None
    checkpoint: Change = lambda _: None
    configuration: str = "3d_fullres"
    folds: Sequence[str] = ("0",)
    networks: dict[str, nn.Module] = field(default_factory=dict)

    def write(self, results: Path) -> Path:
        """Write the model into a folder of results; returns its own folder."""
        folder = results / "Dataset007_Two Things" / f"nnUNetTrainer__nnUNetPlans__{self.configuration}"
        folder.mkdir(parents=True)
        for name, content, change in (
            ("plans.json", plans_json(self.kind, self.old), self.plans),
            ("dataset.json", dataset_json(), self.dataset),
            ("dataset_fingerprint.json", fingerprint_json(), lambda _: None),
        ):
            change(content)
            (folder / name).write_text(json.dumps(content))
        for seed, fold in enumerate(self.folds):
            self.networks[fold] = peer(self.kind, seed)
            content = checkpoint(self.networks[fold], self.configuration)
            self.checkpoint(content)
            (folder / f"fold_{fold}").mkdir()
            torch.save(content, folder / f"fold_{fold}" / "checkpoint_final.pth")
        (folder / "crossval_results_folds_0").mkdir()
        (folder / "crossval_results_folds_0" / "postprocessing.pkl").write_bytes(b"never opened")
        return folder


def zipped(results: Path, target: Path) -> Path:
    """Results as `nnUNetv2_export_model_to_zip` packs them."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(results.rglob("*")):
            archive.write(path, path.relative_to(results))
    return target


def peer(kind: str, seed: int) -> nn.Module:
    """nnU-Net's own network with weights that no layer shares with another."""
    unet = pytest.importorskip(
        "dynamic_network_architectures.architectures.unet",
        reason="nnU-Net's own networks are not installed: pip install --no-deps dynamic-network-architectures",
    )
    torch.manual_seed(seed)
    network = getattr(unet, kind)(
        input_channels=1,
        num_classes=3,
        deep_supervision=False,
        conv_op=nn.Conv3d,
        norm_op=nn.InstanceNorm3d,
        nonlin=nn.LeakyReLU,
        **{key: value for key, value in arguments(kind).items() if key not in ("conv_op", "norm_op", "nonlin")},
    )
    for parameter in network.parameters():  # zeroed norms and biases would hide a layer in the wrong place
        nn.init.normal_(parameter, std=0.5)
    return network.eval()


def arguments(kind: str) -> dict[str, Any]:
    """`arch_kwargs` of plans since 2.4."""
    return {
        "n_stages": 3,
        "features_per_stage": FEATURES,
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": KERNELS,
        "strides": STRIDES,
        KINDS[kind]: BLOCKS,
        "n_conv_per_stage_decoder": DECODER_BLOCKS,
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }


def plans_json(kind: str, old: bool) -> dict[str, Any]:
    """plans.json."""
    network: dict[str, Any]
    if old:
        network = {
            "UNet_class_name": kind,
            "UNet_base_num_features": FEATURES[0],
            "unet_max_num_features": FEATURES[-1],
            "n_conv_per_stage_encoder": BLOCKS,
            "n_conv_per_stage_decoder": DECODER_BLOCKS,
            "num_pool_per_axis": [1, 2, 2],
            "pool_op_kernel_sizes": STRIDES,
            "conv_kernel_sizes": KERNELS,
        }
    else:
        module = "unet" if kind == "PlainConvUNet" else "residual_unet"
        name = f"dynamic_network_architectures.architectures.{module}.{kind}"
        network = {"architecture": {"network_class_name": name, "arch_kwargs": arguments(kind)}}
    settings = {
        "preprocessor_name": "DefaultPreprocessor",
        "patch_size": PATCH,
        "spacing": [3.0, 1.0, 0.5],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": RESAMPLING,
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {**RESAMPLING, "order": 1},
        **network,
    }
    return {
        "dataset_name": "Dataset007_Two Things",
        "plans_name": "nnUNetPlans",
        "transpose_forward": [0, 1, 2],
        "image_reader_writer": "NibabelIOWithReorient",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": FACTS},
        "configurations": {
            "2d": {"patch_size": [64, 64]},
            "3d_lowres": {"inherits_from": "3d_fullres", "spacing": [6.0, 2.0, 1.0]},
            "3d_fullres": settings,
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        },
    }


def dataset_json() -> dict[str, Any]:
    """dataset.json."""
    labels = {"background": 0, "one": 1, "two": 2}
    return {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": 10, "licence": "CC0\x1b[31m"}


def fingerprint_json() -> dict[str, Any]:
    """dataset_fingerprint.json of two cases; an eighth of the median image was left by cropping."""
    return {
        "spacings": [[3.0, 1.0, 0.5], [4.0, 1.0, 0.5]],
        "shapes_after_crop": [[10, 20, 60], [10, 40, 80]],
        "median_relative_size_after_cropping": 0.125,
    }


def checkpoint(network: nn.Module, configuration: str) -> dict[str, Any]:
    """What nnU-Net saves at the end of a training."""
    return {
        "network_weights": network.state_dict(),
        "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.01, "params": [0, 1]}]},
        "grad_scaler_state": None,
        "logging": {"ema_fg_dice": [np.float64(0.5), np.float32(0.25)], "train_losses": [np.float64(-0.1)]},
        "_best_ema": np.float64(0.5),
        "current_epoch": 1000,
        "init_args": {"configuration": configuration, "fold": 0, "device": torch.device("cpu")},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
