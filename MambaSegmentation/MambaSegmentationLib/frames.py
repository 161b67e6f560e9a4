"""Images that change over time: sequences with a browser, and volumes with several components."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import slicer

from MambaSegLib.errors import InputError
from MambaSegLib.volume import Volume
from MambaSegmentationLib import conversion
from MambaSegmentationLib.translation import tr as _


@dataclass(frozen=True)
class Frames:
    """The frames of one case.

    Attributes:
        nodes: Image per channel, as the scene shows it.
        sequences: Sequence each image is browsed from; None where it is the same in all frames.
        browser: What browses the first of these sequences; None if there is none.
        indexValues: What each frame is called in the sequence: a time, or a number from 0.
    """

    nodes: tuple[Any, ...]
    sequences: tuple[Any, ...]
    browser: Any
    indexValues: tuple[str, ...]

    def contents(self, number: int) -> tuple[Any, ...]:
        """Node per channel that holds the voxels of a frame."""
        return tuple(
            node if sequence is None else sequence.GetNthDataNode(number)
            for node, sequence in zip(self.nodes, self.sequences, strict=True)
        )

    def volumes(self, number: int) -> tuple[Volume, ...]:
        """Copy the images of a frame."""
        return conversion.volumesFromNodes(self.nodes, frame=number, contents=self.contents(number))


def numberOfFrames(node: Any) -> int:
    """How many frames an image has; 1 for an ordinary one."""
    found = sequenceOf(node)
    return found[1].GetNumberOfDataNodes() if found else components(node)


def components(node: Any) -> int:
    """Values per voxel."""
    image = node.GetImageData()
    return image.GetNumberOfScalarComponents() if image is not None else 1


def sequenceOf(node: Any) -> tuple[Any, Any] | None:
    """Browser and sequence an image is shown from; None if there are none."""
    sequences = getattr(slicer.modules, "sequences", None)
    browser = sequences.logic().GetFirstBrowserNodeForProxyNode(node) if sequences is not None else None
    sequence = browser.GetSequenceNode(node) if browser is not None else None
    return (browser, sequence) if sequence is not None else None


def sourceName(node: Any, frame: int | None = None) -> str:
    """What to call the image a result was made from, with the frame that is shown now."""
    found = sequenceOf(node)
    if found:
        return f"{node.GetName()}, {_frameName(found[1], found[0].GetSelectedItemNumber())}"
    return node.GetName() if frame is None else f"{node.GetName()}, frame {frame}"


def framesOf(nodes: Sequence[Any]) -> Frames:
    """The frames of a case whose images are sequences; images that are none are the same in all frames.

    Raises:
        InputError: If no image has several frames, or two have different numbers of them.
    """
    found = [sequenceOf(node) for node in nodes]
    counts = {node.GetName(): count for node in nodes if (count := numberOfFrames(node)) > 1}
    if not counts:
        names = ", ".join(node.GetName() for node in nodes)
        message = _(
            "{names}: there is one frame only. Segment the current frame, or load the file as a sequence."
        ).format(names=names)
        raise InputError(message)
    if len(set(counts.values())) > 1:
        numbers = ", ".join(f"{name} has {count}" for name, count in counts.items())
        message = _(
            "The images have different numbers of frames: {numbers}. Choose images that belong together."
        ).format(numbers=numbers)
        raise InputError(message)
    (count,) = set(counts.values())
    master = next((pair for pair in found if pair is not None), None)
    values = tuple(str(k) if master is None else master[1].GetNthIndexValue(k) for k in range(count))
    sequences = tuple(pair[1] if pair is not None else None for pair in found)
    return Frames(tuple(nodes), sequences, master[0] if master else None, values)


def _frameName(sequence: Any, number: int) -> str:
    value = f"{sequence.GetNthIndexValue(number)} {sequence.GetIndexUnit() or ''}".strip()
    return f"frame {number + 1} of {sequence.GetNumberOfDataNodes()} ({sequence.GetIndexName() or 'index'} {value})"
