"""Notices when a node that is being worked on goes, or the whole scene is closed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from MambaSegmentationLib.translation import tr as _


class SceneWatch:
    """Calls back with the reason, once for each event, until `stop`."""

    def __init__(self, name: str, scene: Any, nodes: Sequence[Any], onGone: Callable[[str], None]) -> None:
        """Start watching.

        Args:
            name: What is worked on, for a person.
            scene: Where the work is.
            nodes: What is needed until the end.
            onGone: Called with a sentence for the person.
        """
        self._name, self._scene, self._nodes, self._onGone = name, scene, tuple(nodes), onGone
        self._tags = [
            self._scene.AddObserver(self._scene.StartCloseEvent, self._onSceneClose),
            self._scene.AddObserver(self._scene.NodeRemovedEvent, self._onNodeRemoved),
        ]

    def stop(self) -> None:
        """Watch no longer."""
        for tag in self._tags:
            self._scene.RemoveObserver(tag)
        self._tags = []

    def _onSceneClose(self, *_event: object) -> None:
        self._onGone(
            _("The scene was closed while {name} was being segmented, so the work was stopped.").format(name=self._name)
        )

    def _onNodeRemoved(self, *_event: object) -> None:
        gone = [node.GetName() for node in self._nodes if not self._scene.IsNodePresent(node)]
        if gone:
            self._onGone(_("{name} was deleted while it was being used, so the work was stopped.").format(name=gone[0]))
