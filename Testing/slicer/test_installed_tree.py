"""What Slicer's Extensions Manager puts on a computer: built by CMake against a stand-in for Slicer, then used from there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from MambaSegLib.model_folders import BUNDLED_MODELS

REPOSITORY = Path(__file__).resolve().parents[2]
STAND_IN = REPOSITORY / "Testing" / "slicer_cmake"
STANDINS = Path(__file__).parent / "standins"
FOLDER = "lib/Slicer-5.12/qt-scripted-modules"
SAMPLE_ML = {"Anterior hippocampus": 2.15, "Posterior hippocampus": 2.14}
"""Volumes the five folds find in the template; see the README."""

USE = """
import json, sys
import headless_slicer
slicer = headless_slicer.start()
import MambaSegmentation, MambaSegmentationLib.conversion as conversion, MambaSegLib
from MambaSegmentationLib.sample_data import FOLDER
import types
module = types.SimpleNamespace(path=MambaSegmentation.__file__, name="MambaSegmentation")
MambaSegmentation.MambaSegmentation(module)
node = slicer.modules.volumes.logic().AddArchetypeVolume(str(FOLDER / "left_hippocampus_T1.nrrd"), "T1")
logic = MambaSegmentation.MambaSegmentationLogic()
segmentation = logic.segment(node, device="cpu", folds=(0,))
labels = conversion.labelsFromSegmentation(segmentation, node)
print(json.dumps({
    "files": [MambaSegmentation.__file__, conversion.__file__, MambaSegLib.__file__],
    "models": [str(model.path) for model in logic.models() if model.origin == "bundled"],
    "ml": {label.name: float((labels.array == label.value).sum()) / 1000 for label in labels.table},
}))
"""


def run(*command: str | Path, cwd: Path = REPOSITORY, **environment: str) -> str:
    """Standard output of a command that must succeed."""
    words = [str(part) for part in command]
    result = subprocess.run(
        words, cwd=cwd, capture_output=True, text=True, check=False, timeout=500, env={**os.environ, **environment}
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def cmake(name: str = "cmake") -> str:
    """Path of a program of CMake: the developer set-up's, else the system's."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    return found or pytest.skip("CMake is not installed")


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The build folder, configured with tests and built."""
    if not shutil.which("cc"):
        pytest.skip("CMake's project() looks for a C compiler, and there is none")
    folder = tmp_path_factory.mktemp("build")
    run(cmake(), "-S", REPOSITORY, "-B", folder, f"-DSlicer_DIR={STAND_IN}", "-DBUILD_TESTING=ON")
    run(cmake(), "--build", folder)
    return folder


@pytest.fixture(scope="module")
def installed(build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of scripted modules in an installed extension."""
    prefix = tmp_path_factory.mktemp("installed")
    run(cmake(), "--install", build, "--prefix", prefix)
    return prefix / FOLDER


def shipped(folder: Path) -> set[str]:
    """Files below a folder that are meant to be installed."""
    left_out = {"CMakeLists.txt"}
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.name not in left_out)
    return {path.as_posix() for path in files if not {"__pycache__", "Testing"} & set(path.parts)}


def test_everything_is_installed_and_nothing_else(installed):
    module = shipped(REPOSITORY / "MambaSegmentation")
    library = {f"MambaSegLib/{name}" for name in shipped(REPOSITORY / "MambaSegLib")}
    assert shipped(installed) == module | library


def test_slicer_reads_the_same_description_as_the_index(build):
    told = json.loads((build / "MambaSegmentation.json").read_text(encoding="utf-8"))
    assert told["name"] == "MambaSegmentation"
    text = (REPOSITORY / "CMakeLists.txt").read_text(encoding="utf-8")
    for name in ("HOMEPAGE", "CATEGORY", "CONTRIBUTORS", "DESCRIPTION", "ICONURL", "SCREENSHOTURLS", "DEPENDS"):
        (value,) = re.findall(rf'set\(EXTENSION_{name} "([^"]+)"\)', text)
        assert told[name] == value


def test_the_self_test_is_registered(build):
    assert "py_MambaSegmentation" in run(cmake("ctest"), "-N", cwd=build)


def test_a_file_that_is_listed_but_missing_stops_the_build(tmp_path):
    if not shutil.which("cc"):
        pytest.skip("CMake's project() looks for a C compiler, and there is none")
    copy = tmp_path / "copy"
    shutil.copytree(REPOSITORY / "MambaSegmentation", copy / "MambaSegmentation")
    shutil.copytree(REPOSITORY / "MambaSegLib", copy / "MambaSegLib")
    for name in ("CMakeLists.txt", "README.md", "LICENSE.txt"):
        shutil.copy(REPOSITORY / name, copy)
    (copy / "MambaSegmentation" / "Resources" / "UI" / "MambaSegmentation.ui").unlink()
    words = [cmake(), "-S", str(copy), "-B", str(tmp_path / "build"), f"-DSlicer_DIR={STAND_IN}"]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "MambaSegmentation.ui" in result.stderr


@pytest.mark.skipif(not BUNDLED_MODELS.is_dir(), reason="no model is shipped")
def test_the_installed_extension_segments_the_installed_sample(installed):
    pytest.importorskip("torch")
    path = os.pathsep.join([str(installed), str(STANDINS)])
    said = run(sys.executable, "-c", USE, cwd=installed.parent, PYTHONPATH=path)
    result = json.loads(said.splitlines()[-1])
    for file in [*result["files"], *result["models"]]:
        assert Path(file).is_relative_to(installed), file
    assert result["ml"] == pytest.approx(SAMPLE_ML, rel=0.1)  # one fold of five
