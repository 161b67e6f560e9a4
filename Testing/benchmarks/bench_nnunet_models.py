"""A converted model beside the nnU-Net it comes from: overlap of their label maps, and time, on the same images and processor.

    python -m venv nnunet && nnunet/bin/pip install torch nnunetv2
    python Testing/benchmarks/bench_nnunet_models.py --nnunet-python nnunet/bin/python --images IMAGES --orientation RAS MODEL

MODEL is nnU-Net's folder with plans.json and fold_0, IMAGES a folder in nnU-Net's naming (CASE_0000.nii.gz). Both sides predict all images
in one go, start included, without and with mirroring, at nnU-Net's step size of 0.5.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK

from MambaSegLib.bundle import load_bundle

ROOT = Path(__file__).resolve().parents[2]
ENDING = ".nii.gz"
THEIRS = "from nnunetv2.inference.predict_from_raw_data import predict_entry_point_modelfolder as run; run()"


@dataclass(frozen=True)
class Cost:
    """Of one command.

    Attributes:
        seconds: By the clock.
        processor_s: Time of all its threads and processes.
    """

    seconds: float
    processor_s: float


def timed(command: list[str], environment: dict[str, str]) -> Cost:
    """Run a command."""

    def processor() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before, start = processor(), time.perf_counter()
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return Cost(time.perf_counter() - start, processor() - before)


def ours(*words: object) -> Cost:
    """Run a `mambaseg` command of this checkout."""
    command = [sys.executable, "-m", "MambaSegLib", *map(str, words)]
    return timed(command, {"PYTHONPATH": str(ROOT)})


def theirs(interpreter: Path, model: Path, images: Path, output: Path, folds: str, mirroring: bool) -> Cost:
    """Predict with nnU-Net."""
    command = [str(interpreter), "-c", THEIRS, "-i", str(images), "-o", str(output), "-m", str(model), "-device", "cpu"]
    command += ["-f", *folds.split(","), "-npp", "1", "-nps", "1", *([] if mirroring else ["--disable_tta"])]
    nowhere = {f"nnUNet_{kind}": str(output) for kind in ("raw", "preprocessed", "results")}
    return timed(command, {"PYTHONPATH": "", "nnUNet_compile": "f", **nowhere})


def dice(first: np.ndarray, second: np.ndarray) -> float:
    """Overlap of two masks; nan if both are empty."""
    both = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / both if both else float("nan")


def overlaps(first: Path, second: Path) -> dict[int, list[float]]:
    """Per label, the Dice of each case."""
    found: dict[int, list[float]] = {}
    for path in sorted(first.glob(f"*{ENDING}")):
        one, other = (
            SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(side / path.name))) for side in (first, second)
        )
        for value in np.union1d(np.unique(one), np.unique(other)):
            if value:
                found.setdefault(int(value), []).append(dice(one == value, other == value))
    return found


def predict(bundle: Path, images: Path, output: Path, mirroring: bool) -> Cost:
    """Predict with this program."""
    names = [channel.name for channel in load_bundle(bundle).manifest.plan.channels]
    patterns = [word for k, name in enumerate(names) for word in ("--pattern", f"{name}={{case}}_{k:04d}{ENDING}")]
    word = "--mirroring" if mirroring else "--no-mirroring"
    return ours(
        "batch", images, "-o", output, "--model", bundle, "--device", "cpu", word, "--format", ENDING, *patterns
    )


def main() -> int:
    """Compare without and with mirroring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--nnunet-python", type=Path, required=True, help="interpreter that has nnunetv2")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--orientation", default="RAS", help="see `mambaseg models convert` (default: %(default)s)")
    parser.add_argument("--folds", default="0", help="with commas (default: %(default)s)")
    options = parser.parse_args()
    print(
        "| mirroring | cases | Dice per label: mean (smallest) | nnU-Net: s | here | ratio | threads: nnU-Net | here | ratio |"
    )
    print(f"|---|{'--:|' * 8}")
    with tempfile.TemporaryDirectory() as scratch:
        folder, model = Path(scratch), options.model.resolve()
        bundle = folder / "bundle"
        ours("models", "convert", model, "-o", bundle, "--orientation", options.orientation, "--folds", options.folds)
        for mirroring in (False, True):
            mine, other = folder / f"ours_{mirroring}", folder / f"theirs_{mirroring}"
            here = predict(bundle, options.images, mine, mirroring)
            there = theirs(options.nnunet_python.absolute(), model, options.images, other, options.folds, mirroring)
            found = overlaps(other, mine)
            cases = max(map(len, found.values()), default=0)
            shown = ", ".join(f"{k}: {np.nanmean(v):.4f} ({np.nanmin(v):.4f})" for k, v in sorted(found.items()))
            cells = [str(mirroring), cases, shown, f"{there.seconds:.1f}", f"{here.seconds:.1f}"]
            cells += [f"{here.seconds / there.seconds:.2f}", f"{there.processor_s:.1f}", f"{here.processor_s:.1f}"]
            print("|", " | ".join(map(str, [*cells, f"{here.processor_s / there.processor_s:.2f}"])), "|", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
