"""Nodes to volumes and labels to nodes, with answers written in RAS by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import slicer
import vtk
from MambaSegmentationLib import conversion, scene_nodes

from MambaSegLib.errors import InputError
from MambaSegLib.plan import Code, Label, Terminology
from MambaSegLib.volume import Labels

HIPPOCAMPUS = Terminology(
    Code("SCT", "123037004", "Anatomical Structure"),
    Code("SCT", "5366008", "Hippocampus"),
    Code("SCT", "24028007", "Right"),
)
TABLE = (
    Label(1, "head", (200, 10, 20), HIPPOCAMPUS),
    Label(4, "nowhere", (0, 255, 0)),
    Label(7, "tail", (10, 20, 250)),
)


@pytest.fixture
def labels(obliqueVolume):
    geometry = conversion.volumeGeometry(obliqueVolume)
    array = np.zeros(geometry.shape, np.uint8)
    array[2:5, 3:9, 4:12] = 1
    array[6, 10:13, 1:4] = 7
    return Labels(array, geometry, TABLE, (("Model", "net.data 1.0.0"), ("Source", "channel_0")))


def shift(node, scene, *, right_mm=0.0, degrees=0.0, name="shift"):
    transform = vtk.vtkTransform()
    transform.Translate(right_mm, 0, 0)
    transform.RotateZ(degrees)
    transformNode = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", name)
    transformNode.SetMatrixTransformToParent(transform.GetMatrix())
    node.SetAndObserveTransformNodeID(transformNode.GetID())
    return transformNode


def test_a_voxel_keeps_its_place_with_two_signs_turned(obliqueVolume):
    volume = conversion.volumeFromNode(obliqueVolume)
    matrix = vtk.vtkMatrix4x4()
    obliqueVolume.GetIJKToRASMatrix(matrix)
    right, front, up, _ = matrix.MultiplyPoint((3, 5, 2, 1))
    np.testing.assert_allclose(volume.geometry.to_world((2, 5, 3)), (-right, -front, up), atol=1e-6)


def test_voxels_are_those_of_the_node_whatever_the_display_shows(obliqueVolume):
    obliqueVolume.CreateDefaultDisplayNodes()
    before = conversion.volumeFromNode(obliqueVolume)
    obliqueVolume.GetDisplayNode().SetAutoWindowLevel(0)
    obliqueVolume.GetDisplayNode().SetWindowLevel(10, 5)
    after = conversion.volumeFromNode(obliqueVolume)
    assert np.array_equal(before.array, after.array)
    assert np.array_equal(after.array[0], slicer.util.arrayFromVolume(obliqueVolume))
    assert after.array.dtype == np.int16


def test_the_copy_does_not_change_when_the_node_does(obliqueVolume):
    volume = conversion.volumeFromNode(obliqueVolume)
    slicer.util.arrayFromVolume(obliqueVolume)[:] = 77
    assert not (volume.array == 77).all()


def test_segments_have_names_colors_terminology_and_tags(obliqueVolume, labels):
    node = conversion.segmentationFromLabels(conversion.withSource(labels, "T1"), obliqueVolume)
    segmentation = node.GetSegmentation()
    segments = [segmentation.GetNthSegment(n) for n in range(segmentation.GetNumberOfSegments())]
    assert [segment.GetName() for segment in segments] == ["head", "nowhere", "tail"]
    np.testing.assert_allclose(segments[0].GetColor(), (200 / 255, 10 / 255, 20 / 255))
    assert tag(segments[0], "TerminologyEntry") == (
        "Segmentation category and type - DICOM master list~SCT^123037004^Anatomical Structure~SCT^5366008^Hippocampus"
        "~SCT^24028007^Right~Anatomic codes - DICOM master list~^^~^^"
    )
    assert tag(segments[2], "MambaSegmentation.Model") == "net.data 1.0.0"
    assert tag(segments[2], "MambaSegmentation.Source") == "T1"


def tag(segment, name):
    value = vtk.reference("")
    assert segment.GetTag(name, value), name
    return value.get()


def test_every_label_lies_where_it_was_and_the_empty_one_is_listed(obliqueVolume, labels):
    node = conversion.segmentationFromLabels(labels, obliqueVolume)
    back = conversion.labelsFromSegmentation(node, obliqueVolume)
    assert np.array_equal(back.array == 1, labels.array == 1)
    assert not (back.array == 2).any()
    assert np.array_equal(back.array == 3, labels.array == 7)


def test_all_segments_share_one_label_map(obliqueVolume, labels):
    node = conversion.segmentationFromLabels(labels, obliqueVolume)
    assert node.GetSegmentation().GetNumberOfLayers() == 1


def test_the_reference_geometry_is_the_images(obliqueVolume, labels):
    node = conversion.segmentationFromLabels(labels, obliqueVolume)
    assert node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole()) is obliqueVolume


def test_the_result_lies_under_the_images_transform(obliqueVolume, labels, scene):
    transformNode = shift(obliqueVolume, scene, right_mm=15, degrees=30)
    node = conversion.segmentationFromLabels(labels, obliqueVolume)
    assert node.GetParentTransformNode() is transformNode
    back = conversion.labelsFromSegmentation(node, obliqueVolume)
    assert np.array_equal(back.array == 1, labels.array == 1)


def test_a_transform_moves_no_voxel_of_a_single_image(obliqueVolume, scene):
    before = conversion.volumesFromNodes([obliqueVolume])[0]
    shift(obliqueVolume, scene, right_mm=15)
    assert conversion.volumesFromNodes([obliqueVolume])[0].geometry == before.geometry


def test_channels_under_different_transforms_lie_as_the_scene_shows_them(obliqueVolume, addVolume, scene):
    matrix = vtk.vtkMatrix4x4()
    obliqueVolume.GetIJKToRASMatrix(matrix)
    other = addVolume(slicer.util.arrayFromVolume(obliqueVolume), slicer.util.arrayFromVTKMatrix(matrix), "T2")
    shift(other, scene, right_mm=15)
    first, second = conversion.volumesFromNodes([obliqueVolume, other])
    # 15 mm to the right is -15 mm along LPS x.
    offset = second.geometry.to_world((0, 0, 0)) - first.geometry.to_world((0, 0, 0))
    np.testing.assert_allclose(offset, (-15, 0, 0), atol=1e-6)


def test_segments_that_were_there_stay_as_they_were(obliqueVolume, labels):
    node = conversion.segmentationFromLabels(labels, obliqueVolume)
    other = replace(labels, array=np.ascontiguousarray(labels.array[:, ::-1]))
    again = conversion.segmentationFromLabels(other, obliqueVolume, node)
    assert again is node
    segmentation = node.GetSegmentation()
    names = [segmentation.GetNthSegment(n).GetName() for n in range(segmentation.GetNumberOfSegments())]
    assert names == ["head", "nowhere", "tail", "head (2)", "nowhere (2)", "tail (2)"]
    old = slicer.util.arrayFromSegmentBinaryLabelmap(node, segmentation.GetNthSegmentID(0), obliqueVolume)
    new = slicer.util.arrayFromSegmentBinaryLabelmap(node, segmentation.GetNthSegmentID(3), obliqueVolume)
    assert np.array_equal(old > 0, labels.array == 1)
    assert np.array_equal(new > 0, other.array == 1)


def test_an_output_under_another_transform_is_refused(obliqueVolume, labels, scene):
    node = conversion.segmentationFromLabels(labels, obliqueVolume)
    shift(obliqueVolume, scene, right_mm=1)
    with pytest.raises(InputError, match="under another transform"):
        conversion.segmentationFromLabels(labels, obliqueVolume, node)
    assert node.GetSegmentation().GetNumberOfSegments() == 3


def test_the_result_joins_the_images_study(obliqueVolume, labels, scene):
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    study = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "2026")
    hierarchy.SetItemParent(hierarchy.GetItemByDataNode(obliqueVolume), study)
    node = conversion.segmentationFromLabels(labels, obliqueVolume)
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) == study


def test_no_helper_node_is_left_in_the_scene(obliqueVolume, labels, scene):
    before = {scene.GetNthNode(n).GetClassName() for n in range(scene.GetNumberOfNodes())}
    conversion.segmentationFromLabels(labels, obliqueVolume)
    after = [scene.GetNthNode(n).GetClassName() for n in range(scene.GetNumberOfNodes())]
    assert {name for name in after if name not in before} <= {
        "vtkMRMLSegmentationNode",
        "vtkMRMLSegmentationDisplayNode",
    }
    assert after.count("vtkMRMLScalarVolumeNode") == 1


def test_segments_survive_a_scene_bundle(obliqueVolume, labels, scene, tmp_path):
    conversion.segmentationFromLabels(labels, obliqueVolume)
    path = str(tmp_path / "scene.mrb")
    assert scene.WriteToMRB(path, None)
    scene.Clear(0)
    assert scene.ReadFromMRB(path, True, None)
    node = scene.GetFirstNodeByClass("vtkMRMLSegmentationNode")
    volume = scene.GetFirstNodeByName("T1")
    back = conversion.labelsFromSegmentation(node, volume)
    assert [label.name for label in back.table] == ["head", "nowhere", "tail"]
    assert [label.color for label in back.table] == [label.color for label in TABLE]
    assert np.array_equal(back.array == 1, labels.array == 1)
    assert np.array_equal(back.array == 3, labels.array == 7)


def test_a_surface_can_be_made_of_the_result(obliqueVolume, labels):
    node = conversion.segmentationFromLabels(labels, obliqueVolume)
    assert node.CreateClosedSurfaceRepresentation()
    surface = vtk.vtkPolyData()
    assert node.GetClosedSurfaceRepresentation("Segment_1", surface)
    assert surface.GetNumberOfPoints() > 20


def test_an_image_changed_in_the_meantime_is_noticed(obliqueVolume, labels, scene):
    spacing = obliqueVolume.GetSpacing()
    obliqueVolume.SetSpacing(2 * spacing[0], spacing[1], spacing[2])
    with pytest.raises(InputError, match="has changed since"):
        conversion.segmentationFromLabels(labels, obliqueVolume)
    assert scene.GetFirstNodeByClass("vtkMRMLSegmentationNode") is None


def test_an_image_with_several_values_per_voxel_is_refused_unless_a_frame_is_named(scene):
    array = np.arange(3 * 4 * 5 * 2, dtype=np.int16).reshape(3, 4, 5, 2)
    node = slicer.util.addVolumeFromArray(array, nodeClassName="vtkMRMLVectorVolumeNode", name="4D")
    with pytest.raises(InputError, match="frame from 0 to 1"):
        conversion.volumeFromNode(node)
    assert np.array_equal(conversion.volumeFromNode(node, frame=1).array[0], array[..., 1])


def test_label_maps_and_empty_nodes_are_refused_by_name(scene):
    with pytest.raises(InputError, match="mask is a label map"):
        conversion.volumeFromNode(scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "mask"))
    with pytest.raises(InputError, match="empty holds no voxels"):
        conversion.volumeFromNode(scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty"))


def test_a_sheared_image_is_refused(obliqueVolume):
    matrix = vtk.vtkMatrix4x4()
    obliqueVolume.GetIJKToRASMatrix(matrix)
    matrix.SetElement(0, 2, matrix.GetElement(0, 2) + 1.0)
    obliqueVolume.SetIJKToRASMatrix(matrix)
    with pytest.raises(InputError, match="sheared"):
        conversion.volumeFromNode(obliqueVolume)


def test_a_table_keeps_numbers_as_numbers_and_gives_centers_in_ras(obliqueVolume, tmp_path):
    path = tmp_path / "table.csv"
    text = "name,volume_ml,centroid_x_mm,centroid_z_mm\nhead,1.5,-3.5,4\ntail,0.25,,\n"
    path.write_text(text, encoding="utf-8")
    table = scene_nodes.tableNodeFromCsv(path, obliqueVolume, "Volumes").GetTable()
    assert table.GetColumnByName("name").GetValue(1) == "tail"
    assert table.GetColumnByName("volume_ml").GetValue(1) == 0.25
    # LPS x = -3.5 is 3.5 mm to the right; S is z. A structure without voxels has no center.
    assert table.GetColumnByName("centroid_R_mm").GetValue(0) == 3.5
    assert table.GetColumnByName("centroid_S_mm").GetValue(0) == 4
    assert np.isnan(table.GetColumnByName("centroid_R_mm").GetValue(1))


def test_a_new_image_lies_on_the_old_ones_grid(obliqueVolume, rng):
    array = rng.random(conversion.volumeGeometry(obliqueVolume).shape, dtype=np.float32)
    node = scene_nodes.volumeNodeFromArray(array, obliqueVolume, "uncertainty")
    assert np.array_equal(slicer.util.arrayFromVolume(node), array)
    assert conversion.volumeGeometry(node) == conversion.volumeGeometry(obliqueVolume)
