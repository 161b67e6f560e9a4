"""Reads a segmentation in a process of its own: a damaged file can end the process that reads it.

The reader is Slicer's, in C++, and lets some errors of ITK through as a crash. The viewer opens only what this survived.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

TIMEOUT_S = 300


def is_readable(path: Path, environment: dict[str, str]) -> bool:
    """Whether Slicer's reader finds segments in a file, tried in another process."""
    words = [sys.executable, "-m", "MambaSegView.probe", str(path)]
    try:
        result = subprocess.run(
            words,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return result.returncode == 0


def read(path: Path, name: str, logic: Any) -> Any:
    """The segmentation node of a file; None if there are no segments in it."""
    node = logic.LoadSegmentationFromFile(str(path), True, name)
    if node is None or node.GetSegmentation().GetNumberOfSegments() > 0:
        return node
    logic.GetMRMLScene().RemoveNode(node)
    return None


def _main() -> int:
    import slicer

    scene, logic = slicer.vtkMRMLScene(), slicer.vtkSlicerSegmentationsModuleLogic()
    logic.SetMRMLScene(scene)
    return 0 if read(Path(sys.argv[1]), "probe", logic) is not None else 1


if __name__ == "__main__":
    sys.exit(_main())
