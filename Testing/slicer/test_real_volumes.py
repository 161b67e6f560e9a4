"""Real images as Slicer reads them: oblique, anisotropic, DICOM, several channels, and under a transform.

The worker marks what is brighter than the mean, so that where a segment must lie can be worked out with SimpleITK alone.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import slicer
import vtk
from conftest import waitFor
from threshold_worker import bright
from vtk.util.numpy_support import vtk_to_numpy

pytestmark = pytest.mark.shared_data
sitk = pytest.importorskip("SimpleITK")

VOLUMES = {
    "oblique, 7.5 mm slices": "mr_spinalcord_oblique/t2s_uncropped.nii.gz",
    "sagittal axes": "mr_spinalcord_oblique/t2.nii.gz",
    "NRRD, y flipped": "mr_tumour_nrrd",
    "rotated by 18 degrees": "mr_stroke_oblique/T2.nii.gz",
    "CT": "ct_multiorgan/example_ct_sm.nii.gz",
    "oblique DICOM": "dicom_prostate_oblique",
}


def findImage(path):
    """The file itself, the first NRRD of a folder, or the folder of the first DICOM series."""
    if path.is_file():
        return path
    images = sorted(path.rglob("*.nrrd"))
    images = [image for image in images if "label" not in image.name.lower() and "seg" not in image.name.lower()]
    return images[0] if images else min(path.rglob("*.dcm")).parent


def loaded(path):
    """The image by ITK, and a node that Slicer's reader makes of it."""
    if path.is_dir():
        names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path))
        image = sitk.ReadImage(names)
        files = vtk.vtkStringArray()
        for name in names:
            files.InsertNextValue(name)
        node = slicer.modules.volumes.logic().AddArchetypeVolume(names[0], path.name, 0, files)
    else:
        image = sitk.ReadImage(str(path))
        node = slicer.modules.volumes.logic().AddArchetypeVolume(str(path), path.name.partition(".")[0], 0)
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    if not hierarchy.GetItemByDataNode(node):
        hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)
    return image, node


def expectedCenter(image):
    """Mean position of the bright voxels in RAS mm, by ITK alone."""
    indices = np.argwhere(bright(sitk.GetArrayFromImage(image)))[:, ::-1]
    direction = np.array(image.GetDirection()).reshape(3, 3) @ np.diag(image.GetSpacing())
    return (direction @ indices.mean(axis=0) + image.GetOrigin()) * (-1, -1, 1)


def foundCenter(node, segmentId):
    """Mean position of a segment's voxels, by the segment's own matrix."""
    labelmap = slicer.vtkOrientedImageData()
    node.GetBinaryLabelmapRepresentation(segmentId, labelmap)
    extent = labelmap.GetExtent()
    array = vtk_to_numpy(labelmap.GetPointData().GetScalars()).reshape(labelmap.GetDimensions()[::-1])
    indices = np.argwhere(array == 1)[:, ::-1].mean(axis=0) + extent[::2]
    matrix = vtk.vtkMatrix4x4()
    labelmap.GetImageToWorldMatrix(matrix)
    return np.array(matrix.MultiplyPoint((*indices, 1.0)))[:3]


@pytest.mark.parametrize("name", VOLUMES)
def test_segments_lie_where_the_image_does(name, segmenter, scene, shared_data, thresholdWorker):
    image, node = loaded(findImage(shared_data / "volumes" / VOLUMES[name]))
    transform = vtk.vtkTransform()
    transform.RotateX(25)
    transformNode = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "moved")
    transformNode.SetMatrixTransformToParent(transform.GetMatrix())
    node.SetAndObserveTransformNodeID(transformNode.GetID())
    segmenter.workerCommand = thresholdWorker
    result = segmenter.start(node, model="mamba_unet_unidirectional.tiny").wait(120)
    np.testing.assert_allclose(foundCenter(result, "Segment_1"), expectedCenter(image), atol=1e-3)
    assert result.GetParentTransformNode() is transformNode
    assert result.GetNodeReference(result.GetReferenceImageGeometryReferenceRole()) is node
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    items = [hierarchy.GetItemByDataNode(each) for each in (node, result)]
    assert len({hierarchy.GetItemParent(item) for item in items}) == 1


def test_a_real_4d_series_gets_a_segmentation_per_frame(segmenter, scene, shared_data, thresholdWorker):
    path = shared_data / "volumes" / "mr_4d_nibabel" / "functional.nii"
    sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode", "bold")
    storage = slicer.vtkMRMLVolumeSequenceStorageNode()
    storage.SetFileName(str(path))
    assert storage.ReadData(sequence)
    browser = scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "bold browser")
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    logic = slicer.modules.sequences.logic()
    logic.UpdateProxyNodesFromSequences(browser)
    node = browser.GetProxyNode(sequence)
    segmenter.workerCommand = thresholdWorker
    result = segmenter.start(node, model="mamba_unet_unidirectional.tiny", frames="all").wait(120)
    image = sitk.ReadImage(str(path))
    assert sequence.GetNumberOfDataNodes() == image.GetSize()[3] == 20
    for number in (0, 19, 7):
        browser.SetSelectedItemNumber(number)
        logic.UpdateProxyNodesFromSequences(browser)
        np.testing.assert_allclose(foundCenter(result, "Segment_1"), expectedCenter(image[:, :, :, number]), atol=1e-3)


def test_three_channels_are_assigned_by_name_in_the_window(opened, modelPath, shared_data, tmp_path, thresholdWorker):
    pytest.importorskip("torch")
    from MambaSegLib.bundle import load_bundle, save_bundle
    from MambaSegLib.networks import create_network
    from MambaSegLib.plan import Channel, Normalization

    manifest = load_bundle(modelPath).manifest
    channels = tuple(Channel(name, Normalization("zscore"), "MR") for name in ("T2", "FLAIR", "T1"))
    plan = replace(manifest.plan, channels=channels, network=replace(manifest.plan.network, in_channels=3))
    name = "mamba_unet_unidirectional.three"
    save_bundle(
        replace(manifest, plan=plan, name=name), {0: create_network(plan.network).state_dict()}, tmp_path / "in" / name
    )
    window, ui, errors = opened[0].window, opened[0].window.ui, opened[2]
    window._segmenter.install(tmp_path / "in" / name)
    folder = shared_data / "volumes" / "mr_stroke_oblique"
    loads = {channel: loaded(folder / f"{channel}.nii.gz") for channel in ("FLAIR", "T1", "T2")}
    window.models.refresh()
    ui.modelSelector.setCurrentIndex(ui.modelSelector.findData(name))
    assert window.inputs.nodes() == {channel: node for channel, (_, node) in loads.items()}
    window._segmenter.workerCommand = thresholdWorker
    ui.applyButton.click()
    waitFor(lambda: not window._isBusy(), 120)
    assert errors == []
    found = foundCenter(window.run.segmentationNode, "Segment_1")
    np.testing.assert_allclose(found, expectedCenter(loads["T2"][0]), atol=1e-3)
