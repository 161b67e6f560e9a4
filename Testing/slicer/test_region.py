"""Regions: which voxels they hold, and what is said where Slicer's box is not the one that is segmented."""

from __future__ import annotations

import numpy as np
import pytest
import vtk
from MambaSegmentationLib import conversion
from MambaSegmentationLib.region import regionBounds, regionBox, regionNote

from MambaSegLib.errors import InputError


def under(node, scene, *, right_mm=0.0, degrees=0.0):
    """Put a node under a transform of its own."""
    transform = vtk.vtkTransform()
    transform.Translate(right_mm, 0, 0)
    transform.RotateZ(degrees)
    parent = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "transform")
    parent.SetMatrixTransformToParent(transform.GetMatrix())
    node.SetAndObserveTransformNodeID(parent.GetID())


def box(scene, center, size, degrees=0.0):
    """A region turned about S."""
    roi = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "region")
    transform = vtk.vtkTransform()
    transform.Translate(*center)
    transform.RotateZ(degrees)
    roi.SetAndObserveObjectToNodeMatrix(transform.GetMatrix())
    roi.SetSize(*size)
    return roi


@pytest.fixture
def image(addVolume):
    return addVolume(np.zeros((10, 10, 10), np.int16), np.diag([2.0, 2.0, 2.0, 1.0]))


def test_a_region_covers_the_voxels_it_is_drawn_around(addVolume, scene):
    node = addVolume(np.zeros((10, 10, 10), np.int16), np.diag([2.0, 2.0, 2.0, 1.0]))
    roi = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "region")
    roi.SetXYZ(6, 8, 10)
    roi.SetRadiusXYZ(2, 2, 4)
    bounds = regionBounds(roi, node)
    assert bounds == pytest.approx((4, 8, 6, 10, 6, 14))
    # Voxel i is centered at 2i mm and reaches 1 mm to both sides.
    box = regionBox(bounds, conversion.volumeGeometry(node))
    assert (box.start, box.stop) == ((3, 3, 2), (8, 6, 5))


def test_a_region_follows_the_images_transform(addVolume, scene):
    node = addVolume(np.zeros((10, 10, 10), np.int16), np.diag([2.0, 2.0, 2.0, 1.0]))
    under(node, scene, right_mm=100)
    roi = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "region")
    roi.SetXYZ(106, 8, 10)
    roi.SetRadiusXYZ(2, 2, 4)
    assert regionBounds(roi, node) == pytest.approx((4, 8, 6, 10, 6, 14))


def test_a_region_that_misses_the_image_is_refused(addVolume, scene):
    node = addVolume(np.zeros((10, 10, 10), np.int16), np.eye(4))
    with pytest.raises(InputError, match="outside"):
        regionBox((50, 60, 0, 5, 0, 5), conversion.volumeGeometry(node))
    with pytest.raises(InputError, match="no size"):
        regionBounds(scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "region"), node)


def test_a_turned_region_is_its_upright_box_and_that_is_said(image, scene):
    roi = box(scene, (6, 8, 10), (4, 4, 8), degrees=45)
    half = 2 * np.sqrt(2)  # of the square that holds one turned by 45 degrees
    assert regionBounds(roi, image) == pytest.approx((6 - half, 6 + half, 8 - half, 8 + half, 6, 14))
    assert "upright box around it, 2.0 times as large" in regionNote(roi, image)
    assert "2.0 times" in regionNote(roi)


@pytest.mark.parametrize("degrees", [0, 90, 180, 0.05])
def test_nothing_is_said_of_a_region_that_is_upright_as_far_as_one_can_see(image, scene, degrees):
    assert regionNote(box(scene, (6, 8, 10), (4, 6, 8), degrees), image) == ""


def test_a_region_turned_with_its_image_is_taken_as_it_is(image, scene):
    under(image, scene, degrees=30)
    roi = box(scene, (0, 0, 0), (4, 6, 8))
    roi.SetAndObserveTransformNodeID(image.GetTransformNodeID())
    assert regionBounds(roi, image) == pytest.approx((-2, 2, -3, 3, -4, 4))
    assert regionNote(roi, image) == ""
    assert "times as large" in regionNote(roi)  # in the world, where a folder of files lies


def test_an_upright_region_is_turned_for_an_image_that_is(image, scene):
    under(image, scene, degrees=30)
    assert "times as large" in regionNote(box(scene, (6, 8, 10), (4, 6, 8)), image)


def test_nothing_is_said_where_there_is_no_region_to_speak_of(image, scene):
    assert regionNote(None, image) == ""
    assert regionNote(scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "region"), image) == ""
