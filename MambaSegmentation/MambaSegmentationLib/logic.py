"""What the module does, without a window: segmenting nodes and managing models, for scripts and for the widget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import slicer

from MambaSegLib.bundle import Bundle, load_bundle
from MambaSegLib.errors import EnvironmentProblemError, InputError
from MambaSegLib.model_zoo import ListedModel, install_model, list_models, remove_model
from MambaSegLib.plan import Channel
from MambaSegmentationLib import dependencies
from MambaSegmentationLib.segmentation_run import Options, Request, SegmentationRun

VolumeNode = slicer.vtkMRMLScalarVolumeNode
Nodes = VolumeNode | Sequence[VolumeNode] | Mapping[str, VolumeNode]
DEFAULT_MODEL = "mamba_unet_multidirectional.hippocampus"


class Segmenter:
    """Starts segmentations, one at a time.

    Attributes:
        modelsFolder: Folder of installed models; None is the user's own.
        workerCommand: First words of the worker's command line; () takes this Python and library.
    """

    def __init__(self) -> None:
        """Nothing is loaded yet."""
        self.modelsFolder: Path | None = None
        self.workerCommand: tuple[str, ...] = ()
        self._run: SegmentationRun | None = None

    def start(
        self, nodes: Nodes, *, model: str = DEFAULT_MODEL, roiNode: Any = None, outputNode: Any = None, **options: Any
    ) -> SegmentationRun:
        """Start a segmentation in another process.

        Raises:
            InputError: If an image, the model, the region or an option cannot be used, or one is running already.
            EnvironmentProblemError: If a package is missing.
        """
        if self._run is not None and not self._run.poll():
            message = "A segmentation is running already. Wait until it is done, or cancel it."
            raise InputError(message)
        bundle = load_bundle(model, models_dir=self.modelsFolder)
        chosen = orderedNodes(nodes, bundle)
        known = {field.name for field in fields(Options)}
        if unknown := set(options) - known:
            message = f"Unknown option {', '.join(sorted(unknown))}. Options are {', '.join(sorted(known))}."
            raise InputError(message)
        self._checkPackages()
        request = Request(chosen, bundle, Options(**options), roiNode, outputNode, self.workerCommand)
        self._run = SegmentationRun(request)
        return self._run

    def models(self) -> tuple[ListedModel, ...]:
        """All models, those that came with the program first; damaged ones with their problem."""
        return list_models(self.modelsFolder)

    def install(self, source: str | Path, *, sha256: str | None = None, force: bool = False) -> ListedModel:
        """Check a model (folder, .zip or address of one) and add it; nothing is left behind if it is refused."""
        return install_model(source, models_dir=self.modelsFolder, sha256=sha256, force=force)

    def remove(self, name: str) -> None:
        """Delete an installed model."""
        remove_model(name, models_dir=self.modelsFolder)

    def _checkPackages(self) -> None:
        missing = dependencies.missingPackages()
        if missing:
            names = ", ".join(package.name for package in missing)
            message = (
                f"Python packages are missing: {names}. Press Apply in the MambaSegmentation module to install them, "
                "or call MambaSegmentationLib.dependencies.install(...)."
            )
            raise EnvironmentProblemError(message)


def orderedNodes(nodes: Nodes, bundle: Bundle) -> tuple[VolumeNode, ...]:
    """One image per channel in the model's order.

    Args:
        nodes: One node, several in the model's order, or by channel name.
        bundle: The model.

    Raises:
        InputError: If images are missing, too many or of another name; the message lists the channels.
    """
    channels = [channel.name for channel in bundle.manifest.plan.channels]
    wanted = f"{bundle.name} needs {len(channels)} image(s): {', '.join(channels)}"
    if isinstance(nodes, Mapping):
        wrong = sorted(set(nodes) ^ set(channels))
        if wrong:
            message = f"{wanted}. Missing or not known: {', '.join(wrong)}."
            raise InputError(message)
        nodes = [nodes[name] for name in channels]
    elif isinstance(nodes, VolumeNode):
        nodes = [nodes]
    if any(not isinstance(node, VolumeNode) for node in nodes or [None]):
        message = f"{wanted}. Choose a volume for each."
        raise InputError(message)
    if len(nodes) != len(channels):
        message = f"{wanted}; {len(nodes)} given."
        raise InputError(message)
    return tuple(nodes)


def suggestedNodes(channels: Sequence[Channel], nodes: Sequence[VolumeNode]) -> tuple[VolumeNode | None, ...]:
    """Guess by name which image is which channel; a single channel takes the only image there is."""
    if len(channels) == 1:
        return (nodes[0] if len(nodes) == 1 else _named(channels[0].name, nodes),)
    left = list(nodes)
    found: dict[str, VolumeNode | None] = {}
    # Longest names first: "T1CE" must not be taken by "T1".
    for channel in sorted(channels, key=lambda channel: -len(channel.name)):
        found[channel.name] = _named(channel.name, left)
        left = [node for node in left if node is not found[channel.name]]
    return tuple(found[channel.name] for channel in channels)


def _named(name: str, nodes: Sequence[VolumeNode]) -> VolumeNode | None:
    return next((node for node in nodes if name.lower() in node.GetName().lower()), None)
