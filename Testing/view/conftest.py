"""The viewer's own Python."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

sys.path.append(str(REPOSITORY / "Testing" / "slicer"))  # for its tiny model

collect_ignore = ["session_script.py"]


@pytest.fixture(scope="session")
def view_python(request: pytest.FixtureRequest) -> Path:
    """Python with the viewer's packages; skips where there is none."""
    python: Path = request.config.getoption("--view-python")
    if not python.is_file():
        pytest.skip(f"no viewer's environment: {python} is missing (make view, or --view-python PATH)")
    # An installation that was refused halfway, say for this kind of computer, leaves a Python without the packages.
    question = "import importlib.util, sys; sys.exit(importlib.util.find_spec('trame_slicer') is None)"
    if subprocess.run([python, "-c", question], check=False).returncode:
        pytest.skip(f"{python} lacks trame-slicer")
    return python


@pytest.fixture(scope="session")
def view_environment() -> dict[str, str]:
    """Environment in which that Python takes this checkout."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "MambaSegmentation")])}
