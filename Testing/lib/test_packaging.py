"""What reaches a user's computer, by pip and through Slicer, and who may import whom."""

from __future__ import annotations

import ast
import email
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = {
    "MambaSegLib": REPOSITORY / "MambaSegLib",
    "MambaSegTraining": REPOSITORY / "Training" / "MambaSegTraining",
    "MambaSegView": REPOSITORY / "MambaSegView",
    "MambaSegmentation": REPOSITORY / "MambaSegmentation",
}
IN_WHEEL = {
    **{name: PACKAGES[name] for name in ("MambaSegLib", "MambaSegTraining", "MambaSegView")},
    "MambaSegmentationLib": PACKAGES["MambaSegmentation"]
    / "MambaSegmentationLib",  # the viewer uses the module's logic
}
SLICER_ONLY = {
    "slicer",
    "vtk",
    "vtkmodules",
    "qt",
    "ctk",
    "qSlicerBaseQTCore",
    "MambaSegmentation",
    "MambaSegmentationLib",
}
FORBIDDEN = {
    "MambaSegLib": SLICER_ONLY | {"MambaSegTraining", "MambaSegView"},
    "MambaSegTraining": SLICER_ONLY | {"MambaSegView"},
    "MambaSegView": {"qt", "ctk", "MambaSegTraining"},
    "MambaSegmentation": {"MambaSegTraining", "MambaSegView"},
}
HEAVY = ("torch", "SimpleITK", "scipy", "numba", "safetensors", "triton", "monai", "matplotlib", "skimage", "nilearn")
NUMPY_ONLY = "import sys; sys.modules.update(dict.fromkeys({heavy!r})); {statement}"
SHIPPED_WEIGHTS_LIMIT_BYTES = 25_000_000  # what an extension of Slicer can carry without a download of its own


def files_below(folder: Path) -> list[str]:
    """Paths relative to `folder`, without what Python and CMake keep there for themselves."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.name != "CMakeLists.txt"
    )


def imported_packages(source: str) -> set[str]:
    """Top-level names a file imports anywhere in it, inside functions too; imports relative to the file left out."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names


def cmake_list(cmake_file: Path, name: str) -> list[str]:
    """Entries of `set(NAME ...)`."""
    match = re.search(rf"set\({name}\b([^)]*)\)", cmake_file.read_text())
    assert match, f"{cmake_file} sets no {name}"
    return match[1].split()


def run(*command: str | Path, cwd: Path = REPOSITORY) -> str:
    """Standard output of a command that must succeed."""
    result = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_import_check_sees_every_way_to_import():
    source = (
        "import vtk.util as u\nfrom qt import QWidget\ndef f():\n    from slicer.util import x\nfrom . import ctk\n"
    )
    assert imported_packages(source) == {"vtk", "qt", "slicer"}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_point_one_way(package):
    wrong = {
        name: found
        for name in files_below(PACKAGES[package])
        if name.endswith(".py")
        and (found := imported_packages((PACKAGES[package] / name).read_text()) & FORBIDDEN[package])
    }
    assert not wrong, f"{package} must not import these: {wrong}"


def test_importing_the_library_loads_nothing_heavy():
    loaded = run(sys.executable, "-c", f"import sys, MambaSegLib; print([n for n in {HEAVY!r} if n in sys.modules])")
    assert loaded.strip() == "[]"


@pytest.mark.parametrize(
    "statement",
    [
        "import MambaSegLib; print(MambaSegLib.__version__)",
        "from MambaSegLib.networks import list_networks; print(list_networks())",
    ],
)
def test_without_the_heavy_packages_the_library_still_opens(statement):
    assert run(sys.executable, "-c", NUMPY_ONLY.format(heavy=HEAVY, statement=statement)).strip()


@pytest.mark.parametrize("module", ["MambaSegLib", "MambaSegmentation"])
def test_cmake_names_every_file_of_the_folder(module):
    folder = PACKAGES[module]
    listed = [
        entry
        for variable in ("MODULE_PYTHON_SCRIPTS", "MODULE_PYTHON_RESOURCES")
        for entry in cmake_list(folder / "CMakeLists.txt", variable)
    ]
    present = [name for name in files_below(folder) if not name.startswith("Testing/")]
    missing, gone = sorted(set(present) - set(listed)), sorted(set(listed) - set(present))
    assert not missing, f"add to {module}/CMakeLists.txt: {missing}"
    assert not gone, f"remove from {module}/CMakeLists.txt: {gone}"
    assert len(listed) == len(set(listed)), "a file is listed twice"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel pip builds, from a copy: building leaves files behind that would slip into the next wheel."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE.txt"):
        shutil.copy(REPOSITORY / name, source)
    for name in ("MambaSegLib", "MambaSegView", "MambaSegmentation", "Training", "Testing"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    target = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", source, "--no-deps", "--no-build-isolation", "--quiet", "-w", target)
    (built,) = target.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        yield archive


def test_the_wheel_holds_the_packages_and_nothing_else(wheel):
    expected = {f"{package}/{name}" for package, folder in IN_WHEEL.items() for name in files_below(folder)}
    contents = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert contents == expected


def test_the_wheel_brings_the_license_and_both_commands(wheel):
    (license_file,) = (name for name in wheel.namelist() if name.endswith("LICENSE.txt"))
    assert wheel.read(license_file) == (REPOSITORY / "LICENSE.txt").read_bytes()
    (entry_points,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    text = wheel.read(entry_points).decode()
    assert "mambaseg = MambaSegLib.__main__:main" in text
    assert "mambaseg-train = MambaSegTraining.__main__:main" in text


def test_shipped_weights_stay_small():
    weights = [path.stat().st_size for path in PACKAGES["MambaSegLib"].rglob("*.safetensors")]
    assert sum(weights) < SHIPPED_WEIGHTS_LIMIT_BYTES


def test_pinned_versions_meet_what_the_packages_ask_for(wheel):
    requirements = pytest.importorskip("packaging.requirements")
    canonical = pytest.importorskip("packaging.utils").canonicalize_name
    pins = dict(
        line.split("==")
        for line in (REPOSITORY / ".ci" / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    )
    pins = {canonical(name): version for name, version in pins.items()}
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    for line in email.message_from_bytes(wheel.read(metadata)).get_all("Requires-Dist", []):
        requirement = requirements.Requirement(line)
        name = canonical(requirement.name)
        set_up = requirement.marker is None or any(
            requirement.marker.evaluate({"extra": e}) for e in ("dev", "train", "demo", "torch")
        )
        if name == "mambasegmentation" or not set_up:
            continue
        assert name in pins, f"{name} is not pinned in .ci/constraints.txt"
        assert requirement.specifier.contains(pins[name]), f"{line} excludes the pinned {pins[name]}"
