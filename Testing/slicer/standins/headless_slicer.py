"""Runs scripted modules of 3D Slicer without the application.

Real MRML, logics and `slicer.util` come from the slicer-core package; `qt`, `ctk` and the qMRML widgets are PySide6
stand-ins beside this file, and `slicer_python` replaces Slicer's Python layer that the package lacks.
"""

from __future__ import annotations

import importlib
import tempfile
import types
from pathlib import Path
from typing import Any

import slicer
import vtk

_LOGICS = {
    "Colors": "vtkMRMLColorLogic",
    "Volumes": "vtkSlicerVolumesLogic",
    "Terminologies": "vtkSlicerTerminologiesModuleLogic",
    "Segmentations": "vtkSlicerSegmentationsModuleLogic",
    "SubjectHierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
    "Markups": "vtkSlicerMarkupsLogic",
    "Tables": "vtkSlicerTablesLogic",
    "Sequences": "vtkSlicerSequencesLogic",
}


class Module:
    """What `slicer.modules.<name>` is."""

    def __init__(self, name: str, path: str = "", logic: Any = None) -> None:
        self.name = name
        self.path = path
        self._logic = logic

    def logic(self) -> Any:
        return self._logic


class Application:
    """What `slicer.app` is, without widgets."""

    def __init__(self, scene: Any, logic: Any, folder: str) -> None:
        self._scene, self._logic = scene, logic
        self.temporaryPath = folder

    def mrmlScene(self) -> Any:
        return self._scene

    def applicationLogic(self) -> Any:
        return self._logic

    def testingEnabled(self) -> bool:
        return True

    def processEvents(self) -> None:
        import qt

        qt.QApplication.processEvents()

    def connect(self, signal: str, action: Any) -> None:
        """Nothing is sent: the application is never started."""

    def layoutManager(self) -> None:
        return None

    def pauseRender(self) -> None:
        pass

    def resumeRender(self) -> None:
        pass


def start() -> Any:
    """Make the application's parts once; clear the scene every time."""
    if getattr(slicer, "_headless", None):
        slicer.mrmlScene.Clear(0)
        return slicer
    _silence()
    folder = tempfile.mkdtemp(prefix="slicer-headless-")
    scene, application = slicer.vtkMRMLScene(), slicer.vtkSlicerApplicationLogic()
    scene.SetRootDirectory(folder)
    application.SetMRMLScene(scene)
    application.GetColorLogic().SetMRMLScene(scene)
    application.GetColorLogic().AddDefaultColorNodes()
    application.SetSliceLogics(vtk.vtkCollection())
    application.SetViewLogics(vtk.vtkCollection())
    application.SetTemporaryPath(folder)
    slicer.mrmlScene, slicer.modules = scene, types.SimpleNamespace()
    kept = [_addLogic(name, scene, application) for name in _LOGICS]
    slicer.app = Application(scene, application, folder)
    slicer._headless = [kept, _remoteReading(scene, application, folder)]
    _installPython()
    return slicer


def loadModule(path: Path) -> tuple[Any, Any, Any]:
    """Do what Slicer does with NAME.py: returns the Python module, the module's widget and the window around it."""
    import qt

    module = importlib.import_module(path.stem)
    setattr(slicer.modules, path.stem.lower(), Module(path.stem, str(path)))
    parent = types.SimpleNamespace(path=str(path), name=path.stem)
    getattr(module, path.stem)(parent)
    window = slicer.qMRMLWidget()
    window.setLayout(qt.QVBoxLayout())
    window.setMRMLScene(slicer.mrmlScene)
    widget = getattr(module, f"{path.stem}Widget")(window)
    widget.setup()
    return module, widget, window


def closeModule(widget: Any, window: Any) -> None:
    """Do what Slicer does with a module's window when it quits; widgets go now, not when Python finds the time."""
    import qt

    widget.cleanup()
    window.close()
    window.deleteLater()
    qt.QApplication.sendPostedEvents(None, qt.QEvent.DeferredDelete)


def _silence() -> None:
    window = vtk.vtkOutputWindow()
    window.SetDisplayModeToNever()
    vtk.vtkOutputWindow.SetInstance(window)
    vtk.vtkLogger.SetStderrVerbosity(vtk.vtkLogger.VERBOSITY_OFF)


def _addLogic(name: str, scene: Any, application: Any) -> Any:
    logic = getattr(slicer, _LOGICS[name])()
    logic.SetMRMLScene(scene)
    logic.SetMRMLApplicationLogic(application)
    application.SetModuleLogic(name, logic)
    setattr(slicer.modules, name.lower(), Module(name, logic=logic))
    return logic


def _remoteReading(scene: Any, application: Any, folder: str) -> tuple[Any, Any]:
    """Reading a .mrb needs a data manager with a cache folder."""
    remote, data = slicer.vtkMRMLRemoteIOLogic(), slicer.vtkDataIOManagerLogic()
    for logic in (remote, data):
        logic.SetMRMLScene(scene)
        logic.SetMRMLApplicationLogic(application)
    remote.GetCacheManager().SetRemoteCacheDirectory(folder)
    data.SetAndObserveDataIOManager(remote.GetDataIOManager())
    remote.AddDataIOToScene()
    return remote, data


def _installPython() -> None:
    import qmrml
    import slicer_python

    for name in dir(qmrml):
        if name.startswith(("qMRML", "qSlicer")):
            setattr(slicer, name, getattr(qmrml, name))
    slicer.util.mainWindow = lambda *_: None
    slicer_python.install()
