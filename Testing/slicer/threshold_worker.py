"""A stand-in for `mambaseg segment` and `batch` that finds what is brighter than the mean and needs no PyTorch.

What it finds is known, and it is quick. With --quality best it waits for ever where the first result should have been, in
a batch the second.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from MambaSegLib.bundle import load_bundle
from MambaSegLib.errors import InputError
from MambaSegLib.volume import Labels
from MambaSegLib.volume_io import read_volume


def tell(event: str, **details: object) -> None:
    print(json.dumps({"event": event, **details}), flush=True)


def segment(words: list[str]) -> int:
    output = Path(words[words.index("-o") + 1])
    first = words[1].partition("=")[2]
    tell("progress", stage="Predicting", done=1, total=2, seconds_left=9.5)
    if "best" in words:
        time.sleep(600)
    find(Path(first), output, words)
    tell("result", output=str(output), notices=["The voxels are unlike the training images."])
    return 0


def batch(words: list[str]) -> int:
    target = Path(words[words.index("-o") + 1])
    target.mkdir(exist_ok=True, parents=True)
    ending = words[words.index("--format") + 1] if "--format" in words else ".seg.nrrd"
    cases = {path.name.partition("_0")[0].partition(".")[0]: path for path in sorted(Path(words[1]).iterdir())[::-1]}
    statuses: list[str] = []
    for case in sorted(cases):
        tell("progress", stage="Predicting", done=1, total=2, case=case, cases=len(cases), seconds_left=None)
        if statuses and "best" in words:
            time.sleep(600)
        output, status, message = target / f"{case}{ending}", "done", ""
        path = cases[case] if cases[case].is_file() else cases[case] / "0"
        if output.exists():
            status = "skipped"
        else:
            try:
                find(path, output, words)
            except InputError as error:
                status, message = "failed", str(error)
        statuses.append(status)
        tell("result", case=case, status=status, message=message, seconds=0.5, output=str(output))
    tell("result", cases=len(cases), **{status: statuses.count(status) for status in ("done", "skipped", "failed")})
    return 2 if "failed" in statuses else 0


def bright(array: np.ndarray) -> np.ndarray:
    return array > array.mean(dtype=np.float64)


def find(source: Path, output: Path, words: list[str]) -> None:
    plan = load_bundle(words[words.index("--model") + 1]).manifest.plan
    volume = read_volume(source)
    Labels(bright(volume.array[0]).astype("uint8"), volume.geometry, plan.labels).write(output)


if __name__ == "__main__":
    sys.exit({"segment": segment, "batch": batch}[sys.argv[1]](sys.argv[1:]))
