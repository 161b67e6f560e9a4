"""What would be installed, how, and that Slicer's own packages stay."""

from __future__ import annotations

import subprocess
import sys
import types
from importlib import metadata
from pathlib import Path

import pytest
import slicer
from MambaSegmentationLib import dependencies

from MambaSegLib.errors import EnvironmentProblemError

TORCH, NUMBA = dependencies.PACKAGES[:2]


def test_only_what_is_not_there_is_missing():
    missing = dependencies.missingPackages(lambda name: name != "numba")
    assert missing == (NUMBA,)


def test_the_question_names_packages_sizes_reasons_and_the_source(tmp_path):
    text = dependencies.consent((TORCH, NUMBA)).text
    for words in ("torch, about 250 MB", "numba, about 50 MB", "without a GPU", "about 300 MB", "internet"):
        assert words in text
    assert str(tmp_path) in dependencies.consent((NUMBA,), tmp_path).text


def test_slicers_own_packages_are_pinned_to_what_is_there():
    lines = dependencies.constraints().splitlines()
    assert f"numpy=={metadata.version('numpy')}" in lines
    assert f"vtk=={metadata.version('vtk')}" in lines


def test_without_the_pytorch_extension_the_message_says_where_to_get_it():
    with pytest.raises(EnvironmentProblemError, match="Extensions Manager"):
        dependencies.install([TORCH])


@pytest.fixture
def nothingLeft(monkeypatch):
    monkeypatch.setattr(dependencies, "missingPackages", lambda: ())


def test_pytorch_comes_through_the_extension_without_a_second_question(monkeypatch, nothingLeft):
    asked = []
    logic = types.SimpleNamespace(installTorch=lambda **options: asked.append(options) or object())
    monkeypatch.setitem(sys.modules, "PyTorchUtils", types.SimpleNamespace(PyTorchUtilsLogic=lambda: logic))
    dependencies.install([TORCH])
    assert asked == [{"askConfirmation": False, "torchVersionRequirement": ">=2.6"}]


def test_an_older_slicer_installs_with_pip_under_constraints(monkeypatch, nothingLeft):
    calls = []

    def pip_install(words):
        constraints = words[words.index("--constraint") + 1]
        calls.append((words, Path(constraints).read_text(encoding="utf-8")))

    monkeypatch.setattr(slicer.util, "pip_install", pip_install)
    monkeypatch.setattr(dependencies, "_slicerPackaging", lambda: None)
    dependencies.install([NUMBA])
    words, constraints = calls[0]
    assert words[0] == "numba>=0.60"
    assert "numpy==" in constraints
    assert "--no-index" not in words


def test_slicer_5_12_installs_with_its_own_packaging(monkeypatch, nothingLeft):
    calls = []
    packaging = types.SimpleNamespace(pip_ensure=lambda requirements, **options: calls.append((requirements, options)))
    monkeypatch.setattr(dependencies, "_slicerPackaging", lambda: packaging)
    dependencies.install([NUMBA])
    requirements, options = calls[0]
    assert [str(requirement) for requirement in requirements] == ["numba>=0.60"]
    assert options["constraints"].name == "constraints.txt"
    assert options["prompt_install"] is False


def test_offline_everything_comes_from_the_folder(monkeypatch, nothingLeft, tmp_path):
    calls = []
    monkeypatch.setattr(slicer.util, "pip_install", calls.append)
    dependencies.install([TORCH, NUMBA], wheelFolder=tmp_path)
    assert calls[0][:2] == ["torch>=2.6", "numba>=0.60"]
    assert calls[0][-3:] == ["--no-index", "--find-links", str(tmp_path)]
    with pytest.raises(EnvironmentProblemError, match="does not exist"):
        dependencies.install([NUMBA], wheelFolder=tmp_path / "none")


def test_what_is_still_missing_afterwards_is_said(monkeypatch):
    monkeypatch.setattr(dependencies, "missingPackages", lambda: (NUMBA,))
    monkeypatch.setattr(
        dependencies, "_slicerPackaging", lambda: types.SimpleNamespace(pip_ensure=lambda *a, **k: None)
    )
    with pytest.raises(EnvironmentProblemError, match=r"Still missing.*numba"):
        dependencies.install([NUMBA])


def test_a_package_that_is_too_old_is_asked_for_again_and_slicers_own_never(monkeypatch):
    old = {"numba": "0.59.1", "safetensors": "0.10.0", "scipy": "1.2.0"}
    monkeypatch.setattr(dependencies.util, "find_spec", lambda name: object())
    monkeypatch.setattr(dependencies, "_versions", lambda name: (old[name],) if name in old else ())
    assert dependencies.missingPackages() == (NUMBA,)


def test_an_old_pytorch_is_not_installed_over(monkeypatch):
    """Its files may be in use; Slicer's PyTorch extension has a window for changing it."""
    monkeypatch.setattr(dependencies, "_versions", lambda name: ("2.4.1+cu121",))
    with pytest.raises(EnvironmentProblemError, match=r"PyTorch 2.4.1\+cu121 is installed, but torch>=2.6 is needed"):
        dependencies.install([TORCH])


def test_without_internet_pytorch_says_so_and_how_to_go_on(monkeypatch):
    def fails(**_options):
        raise subprocess.CalledProcessError(1, ["ltt", "install"])

    logic = types.SimpleNamespace(installTorch=fails)
    monkeypatch.setitem(sys.modules, "PyTorchUtils", types.SimpleNamespace(PyTorchUtilsLogic=lambda: logic))
    with pytest.raises(EnvironmentProblemError, match=r"torch>=2.6 could not be installed.*folder of wheels"):
        dependencies.install([TORCH])
