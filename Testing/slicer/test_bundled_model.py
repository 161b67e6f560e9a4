"""The whole way with the model that ships with the program: a real MR in the scene, segments in the scene."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import slicer
import vtk
from MambaSegmentationLib import conversion
from MambaSegmentationLib.logic import DEFAULT_MODEL, Segmenter

from MambaSegLib.model_folders import BUNDLED_MODELS
from MambaSegLib.volume_io import read_labels, read_volume

MODULE_FOLDER = Path(__file__).parents[2] / "MambaSegmentation"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (BUNDLED_MODELS / DEFAULT_MODEL).is_dir(), reason=f"the model {DEFAULT_MODEL} is not shipped"
    ),
]


@pytest.fixture
def case(shared_data, scene):
    """A real image as a node, under a transform that turns and shifts it, and an expert's labels."""
    folder = shared_data / "hippocampus" / "Dataset004_Hippocampus"
    volume = read_volume(folder / "imagesTr" / "hippocampus_001_0000.nii.gz")
    matrix = volume.geometry.index_to_world[:, [2, 1, 0, 3]].copy()
    matrix[:2] *= -1
    node = slicer.util.addVolumeFromArray(volume.array[0], ijkToRAS=matrix, name="hippocampus_001")
    transform = vtk.vtkTransform()
    transform.Translate(20, -30, 5)
    transform.RotateX(25)
    transformNode = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "moved")
    transformNode.SetMatrixTransformToParent(transform.GetMatrix())
    node.SetAndObserveTransformNodeID(transformNode.GetID())
    return node, read_labels(folder / "labelsTr" / "hippocampus_001.nii.gz").array


@pytest.mark.shared_data
def test_the_hippocampus_is_found_where_an_expert_saw_it(case):
    node, truth = case
    segmentationNode = Segmenter().start(node, device="cpu").wait(400)
    found = conversion.labelsFromSegmentation(segmentationNode, node).array
    for value in (1, 2):
        overlap = 2 * np.sum((found == value) & (truth == value)) / np.sum((found == value) * 1 + (truth == value))
        assert overlap > 0.75
    assert segmentationNode.GetParentTransformNode().GetName() == "moved"


def test_the_modules_self_test_passes_without_any_network(scene, tmp_path, monkeypatch):
    """As Slicer runs it, with the stand-ins; a worker that opened a connection would fail."""
    (tmp_path / "sitecustomize.py").write_text(
        "import socket\n\ndef refuse(*_):\n    raise OSError('no network here')\n\n"
        "socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    sys.path.append(str(MODULE_FOLDER))
    import unittest

    import MambaSegmentation

    result = unittest.TestResult()
    MambaSegmentation.MambaSegmentationTest("runTest").run(result)
    assert result.testsRun == 1
    assert not result.skipped
    assert result.wasSuccessful(), result.failures + result.errors


def test_the_worker_finds_the_library_of_an_installed_tree(tmp_path):
    """The library lies beside the module there, not beside its folder."""
    import shutil

    installed = tmp_path / "qt-scripted-modules"
    shutil.copytree(MODULE_FOLDER, installed, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(MODULE_FOLDER.parent / "MambaSegLib", installed / "MambaSegLib")
    source = (
        "from MambaSegmentationLib.worker import *; import MambaSegLib, subprocess, sys; print(MambaSegLib.__file__);"
        "subprocess.run([*libraryCommand('models')], env=libraryEnvironment(), check=True)"
    )
    result = subprocess.run(
        [sys.executable, "-c", source], cwd=installed, capture_output=True, text=True, check=False, timeout=200
    )
    assert str(installed) in result.stdout, result.stderr
    assert DEFAULT_MODEL in result.stdout
