"""Segments the left hippocampus in a real T1 MR, on the CPU, and draws the result.

The image is the ICBM152 template (average of 152 healthy brains, 1 mm) that comes inside the package nilearn: nothing
is downloaded. The work is done by the command `mambaseg segment`, as a person would start it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MODEL = "mamba_unet_multidirectional.hippocampus"
TEMPLATE = "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
ROI_RAS_MM = ("-45", "-9", "-47", "1", "-35", "10")
"""A box around the left hippocampus, of the size of the images the model was trained on."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code of `mambaseg segment`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder to write to (%(default)s)")
    parser.add_argument("--model", default=MODEL, help="name or path of another hippocampus model")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    image, segmentation = template_file(), options.output / "hippocampus.seg.nrrd"
    command = [
        *("segment", str(image), "-o", str(segmentation), "--model", options.model),
        *("--roi", *ROI_RAS_MM, "--device", "cpu", "--force"),
    ]
    print(f"$ mambaseg {shlex.join(command)}", flush=True)
    started = time.perf_counter()
    code, result = run_with_events(command)
    if code != 0:
        return code
    report(result, time.perf_counter() - started)
    picture = options.output / "hippocampus.png"
    draw_picture(image, segmentation, result, picture)
    print(f"\nWritten: {segmentation}  (opens in 3D Slicer)\n         {picture}")
    return 0


def template_file() -> Path:
    """The template inside nilearn, found without importing nilearn, which would take seconds."""
    package = importlib.util.find_spec("nilearn")
    if package is None or package.origin is None:
        sys.exit("The demo's packages are missing. Install them: pip install -e '.[demo]'")
    path = Path(package.origin).parent / "datasets" / "data" / TEMPLATE
    if not path.is_file():
        sys.exit(f"This version of nilearn has no {TEMPLATE}. Install nilearn 0.11 to 0.14.")
    return path


def run_with_events(command: Sequence[str]) -> tuple[int, dict[str, Any]]:
    """Run `mambaseg`; shows its notices and progress as they come.

    Returns:
        Exit code, and the event "result" ({} if there was none).
    """
    result: dict[str, Any] = {}
    shown = ""
    words = [sys.executable, "-m", "MambaSegLib", *command, "--events"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "progress" and event["stage"] != shown:
                shown = event["stage"]
                print(f"  {shown} ...", flush=True)
            elif event["event"] == "log" and event["level"] == "warning":
                print(f"  Notice: {event['message']}", flush=True)
            elif event["event"] == "result":
                result = event
    return process.returncode, result


def report(result: dict[str, Any], seconds: float) -> None:
    """Print what was found and how."""
    print(f"\nFound by {result['model']} {result['model_version']}:")
    for label in result["labels"]:
        print(f"  {label['value']}  {label['name']:<24} {label['volume_ml']:6.2f} ml  {label['voxels']:6d} voxels")
    total = sum(label["volume_ml"] for label in result["labels"])
    print(f"     {'together':<24} {total:6.2f} ml")
    print(
        f"Device {result['device']}, scan backend {result['backend']}, {folds(result)}, "
        f"{sum(result['seconds'].values()):.1f} s ({seconds:.1f} s with starting up, reading and writing)"
    )


def folds(result: dict[str, Any]) -> str:
    """How many networks were averaged."""
    number = len(result["folds"])
    return f"{number} fold{'s' * (number != 1)}"


def draw_picture(image: Path, segmentation: Path, result: dict[str, Any], path: Path) -> None:
    """Slices and surface of what was written, read back from disk."""
    from picture import draw

    from MambaSegLib import read_labels, read_volume

    labels = read_labels(segmentation)
    if not labels.array.any():
        sys.exit("Nothing was found, so there is nothing to draw.")
    caption = (
        f"ICBM152 T1 template, left   ·   {result['model']} {result['model_version']}, {folds(result)}   ·   "
        f"{result['device']}, {result['backend']}, {sum(result['seconds'].values()):.1f} s   ·   not a medical device"
    )
    volumes = {label["value"]: label["volume_ml"] for label in result["labels"]}
    draw(read_volume(image), labels, volumes, caption, path)


if __name__ == "__main__":
    sys.exit(main())
