"""Tests in one Python, workers in another: for a Python that Slicer ships and that has no PyTorch here.

All of the module runs in the Python of the tests; only the worker processes, where PyTorch is needed, run in the one that
`--worker-python` names. Tests that compute in their own process are skipped.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ABSENT = '"""Stands for PyTorch, which only the workers have."""\nraise ModuleNotFoundError("PyTorch is in the workers only")\n'


def use_for_workers(python: Path, folder: Path) -> None:
    """Let the module find another Python the way it finds Slicer's, as the program `PythonSlicer`.

    Args:
        python: Of an environment with PyTorch.
        folder: For files this needs; kept while the tests run.
    """
    program = folder / "bin" / "PythonSlicer"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{python}" "$@"\n')
    program.chmod(0o755)
    os.environ["PATH"] = os.pathsep.join([str(program.parent), os.environ["PATH"]])
    # The module asks whether PyTorch is installed without importing it; whoever imports it here is told.
    (folder / "absent" / "torch").mkdir(parents=True)
    (folder / "absent" / "torch" / "__init__.py").write_text(ABSENT)
    sys.path.append(str(folder / "absent"))


def save_tiny_model(python: Path, target: Path) -> None:
    """Make the tests' model in the other Python."""
    script = Path(__file__).with_name("tiny_model.py")
    root = script.parents[2]
    subprocess.run([python, script, target], env={**os.environ, "PYTHONPATH": str(root)}, check=True)
