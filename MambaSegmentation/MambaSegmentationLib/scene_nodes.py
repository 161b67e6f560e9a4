"""Images and tables into the scene, beside the image they belong to."""

from __future__ import annotations

import csv
from pathlib import Path

import slicer
import vtk

from MambaSegLib.geometry import Array
from MambaSegmentationLib.conversion import imageData, putBeside, voxels

_CENTROIDS = {
    "centroid_x_mm": ("centroid_R_mm", -1.0),
    "centroid_y_mm": ("centroid_A_mm", -1.0),
    "centroid_z_mm": ("centroid_S_mm", 1.0),
}
"""Column of the library (LPS) -> column and sign in Slicer (RAS)."""


def volumeNodeFromArray(
    array: Array,
    reference: slicer.vtkMRMLScalarVolumeNode,
    name: str,
    grid: slicer.vtkMRMLScalarVolumeNode | None = None,
) -> slicer.vtkMRMLScalarVolumeNode:
    """Add an image, (Z, Y, X), to the scene.

    Args:
        array: Its voxels.
        reference: Image it lies beside, under the same transform.
        name: Its name.
        grid: Image whose grid it has, if it is not the reference: a frame of a sequence.
    """
    node = reference.GetScene().AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    _fill(node, array, grid or reference)
    node.SetAndObserveTransformNodeID(reference.GetTransformNodeID())
    node.CreateDefaultDisplayNodes()
    putBeside(node, reference)
    return node


def componentNode(source: slicer.vtkMRMLScalarVolumeNode, number: int) -> slicer.vtkMRMLScalarVolumeNode:
    """One of the values per voxel of an image, as an image outside the scene."""
    node = slicer.vtkMRMLScalarVolumeNode()
    node.SetName(source.GetName())
    _fill(node, voxels(source, number), source)
    return node


def tableNodeFromCsv(path: Path, reference: slicer.vtkMRMLScalarVolumeNode, name: str) -> slicer.vtkMRMLTableNode:
    """Add the library's table of statistics to the scene; numbers become numbers, centroids RAS as Slicer shows them."""
    with path.open(newline="", encoding="utf-8") as stream:
        header, *rows = csv.reader(stream)
    node = reference.GetScene().AddNewNodeByClass("vtkMRMLTableNode", name)
    for number, title in enumerate(header):
        cells = [row[number] for row in rows]
        if title in _CENTROIDS:
            title, sign = _CENTROIDS[title]
            cells = [repr(sign * float(cell)) if cell else "nan" for cell in cells]
        column = vtk.vtkDoubleArray() if all(map(_isNumber, cells)) else vtk.vtkStringArray()
        column.SetName(title)
        for cell in cells:
            column.InsertNextValue(float(cell) if isinstance(column, vtk.vtkDoubleArray) else cell)
        node.AddColumn(column)
    putBeside(node, reference)
    return node


def _isNumber(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _fill(node: slicer.vtkMRMLScalarVolumeNode, array: Array, grid: slicer.vtkMRMLScalarVolumeNode) -> None:
    matrix = vtk.vtkMatrix4x4()
    grid.GetIJKToRASMatrix(matrix)
    node.SetIJKToRASMatrix(matrix)
    node.SetAndObserveImageData(imageData(array, vtk.vtkImageData()))
