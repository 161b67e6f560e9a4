"""Plans follow nnU-Net's rules: the released plans of the paper's three data sets are the known answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from MambaSegTraining.architecture import plan_architecture, plan_pooling
from MambaSegTraining.dataset import read_dataset
from MambaSegTraining.fingerprint import ChannelFacts, take_fingerprint
from MambaSegTraining.planning import make_plan, normalization, target_spacing
from MambaSegTraining.settings import NetworkSettings, Settings, read_settings

from MambaSegLib.errors import InputError
from MambaSegLib.plan import VolumeRange
from MambaSegLib.schema import from_json
from MambaSegLib.volume_io import read_labels


def _digits(triples):
    return ["".join(map(str, triple)) for triple in triples]


@pytest.mark.parametrize(
    ("spacing", "patch", "strides", "kernels"),
    [
        ((3.0, 0.7578, 0.7578), (48, 192, 192), "111 122 222 222 222 122", "133 333 333 333 333 333"),
        ((6.35, 1.5234, 1.5234), (14, 256, 224), "111 122 122 222 122 122", "133 133 333 333 333 333"),
        ((1.0, 1.0, 1.0), (128, 128, 128), "111 222 222 222 222 222", "333 333 333 333 333 333"),
        ((1.0, 1.0, 1.0), (40, 56, 40), "111 222 222 222", "333 333 333 333"),
    ],
    ids=["Synapse", "ACDC", "BrainTumour", "Hippocampus"],
)
def test_strides_and_kernels_equal_those_of_the_released_plans(spacing, patch, strides, kernels):
    pooling = plan_pooling(spacing, patch)
    assert pooling.patch_size == patch
    assert _digits(pooling.strides) == strides.split()
    assert _digits(pooling.kernels) == kernels.split()


def test_the_patch_of_the_brain_tumour_data_is_the_released_one():
    patch, stages = plan_architecture((1.0, 1.0, 1.0), (138, 169, 138), 4, NetworkSettings("nnunet"), None)
    assert patch == (128, 128, 128)
    assert [stage.features for stage in stages] == [32, 64, 128, 256, 320, 320]


def test_small_images_get_a_patch_just_around_them():
    patch, _ = plan_architecture((1.0, 1.0, 1.0), (36, 50, 35), 3, NetworkSettings("nnunet"), None)
    assert patch == (40, 56, 40)


def test_less_memory_means_a_smaller_patch():
    small = NetworkSettings("nnunet", memory_gb=2)
    patch, _ = plan_architecture((1.0, 1.0, 1.0), (138, 169, 138), 4, small, None)
    assert np.prod(patch) < 128**3 / 2


def test_a_patch_the_strides_do_not_divide_is_refused_with_one_they_do():
    with pytest.raises(InputError, match=r"take \(40, 56, 40\)"):
        plan_architecture((1.0, 1.0, 1.0), (36, 50, 35), 3, NetworkSettings(), (39, 56, 40))


def test_a_planned_patch_grows_to_what_the_network_can_take_and_a_given_one_is_refused(ball_dataset, config_file):
    dataset = read_dataset(ball_dataset)
    settings = read_settings(config_file)
    swin = replace(settings, network=replace(settings.network, name="swin_unetr", options={"feature_size": 12}))
    planned = replace(swin, plan=replace(swin.plan, patch_size=None))
    assert make_plan(dataset, take_fingerprint(dataset), planned).patch_size == (32, 32, 64)
    given = replace(swin, plan=replace(swin.plan, patch_size=(16, 16, 16)))
    with pytest.raises(InputError, match=r"swin_unetr cannot take plan.patch_size .*\(32, 32, 64\)"):
        make_plan(dataset, take_fingerprint(dataset), given)


def test_regions_are_refused_for_a_network_whose_outputs_are_never_negative(ball_dataset):
    dataset = read_dataset(ball_dataset)
    regions = [{"name": "whole", "labels": [1, 2], "value": 1}, {"name": "inner", "labels": [2], "value": 2}]
    settings = from_json(Settings, {"regions": regions, "network": {"name": "nnmamba"}})
    with pytest.raises(InputError, match="ReLU"):
        make_plan(dataset, take_fingerprint(dataset), settings)


def test_thick_slices_get_the_tenth_percentile_of_their_thickness():
    spacings = np.array([[float(thickness), 1.0, 1.0] for thickness in range(5, 16)])
    few_slices = np.tile([10, 200, 200], (11, 1))
    assert target_spacing(spacings, few_slices) == (6.0, 1.0, 1.0)
    many_slices = np.tile([100, 200, 200], (11, 1))
    assert target_spacing(spacings, many_slices) == (10.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("channel", "scheme"), [("CT", "ct"), ("MRI", "zscore"), ("noNorm", "none"), ("rescale_to_0_1", "rescale")]
)
def test_the_channel_name_chooses_the_normalization(channel, scheme):
    facts = ChannelFacts(10.0, 2.0, 0.0, 1.0, 9.0, 20.0, 30.0)
    chosen = normalization(channel, facts, masked=True)
    assert chosen.scheme == scheme
    assert chosen.masked is (scheme == "zscore")
    if scheme == "ct":
        assert (chosen.lower, chosen.upper, chosen.mean, chosen.std) == (1.0, 20.0, 10.0, 2.0)


def test_a_plan_takes_names_from_the_data_set_and_replacements_from_the_settings(ball_dataset, config_file):
    dataset = read_dataset(ball_dataset)
    plan = make_plan(dataset, take_fingerprint(dataset), read_settings(config_file))
    assert plan.orientation == "SPL"
    assert plan.patch_size == (16, 16, 16)
    assert [label.name for label in plan.labels] == ["ball", "core"]
    assert len({label.color for label in plan.labels}) == 2
    assert [stage.features for stage in plan.network.stages] == [4, 8]
    assert plan.network.out_channels == 3
    assert "preset" not in plan.network.options, "options are written out"
    assert plan.fingerprint.extent_min_mm == (18.0, 22.0, 20.0)
    assert plan.fingerprint.obliquity_max_deg == 0.0
    maps = [read_labels(path).array for path in (ball_dataset / "labelsTr").iterdir()]
    balls = [np.count_nonzero(array == 1) / 1000 for array in maps]  # voxels of 1 mm
    assert plan.fingerprint.volumes[0] == VolumeRange(min(balls), max(balls))
    assert len(plan.fingerprint.volumes) == 2
