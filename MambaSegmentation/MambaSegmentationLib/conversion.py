"""MRML nodes to volumes, labels to MRML nodes: the only place that knows RAS.

Slicer's world is RAS and its matrices take (i, j, k); the library's is LPS and its indices are (z, y, x). Arrays need
no turning: Slicer stores them as (k, j, i), which is (z, y, x).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from MambaSegLib.errors import InputError
from MambaSegLib.geometry import Array, Geometry, straightened
from MambaSegLib.plan import Label
from MambaSegLib.seg_nrrd import TAG_PREFIX, terminology_entry
from MambaSegLib.volume import Labels, Volume
from MambaSegmentationLib.scene_change import SceneChange
from MambaSegmentationLib.translation import tr as _

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def volumeFromNode(
    node: slicer.vtkMRMLScalarVolumeNode, *, frame: int | None = None, matrix: Array | None = None
) -> Volume:
    """Copy an image out of the scene; display settings such as window and level play no part.

    Args:
        node: A scalar volume.
        frame: Which component, from 0, if the volume has several (a 4D image).
        matrix: 4 x 4, (i, j, k) to RAS; None takes the node's own.

    Returns:
        One channel, in the node's own coordinates: a parent transform is not applied.

    Raises:
        InputError: If there are no voxels, the node is a label map, has several components and no frame is given, or
            its grid is sheared.
    """
    array = voxels(node, frame)
    steps = RAS_TO_LPS @ (_ijkToRas(node) if matrix is None else matrix)
    try:
        geometry, _repair = straightened(steps[:3, 2::-1], steps[:3, 3], array.shape)
    except InputError as error:
        message = _("{name}: {error}").format(name=node.GetName(), error=error)
        raise InputError(message) from None
    return Volume(array[None], geometry, (), node.GetName() or "volume")


def volumesFromNodes(
    nodes: Sequence[slicer.vtkMRMLScalarVolumeNode],
    *,
    frame: int | None = None,
    contents: Sequence[slicer.vtkMRMLScalarVolumeNode] | None = None,
) -> tuple[Volume, ...]:
    """Copy the images of one case, all in the coordinates of the first one's node.

    Images may lie under different linear transforms: they are placed where the scene shows them relative to the first.

    Args:
        nodes: Images of the scene.
        frame: See `volumeFromNode`.
        contents: Nodes to take voxels and grids from instead, one for each: frames of sequences, which are outside the
            scene and under no transform.

    Raises:
        InputError: As `volumeFromNode`; or if a transform between two images is not linear.
    """
    first = nodes[0]
    return tuple(
        volumeFromNode(content, frame=frame, matrix=_relativeMatrix(node, first, content))
        for node, content in zip(nodes, contents or nodes, strict=True)
    )


def checkOutput(outputNode: slicer.vtkMRMLSegmentationNode, reference: slicer.vtkMRMLScalarVolumeNode) -> None:
    """Refuse an output node that the result could not be put into without moving what is there.

    Raises:
        InputError: If it holds segments under another transform, or ones that are not label maps.
    """
    segmentation = outputNode.GetSegmentation()
    if segmentation.GetNumberOfSegments() == 0:
        return
    if outputNode.GetTransformNodeID() != reference.GetTransformNodeID():
        message = _(
            "The segmentation {output} lies under another transform than {reference}. Put both under the "
            "same one, or choose a new segmentation."
        ).format(output=outputNode.GetName(), reference=reference.GetName())
        raise InputError(message)
    if segmentation.GetSourceRepresentationName() != _labelmapName():
        message = _(
            "The segments of {output} are stored as {kind}, not as label maps. Choose a new segmentation."
        ).format(output=outputNode.GetName(), kind=segmentation.GetSourceRepresentationName())
        raise InputError(message)


def segmentationFromLabels(
    labels: Labels,
    reference: slicer.vtkMRMLScalarVolumeNode,
    outputNode: slicer.vtkMRMLSegmentationNode | None = None,
    grid: slicer.vtkMRMLScalarVolumeNode | None = None,
) -> slicer.vtkMRMLSegmentationNode:
    """Put a label map into the scene as segments, next to the image it was made from.

    Every label of the table becomes a segment, those without voxels too; all share one label map. Segments that are in
    the output node already stay as they are; the new ones get other names where names would clash.

    Args:
        labels: On the grid of the image.
        reference: The image.
        outputNode: Where the segments go; None makes a new node.
        grid: Image whose grid the labels have, if it is not the reference: a frame of a sequence.

    Returns:
        The segmentation node, under the same transform as the image.

    Raises:
        InputError: If labels and image do not lie on one grid, or as `checkOutput`.
    """
    grid = grid or reference
    geometry = volumeGeometry(grid)
    if not geometry.is_close(labels.geometry):
        message = _("{reference} has changed since it was segmented: {differences}.").format(
            reference=reference.GetName(), differences=labels.geometry.differences(geometry)
        )
        raise InputError(message)
    if outputNode is None:
        outputNode = _newSegmentation(reference)
    checkOutput(outputNode, reference)
    outputNode.CreateDefaultDisplayNodes()  # one that a person made in a selector has none, and would stay invisible
    segmentation = outputNode.GetSegmentation()
    wasModifying = outputNode.StartModify()
    try:
        if segmentation.GetNumberOfSegments() == 0:
            segmentation.SetSourceRepresentationName(_labelmapName())
            outputNode.SetReferenceImageGeometryParameterFromVolumeNode(reference)
            outputNode.SetAndObserveTransformNodeID(reference.GetTransformNodeID())
        image = _orientedImage(labels.array, grid)
        for label in labels.table:
            _addSegment(segmentation, label, image, labels.tags)
    finally:
        outputNode.EndModify(wasModifying)
    return outputNode


def volumeGeometry(node: slicer.vtkMRMLScalarVolumeNode) -> Geometry:
    """Grid of a volume node in its own coordinates."""
    dimensions = node.GetImageData().GetDimensions()
    steps = RAS_TO_LPS @ _ijkToRas(node)
    return straightened(steps[:3, 2::-1], steps[:3, 3], dimensions[::-1])[0]


def labelsFromSegmentation(
    segmentationNode: slicer.vtkMRMLSegmentationNode, reference: slicer.vtkMRMLScalarVolumeNode
) -> Labels:
    """Segments as a label map on an image's grid, valued from 1 in their order; where they overlap the later one counts.

    Raises:
        InputError: If a segment cannot be sampled on that grid.
    """
    geometry = volumeGeometry(reference)
    segmentation = segmentationNode.GetSegmentation()
    array = np.zeros(geometry.shape, np.uint16)
    table = []
    # Slicer's function leaves display nodes of its own behind.
    helpers = SceneChange(segmentationNode.GetScene())
    with helpers:
        for number in range(segmentation.GetNumberOfSegments()):
            segmentId = segmentation.GetNthSegmentID(number)
            segment = segmentation.GetSegment(segmentId)
            mask = slicer.util.arrayFromSegmentBinaryLabelmap(segmentationNode, segmentId, reference)
            if mask is not None:
                array[mask > 0] = number + 1
            red, green, blue = (round(255 * part) for part in segment.GetColor())
            table.append(Label(number + 1, segment.GetName(), (red, green, blue)))
    helpers.undo()
    return Labels(array, geometry, tuple(table))


def withSource(labels: Labels, source: str) -> Labels:
    """Labels that name the image they were made from as the scene does, not as a temporary file does."""
    others = [(key, value) for key, value in labels.tags if key != "Source"]
    return replace(labels, tags=(*others, ("Source", source)))


def voxels(node: slicer.vtkMRMLScalarVolumeNode, frame: int | None) -> Array:
    """A copy of an image's values, (Z, Y, X); see `volumeFromNode`."""
    name = node.GetName() or "The volume"
    if node.IsA("vtkMRMLLabelMapVolumeNode"):
        message = _("{name} is a label map, not an image. Choose the image itself.").format(name=name)
        raise InputError(message)
    image = node.GetImageData()
    if image is None or image.GetNumberOfPoints() == 0 or image.GetPointData().GetScalars() is None:
        message = _("{name} holds no voxels. Load an image into it or choose another.").format(name=name)
        raise InputError(message)
    shape = image.GetDimensions()[::-1]
    values = vtk_to_numpy(image.GetPointData().GetScalars())
    count = image.GetNumberOfScalarComponents()
    if count == 1:
        return np.array(values.reshape(shape))
    if frame is None or not 0 <= frame < count:
        message = _(
            "{name} has {count} values per voxel (a 4D or color image); one 3D image is needed. Name a frame "
            "from 0 to {last}, or load the file as a sequence and choose the current frame."
        ).format(name=name, count=count, last=count - 1)
        raise InputError(message)
    return np.ascontiguousarray(values.reshape(*shape, count)[..., frame])


def _ijkToRas(node: slicer.vtkMRMLScalarVolumeNode) -> Array:
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return asArray(matrix)


def _relativeMatrix(
    node: slicer.vtkMRMLScalarVolumeNode,
    first: slicer.vtkMRMLScalarVolumeNode,
    content: slicer.vtkMRMLScalarVolumeNode,
) -> Array:
    """(i, j, k) of an image that lies where `node` does to RAS in the coordinates of another node."""
    if node.GetTransformNodeID() == first.GetTransformNodeID():
        return _ijkToRas(content)
    names = f"{node.GetName()} and {first.GetName()}"
    between = betweenNodes(node.GetParentTransformNode(), first.GetParentTransformNode(), names)
    return between @ _ijkToRas(content)


def betweenNodes(source: object, target: object, names: str) -> Array:
    """4 x 4 from below one transform node to below another; None is the world.

    Raises:
        InputError: If it is not linear; `names` says for a person what lies below them.
    """
    matrix = vtk.vtkMatrix4x4()
    if not slicer.vtkMRMLTransformNode.GetMatrixTransformBetweenNodes(source, target, matrix):
        message = _("The transform between {names} is not linear. Harden it in the Transforms module first.").format(
            names=names
        )
        raise InputError(message)
    return asArray(matrix)


def asArray(matrix: vtk.vtkMatrix4x4) -> Array:
    """The elements of a matrix."""
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def _labelmapName() -> str:
    name: str = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
    return name


def _newSegmentation(reference: slicer.vtkMRMLScalarVolumeNode) -> slicer.vtkMRMLSegmentationNode:
    scene = reference.GetScene()
    name = scene.GetUniqueNameByString(f"{reference.GetName()} segmentation")
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    putBeside(node, reference)
    return node


def putBeside(node: slicer.vtkMRMLNode, reference: slicer.vtkMRMLNode) -> None:
    """Same study (or folder) of the subject hierarchy as the image."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(reference.GetScene())
    if hierarchy is None:
        return
    place = hierarchy.GetItemByDataNode(reference)
    parent = hierarchy.GetItemParent(place) if place else hierarchy.GetSceneItemID()
    item = hierarchy.GetItemByDataNode(node)
    if item:
        hierarchy.SetItemParent(item, parent)
    else:
        hierarchy.CreateItem(parent, node)


def _orientedImage(array: Array, reference: slicer.vtkMRMLScalarVolumeNode) -> slicer.vtkOrientedImageData:
    image = imageData(array, slicer.vtkOrientedImageData())
    matrix = vtk.vtkMatrix4x4()
    reference.GetIJKToRASMatrix(matrix)
    image.SetImageToWorldMatrix(matrix)
    return image


def imageData(array: Array, image: vtk.vtkImageData) -> vtk.vtkImageData:
    """Give an image object a copy of voxels, (Z, Y, X)."""
    # deep: VTK must own the voxels, since the array is gone when this returns.
    scalars = numpy_to_vtk(np.ascontiguousarray(array).ravel(), deep=True)
    scalars.SetName("ImageScalars")
    image.SetDimensions(array.shape[::-1])
    image.GetPointData().SetScalars(scalars)
    return image


def _addSegment(
    segmentation: slicer.vtkSegmentation,
    label: Label,
    image: slicer.vtkOrientedImageData,
    tags: Sequence[tuple[str, str]],
) -> None:
    segment = slicer.vtkSegment()
    segment.SetName(_freeName(segmentation, label.name))
    segment.SetColor(*(part / 255 for part in label.color))
    segment.SetLabelValue(label.value)
    if label.terminology is not None:
        segment.SetTag(segment.GetTerminologyEntryTagName(), terminology_entry(label.terminology))
    for key, value in tags:
        segment.SetTag(TAG_PREFIX + key, value)
    # One image object for all segments: that is what Slicer calls a shared label map.
    segment.AddRepresentation(_labelmapName(), image)
    segmentId = segmentation.GenerateUniqueSegmentID(f"Segment_{label.value}")
    if not segmentation.AddSegment(segment, segmentId):
        message = _("Slicer did not accept the segment {name}. Choose a new segmentation as output.").format(
            name=label.name
        )
        raise InputError(message)


def _freeName(segmentation: slicer.vtkSegmentation, name: str) -> str:
    taken = {segmentation.GetNthSegment(n).GetName() for n in range(segmentation.GetNumberOfSegments())}
    free, number = name, 2
    while free in taken:
        free, number = f"{name} ({number})", number + 1
    return free
