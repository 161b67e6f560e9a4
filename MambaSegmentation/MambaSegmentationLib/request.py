"""What to segment and how: the values a run is made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import slicer

from MambaSegLib.bundle import Bundle
from MambaSegLib.errors import InputError
from MambaSegLib.quality import QUALITIES, Quality
from MambaSegLib.volume import Volume
from MambaSegLib.volume_io import write_volume
from MambaSegmentationLib.region import Bounds, regionBounds, regionBox, regionNote
from MambaSegmentationLib.translation import tr as _

VolumeNodes = tuple[slicer.vtkMRMLScalarVolumeNode, ...]


@dataclass(frozen=True)
class Options:
    """How to segment.

    Attributes:
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        scan: Scan backend, or "auto".
        folds: Folds to average; () takes all.
        quality: "fast", "standard" or "best"; see `mambaseg segment --help`.
        mirroring: Whether to average over mirrored images; None leaves it to the quality.
        uncertainty: Also make a volume of the uncertainty per voxel.
        statistics: Also make a table of volumes and intensities.
        show3D: Make surfaces, so that the segments appear in 3D views.
        frame: Which component of a 4D image, from 0; None if there is one.
        frames: Of an image in a sequence, or with several components: the "current" frame, or "all" of them.
        host: Another computer that computes, as `ssh` knows it (see `mambaseg remote --help`); "" is this one.
    """

    device: str = "auto"
    scan: str = "auto"
    folds: tuple[int, ...] = ()
    quality: Quality = "standard"
    mirroring: bool | None = None
    uncertainty: bool = False
    statistics: bool = False
    show3D: bool = False
    frame: int | None = None
    frames: Literal["current", "all"] = "current"
    host: str = ""

    @classmethod
    def checked(cls, **words: Any) -> Options:
        """Options by name.

        Raises:
            InputError: If there is none of a name; the message lists them.
        """
        known = {field.name for field in fields(cls)}
        if unknown := set(words) - known:
            message = _("Unknown option {names}. Options are {known}.").format(
                names=", ".join(sorted(unknown)), known=", ".join(sorted(known))
            )
            raise InputError(message)
        if words.get("quality", "standard") not in QUALITIES:
            message = _("Unknown quality {name}. Choose {known}.").format(
                name=words["quality"], known=", ".join(QUALITIES)
            )
            raise InputError(message)
        folds = words.get("folds", ())
        if isinstance(folds, int):  # one fold, as a person writes it
            words["folds"] = (folds,)
        if words.get("frames", "current") not in ("current", "all"):
            message = _("Unknown frames {name}. Choose current or all.").format(name=words["frames"])
            raise InputError(message)
        return cls(**words)


@dataclass(frozen=True)
class Request:
    """What to segment.

    Attributes:
        nodes: Image per channel of the model, in its order.
        bundle: The model.
        options: How.
        roiNode: Only this region, a markups ROI; None for all.
        outputNode: Segmentation the result is added to; None makes one.
        command: First words of the worker's command line; () takes this Python and library.
    """

    nodes: VolumeNodes
    bundle: Bundle
    options: Options = Options()
    roiNode: Any = None
    outputNode: slicer.vtkMRMLSegmentationNode | None = None
    command: tuple[str, ...] = ()


def predictionWords(bundle: Bundle, options: Options) -> list[str]:
    """The words `mambaseg segment` and `mambaseg batch` share."""
    words = ["--model", str(bundle.path), "--device", options.device, "--scan", options.scan, "--events"]
    words += ["--resample-channels"]
    words += ["--folds", ",".join(map(str, options.folds))] if options.folds else []
    words += ["--quality", options.quality]
    return words if options.mirroring is None else [*words, "--mirroring" if options.mirroring else "--no-mirroring"]


def checkedRegion(request: Request, volume: Volume) -> Bounds | None:
    """Bounds of the region, if there is one; one outside the image is refused before any work is done."""
    if request.roiNode is None:
        return None
    bounds = regionBounds(request.roiNode, request.nodes[0])
    regionBox(bounds, volume.geometry)
    return bounds


def regionNotices(roiNode: Any, node: Any = None) -> list[str]:
    """What to know about the region before trusting a result; see `regionNote`."""
    return [note for note in [regionNote(roiNode, node)] if note]


def writeChannels(volumes: Sequence[Volume], folder: Path, name: str) -> list[Path]:
    """Write one case the way `mambaseg batch` finds it: name_0000.mha, name_0001.mha, ...

    Raises:
        EnvironmentProblemError: If the disk is full or fails.
    """
    paths = [folder / f"{name}_{number:04d}.mha" for number in range(len(volumes))]
    for path, volume in zip(paths, volumes, strict=True):
        # Read once and deleted: packing it would only keep the window waiting.
        write_volume(volume.array[0], volume.geometry, path, compression=0)
    return paths
