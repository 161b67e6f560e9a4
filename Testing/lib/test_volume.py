"""Grids, boxes and the records of images: what they compute and what they refuse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from MambaSegLib.errors import InputError
from MambaSegLib.geometry import ORTHONORMAL_TOLERANCE, REPAIRED_SHEAR, ShearedGridError, shear_of, straightened
from MambaSegLib.plan import Label
from MambaSegLib.volume import Box, Geometry, Labels, Volume, box_from_world

AXIAL = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
GRID = Geometry((4, 5, 6), (3.0, 2.0, 1.0), (10.0, 20.0, 30.0), AXIAL)


def test_index_to_world_by_hand():
    assert GRID.to_world((1, 2, 3)).tolist() == [13.0, 24.0, 33.0]
    assert GRID.to_index((13.0, 24.0, 33.0)).tolist() == [1, 2, 3]
    assert GRID.orientation == "SPL"
    assert GRID.extent_mm == (12.0, 10.0, 6.0)
    assert GRID.voxel_volume_mm3 == 6.0


@given(st.lists(st.floats(-500, 500), min_size=3, max_size=3))
def test_world_and_index_undo_each_other(oblique_geometry, position):
    there = oblique_geometry.to_world(oblique_geometry.to_index(position))
    np.testing.assert_allclose(there, position, atol=1e-9)


def test_from_matrix_gives_back_the_grid(oblique_geometry):
    again = Geometry.from_matrix(oblique_geometry.index_to_world, oblique_geometry.shape)
    assert again.is_close(oblique_geometry, 1e-12)


def test_cropping_keeps_every_voxel_at_its_place(phantom):
    box = Box((2, 3, 4), (6, 9, 16))
    part = phantom.cropped(box)
    assert part.array.shape == (1, 4, 6, 12)
    np.testing.assert_allclose(part.geometry.to_world((1, 2, 3)), phantom.geometry.to_world((3, 5, 7)), atol=1e-12)
    assert part.array[0, 1, 2, 3] == phantom.array[0, 3, 5, 7]


def test_a_crop_beyond_the_volume_is_refused():
    with pytest.raises(InputError, match="beyond"):
        GRID.cropped(Box((0, 0, 0), (4, 5, 7)))


@pytest.mark.parametrize(("start", "stop"), [((0, 0, 0), (0, 1, 1)), ((-1, 0, 0), (1, 1, 1)), ((2, 2, 2), (1, 3, 3))])
def test_a_box_without_voxels_is_refused(start, stop):
    with pytest.raises(InputError, match="no voxel"):
        Box(start, stop)


def test_resampling_keeps_the_outer_faces():
    coarse = GRID.resampled((2, 5, 3))
    assert coarse.spacing_mm == (6.0, 2.0, 2.0)
    # Lower face of voxel 0: half an edge before its center, in both grids.
    np.testing.assert_allclose(coarse.to_world((-0.5, -0.5, -0.5)), GRID.to_world((-0.5, -0.5, -0.5)))
    np.testing.assert_allclose(coarse.to_world((1.5, 4.5, 2.5)), GRID.to_world((3.5, 4.5, 5.5)))


def test_grids_half_a_thousandth_voxel_apart_are_one_and_two_thousandths_apart_are_two():
    assert GRID.is_close(replace(GRID, origin_mm=(10.0005, 20.0, 30.0)))
    moved = replace(GRID, origin_mm=(10.002, 20.0, 30.0))
    assert not GRID.is_close(moved)
    assert "origin" in GRID.differences(moved)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shape": (4, 5, 7)}, "size 4 x 5 x 7 instead of 4 x 5 x 6"),
        ({"spacing_mm": (3.0, 2.0, 1.5)}, "spacing (3, 2, 1.5) instead of (3, 2, 1)"),
        ({"direction": ((0.0, 0.0, -1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))}, "axes SPR instead of SPL"),
    ],
)
def test_differences_between_grids_are_named(change, said):
    assert said in GRID.differences(replace(GRID, **change))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"spacing_mm": (3.0, 0.0, 1.0)}, "spacing must be positive"),
        ({"spacing_mm": (3.0, -2.0, 1.0)}, "spacing must be positive"),
        ({"spacing_mm": (3.0, float("nan"), 1.0)}, "spacing must be positive"),
        ({"shape": (4, 0, 6)}, "at least one voxel"),
        ({"shape": (4, 6)}, "three axes"),
        ({"origin_mm": (0.0, float("inf"), 0.0)}, "not a position"),
        ({"direction": ((0.0, 0.1, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))}, "not perpendicular"),
        ({"direction": ((0.0, 0.0, 2.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))}, "not perpendicular"),
        ({"direction": ((0.0, 0.0, 0.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))}, "not perpendicular"),
    ],
)
def test_a_grid_without_defined_positions_is_refused(change, said):
    with pytest.raises(InputError, match=said):
        replace(GRID, **change)


def sheared_axes(angle):
    axes = np.array(AXIAL) * GRID.spacing_mm
    axes[:, 0] = 3.0 * np.array([0.0, np.sin(angle), np.cos(angle)])
    return axes


def test_rounding_of_cosines_is_repaired_about_the_center_and_told():
    axes = sheared_axes(0.003)
    grid, notice = straightened(axes, GRID.origin_mm, (40, 50, 60))
    assert shear_of(np.array(grid.direction)) < 1e-12
    assert "perpendicular" in notice
    center = np.array([19.5, 24.5, 29.5])
    np.testing.assert_allclose(grid.to_world(center), np.array(GRID.origin_mm) + axes @ center, atol=1e-10)
    # Half of the 0.003 rad goes to each of the two axes; 0.0015 rad at 58.5 mm and 49 mm from the center: 0.1 mm.
    assert np.linalg.norm(np.subtract(grid.origin_mm, GRID.origin_mm)) < 0.12


def test_a_perpendicular_grid_is_left_as_it_is():
    grid, notice = straightened(np.array(AXIAL) * GRID.spacing_mm, GRID.origin_mm, GRID.shape)
    assert grid == GRID
    assert notice == ""


def test_a_gantry_tilt_is_refused_with_its_angle():
    with pytest.raises(ShearedGridError, match=r"sheared by 12\.0 degrees.*resample_sheared"):
        straightened(sheared_axes(np.radians(12)), GRID.origin_mm, GRID.shape)


@pytest.mark.parametrize("column", [[0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [np.nan, 0.0, 3.0], [0.0, 2.0, 0.001]])
def test_axes_in_one_plane_are_refused(column):
    axes = np.array(AXIAL) * GRID.spacing_mm
    axes[:, 0] = column
    with pytest.raises(InputError, match="axes"):
        straightened(axes, GRID.origin_mm, GRID.shape)


@given(st.floats(-REPAIRED_SHEAR * 0.99, REPAIRED_SHEAR * 0.99))
def test_every_shear_up_to_the_tolerance_becomes_a_valid_grid(shear):
    grid, _ = straightened(sheared_axes(shear), GRID.origin_mm, GRID.shape)
    assert shear_of(np.array(grid.direction)) <= ORTHONORMAL_TOLERANCE


def test_a_box_in_mm_covers_the_voxels_it_touches():
    # Voxel (z, y, x) = (1, 2, 3) has its center at (13, 24, 33) and edges 1, 2, 3 mm along x, y, z.
    assert box_from_world(GRID, (12.6, 23.2, 31.6), (13.4, 24.8, 34.4)) == Box((1, 2, 3), (2, 3, 4))
    assert box_from_world(GRID, (12.5, 23.0, 31.5), (13.5, 25.0, 34.5)) == Box((1, 2, 3), (2, 3, 4))
    assert box_from_world(GRID, (12.4, 23.0, 31.5), (13.5, 25.0, 34.5)) == Box((1, 2, 2), (2, 3, 4))


def test_a_box_in_mm_is_cut_at_the_border():
    assert box_from_world(GRID, (-1e6, -1e6, -1e6), (1e6, 1e6, 1e6)) == Box((0, 0, 0), (4, 5, 6))


@given(
    st.lists(st.floats(-20, 20), min_size=3, max_size=3), st.lists(st.floats(0.5, 20), min_size=3, max_size=3)
)  # fmt: skip
def test_a_box_in_mm_holds_every_voxel_center_inside_the_block(oblique_geometry, corner, size):
    center = oblique_geometry.to_world((4, 6.5, 8))
    lower, upper = center + corner, center + np.add(corner, size)
    index = np.indices(oblique_geometry.shape).reshape(3, -1).T
    world = oblique_geometry.to_world(index)
    inside = index[((world >= lower) & (world <= upper)).all(axis=1)]
    try:
        box = box_from_world(oblique_geometry, lower, upper)
    except InputError:
        assert len(inside) == 0
        return
    assert ((inside >= box.start) & (inside < box.stop)).all()


@pytest.mark.parametrize(
    ("lower", "upper"),
    [((0, 0, 0), (1, 1, 1)), ((13, 24, 33), (12, 25, 34)), ((np.nan, 0, 0), (1, 1, 1)), ((0, 0), (1, 1))],
)
def test_a_region_outside_or_upside_down_is_refused(lower, upper):
    with pytest.raises(InputError, match="region"):
        box_from_world(GRID, lower, upper)


def test_an_image_must_fit_its_grid_and_its_channel_names():
    with pytest.raises(InputError, match="shape"):
        Volume(np.zeros((1, 4, 5, 7)), GRID)
    with pytest.raises(InputError, match="2 channels but 1 names"):
        Volume(np.zeros((2, 4, 5, 6)), GRID, ("T1",))
    with pytest.raises(InputError, match="real numbers"):
        Volume(np.zeros((1, 4, 5, 6), complex), GRID)


def test_a_label_map_must_be_unsigned_with_each_value_once():
    label = Label(1, "thing", (255, 0, 0))
    with pytest.raises(InputError, match="unsigned"):
        Labels(np.zeros((4, 5, 6), np.int16), GRID, (label,))
    with pytest.raises(InputError, match="differ"):
        Labels(np.zeros((4, 5, 6), np.uint8), GRID, (label, label))
    with pytest.raises(InputError, match="1 or more"):
        Labels(np.zeros((4, 5, 6), np.uint8), GRID, (replace(label, value=0),))
