"""Run by `test_session.py` in the viewer's Python: does things to a session and prints what came of them as JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from MambaSegmentationLib.conversion import volumeFromNode, volumeGeometry
from trame_slicer.core import SlicerApp

from MambaSegLib.errors import MambaSegError
from MambaSegLib.volume_io import read_channels, read_volume
from MambaSegView.nodes import add_region
from MambaSegView.session import Session
from MambaSegView.settings import Settings
from MambaSegView.viewer import _choices


def main(folder: Path) -> dict[str, Any]:
    """Everything in one process: starting Slicer's libraries takes most of the time."""
    vtk.vtkLogger.SetStderrVerbosity(vtk.vtkLogger.VERBOSITY_OFF)
    volume = read_volume(folder / "image.nrrd")
    session = Session(SlicerApp(), Settings(volume, folder / "out.seg.nrrd", region_ras_mm=(-10, 0, -5, 5, 1, 9)))
    (image,) = session.images
    said: dict[str, Any] = {
        "grid": volumeGeometry(image).is_close(volume.geometry),
        "voxels": bool(np.array_equal(volumeFromNode(image).array, volume.array)),
        "nothing to save": refusal(lambda: session.save("x.seg.nrrd", replace=False)),
        "broken": refusal(lambda: session.open(folder / "broken.seg.nrrd", "broken.seg.nrrd")),
        "missing": refusal(lambda: session.open(folder / "not_there.nrrd", "not_there.nrrd")),
    }
    session.open(folder / "part.seg.nrrd", "part.seg.nrrd")
    said["part"] = [(row.name, row.color, row.volume_ml) for row in session.rows()]
    said["middle"] = session.middle_ras()
    for name in ("out.seg.nrrd", "out.nii.gz"):
        said[name] = session.save(name, replace=False).name
    said["again"] = refusal(lambda: session.save("out.nii.gz", replace=False))
    said["replaced"] = session.save("out.nii.gz", replace=True).name
    said["bad name"] = refusal(lambda: session.save("out.txt", replace=False))
    session.open(folder / "part.seg.nrrd", "second.seg.nrrd")
    nodes = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    said["shown"] = [node.GetName() for node in nodes if node.GetDisplayNode().GetVisibility()]
    session.show_id(nodes[0].GetID())
    said["shown then"] = [node.GetName() for node in nodes if node.GetDisplayNode().GetVisibility()]
    session.toggle(session.rows()[0].id)
    said["visible"] = [row.visible for row in session.rows()]
    said["no region"] = session.region is None
    session.set_region(True)
    bounds = [0.0] * 6
    session.region.GetRASBounds(bounds)
    said["region"] = bounds
    said["new region"] = add_region(slicer.mrmlScene, image, None, (3.0, 1000.0, 1000.0)).GetSize()
    whole = [0.0] * 6
    image.GetRASBounds(whole)
    said["whole"] = [high - low for low, high in zip(whole[::2], whole[1::2], strict=True)]
    session.set_region(False)
    said["region off"] = session.region is None
    said |= channels(folder)
    said["copied"] = copied(folder)
    return said


def copied(folder: Path) -> list[str]:
    """The first model of the list, and what is wrong with it, where the person started with a file of the models' folder."""
    os.chdir(folder / "models")
    volume = read_volume(folder / "image.nrrd")
    settings = Settings(volume, folder / "out.seg.nrrd", model="copied.zip", models_folder=folder / "models")
    name, model = next(iter(_choices(Session(SlicerApp(), settings)).items()))
    return [name, model.problem]


def channels(folder: Path) -> dict[str, Any]:
    """Which images each model gets of an image with two channels, and what is shown."""
    volume = read_channels({"FLAIR": folder / "flair.nrrd", "T1": folder / "image.nrrd"})
    session = Session(SlicerApp(), Settings(volume, folder / "out.seg.nrrd", models_folder=folder / "models"))
    said: dict[str, Any] = {"channels": [name for _, name in session.channels()]}
    session.show_channel(session.channels()[1][0])
    said["channel shown"] = session.image.GetName()
    for name in ("net.both", "net.t1", "net.other", "net.strange"):
        given = session._nodes_for(name)
        nodes = given if isinstance(given, dict) else {"": given}
        said[name] = {channel: node.GetName() for channel, node in nodes.items()}
    return said


def refusal(action: Any) -> str:
    """What a person is told."""
    try:
        action()
    except MambaSegError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
