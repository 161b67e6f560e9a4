"""From the files of one segmented case to nodes beside its image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from MambaSegLib.volume_io import read_labels, read_volume
from MambaSegmentationLib import conversion
from MambaSegmentationLib.request import Options
from MambaSegmentationLib.scene_change import SceneChange
from MambaSegmentationLib.scene_nodes import tableNodeFromCsv, volumeNodeFromArray

if TYPE_CHECKING:
    import slicer


@dataclass(frozen=True)
class ResultFiles:
    """What the worker wrote; the last two only if asked for."""

    labels: Path
    uncertainty: Path
    statistics: Path


@dataclass(frozen=True)
class ResultNodes:
    """What came into the scene.

    Attributes:
        segmentation: The segments.
        uncertainty: Volume of the uncertainty; None if not asked for.
        statistics: Table of volumes and intensities; None if not asked for.
        change: To take it all back.
    """

    segmentation: slicer.vtkMRMLSegmentationNode
    uncertainty: slicer.vtkMRMLScalarVolumeNode | None
    statistics: slicer.vtkMRMLTableNode | None
    change: SceneChange


def takeIn(
    files: ResultFiles,
    reference: slicer.vtkMRMLScalarVolumeNode,
    source: str,
    options: Options,
    outputNode: slicer.vtkMRMLSegmentationNode | None = None,
) -> ResultNodes:
    """Put results into the scene, all or nothing.

    Args:
        files: Of the case.
        reference: The image.
        source: What to call the image in the tags of the segments.
        options: What was asked for.
        outputNode: Segmentation the segments are added to; None makes one.

    Raises:
        MambaSegError: If a file cannot be read, the image has changed, or the output node does not fit; the scene is
            as it was before.
    """
    labels = conversion.withSource(read_labels(files.labels), source)
    uncertainty = read_volume(files.uncertainty).array[0] if options.uncertainty else None
    scene, name = reference.GetScene(), reference.GetName()
    volumeNode = tableNode = None
    change = SceneChange(scene, outputNode)
    with change:
        node = conversion.segmentationFromLabels(labels, reference, outputNode)
        if uncertainty is not None:
            title = scene.GetUniqueNameByString(f"{name} uncertainty")
            volumeNode = volumeNodeFromArray(uncertainty, reference, title)
        if options.statistics:
            title = scene.GetUniqueNameByString(f"{name} statistics")
            tableNode = tableNodeFromCsv(files.statistics, reference, title)
        if options.show3D:
            node.CreateClosedSurfaceRepresentation()
    return ResultNodes(node, volumeNode, tableNode, change)
