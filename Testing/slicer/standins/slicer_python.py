"""Stand-ins for the Python layer of Slicer that the slicer-core package lacks: base classes, translation, parameters."""

import json
import sys
import types
import typing
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import qt
import slicer
import vtk


class ScriptedLoadableModule:
    def __init__(self, parent: Any) -> None:
        self.parent = parent

    def resourcePath(self, name: str) -> str:
        return str(Path(self.parent.path).parent / "Resources" / name)


class ScriptedLoadableModuleWidget:
    def __init__(self, parent: Any) -> None:
        self.parent, self.layout = parent, parent.layout()
        self.moduleName = type(self).__name__.removesuffix("Widget")

    def setup(self) -> None:
        pass

    def onReload(self) -> None:
        """The module's own file is run again, which makes a new widget; not here."""

    def resourcePath(self, name: str) -> str:
        return str(Path(getattr(slicer.modules, self.moduleName.lower()).path).parent / "Resources" / name)


class ScriptedLoadableModuleLogic:
    def __init__(self, parent: Any = None) -> None:
        self.moduleName = type(self).__name__.removesuffix("Logic")

    def getParameterNode(self) -> Any:
        scene = slicer.mrmlScene
        node = scene.GetSingletonNode(self.moduleName, "vtkMRMLScriptedModuleNode")
        if node is None:
            node = scene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
            node.UnRegister(None)
            node.SetSingletonTag(self.moduleName)
            node.SetModuleName(self.moduleName)
            node.SetName(self.moduleName)
            node = scene.AddNode(node)
        return node


class ScriptedLoadableModuleTest(unittest.TestCase):
    def delayDisplay(self, message: str) -> None:
        pass


def parameterNodeWrapper(cls: type) -> type:
    """Attributes kept in a MRML node: bool and str as parameters, nodes as references."""
    hints = typing.get_type_hints(cls)
    defaults = {name: getattr(cls, name, None) for name in hints}
    isNode = {name: issubclass(kind, slicer.vtkMRMLNode) for name, kind in hints.items()}

    class Wrapper:
        def __init__(self, node: Any) -> None:
            object.__setattr__(self, "parameterNode", node)
            object.__setattr__(self, "_connections", {})

        def __getattr__(self, name: str) -> Any:
            node = object.__getattribute__(self, "parameterNode")
            if name not in hints:
                return getattr(node, name)
            if isNode[name]:
                return node.GetNodeReference(name)
            stored = node.GetParameter(name)
            default = hints[name]() if defaults[name] is None else defaults[name]
            return json.loads(stored) if stored else default

        def __setattr__(self, name: str, value: Any) -> None:
            if name not in hints:
                raise AttributeError(name)
            if isNode[name]:
                self.parameterNode.SetNodeReferenceID(name, value.GetID() if value else None)
            else:
                self.parameterNode.SetParameter(name, json.dumps(value))

        def connectParametersToGui(self, widgets: dict[str, Any]) -> int:
            tag = len(self._connections)
            self._connections[tag] = _connect(self, widgets)
            return tag

        def connectGui(self, root: Any) -> None:
            """As Slicer's, which returns no tag, so that nobody can untie what it ties."""
            children = root.findChildren(qt.QWidget)
            self.connectParametersToGui({name: w for w in children if (name := w.property("SlicerParameterName"))})

        def disconnectGui(self, tag: Any) -> None:
            if tag in self._connections:
                self._connections.pop(tag)()

    Wrapper.__name__ = cls.__name__
    return Wrapper


def _connect(parameters: Any, widgets: dict[str, Any]) -> Callable[[], None]:
    """Tie widgets to parameters, both ways; returns what unties them."""
    ends = []
    for name, widget in widgets.items():
        signal = widget.currentNodeChanged if hasattr(widget, "currentNodeChanged") else widget.toggled

        def store(value: Any, name: str = name) -> None:
            setattr(parameters, name, value)

        signal.connect(store)
        ends.append((signal, store))

    def show(*_: object) -> None:
        for name, widget in widgets.items():
            value = getattr(parameters, name)
            if hasattr(widget, "setCurrentNode"):
                widget.setCurrentNode(value)
            else:
                widget.setChecked(value)

    show()
    tag = parameters.parameterNode.AddObserver(vtk.vtkCommand.ModifiedEvent, show)

    def untie() -> None:
        parameters.parameterNode.RemoveObserver(tag)
        for signal, store in ends:
            signal.disconnect(store)

    return untie


def install() -> None:
    """Make the stand-ins importable under Slicer's names."""
    base = {name: value for name, value in globals().items() if name.startswith("ScriptedLoadableModule")}
    _add("slicer.ScriptedLoadableModule", **base, __all__=list(base))
    _add("slicer.i18n", tr=lambda text: text, translate=lambda context, text: text)
    _add("slicer.parameterNodeWrapper", parameterNodeWrapper=parameterNodeWrapper)


def _add(name: str, **contents: Any) -> None:
    module = types.ModuleType(name)
    module.__dict__.update(contents)
    sys.modules[name] = module
    setattr(slicer, name.rpartition(".")[2], module)
