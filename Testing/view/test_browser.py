"""The viewer as a person uses it: started by the command, clicked through in a real browser, its files read back."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from MambaSegLib import read_labels
from MambaSegLib.volume import Labels
from MambaSegLib.volume_io import read_volume, write_volume

REPOSITORY = Path(__file__).resolve().parents[2]
SAMPLE = REPOSITORY / "MambaSegmentation" / "Resources" / "SampleData" / "left_hippocampus_T1.nrrd"
SAMPLE_ML = {"Anterior hippocampus": 2.15, "Posterior hippocampus": 2.14}
"""Volumes the model's five folds find in the sample; see the README."""

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync")
LONG_MS = 240_000


@dataclass(frozen=True)
class Server:
    """A running viewer.

    Attributes:
        process: It.
        url: Address of its page, key included.
        folder: Where its image lies and its segmentation is saved.
    """

    process: subprocess.Popen[str]
    url: str
    folder: Path


@contextmanager
def serving(view_python: Path, view_environment: dict[str, str], folder: Path, words: list[str]) -> Iterator[Server]:
    """`mambaseg view` with some words, on the CPU."""
    command = [str(view_python), "-u", "-m", "MambaSegLib", "view", *words, "--device", "cpu", "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=view_environment) as process:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found, "the viewer did not start"
        yield Server(process, found[0], folder)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def server(
    view_python: Path, view_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A copy of the sample, one fold of the model."""
    folder = tmp_path_factory.mktemp("case")
    shutil.copy(SAMPLE, folder / "t1.nrrd")
    with serving(view_python, view_environment, folder, [str(folder / "t1.nrrd"), "--folds", "0"]) as started:
        yield started


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    """A headless browser; skips where there is none."""
    playwright = pytest.importorskip("playwright.sync_api")
    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser_path is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=browser_path, headless=True, args=list(QUIET))
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def page(browser, server: Server) -> object:
    """The viewer's page, once its buttons are there."""
    return opened(browser, server)


def opened(browser, server: Server):
    """The page of a server, once its buttons are there."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(server.url)
    page.wait_for_selector("#segment", timeout=LONG_MS)
    wait_for_status(page, "Ready")
    return page


def wait_for_status(page, text: str) -> None:
    page.wait_for_function(f"document.querySelector('#status').innerText.includes('{text}')", timeout=LONG_MS)


def colored_pixels(page, tmp_path: Path) -> tuple[int, int]:
    """How many pixels of the four views are orange, and how many blue: the colors of the model's two structures."""
    from matplotlib.image import imread

    page.screenshot(path=tmp_path / "views.png", clip={"x": 382, "y": 90, "width": 890, "height": 700})
    red, green, blue = np.moveaxis(imread(tmp_path / "views.png")[..., :3], -1, 0)
    orange = (red > green + 0.15) & (red > blue + 0.25) & (green > blue)
    return int(orange.sum()), int((blue > red + 0.15).sum())


def gray_of_views(page, tmp_path: Path) -> float:
    """Mean brightness of the four views, 0 to 1."""
    from matplotlib.image import imread

    page.screenshot(path=tmp_path / "views.png", clip={"x": 382, "y": 90, "width": 890, "height": 700})
    return float(imread(tmp_path / "views.png")[..., :3].mean())


def volumes_ml(labels: Labels) -> dict[str, float]:
    """Volume per structure of a file."""
    voxel_ml = labels.geometry.voxel_volume_mm3 / 1000
    return {label.name: float((labels.array == label.value).sum()) * voxel_ml for label in labels.table}


@pytest.mark.slow
def test_a_person_segments_cancels_saves_and_opens(page, server, tmp_path):
    assert "t1: 37 x 49 x 46 voxels of 1 x 1 x 1 mm" in page.inner_text("#image")
    before = colored_pixels(page, tmp_path)

    page.click("#segment")
    wait_for_status(page, "Predicting")
    page.click("#cancel")
    wait_for_status(page, "Cancelled")
    assert page.locator(".segment").count() == 0
    assert list(server.folder.iterdir()) == [server.folder / "t1.nrrd"]

    page.click("#segment")
    wait_for_status(page, "Done")
    rows = [row.inner_text().split("\n") for row in page.locator(".segment").all()]
    found = {name: float(ml.removesuffix(" ml")) for name, ml, *_ in rows}
    assert found == pytest.approx(SAMPLE_ML, rel=0.1)  # one fold of five
    page.wait_for_timeout(3000)  # the views are drawn after the news
    after = colored_pixels(page, tmp_path)
    assert min(np.subtract(after, before)) > 3000, "both structures are in the views"

    page.click("#save")
    wait_for_status(page, "Saved")
    labels = read_labels(server.folder / "t1.seg.nrrd")
    assert volumes_ml(labels) == pytest.approx(found, abs=0.006)
    assert labels.table[0].color != labels.table[1].color
    page.click("#save")
    page.wait_for_selector("#error:has-text('exists already')")

    # Hide the first structure, then open what was saved: both are shown again.
    page.click(".segment button >> nth=0")
    page.wait_for_timeout(3000)
    assert colored_pixels(page, tmp_path)[0] < before[0] + (after[0] - before[0]) / 4
    page.set_input_files("#open", server.folder / "t1.seg.nrrd")
    wait_for_status(page, "Opened t1.seg.nrrd")
    page.wait_for_timeout(3000)
    assert colored_pixels(page, tmp_path)[0] > before[0] + (after[0] - before[0]) / 2
    (tmp_path / "broken.seg.nrrd").write_bytes(b"NRRD0004\nnonsense")
    page.set_input_files("#open", tmp_path / "broken.seg.nrrd")
    page.wait_for_selector("#error:has-text('cannot be read')")
    assert page.locator(".segment").count() == 2, "what was shown stays"


def test_another_channel_can_be_shown_and_a_damaged_model_says_why_it_cannot_be_chosen(
    browser, view_python, view_environment, tmp_path
):
    volume = read_volume(SAMPLE)
    write_volume(volume.array[0], volume.geometry, tmp_path / "t1.nrrd")
    write_volume(volume.array.max() - volume.array[0], volume.geometry, tmp_path / "inverse.nrrd")
    (tmp_path / "models" / "net.damaged").mkdir(parents=True)
    words = [f"T1={tmp_path}/t1.nrrd", f"T2={tmp_path}/inverse.nrrd", "--models-dir", str(tmp_path / "models")]
    with serving(view_python, view_environment, tmp_path, words) as started:
        page = opened(browser, started)
        page.wait_for_timeout(3000)
        first = gray_of_views(page, tmp_path)
        page.click("#channels button:has-text('T2')")
        page.wait_for_timeout(3000)
        assert abs(gray_of_views(page, tmp_path) - first) > 0.02
        page.click("#channels button:has-text('T1')")
        page.wait_for_timeout(3000)
        assert gray_of_views(page, tmp_path) == pytest.approx(first, abs=0.005)
        page.click("#model", force=True)
        entry = page.locator(".v-list-item", has_text="net.damaged (cannot be used)")
        assert "bundle.json" in entry.inner_text()
        assert "v-list-item--disabled" in entry.get_attribute("class")
        page.close()


def test_a_model_tells_what_it_is_for(page):
    page.click("#about")
    page.wait_for_selector("#details:has-text('Intended use')")
    page.click("text=Close")


def test_a_page_that_is_loaded_again_shows_the_same(page):
    page.reload()
    page.wait_for_selector("#segment", timeout=60_000)


def test_without_the_key_nothing_is_shown(server, page):
    other = page.context.browser.new_page()
    other.goto(server.url.partition("?")[0])
    other.wait_for_timeout(3000)
    assert other.locator("#segment").count() == 0
    other.close()


@pytest.mark.parametrize(
    "headers", [{"Origin": "http://evil.example"}, {"Host": "evil.example"}, {"Origin": "null"}], ids=str
)
def test_requests_of_other_sites_are_refused(server, headers):
    for path in ("index.html", "ws"):
        request = urllib.request.Request(server.url.partition("index.html")[0] + path, headers=headers)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=30)
        assert refused.value.code == 403
        refused.value.close()


def test_only_this_computer_is_listened_to(server):
    port = int(server.url.split(":")[2].partition("/")[0])
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines() if " 0A " in line]
    assert f"0100007F:{port:04X}" in listening, "127.0.0.1, as the kernel writes it"
    assert f"00000000:{port:04X}" not in listening
