"""Stand-ins for qMRML widgets that work on a real MRML scene."""

from typing import Any

import qt


class qMRMLWidget(qt.QWidget):
    """Hands the scene to the widgets inside it."""

    def setMRMLScene(self, scene: Any) -> None:
        for child in self.findChildren(qt.QWidget):
            if hasattr(child, "setMRMLScene"):
                child.setMRMLScene(scene)


class qMRMLNodeComboBox(qt.QComboBox):
    """Chooses a node of the scene."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self._scene: Any = None
        self._types: list[str] = []
        self._options: dict[str, Any] = {}
        self.currentIndexChanged.connect(lambda _: self._tell())

    currentNodeChanged = qt.Signal(object)
    currentNodeIDChanged = qt.Signal(str)
    nodeAddedByUser = qt.Signal(object)

    def _option(name: str, kind: Any, default: Any) -> Any:  # noqa: N805 (makes properties of the class)
        return qt.Property(
            kind, lambda self: self._options.get(name, default), lambda self, value: self._set(name, value)
        )

    nodeTypes = qt.Property("QStringList", lambda self: self._types, lambda self, value: self.setNodeTypes(value))
    noneEnabled = _option("noneEnabled", bool, False)
    addEnabled = _option("addEnabled", bool, True)
    removeEnabled = _option("removeEnabled", bool, True)
    renameEnabled = _option("renameEnabled", bool, False)
    showChildNodeTypes = _option("showChildNodeTypes", bool, True)
    noneDisplay = _option("noneDisplay", str, "None")

    def _set(self, name: str, value: Any) -> None:
        self._options[name] = value
        self.refresh()

    def setNodeTypes(self, types: list[str]) -> None:
        self._types = list(types)
        self.refresh()

    def setMRMLScene(self, scene: Any) -> None:
        if scene is self._scene:
            return
        self._scene = scene
        events = (scene.NodeAddedEvent, scene.NodeRemovedEvent, scene.EndCloseEvent)
        tags = [scene.AddObserver(event, lambda *_: self.refresh()) for event in events]
        self.destroyed.connect(lambda *_: [scene.RemoveObserver(tag) for tag in tags])
        self.refresh()

    def refresh(self) -> None:
        if self._scene is None:
            return
        current = self.currentNodeID()
        self.blockSignals(True)
        self.clear()
        if self._options.get("noneEnabled"):
            self.addItem(self._options.get("noneDisplay", "None"), "")
        for node in self._nodes():
            self.addItem(node.GetName(), node.GetID())
        found = self.findData(current)
        self.setCurrentIndex(found if found >= 0 else 0 if self.count() else -1)
        self.blockSignals(False)
        if self.currentNodeID() != current:
            self._tell()

    def _tell(self) -> None:
        self.currentNodeChanged.emit(self.currentNode())
        self.currentNodeIDChanged.emit(self.currentNodeID())

    def currentNodeID(self) -> str:
        return self.currentData() or ""

    def currentNode(self) -> Any:
        return self._scene.GetNodeByID(self.currentNodeID()) if self._scene and self.currentNodeID() else None

    def setCurrentNode(self, node: Any) -> None:
        self.setCurrentIndex(self.findData(node.GetID() if node else ""))

    def addNode(self) -> None:
        """What the entry "Create new" does."""
        node = self._scene.AddNewNodeByClass(self._types[0])
        self.setCurrentNode(node)
        self.nodeAddedByUser.emit(node)

    def _nodes(self) -> list[Any]:
        nodes = [self._scene.GetNthNode(n) for n in range(self._scene.GetNumberOfNodes())]
        children = self._options.get("showChildNodeTypes", True)
        return [
            node
            for node in nodes
            if not node.GetHideFromEditors()
            and any(node.IsA(kind) if children else node.GetClassName() == kind for kind in self._types)
        ]
