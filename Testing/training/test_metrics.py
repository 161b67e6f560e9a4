"""Measures of one case: answers by hand, by geometry, and from two other libraries."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from MambaSegTraining.metrics import LabelScore, Structure, dice, score_case, structures_of
from MambaSegTraining.metrics.definitions import DEFINITIONS
from MambaSegTraining.metrics.legacy import legacy_hd95_voxels, score_case_legacy
from MambaSegTraining.metrics.surface import SurfaceDistances, surface_distances
from MambaSegTraining.metrics.surface_elements import surface_of, surface_polygons

from MambaSegLib.errors import InputError
from MambaSegLib.plan import Label
from MambaSegLib.volume import Array, Geometry, Labels

ISOTROPIC = (1.0, 1.0, 1.0)
SPACINGS = (ISOTROPIC, (3.0, 0.8, 0.8), (5.0, 1.5, 1.5), (0.5, 2.0, 1.0))
LPS = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
TABLE = (Label(1, "liver", (200, 80, 80)), Label(2, "spleen", (80, 80, 200)))


def box(shape: tuple[int, int, int], start: tuple[int, int, int], stop: tuple[int, int, int]) -> Array:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
    return mask


def ball(shape: tuple[int, int, int], radius_mm: float, spacing_mm: tuple[float, float, float]) -> Array:
    axes = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(shape, spacing_mm, strict=True)]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    return np.asarray(z**2 + y**2 + x**2 <= radius_mm**2)


def blobs(seed: int) -> tuple[Array, Array]:
    from scipy.ndimage import gaussian_filter

    generator = np.random.default_rng(seed)
    first, second = (gaussian_filter(generator.normal(size=(18, 28, 28)), 2.5) for _ in range(2))
    return first > 0.8 * first.std(), first + 0.3 * second > 0.8 * first.std()


def grid(shape: tuple[int, ...], spacing_mm: tuple[float, float, float] = (2.0, 1.0, 0.5)) -> Geometry:
    matrix = np.eye(4)
    matrix[:3, :3] = np.array([[0, 0, spacing_mm[2]], [0, spacing_mm[1], 0], [spacing_mm[0], 0, 0]])
    return Geometry.from_matrix(matrix, shape)


def labels(array: Array, spacing_mm: tuple[float, float, float] = (2.0, 1.0, 0.5)) -> Labels:
    return Labels(array.astype(np.uint8), grid(array.shape, spacing_mm), TABLE)


# Overlap


def test_dice_of_two_voxels_that_share_one_is_two_thirds() -> None:
    prediction, reference = box((1, 1, 3), (0, 0, 0), (1, 1, 2)), box((1, 1, 3), (0, 0, 1), (1, 1, 2))
    assert dice(prediction, reference) == pytest.approx(2 / 3)


def test_dice_of_empty_masks_is_undefined() -> None:
    empty = np.zeros((2, 2, 2), bool)
    assert math.isnan(dice(empty, empty))


def test_masks_of_different_shape_or_type_are_refused() -> None:
    mask = np.ones((2, 2, 2), bool)
    with pytest.raises(InputError, match="one shape"):
        dice(mask, mask[:1])
    with pytest.raises(InputError, match="boolean"):
        dice(mask, mask.astype(np.uint8))


# The surface


def test_one_voxel_has_the_octahedron_between_its_face_middles_as_surface() -> None:
    surface = surface_of(np.ones((1, 1, 1), bool), ISOTROPIC)
    assert len(surface.areas_mm2) == 8
    assert surface.areas_mm2.sum() == pytest.approx(8 * math.sqrt(3) / 8)
    assert surface.centers.mean(axis=0) == pytest.approx([0, 0, 0])
    assert np.abs(surface.centers) == pytest.approx(np.full((8, 3), 1 / 6))


def test_a_face_of_a_box_has_its_area_in_mm() -> None:
    surface = surface_of(box((4, 9, 9), (1, 1, 1), (3, 8, 8)), (3.0, 0.5, 2.0))
    flat = np.abs(surface.centers[:, 0] - 2.5 * 3.0) < 1e-9
    assert surface.areas_mm2[flat].sum() == pytest.approx(6 * 6 * 0.5 * 2.0)  # the rim belongs to the rounded edges


def test_every_cell_and_its_complement_have_closed_polygons_through_the_same_edges() -> None:
    def crossed(number: int) -> set[tuple[float, ...]]:
        return {tuple(vertex) for polygon in surface_polygons(number) for vertex in polygon}

    corners = list(product((0, 1), repeat=3))
    for code in range(256):
        inside = [corner for bit, corner in enumerate(corners) if code >> bit & 1]
        middles = {
            tuple((np.array(a) + np.array(b)) / 2)
            for a, b in product(inside, set(corners) - set(inside))
            if np.abs(np.array(a) - np.array(b)).sum() == 1
        }
        assert crossed(code) == middles == crossed(255 - code)
        assert all(len(polygon) >= 3 for polygon in surface_polygons(code))


@pytest.mark.parametrize("spacing_mm", [ISOTROPIC, (2.0, 1.0, 1.0)])
def test_the_area_of_a_sphere_is_close_to_the_formula(spacing_mm: tuple[float, float, float]) -> None:
    shape = tuple(int(44 / step) for step in spacing_mm)
    area = surface_of(ball(shape, 20.0, spacing_mm), spacing_mm).areas_mm2.sum()
    # A stair-cased surface is larger than the smooth one: 7 % with cubic voxels, 11 % with these.
    assert area == pytest.approx(4 * math.pi * 400, rel=0.12)


# Distances


def test_parallel_plates_are_their_gap_apart() -> None:
    shape, spacing_mm = (12, 40, 40), (2.5, 1.0, 1.0)
    lower, upper = box(shape, (1, 0, 0), (2, 40, 40)), box(shape, (7, 0, 0), (8, 40, 40))
    distances = surface_distances(lower, upper, spacing_mm)
    # Five voxels of 2.5 mm between the near faces, 15 mm from a far face to the near one of the other. 39 x 39 cells
    # of a face are flat; the rounded rims lie in between.
    assert (distances.prediction_mm < 12.5 + 1e-9).sum() == 39 * 39
    assert distances.prediction_mm.min() == pytest.approx(12.5)
    assert distances.hausdorff_mm(95) == pytest.approx(15.0)
    assert distances.surface_dice(12.5) == pytest.approx(2 * 39 * 39 / distances.prediction_mm2.sum() / 2)
    assert distances.average_mm() == pytest.approx(13.75, abs=0.01)


def test_the_spacing_is_taken_in_array_order() -> None:
    one, other = box((5, 5, 5), (0, 2, 2), (1, 3, 3)), box((5, 5, 5), (4, 2, 2), (5, 3, 3))
    # Two octahedra 4 voxels apart along Z: tips at half a voxel, so 3 voxels lie between them.
    apart = [surface_distances(one, other, spacing).prediction_mm.min() for spacing in ((7, 1, 1), (1, 1, 7))]
    assert apart[0] > 7 * 3 > 5 > apart[1] > 3


@pytest.mark.parametrize(("spacing_mm", "tolerance"), [(ISOTROPIC, 0.3), ((3.0, 1.0, 1.0), 0.4)])
def test_concentric_spheres_are_their_difference_in_radius_apart(
    spacing_mm: tuple[float, float, float], tolerance: float
) -> None:
    shape = tuple(int(52 / step) | 1 for step in spacing_mm)
    inner, outer = ball(shape, 15.0, spacing_mm), ball(shape, 20.0, spacing_mm)
    distances = surface_distances(inner, outer, spacing_mm)
    assert distances.average_mm() == pytest.approx(5.0, abs=tolerance)
    assert distances.hausdorff_mm(95) == pytest.approx(5.0, abs=2.5 * tolerance)  # stairs reach further than the mean
    assert distances.surface_dice(3.0) == 0
    assert distances.surface_dice(7.0) == 1


def test_two_boxes_shifted_by_three_voxels() -> None:
    shape = (30, 30, 30)
    first, second = box(shape, (5, 5, 5), (15, 15, 15)), box(shape, (5, 5, 8), (15, 15, 18))
    distances = surface_distances(first, second, (1.0, 1.0, 2.0))
    assert distances.hausdorff_mm(100) == pytest.approx(6.0)
    assert distances.surface_dice(6.0) == pytest.approx(1.0)
    assert distances.surface_dice(0.0) < 0.75


def test_percentiles_weigh_elements_by_area() -> None:
    many_small, one_large = np.array([1.0] * 9 + [5.0]), np.array([1.0] * 9 + [91.0])
    distances = SurfaceDistances(many_small, one_large, np.array([0.0]), np.array([1.0]))
    assert distances.hausdorff_mm(9) == 1.0
    assert distances.hausdorff_mm(10) == 5.0
    assert distances.surface_dice(1.0) == pytest.approx(10 / 101)


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0), (1.0, 0.0, 1.0), (1.0, math.nan, 1.0), (1.0, -1.0, 1.0)])
def test_spacings_that_are_no_three_lengths_are_refused(spacing_mm: tuple[float, float, float]) -> None:
    mask = np.ones((2, 2, 2), bool)
    with pytest.raises(InputError, match="positive spacing"):
        surface_distances(mask, mask, spacing_mm)


def test_a_surface_of_nothing_is_refused() -> None:
    mask = np.ones((2, 2, 2), bool)
    with pytest.raises(InputError, match="empty"):
        surface_distances(mask, ~mask, ISOTROPIC)


def test_distances_agree_with_measuring_from_every_triangle_of_the_other_surface() -> None:
    from MambaSegTraining.metrics import surface_search

    first, second = blobs(3)
    points, surface = surface_of(first, (4.0, 1.0, 1.5)).centers[::97], surface_of(second, (4.0, 1.0, 1.5))
    fast = surface_search.distances_to_surface(points, surface)
    slow = np.array([_slow_distance(point, surface) for point in points])
    assert fast == pytest.approx(slow, abs=0.03)  # mm, of voxels 4 mm long: only the nearest polygons are looked at
    assert np.median(np.abs(fast - slow)) < 1e-9


def _slow_distance(point: Array, surface: object) -> float:
    """Twin: sample every triangle densely."""
    shapes = surface.shapes  # type: ignore[attr-defined]
    near = np.argsort(np.linalg.norm(surface.centers - point, axis=1))[:12]  # type: ignore[attr-defined]
    best = math.inf
    for index in near:
        kind = surface.kinds[index]  # type: ignore[attr-defined]
        for side in range(shapes.first_side[kind], shapes.first_side[kind] + shapes.sides[kind]):
            corners = (np.zeros(3), shapes.starts[side], shapes.ends[side])
            offset = point - surface.centers[index]  # type: ignore[attr-defined]
            best = min(best, _triangle_distance(offset, *corners))
    return best


def _triangle_distance(point: Array, a: Array, b: Array, c: Array) -> float:
    """Least squares with the sum of non-negative weights fixed to 1: another way than the one under test."""
    from scipy.optimize import nnls

    weight = 1e4
    matrix = np.vstack([np.stack([a, b, c], axis=1), np.full((1, 3), weight)])
    weights, _ = nnls(matrix, np.append(point, weight))
    return float(np.linalg.norm(np.stack([a, b, c], axis=1) @ weights - point))


# Properties

masks = st.integers(0, 2**27 - 2).map(
    lambda bits: np.array([(bits + 1) >> k & 1 for k in range(27)], bool).reshape(3, 3, 3)
)


@settings(max_examples=40, deadline=None)
@given(masks, masks, st.sampled_from(SPACINGS))
def test_surface_measures_do_not_change_when_the_masks_are_swapped(
    first: Array, second: Array, spacing_mm: tuple[float, float, float]
) -> None:
    one, other = surface_distances(first, second, spacing_mm), surface_distances(second, first, spacing_mm)
    assert one.hausdorff_mm() == other.hausdorff_mm()
    assert one.surface_dice(1.0) == pytest.approx(other.surface_dice(1.0))
    assert one.average_mm() == pytest.approx(other.average_mm())


@settings(max_examples=25, deadline=None)
@given(masks, st.sampled_from(SPACINGS))
def test_a_mask_agrees_with_itself_exactly(mask: Array, spacing_mm: tuple[float, float, float]) -> None:
    distances = surface_distances(mask, mask, spacing_mm)
    assert (distances.hausdorff_mm(100), distances.average_mm(), distances.surface_dice(0.0)) == (0, 0, 1)


@settings(max_examples=25, deadline=None)
@given(masks, masks, st.tuples(*[st.integers(0, 4)] * 3))
def test_surface_measures_do_not_depend_on_the_place_in_the_image(
    first: Array, second: Array, shift: tuple[int, int, int]
) -> None:
    margins = [(step, 5 - step) for step in shift]
    here = surface_distances(first, second, (3.0, 0.8, 0.8))
    there = surface_distances(np.pad(first, margins), np.pad(second, margins), (3.0, 0.8, 0.8))
    assert there.hausdorff_mm() == pytest.approx(here.hausdorff_mm())
    assert there.average_mm() == pytest.approx(here.average_mm())


# One case


def two_structures() -> tuple[Array, Array]:
    reference = np.zeros((6, 10, 20), np.uint8)
    reference[1:4, 2:8, 2:8] = 1
    prediction = reference.copy()
    prediction[1:4, 2:8, 8:10] = 1
    return prediction, reference


def scores_of(prediction: Array, reference: Array) -> dict[str, LabelScore]:
    return {score.label: score for score in score_case(labels(prediction), labels(reference), "case", 0)}


def test_volumes_are_in_milliliters_and_their_error_has_a_sign() -> None:
    score = scores_of(*two_structures())["liver"]
    assert score.reference_ml == pytest.approx(3 * 6 * 6 * 0.001)
    assert score.volume_error_ml == pytest.approx(3 * 6 * 2 * 0.001)
    assert score.volume_error_relative == pytest.approx(1 / 3)
    assert score.dice == pytest.approx(2 * 108 / (108 + 144))
    assert score.hd95_mm == pytest.approx(1.0)  # two voxels of 0.5 mm along X


def test_a_structure_in_neither_mask_is_left_out() -> None:
    score = scores_of(*two_structures())["spleen"]
    assert score.empty == "both"
    assert not score.is_flagged
    assert {getattr(score, metric.field) for metric in DEFINITIONS} == {None}


@pytest.mark.parametrize("missing", ["prediction", "reference"])
def test_a_structure_in_one_mask_only_scores_the_worst_and_is_flagged(missing: str) -> None:
    full = np.zeros((6, 10, 20), np.uint8)
    full[2, 3:5, 4] = 2
    pair = (full * 0, full) if missing == "prediction" else (full, full * 0)
    score = scores_of(*pair)["spleen"]
    assert score.empty == missing
    assert score.is_flagged
    assert (score.dice, score.nsd) == (0, 0)
    assert score.hd95_mm == score.assd_mm == pytest.approx(math.sqrt(12**2 + 10**2 + 10**2))
    assert score.volume_error_ml == pytest.approx(-0.002 if missing == "prediction" else 0.002)
    assert score.volume_error_relative == (-1 if missing == "prediction" else None)


def test_the_tolerance_belongs_to_the_structure() -> None:
    prediction, reference = (labels(array) for array in two_structures())
    strict, lenient = (
        score_case(prediction, reference, "case", 0, structures_of(TABLE, {"liver": tolerance}))[0]
        for tolerance in (0.1, 1.5)
    )
    assert strict.nsd is not None
    assert strict.nsd < 1 == lenient.nsd
    assert (strict.tolerance_mm, lenient.tolerance_mm) == (0.1, 1.5)


def test_a_tolerance_for_an_unknown_structure_is_refused() -> None:
    with pytest.raises(InputError, match="kidney"):
        structures_of(TABLE, {"kidney": 1.0})


def test_regions_join_labels() -> None:
    array = np.zeros((2, 2, 4), np.uint8)
    array[0, 0] = (1, 2, 0, 0)
    swapped = np.where(array == 1, 2, np.where(array == 2, 1, 0))
    (score,) = score_case(labels(swapped), labels(array), "case", 0, [Structure("whole", (1, 2), 1.0)])
    assert score.dice == 1
    assert score.hd95_mm == 0


def test_a_prediction_on_another_grid_is_refused_even_if_the_shape_is_the_same() -> None:
    prediction, reference = two_structures()
    with pytest.raises(InputError, match="another grid"):
        score_case(labels(prediction, (0.5, 1.0, 2.0)), labels(reference), "case", 0)
    shifted = replace(grid(reference.shape), origin_mm=(5.0, 0.0, 0.0))
    with pytest.raises(InputError, match="another grid"):
        score_case(Labels(prediction, shifted, TABLE), labels(reference), "case", 0)


# The convention of the paper's scripts


def test_legacy_distances_are_in_voxels_and_pool_both_directions() -> None:
    first, second = box((1, 1, 40), (0, 0, 0), (1, 1, 10)), box((1, 1, 40), (0, 0, 0), (1, 1, 30))
    # 10 zeros, and of the 30 distances the other way 10 zeros and 1 to 20: position 0.95 * 39 = 37.05 of 40.
    assert legacy_hd95_voxels(first, second) == pytest.approx(18.05)


def test_legacy_scores_are_perfect_where_ours_are_worst() -> None:
    full = np.zeros((6, 10, 20), np.uint8)
    full[2, 3:5, 4] = 2
    liver, spleen = score_case_legacy(labels(full * 0), labels(full), "case", 0)
    assert (liver.dice, liver.hd95_voxels) == (1, 0)  # in neither mask
    assert (spleen.dice, spleen.hd95_voxels) == (0, 0)  # missed


def test_every_definition_names_a_field_and_an_empty_mask_rule() -> None:
    fields = LabelScore.__dataclass_fields__
    assert all(metric.field in fields for metric in DEFINITIONS)
    assert all("mpty" in metric.text for metric in DEFINITIONS)
    assert len({metric.id for metric in DEFINITIONS}) == len(DEFINITIONS)
