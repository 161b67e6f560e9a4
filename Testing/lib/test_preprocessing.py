"""One preprocess for training and prediction: each step against a plain twin, and the way back to the voxel."""

from itertools import permutations, product

import numpy as np
import pytest
from scipy import ndimage

from MambaSegLib import preprocessing
from MambaSegLib.errors import EnvironmentProblemError, InputError
from MambaSegLib.plan import Channel, Label, NetworkPlan, Normalization, Plan
from MambaSegLib.preprocessing import nonzero_box, preprocess, preprocess_with_labels
from MambaSegLib.resampling import (
    LINEAR,
    TIE,
    coarse_axis,
    nearest,
    resample_classes,
    resample_image,
    resampled_shape,
    source_coordinates,
)
from MambaSegLib.volume import Box, Geometry, Labels, Volume

NONE = Normalization("none")
ORIENTATIONS = [
    "".join(("LR", "PA", "SI")[axis][flip] for axis, flip in zip(axes, flips, strict=True))
    for axes in permutations(range(3))
    for flips in product((0, 1), repeat=3)
]


def make_plan(spacing=(1.0, 1.0, 1.0), normalization=NONE, names=("image",), values=(1,), **settings):
    channels = tuple(Channel(name, normalization) for name in names)
    labels = tuple(Label(value, f"structure {value}", (255, 0, 0)) for value in values)
    network = NetworkPlan("mamba_unet_unidirectional", len(names), len(values) + 1, (8, 8, 8), ())
    settings = {"orientation": "SPL", "crop_to_nonzero": False, **settings}
    return Plan(spacing_mm=spacing, channels=channels, labels=labels, network=network, **settings)


def axial(array, spacing=(1.0, 1.0, 1.0), **settings):
    array = np.asarray(array)
    array = array[None] if array.ndim == 3 else array
    direction = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    return Volume(array, Geometry(array.shape[1:], spacing, (-7.0, 3.0, 11.0), direction), **settings)


def noise(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_there_are_48_orientations():
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_undo_puts_a_voxel_back_where_it_came_from_in_every_orientation(orientation):
    volume = axial(noise((4, 5, 6)))
    turned = volume.reoriented(volume.geometry.reorientation_to(orientation))
    roi = Box((1, 0, 1), tuple(n - (k == 2) for k, n in enumerate(turned.geometry.shape)))
    preprocessed = preprocess(turned, make_plan(), roi=roi)
    back = np.zeros(turned.geometry.shape, dtype=np.float32)
    preprocessed.undo.view(back)[:] = preprocessed.array[0]
    expected = np.zeros_like(back)
    expected[roi.slices] = turned.array[0][roi.slices]
    np.testing.assert_array_equal(back, expected)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_orientation_of_a_volume_gives_the_same_network_input(orientation):
    volume = axial(noise((4, 5, 6)), spacing=(2.0, 1.0, 1.0))
    plan = make_plan(spacing=(1.0, 1.5, 1.0))
    turned = volume.reoriented(volume.geometry.reorientation_to(orientation))
    expected, found = preprocess(volume, plan), preprocess(turned, plan)
    np.testing.assert_array_equal(found.array, expected.array)
    assert expected.undo.working.is_close(found.undo.working, 1e-9)


def test_an_oblique_volume_stays_on_its_own_axes():
    a = np.deg2rad(25)
    direction = ((0.0, -np.sin(a), np.cos(a)), (0.0, np.cos(a), np.sin(a)), (1.0, 0.0, 0.0))
    volume = Volume(noise((1, 3, 4, 5)), Geometry((3, 4, 5), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), direction))
    np.testing.assert_array_equal(preprocess(volume, make_plan()).array, volume.array)


def test_the_empty_margin_is_cropped_where_every_channel_is_zero():
    array = np.zeros((2, 6, 7, 8))
    array[0, 2, 3, 4] = 1
    array[1, 4, 1, 4] = -1
    volume = axial(array)
    preprocessed = preprocess(volume, make_plan(names=("a", "b"), crop_to_nonzero=True))
    assert preprocessed.undo.crop == Box((2, 1, 4), (5, 4, 5))
    assert preprocessed.array.shape == (2, 3, 3, 1)
    np.testing.assert_allclose(preprocessed.undo.working.origin_mm, (-7 + 4, 3 + 1, 11 + 2))


def test_an_image_of_zeros_is_not_cropped_away():
    assert nonzero_box(np.zeros((1, 2, 3, 4))) == Box((0, 0, 0), (2, 3, 4))


def test_ct_intensities_are_clipped_then_standardized():
    plan = make_plan(normalization=Normalization("ct", lower=-100, upper=300, mean=50, std=25))
    found = preprocess(axial(np.array([[[-1000, -100, 50, 75, 2000]]], dtype=np.int16)), plan).array
    np.testing.assert_allclose(found[0, 0, 0], [-6, -6, 0, 1, 10])


def test_zscore_uses_the_cropped_image_before_it_is_resampled():
    inner = noise((4, 6, 6)) * 7 + 100
    array = np.pad(inner, 2)
    plan = make_plan((1.0, 2.0, 2.0), Normalization("zscore"), crop_to_nonzero=True)
    found = preprocess(axial(array), plan)
    standardized = (inner - inner.mean()) / inner.std()
    np.testing.assert_allclose(found.array[0], ndi_zoom(standardized, (4, 3, 3)), atol=1e-5)


def test_masked_zscore_counts_holes_as_inside_and_leaves_zero_outside():
    array = np.zeros((3, 5, 5))
    array[:, 1:4, 1:4] = np.arange(27).reshape(3, 3, 3) + 1.0
    array[1, 2, 2] = 0  # a hole all around which is body
    inside = np.zeros(array.shape, dtype=bool)
    inside[:, 1:4, 1:4] = True
    found = preprocess(axial(array), make_plan(normalization=Normalization("zscore", masked=True))).array[0]
    values = array[inside]
    np.testing.assert_allclose(found[inside], (values - values.mean()) / values.std(), atol=1e-6)
    assert not found[~inside].any()


def test_rescale_maps_minimum_and_maximum_to_zero_and_one():
    found = preprocess(axial(np.array([[[-2.0, 0.0, 6.0]]])), make_plan(normalization=Normalization("rescale"))).array
    np.testing.assert_allclose(found[0, 0, 0], [0, 0.25, 1])


@pytest.mark.parametrize("scheme", ["zscore", "rescale"])
@pytest.mark.parametrize("masked", [False, True])
def test_a_constant_image_becomes_zero_not_nan(scheme, masked):
    found = preprocess(axial(np.full((2, 3, 4), 5)), make_plan(normalization=Normalization(scheme, masked=masked)))
    np.testing.assert_array_equal(found.array, 0)


def test_the_volume_itself_is_not_changed():
    array = noise((1, 3, 4, 5))
    kept = array.copy()
    preprocess(axial(array), make_plan(normalization=Normalization("zscore")))
    np.testing.assert_array_equal(array, kept)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float64, bool])
def test_every_real_type_gives_the_same_float32_input(dtype):
    array = (noise((3, 4, 5)) > 0).astype(dtype)
    found = preprocess(axial(array), make_plan()).array
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[0], array.astype(np.float32))


def ndi_zoom(array, shape, order=3):
    factors = np.divide(shape, array.shape)
    return ndimage.zoom(array.astype(np.float64), factors, order=order, mode="nearest", grid_mode=True)


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("shape", [(5, 9, 13), (10, 4, 13), (3, 20, 26), (1, 9, 30)])
def test_resampling_equals_a_spline_evaluated_voxel_by_voxel(order, shape):
    image = noise((5, 9, 13))
    found = resample_image(image, shape, order=order)
    np.testing.assert_allclose(found, ndi_zoom(image, shape, order), atol=2e-5)


def test_a_linear_ramp_stays_on_its_positions():
    """Value = position in mm along each axis, so that a shift of any part of a voxel would show."""
    volume = axial(np.zeros((12, 16, 20)), spacing=(2.0, 1.2, 0.9))
    positions = volume.geometry.to_world(np.moveaxis(np.indices(volume.geometry.shape), 0, -1))
    volume = Volume(np.moveaxis(positions, -1, 0), volume.geometry, ("x", "y", "z"))
    preprocessed = preprocess(volume, make_plan((1.1, 1.5, 1.3), names=("x", "y", "z")))
    working = preprocessed.undo.working
    assert working.shape == (22, 13, 14)
    expected = working.to_world(np.moveaxis(np.indices(working.shape), 0, -1))
    inner = (slice(None), *(slice(6, -6) if n > 20 else slice(5, -5) for n in working.shape))
    # Splines end flat at the border and ring inwards by a factor 0.27 per voxel: 0.1 % of a voxel is left there.
    np.testing.assert_allclose(preprocessed.array[inner], np.moveaxis(expected, -1, 0)[inner], atol=5e-3)


def test_resampling_keeps_the_field_of_view():
    undo = preprocess(axial(noise((7, 8, 9)), (3.0, 0.7, 0.8)), make_plan((2.0, 1.0, 1.0))).undo
    assert undo.working.shape == (10, 6, 7)
    np.testing.assert_allclose(undo.working.extent_mm, undo.source.extent_mm)


def test_spacing_right_within_a_thousandth_is_not_resampled():
    volume = axial(noise((2, 3, 2000)), (1.0, 1.0, 1.0009))
    preprocessed = preprocess(volume, make_plan())
    np.testing.assert_array_equal(preprocessed.array, volume.array)
    assert resampled_shape((2, 3, 2000), (1.0, 1.0, 1.0011), (1.0, 1.0, 1.0)) == (2, 3, 2002)


def test_no_axis_vanishes_in_resampling():
    assert resampled_shape((1, 1, 4), (1.0, 1.0, 1.0), (5.0, 5.0, 5.0)) == (1, 1, 1)


@pytest.mark.parametrize(
    ("spacing", "target", "axis"),
    [
        ((3.0, 1.0, 1.0), (1.0, 1.0, 1.0), None),
        ((3.1, 1.0, 1.0), (1.0, 1.0, 1.0), 0),
        ((1.0, 1.0, 1.0), (1.0, 5.0, 1.0), 1),
        ((1.0, 4.0, 4.0), (1.0, 1.0, 1.0), None),
        ((1.0, 4.0, 4.0), (1.0, 1.0, 9.0), None),
    ],
)
def test_the_coarse_axis_follows_the_ratio_of_three(spacing, target, axis):
    assert coarse_axis(spacing, target) == axis


def test_along_a_coarse_axis_slices_are_blended_linearly_and_nothing_moves():
    volume = axial(noise((3, 8, 8)), (10.0, 1.0, 1.0))
    found = preprocess(volume, make_plan((5.0, 2.0, 2.0))).array[0]
    assert found.shape == (6, 4, 4)
    in_plane = [ndi_zoom(image[None], (1, 4, 4))[0] for image in volume.array[0]]
    # New centers at slice -0.25 (the edge goes on), 0.25, 0.75, ...
    np.testing.assert_allclose(found[0], in_plane[0], atol=1e-5)
    np.testing.assert_allclose(found[1], 0.75 * in_plane[0] + 0.25 * in_plane[1], atol=1e-5)


def test_where_a_plan_says_so_thick_slices_are_repeated_as_nnunet_does():
    volume = axial(noise((3, 8, 8)), (10.0, 1.0, 1.0))
    plan = make_plan((4.0, 2.0, 2.0), thick_slices="repeated")
    found = preprocess(volume, plan).array[0]
    in_plane = [ndi_zoom(image[None], (1, 4, 4))[0] for image in volume.array[0]]
    # New centers at slice -0.3125, 0.0625, 0.4375, 0.8125, ...
    np.testing.assert_allclose(found, [in_plane[k] for k in (0, 0, 0, 1, 1, 2, 2, 2)], atol=1e-5)
    thin = axial(noise((3, 8, 8)), (3.0, 1.0, 1.0))  # these are not thick
    np.testing.assert_array_equal(preprocess(thin, plan).array, preprocess(thin, make_plan((4.0, 2.0, 2.0))).array)


def test_halfway_between_two_voxels_the_later_one_is_nearest():
    indices = np.arange(7, dtype=float)
    for target in (1, 2, 3, 5, 14, 21):
        expected = ndimage.map_coordinates(indices, source_coordinates(7, target)[None], order=0, mode="nearest")
        assert nearest(7, target).tolist() == expected.tolist()


def test_labels_go_through_the_same_steps_as_the_image():
    values = np.zeros((4, 9, 8), dtype=np.uint8)
    values[1:3, 2:7, 3:6] = 5
    volume = axial(values.astype(np.float32), (10.0, 1.0, 1.0))
    turned = volume.reoriented(volume.geometry.reorientation_to("LIA"))
    labels = Labels(turned.array[0].astype(np.uint8), turned.geometry, ())
    preprocessed, classes = preprocess_with_labels(
        turned, labels, make_plan((5.0, 1.0, 1.0), values=(2, 5), crop_to_nonzero=True)
    )
    assert preprocessed.array.shape[1:] == classes.shape == (4, 5, 3)
    assert classes.dtype == np.uint8
    np.testing.assert_array_equal(classes, 2)


def test_a_class_wins_a_new_voxel_if_it_has_most_of_it():
    classes = np.zeros((1, 1, 8), dtype=np.uint8)
    classes[0, 0, 3:8] = 1
    # New centers at 0.5, 2.5, 4.5, 6.5: the second lies halfway between classes 0 and 1.
    assert resample_classes(classes, 2, (1, 1, 4))[0, 0].tolist() == [0, 0, 1, 1]


def test_resampling_classes_equals_taking_the_largest_linear_share():
    classes = np.random.default_rng(1).integers(0, 4, (6, 7, 8)).astype(np.uint8)
    shape = (9, 5, 8)
    shares = np.stack([ndi_zoom(classes == k, shape, order=1) for k in range(4)])
    best = np.sort(shares, axis=0)
    clear = best[-1] - best[-2] > 1e-4
    found = resample_classes(classes, 4, shape)
    assert clear.mean() > 0.8
    np.testing.assert_array_equal(found[clear], shares.argmax(axis=0)[clear])


@pytest.mark.parametrize("shape", [(17, 60, 33), (40, 13, 20), (1, 1, 1)])
def test_structures_in_their_boxes_are_resampled_as_if_over_the_whole_volume(shape):
    classes = np.zeros((30, 40, 20), dtype=np.uint8)
    for value, corner in ((1, (0, 0, 0)), (2, (25, 30, 12)), (4, (3, 4, 5)), (5, (10, 10, 10))):
        z, y, x = corner
        classes[z : z + 7, y : y + 10, x : x + 8] = value
    shares = [resample_image((classes == k).astype(np.float32), shape, order=LINEAR) for k in range(6)]
    best, expected = shares[0], np.zeros(shape)
    for value, share in enumerate(shares[1:], start=1):
        expected = np.where(share > best + TIE, value, expected)
        best = np.maximum(share, best)
    np.testing.assert_array_equal(resample_classes(classes, 6, shape), expected)


def test_an_unknown_label_value_is_named():
    volume = axial(noise((2, 2, 2)))
    labels = Labels(np.full((2, 2, 2), 7, dtype=np.uint8), volume.geometry, ())
    with pytest.raises(InputError, match=r"\[7\].*\[0, 1\]"):
        preprocess_with_labels(volume, labels, make_plan())


def test_labels_on_another_grid_are_refused():
    volume = axial(noise((2, 2, 2)))
    labels = Labels(np.zeros((2, 2, 2), dtype=np.uint8), axial(noise((2, 2, 2)), (1.0, 1.0, 2.0)).geometry, ())
    with pytest.raises(InputError, match="spacing"):
        preprocess_with_labels(volume, labels, make_plan())


def test_channels_are_found_by_name():
    array = noise((2, 2, 3, 4))
    found = preprocess(axial(array, channels=("t1", "FLAIR")), make_plan(names=("flair", "T1"))).array
    np.testing.assert_array_equal(found, array[::-1])


@pytest.mark.parametrize("names", [(), ("T1",), ("T1", "T2", "FLAIR"), ("T1", "PD")])
def test_missing_or_foreign_channels_are_refused_with_the_expected_ones_listed(names):
    array = noise((max(len(names), 1), 2, 3, 4))
    with pytest.raises(InputError, match=r"expects 2 channels \(T1, T2\)"):
        preprocess(axial(array, channels=names), make_plan(names=("T1", "T2")))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300, 3e38, -3e38])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_values_that_cannot_be_computed_with_are_refused(value, kind):
    array = np.zeros((2, 2, 2), kind)
    with np.errstate(over="ignore"):
        array[1, 0, 1] = value
    with pytest.raises(InputError, match=r"no intensities that can be computed with.*read_volume"):
        preprocess(axial(array), make_plan(normalization=Normalization("zscore")))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scheme", ["zscore", "rescale"])
def test_values_as_large_as_are_let_through_are_normalized(scheme):
    array = noise((4, 5, 6))
    huge = np.sign(array) * np.float32(1e37)
    prepared = preprocess(axial(huge), make_plan((0.7, 0.8, 0.9), Normalization(scheme))).array
    expected = preprocess(axial(np.sign(array)), make_plan((0.7, 0.8, 0.9), Normalization(scheme))).array
    np.testing.assert_allclose(prepared, expected, atol=1e-5)


def test_an_image_that_no_memory_could_hold_at_the_models_spacing_is_refused_with_both_spacings(monkeypatch):
    monkeypatch.setattr(preprocessing, "memory_bytes", lambda: (2**30, 2**29))
    volume = axial(noise((4, 4, 4)), spacing=(900.0, 900.0, 900.0))
    with pytest.raises(
        EnvironmentProblemError, match=r"3600 x 3600 x 3600 voxels.*174 GiB.*voxels are 900 x 900 x 900 mm"
    ):
        preprocess(volume, make_plan())
    monkeypatch.setattr(preprocessing, "memory_bytes", lambda: (2**30 + 2**28, 2**29))
    with pytest.raises(EnvironmentProblemError, match=r"take 1\.46 GiB; there are 1\.25\."):
        preprocess(axial(noise((4, 4, 4)), spacing=(183.0, 183.0, 183.0)), make_plan())
    monkeypatch.setattr(preprocessing, "memory_bytes", lambda: (0, 0))  # unknown
    assert preprocess(axial(noise((4, 4, 4))), make_plan((0.5, 0.5, 0.5))).array.shape == (1, 8, 8, 8)


def test_a_region_beyond_the_volume_is_refused():
    with pytest.raises(InputError, match="beyond"):
        preprocess(axial(noise((2, 2, 2))), make_plan(), roi=Box((0, 0, 0), (2, 2, 3)))
