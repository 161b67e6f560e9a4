"""What every test may use: the labelled volumes outside the repository, phantoms with known answers, seeds."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest

from MambaSegLib.volume import Geometry, Volume

# Without a GPU that PyTorch computes on, Triton's kernels run in its interpreter. It wants to know before anything imports Triton.
if importlib.util.find_spec("torch") is not None:  # the NumPy-only tests run without it, too
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")

# A busy computer is no defect of the code: examples have no time limit.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

SHARED_DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of this project."""
    parser.addoption(
        "--view-python",
        metavar="PATH",
        type=Path,
        default=Path(__file__).resolve().parents[1] / ".venv-view" / "bin" / "python",
        help="Python of an environment with the viewer's packages (default: the one `make view` makes)",
    )
    parser.addoption(
        "--worker-python",
        metavar="PATH",
        type=Path,
        help="Python with PyTorch for the worker processes of the Slicer module, where the Python of the tests has none",
    )


@pytest.fixture(scope="session", autouse=True)
def _one_thread_each() -> None:
    """Several test processes share the cores; a thread pool in each would only make them wait for one another."""
    if importlib.util.find_spec("torch") is not None:
        import torch

        torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _remember_nothing_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What tests find out about speed does not go where the program keeps what it finds out."""
    from MambaSegLib import remembered

    folder = tmp_path_factory.mktemp("remembered")
    remembered.cache_folder = lambda: folder


@pytest.fixture(autouse=True)
def _backends_are_asked_anew() -> Iterator[None]:
    """What one test makes a scan backend say about itself, the next one does not hear."""
    yield
    scan = sys.modules.get("MambaSegLib.scan")
    if scan is not None:
        scan._asked_for.cache_clear()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real labelled volumes; the tests that want it are skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the labelled volumes are not on this computer: no folder {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture
def rng() -> np.random.Generator:
    """The same random numbers in every run."""
    return np.random.default_rng(20250414)


@pytest.fixture(scope="session")
def oblique_geometry() -> Geometry:
    """An anisotropic grid turned 20 degrees about x and 10 about z, with different sizes along all axes."""
    about_x, about_z = np.radians([20.0, 10.0])
    turn_x = [[1, 0, 0], [0, np.cos(about_x), -np.sin(about_x)], [0, np.sin(about_x), np.cos(about_x)]]
    turn_z = [[np.cos(about_z), -np.sin(about_z), 0], [np.sin(about_z), np.cos(about_z), 0], [0, 0, 1]]
    xyz = np.array(turn_z) @ np.array(turn_x)
    direction = tuple(tuple(float(v) for v in row[::-1]) for row in xyz)
    return Geometry((9, 14, 17), (3.3, 1.1, 0.7), (-21.5, 40.25, 7.125), direction)


@pytest.fixture(scope="session")
def phantom(oblique_geometry: Geometry) -> Volume:
    """A body without any symmetry, painted in world coordinates: its content at a place is known without the array.

    A ball of radius 5 mm holds 2, three rods of 4, 6 and 8 mm point from its center to left, posterior and superior
    and hold 3, 4 and 5; all else is 1 plus a slope of 0.01 per mm along x.
    """
    index = np.indices(oblique_geometry.shape).reshape(3, -1).T
    world = oblique_geometry.to_world(index)
    array = phantom_at(world, phantom_center(oblique_geometry)).reshape(oblique_geometry.shape)
    return Volume(array[None].astype(np.float32), oblique_geometry, ("image",), "phantom")


def phantom_center(geometry: Geometry) -> np.ndarray:
    """LPS mm of the ball's center."""
    return geometry.to_world((np.array(geometry.shape) - 1) / 2)


def phantom_at(world: np.ndarray, center: np.ndarray) -> np.ndarray:
    """The phantom's value at (..., 3) LPS positions."""
    offset = world - center
    value = 1 + 0.01 * world[..., 0]
    value = np.where(np.linalg.norm(offset, axis=-1) <= 5, 2.0, value)
    for axis, (length, content) in enumerate([(4, 3.0), (6, 4.0), (8, 5.0)]):
        aside = np.linalg.norm(np.delete(offset, axis, axis=-1), axis=-1)
        value = np.where((aside <= 1.7) & (offset[..., axis] >= 0) & (offset[..., axis] <= length), content, value)
    return value


@pytest.fixture(scope="session")
def narrow_options() -> dict[str, dict[str, object]]:
    """Options that make the networks whose widths are no matter of the plan's stages small enough for a test."""
    return {
        "mednext_m_k3": {"width": 2},
        "mednext_m_k5": {"width": 2},
        "unetr": {"feature_size": 2, "hidden_size": 12, "mlp_size": 12, "heads": 2},
        "swin_unetr": {"feature_size": 12, "depths": (1, 1, 1, 1)},
        "cotr": {"width": 2, "layers": 2, "heads": 2},
        "nnformer": {"width": 6, "heads": (1, 2, 2, 2), "windows": (2, 2, 2, 2)},
        "segmamba": {"width": 2, "depths": (1, 1, 1, 1)},
        "nnmamba": {"width": 2, "blocks": 2},
        "transunet": {"depth": 2, "hidden_size": 12, "mlp_size": 12, "heads": 2},
    }
