"""Many images: of the scene, with results in it; of a folder, with results in another."""

from __future__ import annotations

import time

import numpy as np
import pytest
import slicer
import vtk
from conftest import contents, rasMatrix, until
from MambaSegmentationLib import conversion
from MambaSegmentationLib.channels import sceneCases
from MambaSegmentationLib.computer import Computer
from MambaSegmentationLib.region import regionBounds, regionBox

from MambaSegLib.bundle import load_bundle
from MambaSegLib.errors import CancelledError, InputError
from MambaSegLib.plan import Channel, Normalization
from MambaSegLib.predictor import Predictor
from MambaSegLib.volume_io import read_labels, write_volume

TINY = {"model": "mamba_unet_unidirectional.tiny", "device": "cpu", "scan": "pytorch"}


@pytest.fixture
def images(addVolume, oblique_geometry, rng):
    """Two images of the same name, on different grids."""
    matrix = rasMatrix(oblique_geometry)
    shape = oblique_geometry.shape
    return [
        addVolume(rng.integers(-200, 900, shape).astype(np.int16), matrix, "T1"),
        addVolume(rng.integers(-200, 900, (6, *shape[1:])).astype(np.int16), matrix @ np.diag([1, 1, 2, 1]), "T1"),
    ]


def test_every_image_of_a_list_gets_its_segmentation_beside_it(segmenter, images, scene, modelPath):
    before = contents(scene)
    run = segmenter.startMany(images, show3D=True, statistics=True, **TINY)
    nodes = run.wait(300)
    assert [outcome.status for outcome in run.outcomes] == ["done", "done"]
    assert [outcome.case for outcome in run.outcomes] == ["T1 (1)", "T1 (2)"]
    pytest.importorskip("torch")
    predictor = Predictor(load_bundle(modelPath), device="cpu", scan="pytorch")
    for node, image in zip(nodes, images, strict=True):
        assert node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole()) is image
        expected = predictor.predict(conversion.volumeFromNode(image)).labels.array
        assert np.array_equal(conversion.labelsFromSegmentation(node, image).array, expected)
    assert scene.GetNumberOfNodesByClass("vtkMRMLTableNode") == 2
    run.undo()
    assert contents(scene) == before


def test_what_is_done_stays_when_the_rest_is_cancelled(segmenter, images, thresholdWorker):
    segmenter.workerCommand = thresholdWorker
    run = segmenter.startMany(images, quality="best", **TINY)
    until(run, lambda: run.segmentationNodes[0] is not None)
    until(run, lambda: run.fraction == 0.75)
    run.cancel()
    with pytest.raises(CancelledError, match="1 of 2 images"):
        run.wait(30)
    assert run.segmentationNodes[0].GetSegmentation().GetNumberOfSegments() == 2
    assert run.segmentationNodes[1] is None


def test_deleting_one_image_costs_only_its_own_result(segmenter, images, scene, thresholdWorker):
    segmenter.workerCommand = thresholdWorker
    run = segmenter.startMany(images, **TINY)
    scene.RemoveNode(images[0])
    nodes = run.wait(60)
    assert nodes[0] is None
    assert nodes[1] is not None
    assert "T1 (1) was deleted before it was segmented, so there is no result for it." in run.notices


def test_closing_the_scene_after_cancelling_is_no_trouble(segmenter, images, scene, thresholdWorker):
    segmenter.workerCommand = thresholdWorker
    run = segmenter.startMany(images, quality="best", **TINY)
    time.sleep(2)  # the first result is there, but nobody has looked
    run.cancel()
    scene.Clear(0)
    with pytest.raises(CancelledError):
        run.wait(30)
    assert run.segmentationNodes == [None, None]


def test_one_bad_image_stops_no_other(segmenter, images, addVolume, oblique_geometry, thresholdWorker):
    segmenter.workerCommand = thresholdWorker
    array = np.full(oblique_geometry.shape, np.nan, np.float32)
    broken = addVolume(array, rasMatrix(oblique_geometry), "broken")
    run = segmenter.startMany([broken, images[0]], **TINY)
    nodes = run.wait(300)
    assert nodes[0] is None
    assert nodes[1] is not None
    assert run.outcomes[0].message.startswith("broken: ")
    assert "NaN" in run.outcomes[0].message
    assert any("broken" in line for line in run.log)


def test_a_folder_is_segmented_and_resumed(segmenter, images, tmp_path):
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    volume = conversion.volumeFromNode(images[0])
    write_volume(volume.array[0], volume.geometry, source / "a.nrrd")
    (source / "b.nrrd").write_bytes(b"no image")
    words = {**TINY, "fileFormat": ".nii.gz", "statistics": True}
    run = segmenter.startFolder(source, target, **words)
    outcomes = run.wait(300)
    assert [(outcome.case, outcome.status) for outcome in outcomes] == [("a", "done"), ("b", "failed")]
    assert run.state == "done"
    assert read_labels(target / "a.nii.gz").array.shape == conversion.volumeGeometry(images[0]).shape
    again = segmenter.startFolder(source, target, **words)
    again.wait(300)
    assert again.counts() == {"done": 0, "skipped": 1, "failed": 1}


@pytest.fixture
def corner(images, scene):
    """A region about some voxels of the first image; the images of the fixture lie on one another."""
    x, y, z = conversion.volumeGeometry(images[0]).to_world((2, 4, 4)) * (-1, -1, 1)
    roi = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "corner")
    roi.SetCenter(x, y, z)
    roi.SetSize(6, 6, 6)
    return roi


def outsideVoxels(labels, roi, image=None):
    """How many voxels of the segments lie outside the box of voxels that holds the region."""
    array = labels.array.copy()
    array[regionBox(regionBounds(roi, image), labels.geometry).slices] = 0
    return int((array > 0).sum())


def test_a_region_holds_for_all_images_and_those_it_does_not_meet_fail(segmenter, images, corner, addVolume):
    far = addVolume(np.zeros((8, 8, 8), np.int16), np.array([[1, 0, 0, 900], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    run = segmenter.startMany([*images, far], roiNode=corner, **TINY)
    *found, none = run.wait(300)
    assert [outcome.status for outcome in run.outcomes] == ["done", "done", "failed"]
    assert "lies outside the image" in run.outcomes[2].message
    assert none is None
    for node, image in zip(found, images, strict=True):
        labels = conversion.labelsFromSegmentation(node, image)
        assert labels.array.any()
        assert outsideVoxels(labels, corner, image) == 0


def test_a_region_holds_for_a_folder_of_files(segmenter, images, corner, tmp_path):
    (tmp_path / "in").mkdir()
    volume = conversion.volumeFromNode(images[0])
    write_volume(volume.array[0], volume.geometry, tmp_path / "in" / "a.nrrd")
    run = segmenter.startFolder(tmp_path / "in", tmp_path / "out", roiNode=corner, **TINY)
    assert [outcome.status for outcome in run.wait(300)] == ["done"]
    labels = read_labels(tmp_path / "out" / "a.seg.nrrd")
    assert labels.array.any()
    assert outsideVoxels(labels, corner) == 0


def test_a_region_that_transforms_make_another_one_for_some_images_is_refused(segmenter, images, corner, scene):
    transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "moved")
    matrix = vtk.vtkMatrix4x4()
    matrix.SetElement(0, 3, 5)
    transform.SetMatrixTransformToParent(matrix)
    images[1].SetAndObserveTransformNodeID(transform.GetID())
    with pytest.raises(InputError, match="corner is not one region for all of them"):
        segmenter.startMany(images, roiNode=corner, **TINY)


def test_folders_that_cannot_be_are_refused(segmenter, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        segmenter.startFolder(tmp_path / "none", tmp_path / "out", **TINY)
    with pytest.raises(InputError, match="is the input folder"):
        segmenter.startFolder(tmp_path, tmp_path, **TINY)
    with pytest.raises(InputError, match="No image was chosen"):
        segmenter.startMany([], **TINY)


def test_images_of_a_scene_are_one_case_per_study_when_the_model_takes_several(scene, addVolume):
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    channels = [Channel(name, Normalization("zscore")) for name in ("FLAIR", "T1")]
    nodes = []
    for number in range(2):
        study = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), f"study {number}")
        for name in ("t1 sagittal", "flair"):
            node = addVolume(np.zeros((2, 2, 2), np.int16), np.eye(4), name)
            hierarchy.SetItemParent(hierarchy.GetItemByDataNode(node), study)
            nodes.append(node)
    assert sceneCases(channels, nodes) == ((nodes[1], nodes[0]), (nodes[3], nodes[2]))
    nodes[3].SetName("something")
    with pytest.raises(InputError, match="none could be told to be FLAIR"):
        sceneCases(channels, nodes)


def test_time_and_memory_are_estimated_on_the_grid_of_the_image_or_the_region(segmenter, images, scene):
    run = segmenter.startEstimate(images[0], **TINY)
    need = run.wait(300)
    assert need.tiles >= 1
    assert 0 < need.seconds < 300
    assert 2**20 < need.memoryBytes < 2**36
    assert need.freeBytes > 0
    assert run.computer.deviceProblem("cpu") == ""


def test_a_device_or_backend_that_is_out_has_its_reason():
    computer = Computer(("cpu",), {"cuda": "no GPU"}, {("numba", "cpu"): "", ("triton", "cpu"): "needs CUDA"}, 0)
    assert computer.deviceProblem("cuda:1") == "no GPU"
    assert computer.deviceProblem("auto") == ""
    assert computer.backendProblem("triton", "auto") == "needs CUDA"
    assert computer.backendProblem("numba", "cpu") == ""
    assert computer.backendProblem("auto", "cuda") == ""
