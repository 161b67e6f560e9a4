"""What this computer can do, and what a segmentation will need of it: asked of a worker, so that Slicer loads no PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from MambaSegLib.geometry import Geometry
from MambaSegLib.volume_io import write_volume
from MambaSegmentationLib import conversion
from MambaSegmentationLib.job import Job
from MambaSegmentationLib.region import regionBounds, regionBox
from MambaSegmentationLib.request import Request, predictionWords
from MambaSegmentationLib.worker import Event, Worker


@dataclass(frozen=True)
class Computer:
    """This computer.

    Attributes:
        devices: Kinds of devices it has, e.g. ("cpu", "cuda"), fastest last.
        deviceProblems: Why another kind is out.
        backendProblems: (backend, kind of device) -> why it cannot run there, "" if it can.
        freeBytes: Main memory that programs may still take; 0 where unknown.
    """

    devices: tuple[str, ...]
    deviceProblems: Mapping[str, str]
    backendProblems: Mapping[tuple[str, str], str]
    freeBytes: int

    def deviceProblem(self, device: str) -> str:
        """Why a device cannot be used, "" if it can."""
        kind = device.partition(":")[0]
        if kind == "auto" or kind in self.devices:
            return ""
        return self.deviceProblems.get(kind, "it was not found")

    def backendProblem(self, backend: str, device: str) -> str:
        """Why a scan backend cannot be used on a device, "" if it can."""
        kind = self.devices[-1] if device == "auto" and self.devices else device.partition(":")[0]
        return "" if backend == "auto" else self.backendProblems.get((backend, kind), "")


@dataclass(frozen=True)
class Estimate:
    """What a segmentation will need on this computer.

    Attributes:
        seconds: Time of the networks; reading and writing come on top.
        memoryBytes: Most memory in use at a time, on the device that computes.
        freeBytes: Main memory that is free now; 0 where unknown.
        tiles: Tiles the image is cut into.
        frames: Images; all of them are in `seconds`.
        host: Another computer that would compute; "" is this one.
    """

    seconds: float
    memoryBytes: int
    freeBytes: int
    tiles: int
    frames: int = 1
    host: str = ""


class ComputerRun(Job):
    """Asks a worker what this computer can do and, for a request, what that will need.

    Attributes:
        computer: The answer; None until done.
        estimate: What the request will need; None until done, or without a request.
        host: Another computer that is asked; "" is this one.
    """

    def __init__(
        self, request: Request | None = None, *, frames: int = 1, host: str = "", command: tuple[str, ...] = ()
    ) -> None:
        """Start the worker.

        Args:
            request: What to estimate; None asks about the computer only.
            frames: How many images of this size there are.
            host: Another computer that is asked; "" is this one.
            command: First words of the worker's command line; () takes this Python and library.

        Raises:
            InputError: If the image or the region cannot be used.
            EnvironmentProblemError: If the worker cannot be started.
        """
        super().__init__("this computer" if request is None else request.nodes[0].GetName())
        self.computer: Computer | None = None
        self.estimate: Estimate | None = None
        self._request, self._frames, self.host = request, frames, host
        self._begin(command, host)

    def _words(self) -> list[str]:
        words = ["doctor", "--quick", "--events"]
        if self._request is None:
            return words
        # Only the grid counts, so the voxels stay where they are.
        geometry = _geometry(self._request)
        path = self._folder / "grid.mha"
        write_volume(np.zeros(geometry.shape, np.uint8), geometry, path)
        options = [word for word in predictionWords(self._request.bundle, self._request.options) if word != "--events"]
        return [*words, "--input", str(path), *options]

    def _succeeded(self, worker: Worker) -> bool:
        # Its exit code says whether segmenting can work here; the answer is there in any case.
        return worker.result is not None

    def _bringIn(self, result: Event) -> None:
        free = int(result["machine"]["memory_free_bytes"])
        names = [str(device).partition(":")[0].partition(" ")[0] for device in result["machine"]["devices"]]
        backends = {
            (row["name"], row["device"]): "" if row["available"] else row["reason"] for row in result["backends"]
        }
        self.computer = Computer(tuple(dict.fromkeys(names)), result["unavailable_devices"], backends, free)
        need = result["estimate"]
        if need is not None:
            seconds, memory = self._frames * float(need["seconds"]), int(need["memory_bytes"])
            self.estimate = Estimate(seconds, memory, free, int(need["tiles"]), self._frames, self.host)

    def _cancelled(self) -> str:
        return "Cancelled."

    def _result(self) -> Any:
        return self.computer if self._request is None else self.estimate


def _geometry(request: Request) -> Geometry:
    node = request.nodes[0]
    if node.GetImageData() is None:
        conversion.volumeFromNode(node)  # says what is wrong with it
    geometry = conversion.volumeGeometry(node)
    if request.roiNode is None:
        return geometry
    return geometry.cropped(regionBox(regionBounds(request.roiNode, node), geometry))
