"""nnU-Net's plans and fingerprints, in both forms, and the plans released with the paper."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from MambaSegTraining.named_plans import NAMED_PLANS, named_plan
from MambaSegTraining.nnunet_json import read_nnunet_fingerprint, read_nnunet_plan
from MambaSegTraining.planning import target_spacing

from MambaSegLib.errors import InputError
from MambaSegLib.networks import create_network

# The released Synapse data set: as nnU-Net's planner saw its 18 training images.
SLICES = (147, 139, 198, 140, 117, 131, 163, 148, 149, 148, 143, 89, 96, 124, 85, 131, 88, 89)
THICKNESS = (3.0,) * 8 + (2.5, 3.0, 3.0, 5.0, 5.0, 3.0, 5.0, 5.0, 5.0, 5.0)
PIXELS = (
    0.66796875, 0.720703125, 0.8984375, 0.59375, 0.90625, 0.701171875, 0.748046875, 0.728515625, 0.9765620231628418,
    0.78125, 0.68359375, 0.7675780057907104, 0.70703125, 0.685546875, 0.83203125, 0.7792969942092896,
    0.7753909826278687, 0.796875,
)  # fmt: skip
CT = {
    "max": 3071.0,
    "mean": 85.1413345336914,
    "median": 94.0,
    "min": -1024.0,
    "percentile_00_5": -935.0,
    "percentile_99_5": 294.0,
    "std": 116.55338287353516,
}
STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]]
KERNELS = [[1, 3, 3], *[[3, 3, 3]] * 5]


def shared_keys() -> dict[str, object]:
    return {
        "batch_size": 2,
        "patch_size": [48, 192, 192],
        "median_image_size_in_voxels": [147.0, 512.0, 512.0],
        "spacing": [3.0, 0.7578124403953552, 0.7578124403953552],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "batch_dice": True,
    }


def flat_keys() -> dict[str, object]:
    return {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 32,
        "n_conv_per_stage_encoder": [2] * 6,
        "n_conv_per_stage_decoder": [2] * 5,
        "pool_op_kernel_sizes": STRIDES,
        "conv_kernel_sizes": KERNELS,
        "unet_max_num_features": 320,
    }


def architecture_keys() -> dict[str, object]:
    kwargs = {
        "n_stages": 6,
        "features_per_stage": [32, 64, 128, 256, 320, 320],
        "kernel_sizes": KERNELS,
        "strides": STRIDES,
        "n_blocks_per_stage": [1, 3, 4, 6, 6, 6],
        "n_conv_per_stage_decoder": [5, 4, 3, 2, 1],
    }
    name = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
    return {"architecture": {"network_class_name": name, "arch_kwargs": kwargs}}


@pytest.fixture
def write_plans(tmp_path: Path):
    def write(own: dict[str, object], transpose: tuple[int, ...] = (0, 1, 2), **configurations: object):
        plans = {
            "plans_name": "nnUNetPlans",
            "transpose_forward": list(transpose),
            "configurations": {
                "2d": {"patch_size": [512, 512]},
                "3d_fullres": {**shared_keys(), **own},
                **configurations,
            },
            "foreground_intensity_properties_per_channel": {"0": CT},
        }
        (tmp_path / "nnUNetPlans.json").write_text(json.dumps(plans))
        labels = {"background": 0, "spleen": 1, "liver": 2, "ignore": 3}
        (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "CT"}, "labels": labels}))
        return tmp_path / "nnUNetPlans.json", tmp_path / "dataset.json"

    return write


def test_plans_with_flat_keys_become_the_network_nnunet_would_build(write_plans) -> None:
    imported = read_nnunet_plan(*write_plans(flat_keys()))
    network = imported.plan.network
    assert (network.name, network.patch_size, network.out_channels) == ("nnunet", (48, 192, 192), 3)
    assert [stage.features for stage in network.stages] == [32, 64, 128, 256, 320, 320]
    assert [list(stage.stride) for stage in network.stages] == STRIDES
    assert [list(stage.kernel) for stage in network.stages] == KERNELS
    assert (imported.batch_size, imported.batch_dice, imported.median_shape) == (2, True, (147.0, 512.0, 512.0))
    normalization = imported.plan.channels[0].normalization
    assert (normalization.scheme, normalization.lower, normalization.upper) == ("ct", -935.0, 294.0)
    assert [label.name for label in imported.plan.labels] == ["spleen", "liver"]


def test_plans_with_architecture_kwargs_keep_blocks_and_turn_the_decoder_round(write_plans) -> None:
    network = read_nnunet_plan(*write_plans(architecture_keys())).plan.network
    assert network.name == "nnunet_resenc"
    assert [stage.blocks for stage in network.stages] == [1, 3, 4, 6, 6, 6]
    # nnU-Net lists decoder stages from the deepest: its last entry is the full resolution.
    assert [stage.decoder_blocks for stage in network.stages][:5] == [1, 2, 3, 4, 5]


def test_imported_flat_plans_give_the_paper_network_its_released_count(write_plans) -> None:
    options = {"preset": "released"}
    plan = read_nnunet_plan(*write_plans(flat_keys()), network="mamba_unet_bidirectional", options=options).plan
    with torch.device("meta"):
        network = create_network(plan.network)
    heads = 11 * (
        32 + 64 + 128 + 256 + 320 + 5
    )  # the released network, of 64,445,606 parameters, has 14 classes, this data set 3
    assert sum(p.numel() for p in network.parameters()) == 64_445_606 - heads


def test_axes_that_nnunet_swaps_are_swapped_in_the_orientation(write_plans) -> None:
    assert read_nnunet_plan(*write_plans(flat_keys(), transpose=(2, 0, 1))).plan.orientation == "LSP"


def test_a_configuration_takes_what_it_inherits(write_plans) -> None:
    files = write_plans(flat_keys(), small={"inherits_from": "3d_fullres", "patch_size": [16, 64, 64]})
    imported = read_nnunet_plan(*files, configuration="small")
    assert imported.plan.patch_size == (16, 64, 64)
    assert imported.plan.spacing_mm[0] == 3.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalization_schemes": ["RGBTo01Normalization"]}, "RGBTo01Normalization"),
        ({"UNet_class_name": "MyUNet"}, "MyUNet is not known"),
        ({"previous_stage": "3d_lowres"}, "2D or a cascade"),
    ],
)
def test_what_cannot_be_expressed_is_refused_by_name(write_plans, change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_nnunet_plan(*write_plans({**flat_keys(), **change}))


def test_unknown_configurations_are_refused(write_plans) -> None:
    plans, dataset = write_plans(flat_keys())
    with pytest.raises(InputError, match="it has 2d, 3d_fullres"):
        read_nnunet_plan(plans, dataset, configuration="3d_lowres")


def test_regions_and_the_ignore_label_are_imported_from_nnunet(write_plans) -> None:
    plans, path = write_plans(flat_keys())
    labels = {"background": 0, "organ": [1, 2], "tumor": 2, "ignore": 3}
    path.write_text(json.dumps({"channel_names": {"0": "CT"}, "labels": labels, "regions_class_order": [1, 2]}))
    plan = read_nnunet_plan(plans, path).plan
    assert [(region.name, region.labels, region.value) for region in plan.regions] == [
        ("organ", (1, 2), 1),
        ("tumor", (2,), 2),
    ]
    assert [label.name for label in plan.labels] == ["organ outside tumor", "tumor"]
    assert (plan.ignore_value, plan.outputs, plan.network.out_channels) == (3, 2, 2)


def test_a_fingerprint_gives_the_spacing_nnunet_planned_with(tmp_path: Path) -> None:
    content = {
        "foreground_intensity_properties_per_channel": {"0": CT},
        "median_relative_size_after_cropping": 1.0,
        "shapes_after_crop": [[slices, 512, 512] for slices in SLICES],
        "spacings": [[thick, pixel, pixel] for thick, pixel in zip(THICKNESS, PIXELS, strict=True)],
    }
    path = tmp_path / "dataset_fingerprint.json"
    path.write_text(json.dumps(content))
    fingerprint = read_nnunet_fingerprint(path, ("CT",), "Synapse")
    assert len(fingerprint.cases) == 18
    assert (fingerprint.intensities[0].percentile_00_5, fingerprint.intensities[0].std) == (-935.0, CT["std"])
    spacings = np.array([case.spacing_mm for case in fingerprint.cases])
    shapes = np.array([case.cropped_shape for case in fingerprint.cases])
    assert target_spacing(spacings, shapes) == pytest.approx(named_plan("synapse").plan.spacing_mm)


def test_the_share_that_cropping_left_survives_the_import(tmp_path: Path) -> None:
    content = {
        "foreground_intensity_properties_per_channel": {"0": CT},
        "median_relative_size_after_cropping": 0.25,
        "shapes_after_crop": [[100, 140, 120]],
        "spacings": [[1, 1, 1]],
    }
    (tmp_path / "f.json").write_text(json.dumps(content))
    case = read_nnunet_fingerprint(tmp_path / "f.json", ("T1",)).cases[0]
    assert np.prod(case.cropped_shape) / np.prod(case.shape) == pytest.approx(0.25, rel=0.01)
    with pytest.raises(InputError, match="1 channel"):
        read_nnunet_fingerprint(tmp_path / "f.json", ("T1", "T2"))


def test_named_plans_say_what_the_released_plans_say() -> None:
    plans = {name: named_plan(name) for name in NAMED_PLANS}
    facts = {n: (p.plan.patch_size, p.batch_size, p.batch_dice, len(p.plan.labels)) for n, p in plans.items()}
    assert facts == {
        "acdc": ((14, 256, 224), 2, False, 3),
        "braintumour": ((128, 128, 128), 2, False, 3),
        "synapse": ((48, 192, 192), 2, True, 13),
    }
    assert [channel.normalization.masked for channel in plans["braintumour"].plan.channels] == [True] * 4
    assert [plan.median_shape[0] for plan in plans.values()] == [13, 138, 147]
    assert plans["acdc"].plan.spacing_mm == pytest.approx((6.35, 1.5234, 1.5234), abs=1e-4)
    with pytest.raises(InputError, match="acdc, braintumour, synapse"):
        named_plan("lung")


def test_the_residual_encoder_comes_with_the_plan_released_for_it() -> None:
    plans = [named_plan(name, "nnunet_resenc") for name in NAMED_PLANS]
    assert [plan.batch_size for plan in plans] == [4, 2, 2]
    for plan in plans:
        assert [stage.blocks for stage in plan.plan.network.stages] == [1, 3, 4, 6, 6, 6]
        assert {stage.decoder_blocks for stage in plan.plan.network.stages} == {1}
