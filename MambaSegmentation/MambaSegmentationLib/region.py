"""The region a segmentation is limited to: a markups ROI of the scene, whose box Slicer can turn and the library cannot."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from MambaSegLib.errors import InputError
from MambaSegLib.geometry import Array, Box, Geometry, box_from_world
from MambaSegLib.plan import Plan
from MambaSegmentationLib.conversion import asArray, betweenNodes
from MambaSegmentationLib.translation import tr as _

if TYPE_CHECKING:
    import slicer

Bounds = tuple[float, float, float, float, float, float]

_NOTICED_GROWTH = 1.01
"""Growth by rounding, or by a turn nobody sees, is not worth a word."""


def regionBounds(roiNode: slicer.vtkMRMLMarkupsROINode, node: slicer.vtkMRMLScalarVolumeNode | None = None) -> Bounds:
    """Bounds of a markups ROI in the coordinates of an image's node, RAS mm: x0, x1, y0, y1, z0, z1.

    A turned ROI, or one turned relative to the image by a transform, gives the upright box around it; see `regionNote`.

    Args:
        roiNode: The region, transforms included.
        node: The image; None takes the coordinates of the world.

    Raises:
        InputError: If the ROI has not been placed, or the transform to the image is not linear.
    """
    size = _size(roiNode)
    if min(size) <= 0:
        message = _("The region {roi} has no size yet. Place it in the views, or choose no region.").format(
            roi=roiNode.GetName()
        )
        raise InputError(message)
    corners = np.array([[*corner, 1.0] for corner in product(*((-0.5 * side, 0.5 * side) for side in size))])
    found = corners @ _toNode(roiNode, node).T
    low, high = found[:, :3].min(axis=0), found[:, :3].max(axis=0)
    return (*(float(v) for pair in zip(low, high, strict=True) for v in pair),)  # type: ignore[return-value]


def regionNote(roiNode: slicer.vtkMRMLMarkupsROINode | None, node: slicer.vtkMRMLScalarVolumeNode | None = None) -> str:
    """What to know about a region before using it: that it is turned, so that more is segmented than the box holds.

    Args:
        roiNode: The region; None for none.
        node: As `regionBounds`.

    Returns:
        A sentence for a person; "" for an upright region, or one that cannot be used (`regionBounds` says why).
    """
    if roiNode is None:
        return ""
    try:
        bounds = regionBounds(roiNode, node)
        axes = _toNode(roiNode, node)[:3, :3] * _size(roiNode)
    except InputError:
        return ""
    growth = float(np.prod(np.subtract(bounds[1::2], bounds[::2])) / abs(np.linalg.det(axes)))
    if growth < _NOTICED_GROWTH:
        return ""
    return _(
        "The region is turned. What is segmented is the upright box around it, {growth:.1f} times as large."
    ).format(growth=growth)


def fitRegion(
    roiNode: slicer.vtkMRMLMarkupsROINode, node: slicer.vtkMRMLScalarVolumeNode, largest_mm: Array | None = None
) -> None:
    """Draw a region around an image, transforms included; where it is larger than wanted, in its middle.

    Args:
        roiNode: The region.
        node: The image.
        largest_mm: Size along R, A, S that is not exceeded; None for no limit.
    """
    bounds = [0.0] * 6
    node.GetRASBounds(bounds)
    lower, upper = np.array(bounds[::2]), np.array(bounds[1::2])
    size = upper - lower if largest_mm is None else np.minimum(upper - lower, largest_mm)
    roiNode.SetCenterWorld(*((lower + upper) / 2))
    roiNode.SetSizeWorld(*size)


def trainedExtent(plan: Plan) -> Array | None:
    """Largest training image along R, A and S in mm; None where the model does not say."""
    if plan.fingerprint is None:
        return None
    axes = ["RLAPSI".index(letter) // 2 for letter in plan.orientation]
    extent = np.zeros(3)
    extent[axes] = plan.fingerprint.extent_max_mm
    return extent


def regionBox(bounds: Bounds, geometry: Geometry) -> Box:
    """Voxels of a region given in RAS mm.

    Raises:
        InputError: If it lies outside the volume.
    """
    x0, x1, y0, y1, z0, z1 = bounds
    # R -> L and A -> P turn the sign, so lower and upper change places.
    return box_from_world(geometry, (-x1, -y1, z0), (-x0, -y0, z1))


def regionWords(bounds: Bounds | None) -> list[str]:
    """The words of `mambaseg` for a region."""
    return [] if bounds is None else ["--roi", *(repr(bound) for bound in bounds)]


def _size(roiNode: Any) -> tuple[float, float, float]:
    """Sides along the region's own axes, before any transform."""
    size: tuple[float, float, float] = roiNode.GetSize()
    return size


def _toNode(roiNode: Any, node: Any) -> Array:
    """4 x 4 from the region's own axes, its middle at 0, to an image's node."""
    toWorld = asArray(roiNode.GetObjectToWorldMatrix())
    if node is None:
        return toWorld
    names = _("{image} and the region").format(image=node.GetName())
    return betweenNodes(None, node.GetParentTransformNode(), names) @ toWorld
