"""What is chosen in the window, kept in the scene's parameter node, so that a saved scene brings it back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import vtk


class Choices:
    """Reads and writes a parameter node; remembers nothing while there is none.

    Several windows may share one node: each is told when another changes it.
    """

    def __init__(self) -> None:
        """No node yet."""
        self._parameters: Any = None
        self._tag: Any = None

    def connect(self, parameters: Any, onChange: Callable[[], None]) -> None:
        """Use a scene's node, and call `onChange` whenever something in it changes."""
        self.disconnect()
        self._parameters = parameters
        self._tag = parameters.parameterNode.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: onChange())

    def disconnect(self) -> None:
        """Store nothing more."""
        if self._parameters is not None:
            self._parameters.parameterNode.RemoveObserver(self._tag)
        self._parameters = None

    def __bool__(self) -> bool:
        """Whether there is a node."""
        return self._parameters is not None

    def get(self, name: str, default: Any = "") -> Any:
        """A stored choice; the default while there is no node."""
        return getattr(self._parameters, name) if self._parameters is not None else default

    def store(self, name: str, value: Any) -> None:
        """Keep a choice."""
        if self._parameters is not None and getattr(self._parameters, name) != value:
            setattr(self._parameters, name, value)

    def channelNode(self, channel: str) -> Any:
        """Image stored for a channel; None if there is none."""
        return self._parameters.parameterNode.GetNodeReference(_role(channel)) if self._parameters is not None else None

    def storeChannelNode(self, channel: str, node: Any) -> None:
        """Keep the image of a channel."""
        if self._parameters is not None and self.channelNode(channel) is not node:
            self._parameters.parameterNode.SetNodeReferenceID(_role(channel), node.GetID() if node else None)


def _role(channel: str) -> str:
    # A stranger's model may name its channels; a scene stored with "&" in a role could not be opened again.
    return f"channel_{quote(channel, safe=' ')}"
