"""A notice where an image is unlike the training images, with numbers; silence where it is alike."""

from dataclasses import replace

import numpy as np
import pytest

from MambaSegLib.fingerprint_check import notices, obliquity_deg, volume_notices
from MambaSegLib.plan import (
    Channel,
    Fingerprint,
    IntensityRange,
    Label,
    NetworkPlan,
    Normalization,
    Plan,
    VolumeRange,
)
from MambaSegLib.volume import Geometry, Labels, Volume

ORGAN = IntensityRange(-60.0, 90.0, 280.0)
SEEN = Fingerprint((1.0, 0.7, 0.7), (3.0, 0.9, 0.9), (150.0, 300.0, 300.0), (400.0, 400.0, 400.0), (ORGAN,))
CT = Normalization("ct", lower=-60, upper=280, mean=90, std=50)


def make_plan(normalization=CT, fingerprint=SEEN, names=("CT",)):
    channels = tuple(Channel(name, normalization) for name in names)
    network = NetworkPlan("mamba_unet_unidirectional", len(names), 2, (8, 8, 8), ())
    return Plan("SPL", (2.0, 0.8, 0.8), channels, (Label(1, "Spleen", (1, 2, 3)),), network, fingerprint=fingerprint)


def body(shape=(10, 20, 20), spacing=(20.0, 17.5, 17.5), tilt_deg=0.0, fill=100):
    """Air around soft tissue; as coarse as needed to cover a trunk with few voxels."""
    array = np.full(shape, -1000, dtype=np.int16)
    array[2:-2, 4:-4, 4:-4] = fill
    a = np.deg2rad(tilt_deg)
    direction = ((0.0, -np.sin(a), np.cos(a)), (0.0, np.cos(a), np.sin(a)), (1.0, 0.0, 0.0))
    return Volume(array[None], Geometry(shape, spacing, (0.0, 0.0, 0.0), direction))


def coarse_plan(**settings):
    fingerprint = Fingerprint((20.0, 17.5, 17.5), (20.0, 17.5, 17.5), SEEN.extent_min_mm, SEEN.extent_max_mm, (ORGAN,))
    return make_plan(**{"fingerprint": fingerprint, **settings})


def test_an_image_like_the_training_images_gets_no_notice():
    assert notices(body(), coarse_plan()) == ()


@pytest.mark.parametrize("orientation", ["RAI", "LSA", "PIR"])
def test_how_the_axes_are_stored_does_not_matter(orientation):
    volume = body()
    assert notices(volume.reoriented(volume.geometry.reorientation_to(orientation)), coarse_plan()) == ()


def test_coarse_slices_are_named_with_found_and_expected_spacing():
    volume = body((6, 20, 20), (50.0, 17.5, 17.5))
    volume = volume.reoriented(volume.geometry.reorientation_to("LAS"))
    (notice,) = notices(volume, coarse_plan())
    assert "50 mm apart head-foot" in notice
    assert "trained on 20 mm" in notice


@pytest.mark.parametrize(("factor", "count"), [(1.2, 0), (1.3, 1), (1 / 1.2, 0), (1 / 1.3, 1)])
def test_a_quarter_more_or_less_than_seen_is_no_reason_for_a_notice(factor, count):
    plan = coarse_plan()
    volume = body(spacing=(20.0 * factor, 17.5, 17.5))
    assert len(notices(volume, plan)) == count


def test_a_whole_body_scan_comes_with_the_advice_to_choose_a_region():
    (notice,) = notices(body((90, 20, 20)), coarse_plan())
    assert "covers 1800 mm head-foot" in notice
    assert "150 to 400 mm" in notice
    assert "region of interest" in notice


def test_a_small_field_of_view_may_cut_structures_off():
    (notice,) = notices(body((10, 20, 9)), coarse_plan())
    assert "left-right" in notice
    assert "cut off" in notice


def test_a_ct_without_negative_values_is_not_in_hounsfield_units():
    volume = body()
    shifted = Volume(volume.array + np.int16(1024), volume.geometry)
    (notice,) = notices(shifted, coarse_plan())
    assert "from 24 to 1124" in notice
    assert "Hounsfield" in notice


@pytest.mark.parametrize("values", [[1, 200], [0, *[90] * 28, 1200]])
def test_a_region_inside_soft_tissue_has_no_negative_hounsfield_units_and_no_notice(values):
    volume = body()
    array = np.resize(np.array(values, dtype=np.int16), volume.array.shape)
    assert notices(Volume(array, volume.geometry), coarse_plan()) == ()


def test_a_ct_of_nothing_the_model_knows_is_named():
    (notice,) = notices(body(fill=-700), coarse_plan())
    assert "-1000 to -700" in notice
    assert "-60 to 280" in notice


@pytest.mark.parametrize(("low", "count"), [(-1024, 1), (-800, 0), (0, 0)])
def test_a_ct_given_to_a_model_of_mr_is_named(low, count):
    plan = coarse_plan()
    plan = replace(plan, channels=(Channel("T1", Normalization("zscore"), "MR"),), fingerprint=None)
    volume = body()
    volume = replace(volume, array=np.maximum(volume.array, low))
    found = notices(volume, plan)
    assert len(found) == count
    assert all("values down to -1000, as a CT has; the model was trained on MR" in notice for notice in found)


def test_intensities_of_mr_are_not_compared():
    volume = body(fill=900)
    mr = Volume(volume.array + np.int16(1000), volume.geometry)
    assert notices(mr, coarse_plan(normalization=Normalization("zscore"))) == ()


@pytest.mark.parametrize(("tilt", "count"), [(15, 0), (19, 0), (21, 1), (44, 1)])
def test_strong_obliquity_is_named(tilt, count):
    found = notices(body(tilt_deg=tilt), coarse_plan())
    assert len(found) == count
    if count:
        assert f"{tilt} degrees" in found[0]


@pytest.mark.parametrize(("tilt", "count"), [(44, 0), (19, 0)])
def test_a_model_trained_on_oblique_images_takes_them_as_usual(tilt, count):
    plan = coarse_plan()
    oblique = replace(plan, fingerprint=replace(plan.fingerprint, obliquity_max_deg=30.0))
    assert len(notices(body(tilt_deg=tilt), oblique)) == count


def test_an_image_turned_further_than_the_training_images_is_told_by_how_much():
    plan = coarse_plan()
    upright = replace(plan, fingerprint=replace(plan.fingerprint, obliquity_max_deg=4.0))
    (notice,) = notices(body(tilt_deg=25), upright)
    assert "turned by 25 degrees" in notice
    assert "by 4 at most" in notice


def test_obliquity_is_measured_to_the_nearest_axis():
    assert obliquity_deg(body(tilt_deg=30).geometry) == pytest.approx(30)
    assert obliquity_deg(body(tilt_deg=80).geometry) == pytest.approx(10)
    assert obliquity_deg(body(tilt_deg=180).geometry) == pytest.approx(0, abs=1e-5)


def test_without_a_fingerprint_only_contrast_and_obliquity_are_checked():
    flat = Volume(np.full((1, 3, 3, 3), 7), Geometry((3, 3, 3), (9.0, 9.0, 9.0), (0.0, 0.0, 0.0), np.eye(3).tolist()))
    (notice,) = notices(flat, make_plan(fingerprint=None))
    assert "same value, 7" in notice


SPLEENS = (VolumeRange(80.0, 300.0),)


def spleen_of(voxels, seen=SPLEENS):
    """Notices for a spleen of that many voxels of 1 ml each."""
    plan = make_plan(fingerprint=replace(SEEN, volumes=seen))
    array = np.zeros((10, 10, 10), dtype=np.uint8)
    array.ravel()[:voxels] = 1
    geometry = Geometry(array.shape, (10.0, 10.0, 10.0), (0.0, 0.0, 0.0), body().geometry.direction)
    return volume_notices(Labels(array, geometry, plan.predicted_labels), plan)


@pytest.mark.parametrize("voxels", [80, 300, 54, 449])
def test_a_structure_about_as_large_as_in_training_gets_no_notice(voxels):
    assert spleen_of(voxels) == ()


@pytest.mark.parametrize("voxels", [500, 40])
def test_a_structure_much_larger_or_smaller_than_in_training_is_named_with_both_volumes(voxels):
    (notice,) = spleen_of(voxels)
    assert f"Spleen has {voxels} ml" in notice
    assert "80 to 300 ml" in notice


def test_a_structure_that_training_images_lacked_may_be_missing():
    assert spleen_of(0, (VolumeRange(0.0, 300.0),)) == ()
    assert len(spleen_of(0)) == 1


def test_models_that_do_not_know_volumes_give_no_notice_of_them():
    assert spleen_of(1000, ()) == ()
    assert volume_notices(Labels(np.zeros((2, 2, 2), np.uint8), body((2, 2, 2)).geometry, ()), make_plan(None)) == ()
