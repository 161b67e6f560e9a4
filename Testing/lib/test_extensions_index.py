"""What the Extensions Index of 3D Slicer checks before it takes an extension, checked here without a network.

Source: Slicer/ExtensionsIndex, scripts/check_description_files.py and extension_ai_analysis.py (2026), and the tiers of its
pull request template.
"""

from __future__ import annotations

import ast
import json
import re
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import jsonschema
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ENTRY = REPOSITORY / "MambaSegmentation.json"
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
RAW = "https://raw.githubusercontent.com/"
SHIPPED = [*REPOSITORY.glob("MambaSegmentation/**/*.py"), *REPOSITORY.glob("MambaSegLib/**/*.py")]
OWN = {"MambaSegLib", "MambaSegmentationLib", "MambaSegmentation"}
IN_SLICER = {"slicer", "vtk", "vtkmodules", "qt", "ctk", "SimpleITK", "numpy", "scipy"}
CHECKOUT_LIMIT_BYTES = 100_000_000
SCHEMA = {
    "type": "object",
    "required": ["$schema", "category", "scm_url"],
    "additionalProperties": False,
    "properties": {
        "$schema": {"type": "string"},
        "category": {"type": "string"},
        "scm_url": {"type": "string"},
        "scm_revision": {"type": "string"},
        "scm_type": {"enum": ["git", "local"]},
        "build_dependencies": {"type": "array", "items": {"type": "string"}},
        "build_subdirectory": {"type": "string"},
        "enabled": {"type": "boolean"},
        "tier": {"enum": [1, 3, 5]},
    },
}
"""What version 1.0.1 of the schema the entry names demands."""


@pytest.fixture(scope="module")
def entry() -> dict[str, object]:
    """The file to be submitted."""
    return json.loads(ENTRY.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def cmake() -> str:
    """The top-level CMake file, which the checks read as text."""
    return (REPOSITORY / "CMakeLists.txt").read_text(encoding="utf-8")


def quoted(cmake: str, name: str) -> str:
    """A value as the index finds it: one quoted string on one line with `set`."""
    match = re.search(rf'set\s*\(EXTENSION_{name}\s*"([^"]+)"\)', cmake)
    assert match, f'the index looks for set(EXTENSION_{name} "...")'
    return match[1]


def test_the_entry_follows_the_schema(entry):
    jsonschema.validate(entry, SCHEMA)
    assert "slicer-extension-catalog-entry-schema-v1.0.1.json" in entry["$schema"]
    raw = ENTRY.read_bytes()
    assert b"\r" not in raw
    assert raw.endswith(b"}\n")


def test_the_entry_names_a_known_category_and_an_address_the_index_accepts(entry, cmake):
    assert entry["category"] == quoted(cmake, "CATEGORY") == "Segmentation"
    address = urlsplit(entry["scm_url"])
    assert address.scheme == "https"
    assert Path(address.path).stem.startswith("Slicer")
    assert entry["scm_url"].removesuffix(".git") == quoted(cmake, "HOMEPAGE")
    assert entry["build_dependencies"] == quoted(cmake, "DEPENDS").split()


def test_the_extension_is_called_alike_everywhere(cmake):
    (name,) = re.findall(r"project\s*\(\s*([^\s)]+)", cmake)
    assert name == ENTRY.stem
    assert not name.startswith("Slicer")
    assert README.startswith(f"# {name}\n")
    assert (REPOSITORY / name / f"{name}.py").is_file()


def test_icon_and_screenshots_are_pictures_of_the_repository(entry, cmake):
    urls = [quoted(cmake, "ICONURL"), *quoted(cmake, "SCREENSHOTURLS").split()]
    assert len(urls) >= 2
    repository = urlsplit(entry["scm_url"]).path.removesuffix(".git")
    for url in urls:
        prefix = f"{RAW}{repository[1:]}/{entry['scm_revision']}/"
        assert url.startswith(prefix)
        data = (REPOSITORY / url.removeprefix(prefix)).read_bytes()
        assert data.startswith(b"\x89PNG\r\n\x1a\n")
        width, height = struct.unpack(">II", data[16:24])
        assert min(width, height) >= 64
    icon = (REPOSITORY / urls[0].partition(f"/{entry['scm_revision']}/")[2]).read_bytes()
    assert struct.unpack(">II", icon[16:24]) == (128, 128), "Slicer's icons are 128 x 128"


def test_pictures_are_small():
    sizes = {path.name: path.stat().st_size for path in REPOSITORY.glob("MambaSegmentation/Resources/**/*.png")}
    assert max(sizes.values()) < 400_000, sizes


def test_the_description_is_short_plain_and_says_what_it_is_not(cmake):
    description = quoted(cmake, "DESCRIPTION")
    assert 40 < len(description) < 400
    assert "segment" in description.lower()
    assert "not a medical device" in description
    assert not re.search(r"[<>;]", description), "a semicolon would split the text into a list"


def test_license_and_readme_are_where_the_package_takes_them_from(cmake):
    assert "Apache License" in (REPOSITORY / "LICENSE.txt").read_text(encoding="utf-8")
    for name, file in (("README_FILE", "README.md"), ("LICENSE_FILE", "LICENSE.txt")):
        assert f"set(EXTENSION_{name} ${{CMAKE_CURRENT_SOURCE_DIR}}/{file})" in cmake


def test_a_checkout_is_small():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a Git checkout")
    files = [REPOSITORY / name for name in listed.stdout.decode().split("\0") if name]
    assert sum(path.stat().st_size for path in files if path.is_file()) < CHECKOUT_LIMIT_BYTES


@pytest.mark.parametrize(
    ("what", "pattern"),
    [
        ("a short description before the first section", r"\A# \w+\n\n\w.{40,}"),
        ("a picture that is part of the repository", r"!\[[^\]]{20,}\]\((?!http)[^)]+\.png\)"),
        ("the module, by its name in Slicer", r"Mamba Segmentation"),
        ("a tutorial", r"(?m)^#+ .*[Tt]utorial|\[[^\]]*[Tt]utorial[^\]]*\]\([^)]+\)"),
        ("where sample data comes from", r"Sample Data"),
        ("how to cite", r"(?s)@inproceedings\{.*doi|@inproceedings\{"),
        ("that it is no medical device", r"Not a medical device"),
        ("the license", r"Apache License 2\.0"),
        ("how to remove what was stored", r"models remove|mambaseg models \[[^\]]*remove\]"),
    ],
)
def test_the_readme_has(what, pattern):
    assert re.search(pattern, README), what


def test_links_of_the_guides_lead_to_files():
    for guide in [REPOSITORY / "README.md", *REPOSITORY.glob("MambaSegmentation/*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", guide.read_text(encoding="utf-8")):
            assert (guide.parent / target).exists(), f"{guide.name}: {target}"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_importing_a_file_runs_nothing(path):
    statements = at_file_scope(ast.parse(path.read_text(encoding="utf-8")).body)
    running = [ast.unparse(node)[:80] for node in statements if not isinstance(node, HARMLESS) and not is_text(node)]
    allowed = ALLOWED_TO_RUN.get(path.name, "nothing")
    assert not [line for line in running if not line.startswith(allowed)], "runs when it is imported"


def test_slicer_loads_the_module_with_nothing_but_what_it_has():
    """All that is imported when Slicer starts or the window opens; PyTorch and others load in the worker process."""
    for start in ("MambaSegmentation/MambaSegmentation.py", "MambaSegmentation/MambaSegmentationLib/window.py"):
        foreign = {name: by for name, by in reached(REPOSITORY / start).items() if name not in AVAILABLE}
        assert not foreign, start


HARMLESS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
ALLOWED_TO_RUN = {
    "MambaSegmentation.py": "sys.path.append(",  # in a checkout the library lies beside the module's folder
}
AVAILABLE = IN_SLICER | set(sys.stdlib_module_names)


def reached(start: Path) -> dict[str, str]:
    """Top-level name of everything imported at file scope, own files followed -> the file that imports it."""
    found: dict[str, str] = {}
    waiting, seen = [start], set[Path]()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        for module in imported(at_file_scope(ast.parse(path.read_text(encoding="utf-8")).body)):
            own = own_files(module)
            waiting += own
            if not own:
                found.setdefault(module.partition(".")[0], path.name)
    return found


def own_files(module: str) -> list[Path]:
    """The files Python runs for an import of one of this extension's modules; [] for other people's."""
    for root in (REPOSITORY, REPOSITORY / "MambaSegmentation"):
        parts = module.split(".")
        if parts[0] in OWN and (root / parts[0] / "__init__.py").is_file():
            packages = [root.joinpath(*parts[: k + 1]) / "__init__.py" for k in range(len(parts))]
            return [path for path in [*packages, root.joinpath(*parts).with_suffix(".py")] if path.is_file()]
    return []


def at_file_scope(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run on import; those for type checkers or for running a file as a program do not."""
    for node in body:
        if isinstance(node, ast.If):
            if ast.unparse(node.test) not in ("TYPE_CHECKING", "__name__ == '__main__'"):
                yield from at_file_scope([*node.body, *node.orelse])
        elif isinstance(node, ast.Try):
            yield from at_file_scope([*node.body, *(n for h in node.handlers for n in h.body), *node.orelse])
        else:
            yield node


def is_text(node: ast.stmt) -> bool:
    """Whether a statement is only a string: a docstring."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def imported(statements: Iterable[ast.stmt]) -> list[str]:
    """Full names of the modules these statements import."""
    names: list[str] = []
    for node in statements:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module != "__future__":
            # `from package import module` imports both.
            names += [f"{node.module}.{alias.name}" for alias in node.names if own_files(f"{node.module}.{alias.name}")]
            names.append(str(node.module))
    return names


def test_pytorch_is_left_to_its_own_extension():
    """Nothing that ships installs torch with pip."""
    for path in SHIPPED:
        for line in re.findall(r"pip_(?:install|ensure)\([^)]*\)", path.read_text(encoding="utf-8")):
            assert "torch" not in line, path
    text = (REPOSITORY / "MambaSegmentation" / "MambaSegmentationLib" / "dependencies.py").read_text(encoding="utf-8")
    assert "PyTorchUtils" in text
