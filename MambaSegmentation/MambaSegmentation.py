"""3D Slicer module: 3D segmentation with Mamba U-Nets."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)

try:
    import MambaSegLib  # noqa: F401
except ModuleNotFoundError:  # in a source checkout the library lies beside the module's folder
    sys.path.append(str(Path(__file__).resolve().parent.parent))

from MambaSegmentationLib import dependencies, sample_data
from MambaSegmentationLib.conversion import labelsFromSegmentation
from MambaSegmentationLib.logic import DEFAULT_MODEL, Segmenter

from MambaSegLib.model_card import DISCLAIMER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from MambaSegmentationLib.channels import Nodes
    from MambaSegmentationLib.job import Job


class MambaSegmentation(ScriptedLoadableModule):
    """What Slicer lists."""

    def __init__(self, parent: Any) -> None:
        """Describe the module."""
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = _("Mamba Segmentation")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        parent.dependencies = []
        parent.contributors = ["The MambaSegmentation developers"]
        parent.helpText = _(
            "<p>Segments 3D images with Mamba U-Nets, on a CPU or a GPU.</p>"
            "<ol><li>Load an image; the <i>Sample Data</i> module has some for a first try under "
            "<i>Mamba Segmentation</i>.</li>"
            "<li>Choose a model. Its details say which images it was made for, how accurate it is and how it may be "
            "used.</li>"
            "<li>If the model knows a part of the body only, choose a region around it.</li>"
            "<li>Press <i>Apply</i>. The work is done in another process: Slicer stays usable, and <i>Cancel</i> stops "
            "it.</li></ol><p><b>{disclaimer}</b></p>"
        ).format(disclaimer=DISCLAIMER)
        parent.acknowledgementText = _(
            "<p>The networks follow L. Lumetti, V. Pipoli, K. Marchesini, E. Ficarra, C. Grana and F. Bolelli, "
            "<i>Accurate 3D Medical Image Segmentation with Mambas</i>, IEEE International Symposium on Biomedical "
            "Imaging (ISBI) 2025; please cite it. This is an independent implementation.</p>"
            "<p>The data each model was trained on, and the license of its weights, are named in its details. The "
            "sample images are the ICBM152 2009a template and a part of it (McConnell Brain Imaging Centre, McGill "
            "University; V. S. Fonov et al., NeuroImage 2011).</p>"
        )
        # Other modules, Sample Data among them, can be used once all have been loaded.
        slicer.app.connect("startupCompleted()", sample_data.register)


@parameterNodeWrapper
class MambaSegmentationParameterNode:
    """What is chosen in the window; saved with the scene. Images are node references, see `Choices`."""

    model: str = DEFAULT_MODEL
    roi: slicer.vtkMRMLMarkupsROINode
    output: slicer.vtkMRMLSegmentationNode
    frames: str = "current"
    device: str = "auto"
    backend: str = "auto"
    folds: str = "all"
    host: str = ""
    wheelFolder: str = ""
    quality: str = "standard"
    uncertainty: bool = False
    statistics: bool = False
    show3D: bool = True
    tab: str = "single"
    batchSource: str = "folder"
    batchRoi: slicer.vtkMRMLMarkupsROINode
    inputFolder: str = ""
    outputFolder: str = ""
    fileFormat: str = ".seg.nrrd"


class MambaSegmentationLogic(ScriptedLoadableModuleLogic):
    """For scripts; no window needed.

    Examples:
        >>> logic = MambaSegmentationLogic()  # doctest: +SKIP
        >>> segmentation = logic.segment(volumeNode)  # doctest: +SKIP
        >>> run = logic.segment({"FLAIR": a, "T1": b}, model="net.data", wait=False)  # doctest: +SKIP
    """

    def __init__(self) -> None:
        """Nothing is loaded or installed yet."""
        ScriptedLoadableModuleLogic.__init__(self)
        self.segmenter = Segmenter()

    def segment(
        self,
        nodes: Nodes,
        model: str = DEFAULT_MODEL,
        device: str = "auto",
        roiNode: Any = None,
        wait: bool = True,
        outputNode: Any = None,
        **options: Any,
    ) -> Any:
        """Segment a volume in another process.

        Args:
            nodes: Volume node; for a model with several channels a list in its order, or a dict by channel name.
            model: Name of a bundled or installed model, or path of one.
            device: "auto", "cpu", "cuda", "cuda:1", "mps".
            roiNode: Markups ROI to which the work is limited.
            wait: Whether to return only when it is done.
            outputNode: Segmentation to which the segments are added; None makes one.
            **options: See `MambaSegmentationLib.request.Options`.

        Returns:
            The segmentation node; with wait=False a `SegmentationRun`, or for frames="all" a `SequenceRun` (poll,
            progress, cancel, wait, undo).

        Raises:
            MambaSegLib.MambaSegError: What was found and what to do.
        """
        run: Job = self.segmenter.start(
            nodes, model=model, roiNode=roiNode, outputNode=outputNode, device=device, **options
        )
        return run.wait() if wait else run

    def segmentMany(
        self,
        cases: Sequence[Nodes],
        model: str = DEFAULT_MODEL,
        device: str = "auto",
        roiNode: Any = None,
        wait: bool = True,
        **options: Any,
    ) -> Any:
        """Segment several images of the scene one after the other, in one process that loads the model once.

        Args:
            cases: What `segment` takes, for each.
            model: As `segment`.
            device: As `segment`.
            roiNode: As `segment`; an image outside it fails, the others go on.
            wait: As `segment`.
            **options: As `segment`.

        Returns:
            A segmentation node per case, None where one failed; with wait=False a `SceneBatchRun`, whose `outcomes`
            say why.

        Raises:
            MambaSegLib.MambaSegError: What was found and what to do.
        """
        run = self.segmenter.startMany(cases, model=model, device=device, roiNode=roiNode, **options)
        return run.wait() if wait else run

    def segmentFolder(
        self,
        inputFolder: str | Path,
        outputFolder: str | Path,
        model: str = DEFAULT_MODEL,
        device: str = "auto",
        roiNode: Any = None,
        wait: bool = True,
        **options: Any,
    ) -> Any:
        """Segment a folder of images or DICOM folders into files; called again, it goes on where it was stopped.

        Args:
            inputFolder: Folder of images.
            outputFolder: Folder for segmentations and the table outcomes.csv; made where it is missing.
            model: As `segment`.
            device: As `segment`.
            roiNode: As `segmentMany`.
            wait: As `segment`.
            **options: fileFormat, patterns (see `mambaseg batch --help`), and as `segment`.

        Returns:
            What became of each case; with wait=False a `FolderRun`.

        Raises:
            MambaSegLib.MambaSegError: What was found and what to do.
        """
        run = self.segmenter.startFolder(
            inputFolder, outputFolder, model=model, device=device, roiNode=roiNode, **options
        )
        return run.wait() if wait else run

    def estimate(
        self,
        nodes: Nodes,
        model: str = DEFAULT_MODEL,
        device: str = "auto",
        roiNode: Any = None,
        wait: bool = True,
        **options: Any,
    ) -> Any:
        """Time and memory `segment` would take on this computer, found by computing one tile.

        Args:
            nodes: As `segment`, like all that follow.
            model: Model.
            device: Device.
            roiNode: Region.
            wait: Whether to return only when it is known.
            **options: Options.

        Returns:
            An `Estimate` (seconds, memoryBytes, freeBytes, tiles, frames); with wait=False a `ComputerRun`.

        Raises:
            MambaSegLib.MambaSegError: What was found and what to do.
        """
        run = self.segmenter.startEstimate(nodes, model=model, device=device, roiNode=roiNode, **options)
        return run.wait() if wait else run

    def models(self) -> Any:
        """All models; see `MambaSegLib.model_zoo.ListedModel`."""
        return self.segmenter.models()

    def installModel(self, source: str | Path, sha256: str | None = None, force: bool = False) -> Any:
        """Add a model from a folder, a .zip or an address of one, once it has been checked."""
        return self.segmenter.install(source, sha256=sha256, force=force)

    def removeModel(self, name: str) -> None:
        """Delete an installed model."""
        self.segmenter.remove(name)


class MambaSegmentationWidget(ScriptedLoadableModuleWidget):
    """The window; what it does is in MambaSegmentationLib.window."""

    def setup(self) -> None:
        """Build the window when the module is opened for the first time."""
        ScriptedLoadableModuleWidget.setup(self)
        from MambaSegmentationLib.window import Window

        root = slicer.util.loadUI(self.resourcePath("UI/MambaSegmentation.ui"))
        self.layout.addWidget(root)
        root.setMRMLScene(slicer.mrmlScene)
        self.logic = MambaSegmentationLogic()
        self.window = Window(root, self.logic, DISCLAIMER)
        scene = slicer.mrmlScene
        # A closed or loaded scene has other choices stored.
        self._sceneTags = [
            scene.AddObserver(event, lambda *_: self.enter()) for event in (scene.EndCloseEvent, scene.EndImportEvent)
        ]
        self._sceneTags.append(scene.AddObserver(scene.EndCloseEvent, lambda *_: self.window.forget()))
        self.enter()

    def enter(self) -> None:
        """Show what the scene has stored; a scene that was loaded or closed has another parameter node."""
        node = self.logic.getParameterNode()
        if self.window.uses(node):  # every wrapper of a node watches it for good
            self.window.show()
        else:
            self.window.connect(MambaSegmentationParameterNode(node))

    def onReload(self) -> None:
        """A developer's button; what lies in other files is read again, too."""
        for name in [name for name in sys.modules if name.partition(".")[0] in ("MambaSegLib", "MambaSegmentationLib")]:
            del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)

    def cleanup(self) -> None:
        """Slicer closes, or the module is reloaded."""
        for tag in self._sceneTags:
            slicer.mrmlScene.RemoveObserver(tag)
        self.window.close()


class MambaSegmentationTest(ScriptedLoadableModuleTest):
    """Runs inside Slicer, with the bundled model and no download."""

    def runTest(self) -> None:
        """Segment a made-up image and the sample that comes along."""
        slicer.mrmlScene.Clear()
        logic = MambaSegmentationLogic()
        if not any(model.name == DEFAULT_MODEL and not model.problem for model in logic.models()):
            self.skipTest(f"the bundled model {DEFAULT_MODEL} is not there")
        missing = ", ".join(package.name for package in dependencies.missingPackages())
        if missing:  # as where extensions are built
            self.skipTest(f"{missing} must be installed first: press Apply in the module")
        self._segmentAnything(logic)
        self._segmentSample(logic)
        self.delayDisplay("Test passed")

    def _segmentAnything(self, logic: MambaSegmentationLogic) -> None:
        """One tile of noise on an anisotropic grid: the result lies where the image lies."""
        import numpy as np

        array = np.random.default_rng(0).normal(100, 20, (24, 40, 28)).astype(np.float32)
        volumeNode = slicer.util.addVolumeFromArray(array, ijkToRAS=np.diag([-1.0, -1.0, 1.2, 1.0]), name="made-up")
        segmentationNode = logic.segment(volumeNode, device="cpu", folds=(0,))
        role = segmentationNode.GetReferenceImageGeometryReferenceRole()
        self.assertIs(segmentationNode.GetNodeReference(role), volumeNode)
        self.assertGreater(segmentationNode.GetSegmentation().GetNumberOfSegments(), 0)

    def _segmentSample(self, logic: MambaSegmentationLogic) -> None:
        """The template's left hippocampus: 1.98 and 2.09 ml with all folds, nearly the same with one."""
        path = sample_data.FOLDER / "left_hippocampus_T1.nrrd"
        volumeNode = slicer.modules.volumes.logic().AddArchetypeVolume(str(path), "sample")
        labels = labelsFromSegmentation(logic.segment(volumeNode, device="cpu", folds=(0,)), volumeNode)
        for label, expectedMl in zip(labels.table, (1.98, 2.09), strict=True):
            foundMl = float((labels.array == label.value).sum()) * labels.geometry.voxel_volume_mm3 / 1000
            self.assertAlmostEqual(foundMl, expectedMl, delta=0.2, msg=label.name)
