"""The demo finds the hippocampus, and its picture shows what is where."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from MambaSegLib import read_labels, read_volume
from MambaSegLib.geometry import Geometry
from MambaSegLib.plan import Label
from MambaSegLib.volume import Labels, Volume

pytest.importorskip("matplotlib")
pytest.importorskip("skimage")

DEMO = Path(__file__).resolve().parents[1] / "demo"
RIGHT_FRONT_TOP = Label(1, "right, in front, on top", (255, 0, 0))
LEFT_BACK_BELOW = Label(2, "left, behind, below", (0, 0, 255))


def load(name: str):
    """A file of the demo as a module: the demo is a folder of scripts, not a package."""
    specification = importlib.util.spec_from_file_location(f"demo_{name}", DEMO / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


def two_cubes(orientation: str) -> tuple[Volume, Labels]:
    """A dim image with a cube at the patient's right-anterior-superior and one at left-posterior-inferior."""
    geometry = Geometry((40, 40, 40), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), ((0, 0, 1.0), (0, 1.0, 0), (1.0, 0, 0)))
    image, mask = np.full((1, 40, 40, 40), 10.0), np.zeros((40, 40, 40), np.uint8)
    image[:, 20, 20, 20] = 100  # so that the gray scale has a range
    mask[19:28, 12:21, 12:21] = 1  # axes grow to superior, posterior, left
    mask[12:21, 19:28, 19:28] = 2
    turn = geometry.reorientation_to(orientation)
    table = (RIGHT_FRONT_TOP, LEFT_BACK_BELOW)
    return Volume(image, geometry).reoriented(turn), Labels(turn.apply(mask), geometry.reoriented(turn), table)


def drawn(folder: Path, orientation: str) -> np.ndarray:
    """The picture's pixels (rows, columns, RGB), 0-1."""
    from matplotlib.image import imread

    image, labels = two_cubes(orientation)
    load("picture").draw(image, labels, {1: 0.729, 2: 0.729}, "two cubes", folder / f"{orientation}.png")
    return imread(folder / f"{orientation}.png")[..., :3]


def middle(panel: np.ndarray, channel: int) -> np.ndarray:
    """Mean (row, column) of the pixels in one strong color."""
    others = np.delete(panel, channel, axis=2).max(axis=2)
    return np.argwhere((panel[..., channel] > 0.8) & (others < 0.2)).mean(axis=0)


@pytest.fixture(scope="module")
def demo_output(tmp_path_factory):
    """What `make demo` writes, and what it prints."""
    folder = tmp_path_factory.mktemp("demo")
    words = [sys.executable, DEMO / "hippocampus.py", "--output", folder]
    result = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder, result.stdout


def test_the_demo_finds_the_left_hippocampus(demo_output):
    labels = read_labels(demo_output[0] / "hippocampus.seg.nrrd")
    anterior, posterior, both = (
        labels.geometry.to_world(np.argwhere(mask).mean(axis=0)) * [-1, -1, 1]  # to RAS
        for mask in (labels.array == 1, labels.array == 2, labels.array > 0)
    )
    # The left hippocampus of this template reaches from about x = -14 to -37, y = -5 to -41, z = -30 to 5 mm.
    np.testing.assert_allclose(both, (-27, -22, -15), atol=4)
    assert anterior[1] > posterior[1] + 10
    assert 3000 < np.count_nonzero(labels.array) < 5500


def test_what_the_demo_finds_is_gray_matter(demo_output):
    template = load("hippocampus").template_file()
    gray = read_volume(template.with_name(template.name.replace("_t1_", "_gm_"))).array[0] / 255
    inside = gray[read_labels(demo_output[0] / "hippocampus.seg.nrrd").array > 0]
    assert inside.mean() > 0.88  # moved by 3 mm along any axis, the same mask has 0.87 or less


def test_the_demo_tells_what_it_did(demo_output):
    folder, text = demo_output
    for word in ("Anterior hippocampus", "Posterior hippocampus", " ml", "scan backend", "hippocampus.png"):
        assert word in text
    assert (folder / "hippocampus.png").stat().st_size > 100_000


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    return drawn(tmp_path_factory.mktemp("picture"), "SPL")


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        pytest.param(slice(0, 545), slice(0, 545), id="axial: anterior up, right on the left"),
        pytest.param(slice(550, 1090), slice(0, 545), id="coronal: superior up, right on the left"),
        pytest.param(slice(550, 1090), slice(555, 1100), id="sagittal: superior up, anterior on the left"),
    ],
)
def test_every_slice_shows_the_cubes_on_the_side_its_letters_say(picture, rows, columns):
    red, blue = (middle(picture[rows, columns], channel) for channel in (0, 2))
    assert red[0] < blue[0]
    assert red[1] < blue[1]


@pytest.mark.parametrize("orientation", ["IAR", "LSP"])
def test_the_picture_does_not_depend_on_how_the_image_is_stored(picture, orientation, tmp_path):
    difference = np.abs(drawn(tmp_path, orientation) - picture).max(axis=2)
    assert (difference > 0.1).mean() < 0.002  # anti-aliasing and the surface's triangle order differ by single pixels
