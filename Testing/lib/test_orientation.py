"""Turning grids to another orientation moves no voxel in the patient."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from MambaSegLib.errors import InputError
from MambaSegLib.geometry import Geometry, Reorientation, orientation_of

ALL_CODES = [
    "".join(letters)
    for axes in permutations(("LR", "PA", "SI"))
    for letters in product(*axes)
]  # fmt: skip


def value_at(array, geometry, world):
    z, y, x = np.rint(geometry.to_index(world)).astype(int)
    return array[..., z, y, x]


def test_there_are_48_orientations():
    assert len(set(ALL_CODES)) == 48


@pytest.mark.parametrize("code", ALL_CODES)
def test_the_same_place_holds_the_same_content_in_every_orientation(phantom, code):
    how = phantom.geometry.reorientation_to(code)
    turned = phantom.reoriented(how)
    assert turned.geometry.orientation == code
    for index in [(0, 0, 0), (8, 13, 16), (4, 6, 8), (2, 9, 3), (7, 1, 15)]:
        world = phantom.geometry.to_world(index)
        assert value_at(turned.array, turned.geometry, world) == phantom.array[(..., *index)]


@pytest.mark.parametrize("code", ALL_CODES)
def test_rods_point_left_back_and_up_in_every_orientation(phantom, code):
    turned = phantom.reoriented(phantom.geometry.reorientation_to(code))
    center = phantom.geometry.to_world([4, 6.5, 8])
    for axis, content in enumerate((3, 4, 5)):
        rod = turned.geometry.to_world(np.argwhere(turned.array[0] == content)) - center
        assert len(rod) > 1
        assert np.abs(rod.mean(axis=0)).argmax() == axis
        assert rod.mean(axis=0)[axis] > 0


@pytest.mark.parametrize("code", ALL_CODES)
def test_turning_back_restores_array_to_the_bit_and_grid_within_rounding(phantom, code):
    how = phantom.geometry.reorientation_to(code)
    back = phantom.reoriented(how).reoriented(how.inverse)
    assert np.array_equal(back.array, phantom.array)
    assert back.geometry.shape == phantom.geometry.shape
    assert back.geometry.spacing_mm == phantom.geometry.spacing_mm
    assert back.geometry.direction == phantom.geometry.direction
    np.testing.assert_allclose(back.geometry.origin_mm, phantom.geometry.origin_mm, rtol=0, atol=1e-12)


@pytest.mark.parametrize("source", ALL_CODES[::5])
@pytest.mark.parametrize("target", ALL_CODES[::7])
def test_between_turns_any_code_into_any_other(source, target):
    letters = np.array(["LPS".index(c) if c in "LPS" else "RAI".index(c) for c in source])
    direction = np.zeros((3, 3))
    direction[letters, range(3)] = [1 if c in "LPS" else -1 for c in source]
    grid = Geometry((2, 3, 4), (1.0, 2.0, 3.0), (5.0, 6.0, 7.0), tuple(map(tuple, direction.tolist())))
    assert grid.orientation == source
    turned = grid.reoriented(Reorientation.between(source, target))
    assert turned.orientation == target
    assert sorted(zip(turned.shape, turned.spacing_mm, strict=True)) == [(2, 1.0), (3, 2.0), (4, 3.0)]


def test_axial_stack_to_ras_by_hand():
    how = Reorientation.between("SPL", "RAS")
    assert how == Reorientation(axes=(2, 1, 0), flipped=(1, 2))
    array = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    assert how.apply(array)[0, 0, 1] == array[1, 2, 3]


def test_turning_gives_a_view_and_leaves_leading_axes_alone():
    array = np.zeros((5, 2, 3, 4))
    turned = Reorientation.between("SPL", "LSA").apply(array)
    assert turned.shape == (5, 4, 2, 3)
    assert np.shares_memory(turned, array)


@pytest.mark.parametrize("code", ["", "SP", "SPLR", "SSL", "spl", "XYZ", "LRA"])
def test_a_code_that_names_no_orientation_is_refused(code):
    with pytest.raises(InputError, match="no orientation"):
        Reorientation.between("SPL", code)


def test_every_axis_gets_its_own_letter_where_the_largest_cosine_names_one_twice():
    # Columns 0 and 1 both have their largest entry in row x.
    a, b = np.sqrt(0.5), 0.5
    matrix = np.array([[a, a * 0.99 + 0.007, 0], [b, -b, a], [b, -b, -a]])
    assert sorted(orientation_of(matrix).translate(str.maketrans("RAI", "LPS"))) == ["L", "P", "S"]


@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda q: np.linalg.norm(q) > 0.1), st.booleans())
def test_any_rotation_has_a_code_within_the_best_angle(q, mirrored):
    a, b, c, d = np.array(q) / np.linalg.norm(q)
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    if mirrored:
        rotation[:, 0] *= -1
    grid = Geometry((3, 4, 5), (1.5, 0.5, 2.0), (1.0, 2.0, 3.0), tuple(map(tuple, rotation.tolist())))
    straight = grid.reoriented(grid.reorientation_to("SPL"))
    direction = np.array(straight.direction)
    # Turned to z, y, x growing towards S, P, L, the matching cosines beat those of all 47 other turns.
    here = direction[2, 0] + direction[1, 1] + direction[0, 2]
    others = [
        sum(sign * direction[row, k] for k, (row, sign) in enumerate(zip(rows, signs, strict=True)))
        for rows in permutations(range(3))
        for signs in product((1, -1), repeat=3)
    ]
    assert here == pytest.approx(max(others), abs=1e-12)
    corners = np.array(list(product((0, 2), (0, 3), (0, 4))))
    world = grid.to_world(corners)
    moved = straight.to_world(list(product(*((0, n - 1) for n in straight.shape))))
    assert np.allclose(sorted(map(tuple, world.round(9))), sorted(map(tuple, moved.round(9))), atol=1e-8)
