"""What the module does, without a window: segmenting nodes and managing models, for scripts and for the widget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from MambaSegLib.bundle import Bundle, load_bundle
from MambaSegLib.errors import EnvironmentProblemError, InputError
from MambaSegLib.model_folders import default_models_folder
from MambaSegLib.model_zoo import ListedModel, install_model, list_models, remove_model
from MambaSegmentationLib import dependencies
from MambaSegmentationLib.batch_run import FolderRun
from MambaSegmentationLib.cases_run import SceneBatchRun
from MambaSegmentationLib.channels import Nodes, orderedNodes
from MambaSegmentationLib.computer import ComputerRun
from MambaSegmentationLib.dicom_series import DicomRun, Series
from MambaSegmentationLib.frames import numberOfFrames
from MambaSegmentationLib.install_run import InstallRun
from MambaSegmentationLib.job import Job
from MambaSegmentationLib.request import Options, Request
from MambaSegmentationLib.segmentation_run import SegmentationRun
from MambaSegmentationLib.sequence_run import SequenceRun
from MambaSegmentationLib.translation import tr as _

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
        self._run: Job | None = None

    def start(
        self, nodes: Nodes, *, model: str = DEFAULT_MODEL, roiNode: Any = None, outputNode: Any = None, **options: Any
    ) -> SegmentationRun | SequenceRun:
        """Start a segmentation in another process.

        Raises:
            InputError: If an image, the model, the region or an option cannot be used, or one is running already.
            EnvironmentProblemError: If a package is missing.
        """
        self._checkIdle()
        request = self._request(nodes, model, roiNode, outputNode, options)
        self._checkPackages(request.options)
        kind = SequenceRun if request.options.frames == "all" else SegmentationRun
        run = kind(request)
        self._run = run
        return run

    def startMany(
        self, cases: Sequence[Nodes], *, model: str = DEFAULT_MODEL, roiNode: Any = None, **options: Any
    ) -> SceneBatchRun:
        """Start segmenting several images of the scene, one after the other.

        Raises:
            InputError: As `start`.
            EnvironmentProblemError: If a package is missing.
        """
        self._checkIdle()
        if not cases:
            message = _("No image was chosen. Mark the images to be segmented.")
            raise InputError(message)
        request = self._request(cases[0], model, roiNode, None, options)
        ordered = [orderedNodes(nodes, request.bundle) for nodes in cases]
        self._checkPackages(request.options)
        run = SceneBatchRun(ordered, request)
        self._run = run
        return run

    def startFolder(
        self,
        inputFolder: str | Path,
        outputFolder: str | Path,
        *,
        model: str = DEFAULT_MODEL,
        fileFormat: str = ".seg.nrrd",
        patterns: Mapping[str, str] | None = None,
        roiNode: Any = None,
        **options: Any,
    ) -> FolderRun:
        """Start segmenting a folder of images; what an earlier run finished is left alone.

        Raises:
            InputError: If a folder, the model or an option cannot be used, or a run is under way.
            EnvironmentProblemError: If a package is missing.
        """
        bundle, checked = self._ready(model, options)
        run = FolderRun(
            bundle,
            Path(inputFolder),
            Path(outputFolder),
            checked,
            fileFormat=fileFormat,
            patterns=dict(patterns or {}),
            roiNode=roiNode,
            command=self.workerCommand,
        )
        self._run = run
        return run

    def startDicom(
        self,
        series: Sequence[Series],
        outputFolder: str | Path,
        *,
        model: str = DEFAULT_MODEL,
        fileFormat: str = ".seg.nrrd",
        roiNode: Any = None,
        **options: Any,
    ) -> DicomRun:
        """Start segmenting series of Slicer's DICOM database into a folder; see `startFolder`."""
        bundle, checked = self._ready(model, options)
        run = DicomRun(
            bundle,
            series,
            Path(outputFolder),
            checked,
            fileFormat=fileFormat,
            roiNode=roiNode,
            command=self.workerCommand,
        )
        self._run = run
        return run

    def startEstimate(
        self, nodes: Nodes, *, model: str = DEFAULT_MODEL, roiNode: Any = None, **options: Any
    ) -> ComputerRun:
        """Start finding out what `start` would need on this computer, by computing one tile.

        Raises:
            InputError: As `start`.
            EnvironmentProblemError: If a package is missing.
        """
        request = self._request(nodes, model, roiNode, None, options)
        self._checkPackages(request.options)
        frames = max(map(numberOfFrames, request.nodes)) if request.options.frames == "all" else 1
        return ComputerRun(request, frames=frames, host=request.options.host, command=self.workerCommand)

    def startLook(self, host: str = "") -> ComputerRun:
        """Start finding out which devices and scan backends this computer has, or another one.

        Raises:
            EnvironmentProblemError: If the worker cannot be started.
        """
        return ComputerRun(host=host, command=self.workerCommand)

    def models(self) -> tuple[ListedModel, ...]:
        """All models, those that came with the program first; damaged ones with their problem."""
        return list_models(self.modelsFolder)

    def install(self, source: str | Path, *, sha256: str | None = None, force: bool = False) -> ListedModel:
        """Check a model (folder, .zip or address of one) and add it; nothing is left behind if it is refused."""
        return install_model(source, models_dir=self.modelsFolder, sha256=sha256, force=force)

    def startInstall(self, source: str, *, sha256: str = "") -> InstallRun:
        """Start installing a model in another process: downloads take their time.

        Raises:
            EnvironmentProblemError: If the worker cannot be started.
        """
        return InstallRun(source, sha256=sha256, modelsFolder=self.folder(), command=self.workerCommand)

    def remove(self, name: str) -> None:
        """Delete an installed model."""
        remove_model(name, models_dir=self.modelsFolder)

    def folder(self) -> Path:
        """Folder of installed models."""
        return self.modelsFolder or default_models_folder()

    def _ready(self, model: str, options: Mapping[str, Any]) -> tuple[Bundle, Options]:
        """Model and options of a run that may start: no other is under way, and all packages are there."""
        self._checkIdle()
        bundle, checked = self._bundle(model), Options.checked(**options)
        self._checkPackages(checked)
        return bundle, checked

    def _request(self, nodes: Nodes, model: str, roiNode: Any, outputNode: Any, options: Mapping[str, Any]) -> Request:
        bundle = self._bundle(model)
        chosen = orderedNodes(nodes, bundle)
        return Request(chosen, bundle, Options.checked(**options), roiNode, outputNode, self.workerCommand)

    def _bundle(self, model: str) -> Bundle:
        return load_bundle(model, models_dir=self.modelsFolder)

    def _checkIdle(self) -> None:
        if self._run is not None and not self._run.poll():
            message = _("A segmentation is running already. Wait until it is done, or cancel it.")
            raise InputError(message)

    def _checkPackages(self, options: Options) -> None:
        if options.host:  # nothing is computed here
            return
        missing = dependencies.missingPackages()
        if missing:
            names = ", ".join(package.name for package in missing)
            message = _(
                "Python packages are missing or too old: {names}. Press Apply in the MambaSegmentation module to install "
                "them, or call MambaSegmentationLib.dependencies.install(...)."
            ).format(names=names)
            raise EnvironmentProblemError(message)
