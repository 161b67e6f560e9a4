"""What every test may use: the labelled volumes that lie outside the repository, and one thread per test process."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def _one_thread_each() -> None:
    """Several test processes share the cores; a thread pool in each would only make them wait for one another."""
    if importlib.util.find_spec("torch") is not None:  # the NumPy-only tests run without it, too
        import torch

        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real labelled volumes; the tests that want it are skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the labelled volumes are not on this computer: no folder {SHARED_DATA}")
    return SHARED_DATA
