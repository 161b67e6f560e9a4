"""Real MRML nodes and logics from the slicer-core package; stand-ins for what only the application has."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from MambaSegLib.geometry import Geometry

sys.path.append(str(Path(__file__).parent))
import other_python
import tiny_model
from slicer_requirements import MISSING

HERE = Path(__file__).parent
MODULE_FOLDER = HERE.parents[1] / "MambaSegmentation"

MODULE_FILE = MODULE_FOLDER / "MambaSegmentation.py"

_TREE = "vtkMRMLSubjectHierarchyNode"

collect_ignore_glob = ["standins/*"]


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out the test files where they could not be imported; `test_headless_slicer.py` says so in the report."""
    if MISSING and collection_path.name.startswith("test_") and collection_path.name != "test_headless_slicer.py":
        return True
    return None


if not MISSING:
    for folder in (MODULE_FOLDER, HERE / "standins"):
        sys.path.append(str(folder))


@pytest.fixture(autouse=True)
def _ownTemporaryFolder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run leaves behind is looked for in a folder no other test uses."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def scene() -> Any:
    """An empty scene with Slicer's logics."""
    import headless_slicer

    return headless_slicer.start().mrmlScene


@pytest.fixture
def addVolume(scene: Any) -> Any:
    """Function that adds an image node to the scene: (array (Z, Y, X), IJK to RAS, name)."""
    import slicer

    def add(array: np.ndarray, ijkToRas: np.ndarray, name: str = "T1") -> Any:
        node = slicer.util.addVolumeFromArray(array, ijkToRAS=ijkToRas, name=name)
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
        if not hierarchy.GetItemByDataNode(node):
            hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)
        return node

    return add


@pytest.fixture
def obliqueVolume(addVolume: Any, oblique_geometry: Geometry, rng: np.random.Generator) -> Any:
    """An image node on the oblique, anisotropic grid, with random voxels."""
    array = rng.integers(-200, 900, oblique_geometry.shape).astype(np.int16)
    return addVolume(array, rasMatrix(oblique_geometry))


def rasMatrix(geometry: Geometry) -> np.ndarray:
    """(i, j, k) to RAS of a grid, written out: columns in the order x, y, z, first two rows negated."""
    matrix = geometry.index_to_world[:, [2, 1, 0, 3]].copy()
    matrix[:2] *= -1
    return matrix


@pytest.fixture(scope="session", autouse=True)
def workerPython(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """Python of the workers, if `--worker-python` names one; None is the one of the tests."""
    python: Path | None = request.config.getoption("--worker-python")
    if python is not None:
        other_python.use_for_workers(python, tmp_path_factory.mktemp("workers"))
    return python


@pytest.fixture(scope="session")
def modelPath(tmp_path_factory: pytest.TempPathFactory, workerPython: Path | None) -> Path:
    """The tiny model of `tiny_model.py`."""
    folder = tmp_path_factory.mktemp("source") / tiny_model.NAME
    if workerPython is None:
        tiny_model.save(folder)
    else:
        other_python.save_tiny_model(workerPython, folder)
    return folder


@pytest.fixture
def segmenter(modelPath: Path, tmp_path: Path, scene: Any) -> Any:
    """A segmenter that has the tiny model installed, in a folder of its own."""
    from MambaSegmentationLib.logic import Segmenter

    made = Segmenter()
    made.modelsFolder = tmp_path / "models"
    made.install(modelPath)
    return made


@pytest.fixture
def addSequence(scene: Any) -> Any:
    """Function that adds a sequence of images with its browser: (arrays, IJK to RAS, name) -> proxy node, browser."""
    import slicer

    def add(arrays: Sequence[np.ndarray], ijkToRas: np.ndarray, name: str = "cine") -> tuple[Any, Any]:
        sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode", name)
        sequence.SetIndexName("time")
        sequence.SetIndexUnit("s")
        for number, array in enumerate(arrays):
            node = slicer.util.addVolumeFromArray(array, ijkToRAS=ijkToRas, name=name)
            sequence.SetDataNodeAtValue(node, f"{0.5 * number:g}")
            scene.RemoveNode(node)
        browser = scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", f"{name} browser")
        browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
        slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)
        return browser.GetProxyNode(sequence), browser

    return add


def contents(scene: Any) -> list[str]:
    """Everything in a scene but the tree Slicer makes when it is first asked for: what an undo must bring back."""
    nodes = [scene.GetNthNode(number) for number in range(scene.GetNumberOfNodes())]
    return sorted(f"{node.GetID()} {node.GetName()}" for node in nodes if node.GetClassName() != _TREE)


def until(run: Any, condition: Callable[[], bool], seconds: float = 30) -> None:
    """Poll a run until a condition holds."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        run.poll()
        time.sleep(0.01)
    assert condition()


@pytest.fixture
def workerOf() -> Callable[[str], tuple[str, ...]]:
    """Function that makes a worker command of Python source; the words meant for the library are in sys.argv[1:]."""
    return lambda source: (sys.executable, "-u", "-c", source)


@pytest.fixture
def thresholdWorker() -> tuple[str, ...]:
    """Command of a quick stand-in for `mambaseg`; see `threshold_worker.py`."""
    return (sys.executable, "-u", str(HERE / "threshold_worker.py"))


def waitFor(condition: Callable[[], bool], seconds: float = 300) -> None:
    """Let the application go on until a condition holds."""
    import slicer

    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        slicer.app.processEvents()
        time.sleep(0.01)
    assert condition()


@pytest.fixture
def opened(scene: Any, modelPath: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module's window with one installed model; yields (window, its host widget, errors shown)."""
    import headless_slicer
    from MambaSegmentationLib.logic import Segmenter

    created = Segmenter.__init__

    def withOwnFolder(self: Any) -> None:
        created(self)
        self.modelsFolder = tmp_path / "models"

    monkeypatch.setattr(Segmenter, "__init__", withOwnFolder)
    _, widget, host = headless_slicer.loadModule(MODULE_FILE)
    widget.logic.installModel(modelPath)
    widget.window.models.refresh()
    errors: list[str] = []
    widget.window.dialogs.showError = errors.append
    yield widget, host, errors
    headless_slicer.closeModule(widget, host)


@pytest.fixture
def ready(opened: Any, obliqueVolume: Any) -> Any:
    """The same with the image and the model chosen, computed on the CPU; (window, widgets, errors shown)."""
    widget, _host, errors = opened
    ui = widget.window.ui
    ui.modelSelector.setCurrentIndex(ui.modelSelector.findData("mamba_unet_unidirectional.tiny"))
    widget.window.inputs.selectors()["T1"].setCurrentNode(obliqueVolume)
    ui.deviceSelector.setCurrentIndex(ui.deviceSelector.findData("cpu"))
    ui.backendSelector.setCurrentIndex(ui.backendSelector.findData("pytorch"))
    return widget.window, ui, errors
