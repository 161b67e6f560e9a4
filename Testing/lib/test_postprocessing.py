"""Probabilities back to labels on the input grid: against a plain twin, on the right voxel, in little memory."""

from itertools import permutations, product

import numpy as np
import pytest
import torch

from MambaSegLib import postprocessing
from MambaSegLib.plan import Channel, Label, NetworkPlan, Normalization, Plan
from MambaSegLib.postprocessing import keep_largest_component, resampled_slabs, to_labels
from MambaSegLib.preprocessing import preprocess, preprocess_with_labels
from MambaSegLib.sliding_window import Slab
from MambaSegLib.volume import Box, Geometry, Labels, Volume

ORIENTATIONS = [
    "".join(("LR", "PA", "SI")[axis][flip] for axis, flip in zip(axes, flips, strict=True))
    for axes in permutations(range(3))
    for flips in product((0, 1), repeat=3)
]


def make_plan(spacing=(1.0, 1.0, 1.0), values=(1,), **settings):
    channels = (Channel("image", Normalization("none")),)
    labels = tuple(Label(value, f"structure {value}", (255, 0, 0)) for value in values)
    network = NetworkPlan("mamba_unet_unidirectional", 1, len(values) + 1, (8, 8, 8), ())
    settings = {"orientation": "SPL", "crop_to_nonzero": False, **settings}
    return Plan(spacing_mm=spacing, channels=channels, labels=labels, network=network, **settings)


def axial(array, spacing=(1.0, 1.0, 1.0)):
    array = np.asarray(array)
    direction = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    return Volume(array[None], Geometry(array.shape, spacing, (-7.0, 3.0, 11.0), direction))


def one_hot(classes, count):
    """(Z, K, Y, X) probabilities of a network that is sure."""
    return np.stack([classes == k for k in range(count)], axis=1).astype(np.float32)


def slabs_of(probabilities, *thicknesses, disagreement=None):
    """Slabs in one reused buffer, as the sliding window makes them."""
    start = 0
    buffer = torch.empty((max(thicknesses), *probabilities.shape[1:]))
    for thickness in thicknesses:
        buffer[:thickness] = torch.from_numpy(probabilities[start : start + thickness])
        part = None if disagreement is None else torch.from_numpy(disagreement[start : start + thickness])
        yield Slab(start, buffer[:thickness], part)
        buffer[:] = float("nan")
        start += thickness


def linear_twin(array, shape):
    """Trilinear resampling point by point, edges matched."""
    result = np.zeros(shape)
    for index in np.ndindex(*shape):
        terms = []
        for i, n, m in zip(index, array.shape, shape, strict=True):
            where = min(max((i + 0.5) * n / m - 0.5, 0), n - 1)
            low = int(where)
            terms.append(((low, 1 - (where - low)), (min(low + 1, n - 1), where - low)))
        result[index] = sum(wz * wy * wx * array[z, y, x] for (z, wz), (y, wy), (x, wx) in product(*terms))
    return result


@pytest.mark.parametrize("target", [(7, 5, 6), (13, 9, 4), (3, 5, 11), (1, 1, 1), (7, 10, 6), (20, 5, 6)])
@pytest.mark.parametrize("thicknesses", [(7,), (2, 3, 2), (1,) * 7, (6, 1)])
def test_slabs_are_resampled_as_if_they_were_one(target, thicknesses, monkeypatch):
    monkeypatch.setattr(postprocessing, "CHUNK_BYTES", 4 * 3 * target[1] * target[2] * 2)  # two slices at a time
    array = np.random.default_rng(0).random((7, 3, 5, 6)).astype(np.float32)
    other = np.random.default_rng(1).random((7, 5, 6)).astype(np.float32)
    slabs = [
        (s.start, s.probabilities.numpy().copy(), s.disagreement.numpy().copy())
        for s in resampled_slabs(slabs_of(array, *thicknesses, disagreement=other), (7, 5, 6), target)
    ]
    assert [start for start, *_ in slabs] == np.cumsum([0] + [len(p) for _, p, _ in slabs[:-1]]).tolist()
    assert max(len(p) for _, p, _ in slabs) <= 2
    found = np.concatenate([p for _, p, _ in slabs])
    for k in range(3):
        np.testing.assert_allclose(found[:, k], linear_twin(array[:, k], target), atol=1e-6)
    np.testing.assert_allclose(np.concatenate([d for *_, d in slabs]), linear_twin(other, target), atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("target", [(13, 9, 4), (3, 5, 11), (1, 1, 1), (20, 5, 6)])
@pytest.mark.parametrize("thicknesses", [(7,), (2, 3, 2), (1,) * 7])
def test_voxels_are_repeated_along_one_axis_of_slabs_and_blended_along_the_others(axis, target, thicknesses):
    array = np.random.default_rng(0).random((7, 2, 5, 6)).astype(np.float32)
    slabs = resampled_slabs(slabs_of(array, *thicknesses), (7, 5, 6), target, axis)
    found = np.concatenate([slab.probabilities.numpy().copy() for slab in slabs])
    size = (7, 5, 6)[axis]
    chosen = [min(int((k + 0.5) * size / target[axis]), size - 1) for k in range(target[axis])]
    for k in range(2):
        expected = linear_twin(np.take(array[:, k], chosen, axis), target)
        np.testing.assert_allclose(found[:, k], expected, atol=1e-6)


@pytest.mark.parametrize("source", [1, 2])
def test_a_grid_of_one_or_two_slices_is_resampled(source):
    array = np.arange(source, dtype=np.float32).reshape(source, 1, 1, 1)
    found = torch.cat([s.probabilities for s in resampled_slabs(slabs_of(array, source), (source, 1, 1), (4, 1, 1))])
    assert found.ravel().tolist() == ([0] * 4 if source == 1 else [0, 0.25, 0.75, 1])


def test_missing_slices_are_an_error():
    with pytest.raises(ValueError, match="slice 2 of 4"):
        list(resampled_slabs(slabs_of(np.zeros((2, 2, 3, 3), np.float32), 2), (4, 3, 3), (4, 3, 3)))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_label_comes_back_to_its_voxel_from_every_orientation(orientation):
    """The network is replaced by the truth at its own grid: crop, region, turn and a threefold finer grid undone."""
    values = np.zeros((7, 8, 9), dtype=np.uint8)
    values[3, 2, 4], values[4, 5, 6] = 3, 9
    image = values.astype(np.float32) + 1
    image[:2] = image[:, :, 8] = 0
    volume = axial(image, (3.0, 1.5, 1.2))
    turn = volume.geometry.reorientation_to(orientation)
    volume = volume.reoriented(turn)
    truth = turn.apply(values)
    plan = make_plan((1.0, 0.5, 0.4), values=(3, 9), crop_to_nonzero=True)
    roi = Box(tuple(0 for _ in range(3)), tuple(n if n != 8 else 7 for n in truth.shape))
    preprocessed = preprocess(volume, plan, roi=roi)
    undo = preprocessed.undo
    assert undo.working.shape == tuple(3 * n for n in undo.cropped.shape)
    classes = np.searchsorted([0, 3, 9], undo.view(truth)).repeat(3, 0).repeat(3, 1).repeat(3, 2)
    found = to_labels(slabs_of(one_hot(classes, 3), 5, len(classes) - 5), undo, plan).labels
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.where(_inside(roi, truth.shape), truth, 0))
    assert {3, 9} <= set(np.unique(found))


def _inside(roi, shape):
    mask = np.zeros(shape, dtype=bool)
    mask[roi.slices] = True
    return mask


@pytest.mark.parametrize(
    ("spacing", "tolerance"),
    # Where two slices become one, a border slice is a tie, which background wins: a tenth of a ball of 9 slices.
    [((2.0, 1.1, 0.9), 0.03), ((0.7, 0.7, 0.7), 0.03), ((6.0, 1.0, 1.0), 0.12)],
)
def test_a_ball_survives_the_way_to_the_network_and_back(spacing, tolerance):
    """Volume and center of a ball, to a tenth of a voxel, through image, labels, and any change of spacing."""
    grid = np.indices((24, 40, 40)).astype(float)
    center = np.array([11.3, 19.7, 18.2])
    spacing_mm = np.array([3.0, 1.0, 1.2])
    distance = np.sqrt((((grid.T - center) * spacing_mm) ** 2).sum(axis=-1)).T
    truth = (distance < 14).astype(np.uint8)
    volume = axial(np.ones(truth.shape), tuple(spacing_mm))
    plan = make_plan(spacing)
    preprocessed, classes = preprocess_with_labels(volume, Labels(truth, volume.geometry, plan.labels), plan)
    found = to_labels(slabs_of(one_hot(classes, 2), len(classes)), preprocessed.undo, plan).labels
    shift = np.argwhere(found).mean(axis=0) - np.argwhere(truth).mean(axis=0)
    np.testing.assert_allclose(shift, 0, atol=0.1)
    assert found.sum() == pytest.approx(truth.sum(), rel=tolerance)


def test_label_values_above_255_need_two_bytes():
    volume = axial(np.ones((2, 2, 2)))
    plan = make_plan(values=(300,))
    classes = np.array([[[0, 1], [1, 0]], [[1, 1], [0, 0]]])
    found = to_labels(slabs_of(one_hot(classes, 2), 2), preprocess(volume, plan).undo, plan).labels
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, classes * 300)


def test_uncertainty_is_the_entropy_as_a_fraction_of_its_maximum():
    probabilities = np.array([[1, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0]], dtype=np.float32)
    undo = preprocess(axial(np.ones((3, 1, 1))), make_plan()).undo
    slabs = slabs_of(probabilities[..., None, None], 1, 2)
    found = to_labels(slabs, undo, make_plan(values=(1, 2)), uncertainty=True)
    np.testing.assert_allclose(found.uncertainty.ravel(), [0, 1, np.log(2) / np.log(3)], atol=1e-6)
    assert found.uncertainty.dtype == np.float32
    assert found.disagreement is None
    assert found.labels.ravel().tolist() == [0, 0, 0]  # ties go to the smaller class


def test_outside_the_region_everything_is_background_and_sure():
    volume = axial(np.ones((4, 5, 6)))
    plan = make_plan()
    roi = Box((1, 2, 3), (3, 4, 5))
    undo = preprocess(volume, plan, roi=roi).undo
    probabilities = np.full((2, 2, 2, 2), 0.5, dtype=np.float32)
    slabs = slabs_of(probabilities, 2, disagreement=np.full((2, 2, 2), 0.25, dtype=np.float32))
    found = to_labels(slabs, undo, plan, uncertainty=True, disagreement=True)
    inside = _inside(roi, (4, 5, 6))
    np.testing.assert_allclose(found.uncertainty, inside)
    np.testing.assert_allclose(found.disagreement, inside * 0.25)


def test_only_the_largest_component_is_kept_where_the_plan_says_so():
    classes = np.zeros((6, 6, 6), dtype=int)
    classes[0:2, 0:2, 0:2] = 1
    classes[2, 2, 2] = 1  # touches the cube by a corner
    classes[4:, 4:, 4:] = 1
    classes[0, 5, 5] = classes[5, 0, 0] = 2
    plan = make_plan(values=(1, 2), keep_largest=(1,))
    found = to_labels(slabs_of(one_hot(classes, 3), 6), preprocess(axial(np.ones((6, 6, 6))), plan).undo, plan).labels
    expected = classes.copy()
    expected[4:, 4:, 4:] = 0
    np.testing.assert_array_equal(found, expected)


def test_keeping_the_largest_of_nothing_changes_nothing():
    labels = np.zeros((2, 3, 4), dtype=np.uint8)
    keep_largest_component(labels, 1)
    assert not labels.any()


def test_the_largest_component_of_a_turned_view_is_kept_in_the_array_itself():
    labels = np.zeros((5, 6, 7), dtype=np.uint8)
    labels[0, 0, 0:3] = labels[4, 5, 6] = 7
    keep_largest_component(labels.transpose(2, 0, 1)[::-1], 7)
    assert labels.sum() == 21
    assert labels[0, 0, 0] == 7


@pytest.mark.parametrize("classes", [2, 14])
def test_no_float_array_of_all_classes_on_the_input_grid_is_made(classes, monkeypatch):
    """The largest tensor any step makes, watched at the only two places that make one on the input's grid."""
    sizes = []
    for name in ("_blend", "_in_plane"):
        original = getattr(postprocessing, name)

        def watched(*args, original=original, **settings):
            result = original(*args, **settings)
            sizes.append(result.numel() * 4)
            return result

        monkeypatch.setattr(postprocessing, name, watched)
    monkeypatch.setattr(postprocessing, "CHUNK_BYTES", 2**18)
    volume = axial(np.ones((60, 64, 64), dtype=np.uint8), (0.5, 0.5, 0.5))
    plan = make_plan(values=tuple(range(1, classes)))
    undo = preprocess(volume, plan).undo
    shape = undo.working.shape
    probabilities = np.full((shape[0], classes, *shape[1:]), 1 / classes, dtype=np.float32)
    to_labels(slabs_of(probabilities, 10, 10, 10), undo, plan)
    assert max(sizes) <= max(2**18, 4 * classes * 64 * 64)
