"""Takes the guides' picture of `mambaseg view`: the page as a browser shows it.

make demo view
.venv/bin/python Testing/demo/browser_picture.py TEMPLATE demo_output/hippocampus.seg.nrrd
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from playwright.sync_api import sync_playwright

REPOSITORY = Path(__file__).resolve().parents[2]
PICTURE = REPOSITORY / "MambaSegmentation" / "Resources" / "Screenshots" / "browser.png"
ROI = ("-45", "-9", "-47", "1", "-35", "10")
DRAWN_MS = 8000


def main(arguments: Sequence[str] | None = None) -> int:
    """Start the viewer, take the picture, stop the viewer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", type=Path)
    parser.add_argument("segmentation", type=Path)
    parser.add_argument("--output", type=Path, default=PICTURE)
    parser.add_argument("--view-python", type=Path, default=REPOSITORY / ".venv-view" / "bin" / "python")
    options = parser.parse_args(arguments)
    words = ["view", str(options.image), str(options.segmentation), "--roi", *ROI, "--device", "cpu", "--no-browser"]
    command = [str(options.view_python), "-u", "-m", "MambaSegLib", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        if found:
            take(found[0], options.output)
            process.send_signal(signal.SIGINT)
    return 0 if found else 1


def take(url: str, path: Path) -> None:
    """Write what a browser of usual size shows."""
    with sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1180, "height": 720})
        page.goto(url)
        page.wait_for_selector("#segment")
        page.wait_for_timeout(DRAWN_MS)
        page.screenshot(path=path)
        browser.close()


if __name__ == "__main__":
    sys.exit(main())
