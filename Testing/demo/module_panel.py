"""Takes the tutorial's picture of the module's panel: filled in and after Apply, on the template brain.

The panel is the module's own, on Slicer's real scene; its widgets are drawn by PySide6 instead of Slicer, so in Slicer they
have Slicer's style.

    .venv/bin/python Testing/demo/module_panel.py
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
for folder in ("Testing/slicer/standins", "MambaSegmentation", "."):
    sys.path.insert(0, str(REPOSITORY / folder))

import headless_slicer
from hippocampus import template_file

PICTURE = REPOSITORY / "MambaSegmentation" / "Resources" / "Screenshots" / "panel.png"
SIZE = (430, 677)
TIMEOUT_S = 900


def main(arguments: Sequence[str] | None = None) -> int:
    """Fill in the panel, press Apply, take the picture when it is done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=PICTURE)
    options = parser.parse_args(arguments)
    slicer = headless_slicer.start()
    import SampleData
    from MambaSegmentationLib import sample_data

    sample_data.register()
    ((*_, source),) = slicer.modules.sampleDataSources.values()
    mirror = {source["uris"][0]: template_file().as_uri()}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    _, region = SampleData.load(source, Path(slicer.app.temporaryPath), mirror)
    _, widget, host = headless_slicer.loadModule(REPOSITORY / "MambaSegmentation" / "MambaSegmentation.py")
    window = widget.window
    window.ui.roiSelector.setCurrentNode(region)
    host.resize(*SIZE)
    host.show()
    window.ui.applyButton.click()
    if not ended(slicer, window):
        return 1
    window.ui.modelSearch.clearFocus()
    slicer.app.processEvents()
    host.grab().save(str(options.output))
    print(window.ui.statusLabel.text())
    headless_slicer.closeModule(widget, host)
    return 0


def ended(slicer: Any, window: Any) -> bool:
    """Let the application go on until the work has ended; whether it was done."""
    end = time.monotonic() + TIMEOUT_S
    while window.run is None or window.run.state == "running":
        slicer.app.processEvents()
        time.sleep(0.05)
        if time.monotonic() > end:
            return False
    for _ in range(20):
        slicer.app.processEvents()
        time.sleep(0.02)
    return bool(window.run.state == "done")


if __name__ == "__main__":
    sys.exit(main())
