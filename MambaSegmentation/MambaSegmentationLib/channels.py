"""Which image is which channel: by order, by name, or guessed from what the images are called."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import slicer

from MambaSegLib.bundle import Bundle
from MambaSegLib.errors import InputError
from MambaSegLib.plan import Channel
from MambaSegmentationLib.translation import tr as _

VolumeNode = slicer.vtkMRMLScalarVolumeNode
Nodes = VolumeNode | Sequence[VolumeNode] | Mapping[str, VolumeNode]

_NUMBER = re.compile(r"_(\d{4})$")


def orderedNodes(nodes: Nodes, bundle: Bundle) -> tuple[VolumeNode, ...]:
    """One image per channel in the model's order.

    Args:
        nodes: One node, several in the model's order, or by channel name.
        bundle: The model.

    Raises:
        InputError: If images are missing, too many or of another name; the message lists the channels.
    """
    channels = [channel.name for channel in bundle.manifest.plan.channels]
    wanted = _("{model} needs {count} image(s): {channels}").format(
        model=bundle.name, count=len(channels), channels=", ".join(channels)
    )
    if isinstance(nodes, Mapping):
        wrong = sorted(set(nodes) ^ set(channels))
        if wrong:
            message = _("{wanted}. Missing or not known: {names}.").format(wanted=wanted, names=", ".join(wrong))
            raise InputError(message)
        nodes = [nodes[name] for name in channels]
    elif not isinstance(nodes, Sequence):
        nodes = [nodes]
    if any(not isinstance(node, VolumeNode) for node in nodes or [None]):
        message = _("{wanted}. Choose a volume for each.").format(wanted=wanted)
        raise InputError(message)
    if len(nodes) != len(channels):
        message = _("{wanted}; {count} given.").format(wanted=wanted, count=len(nodes))
        raise InputError(message)
    return tuple(nodes)


def suggestedNodes(
    channels: Sequence[Channel], nodes: Sequence[VolumeNode], active: VolumeNode | None = None
) -> tuple[VolumeNode | None, ...]:
    """Guess which image is which channel; see `suggestedNames`.

    Args:
        channels: Of the model, in its order.
        nodes: Images of the scene.
        active: Image shown in the slice views: the guess for a single channel whose name tells nothing.

    Returns:
        One per channel; None where nothing fits.
    """
    found = suggestedNames(channels, [node.GetName() or "" for node in nodes])
    if found == (None,):
        alone = nodes[0] if len(nodes) == 1 else None
        return (active if any(node is active for node in nodes) else alone,)
    return tuple(None if place is None else nodes[place] for place in found)


def suggestedNames(channels: Sequence[Channel], names: Sequence[str]) -> tuple[int | None, ...]:
    """Guess which image is which channel from what it is called.

    A name that has the channel's name as a word of its own counts most, then one that contains it, then the numbers at
    the end of names as nnU-Net gives them (case_0000, case_0001, ...). No image is taken twice.

    Returns:
        Position among the names, per channel; None where nothing fits.
    """
    found: dict[int, int] = {}
    for fits in (_isWord, _isPart, _isNumber):
        # Longest names first: "T1CE" must not be taken by "T1".
        for position in sorted(range(len(channels)), key=lambda k: -len(channels[k].name)):
            left = [k for k in range(len(names)) if k not in found.values()]
            match = next((k for k in left if fits(channels[position].name, position, names[k])), None)
            if position not in found and match is not None:
                found[position] = match
    return tuple(found.get(position) for position in range(len(channels)))


def sceneCases(channels: Sequence[Channel], nodes: Sequence[VolumeNode]) -> tuple[tuple[VolumeNode, ...], ...]:
    """Images of the scene as cases: each by itself for one channel, else each study or folder of the subject hierarchy.

    Raises:
        InputError: If a study lacks an image for a channel.
    """
    if len(channels) == 1:
        return tuple((node,) for node in nodes)
    groups: dict[int, list[VolumeNode]] = {}
    for node in nodes:
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(node.GetScene())
        item = hierarchy.GetItemByDataNode(node)
        groups.setdefault(hierarchy.GetItemParent(item) if item else 0, []).append(node)
    return tuple(_complete(channels, group) for group in groups.values())


def _complete(channels: Sequence[Channel], group: Sequence[VolumeNode]) -> tuple[VolumeNode, ...]:
    found = suggestedNodes(channels, group)
    missing = [channel.name for channel, node in zip(channels, found, strict=True) if node is None]
    if missing:
        names = ", ".join(node.GetName() for node in group)
        message = _(
            "Of {names}, none could be told to be {missing}. Put the images of each case into a study or "
            "folder of their own in the Data module, and name them after the channels."
        ).format(names=names, missing=", ".join(missing))
        raise InputError(message)
    return tuple(node for node in found if node is not None)


def _isWord(channel: str, position: int, name: str) -> bool:
    return channel.lower() in re.split(r"[^0-9a-z+]+", name.lower())


def _isPart(channel: str, position: int, name: str) -> bool:
    return channel.lower() in name.lower()


def _isNumber(channel: str, position: int, name: str) -> bool:
    match = _NUMBER.search(name)
    return match is not None and int(match[1]) == position


def isImage(node: Any) -> bool:
    """Whether a node is an image a person can choose: no label map, and not hidden by the module it belongs to."""
    return isinstance(node, VolumeNode) and not node.IsA("vtkMRMLLabelMapVolumeNode") and not node.GetHideFromEditors()


def activeImage() -> Any:
    """Image shown in the slice views; None if there is none."""
    selection = slicer.app.applicationLogic().GetSelectionNode()
    return slicer.mrmlScene.GetNodeByID((selection.GetActiveVolumeID() or "") if selection is not None else "")
