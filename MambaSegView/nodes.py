"""Images, segmentations and regions as nodes of Slicer's scene, and segmentations as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from MambaSegmentationLib.conversion import RAS_TO_LPS, imageData, labelsFromSegmentation
from MambaSegmentationLib.region import fitRegion
from MambaSegmentationLib.worker import libraryEnvironment

from MambaSegLib.atomic import new_file
from MambaSegLib.errors import EnvironmentProblemError, InputError
from MambaSegLib.geometry import Array
from MambaSegLib.label_writing import check_output_path
from MambaSegLib.volume import Volume
from MambaSegView.probe import is_readable, read


def add_image(scene: Any, volume: Volume) -> tuple[Any, ...]:
    """Add each channel of a volume to the scene as a scalar volume node named after file and channel."""
    matrix = vtk.vtkMatrix4x4()
    ijk_to_ras = RAS_TO_LPS @ volume.geometry.index_to_world[:, [2, 1, 0, 3]]
    matrix.DeepCopy(ijk_to_ras.ravel().tolist())
    nodes = []
    for number, array in enumerate(volume.array):
        channel = f" {volume.channels[number]}" if volume.channels and len(volume.array) > 1 else ""
        node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", f"{volume.name}{channel}")
        node.SetIJKToRASMatrix(matrix)
        node.SetAndObserveImageData(imageData(array, vtk.vtkImageData()))
        node.CreateDefaultDisplayNodes()
        nodes.append(node)
    return tuple(nodes)


def add_region(scene: Any, image: Any, bounds_ras_mm: tuple[float, ...] | None, largest_mm: Array | None = None) -> Any:
    """Add a box that can be dragged in the views; without bounds it holds the image, or its middle as large as named."""
    node = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Region")
    node.CreateDefaultDisplayNodes()
    if bounds_ras_mm is None:
        fitRegion(node, image, largest_mm)
    else:
        low, high = np.array(bounds_ras_mm[0::2]), np.array(bounds_ras_mm[1::2])
        node.SetCenter(*((low + high) / 2).tolist())
        node.SetSize(*(high - low).tolist())
    node.GetDisplayNode().SetFillOpacity(0.0)
    node.GetDisplayNode().SetPropertiesLabelVisibility(False)
    return node


def add_segmentation(scene: Any, logic: Any, path: Path, name: str) -> Any:
    """Read a segmentation with Slicer's own reader.

    Args:
        scene: Slicer's scene.
        logic: Slicer's segmentations logic.
        path: .seg.nrrd, .nrrd, .nii.gz, .nii or .mha.
        name: What to call it.

    Raises:
        InputError: If the file is missing, cannot be read or holds no segment.
    """
    if not path.is_file():
        message = f"The segmentation {path} does not exist."
        raise InputError(message)
    node = read(path, name, logic) if is_readable(path, libraryEnvironment()) else None
    if node is None:
        message = f"{name} cannot be read as a segmentation, or holds no segment."
        raise InputError(message)
    # The file may be gone later: an upload is kept in a temporary folder only.
    storage = node.GetStorageNode()
    node.SetAndObserveStorageNodeID(None)
    if storage is not None:
        scene.RemoveNode(storage)
    return node


def save_segmentation(node: Any, image: Any, path: Path, *, replace: bool) -> None:
    """Write a segmentation on the grid of the image; the file appears when it is complete.

    A .seg.nrrd is written by Slicer (names, colors, terminology, segments that overlap); other formats hold one label
    per voxel, numbered from 1.

    Raises:
        InputError: If the name or folder cannot be used, or the file exists and is not to be replaced.
        EnvironmentProblemError: If it cannot be written.
    """
    check_output_path(path)
    if path.exists() and not replace:
        message = f"{path} exists already. Choose another name, or tick the box to replace it."
        raise InputError(message)
    try:
        if path.name.lower().endswith(".seg.nrrd"):
            with new_file(path) as work:
                _write_with_slicer(node, work)
        else:
            labelsFromSegmentation(node, image).write(path)
    except OSError as error:
        message = f"{path} could not be written: {error}"
        raise EnvironmentProblemError(message) from error


def _write_with_slicer(node: Any, path: Path) -> None:
    storage = slicer.vtkMRMLSegmentationStorageNode()
    storage.SetFileName(str(path))
    if not storage.WriteData(node):
        message = f"Slicer's writer failed for {path.name}"
        raise OSError(message)
