"""Peak memory and time of segmenting a large CT with a network that costs nothing: what the pipeline itself needs.

Each case runs in a process of its own, because a process never gives back its peak. The network is one 1x1x1
convolution, so memory and time are those of preprocessing, tiles, sums, resampling and labels.

    python Testing/benchmarks/bench_memory.py [--case NAME] [--json FILE]

Measured peaks for a 512 x 512 x 600 CT and 14 structures, tiles of 128^3, two CPU cores: 2.02 GiB resampled to 1.5 mm,
2.18 GiB with uncertainty, 3.67 GiB at the scanner's own voxels. 0.51 GiB of each are PyTorch and the image itself.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "Testing" / "benchmarks" / "common")]

from results import peak_gib

LIMIT_GIB = 8.0
"""Below this a case passes: what a laptop of 16 GB has to spare."""


@dataclass(frozen=True)
class Case:
    """One run: an input of `shape` voxels at `spacing_mm`, segmented into `structures` at `working_mm`."""

    name: str
    shape: tuple[int, int, int] = (600, 512, 512)
    spacing_mm: tuple[float, float, float] = (1.0, 0.8, 0.8)
    working_mm: tuple[float, float, float] = (1.5, 1.5, 1.5)
    structures: int = 14
    patch_size: tuple[int, int, int] = (128, 128, 128)
    uncertainty: bool = False
    overlap: float = 0.5


@dataclass(frozen=True)
class Result:
    """What was measured."""

    case: str
    tiles: int
    baseline_gib: float
    peak_gib: float
    preprocessing_s: float
    prediction_s: float
    postprocessing_s: float


CASES = (
    Case("resampled to 1.5 mm"),
    Case("resampled to 1.5 mm, uncertainty", uncertainty=True),
    # Fewer tiles, the same memory: what is held is one patch depth at any overlap.
    Case("at the scanner's own voxels", working_mm=(1.0, 0.8, 0.8), overlap=0.0),
)


def measure(case: Case) -> Result:
    """Segment once, in this process."""
    import numpy as np
    import torch
    from torch import nn

    from MambaSegLib.plan import Channel, Label, NetworkPlan, Normalization, Plan
    from MambaSegLib.predictor import Predictor
    from MambaSegLib.volume import Geometry, Volume

    class Pointwise(nn.Module):
        deep_supervision = False

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv3d(1, case.structures + 1, 1)

        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (self.conv(image),)

    labels = tuple(Label(k, f"structure {k}", (k, k, k)) for k in range(1, case.structures + 1))
    network = NetworkPlan("mamba_unet_unidirectional", 1, len(labels) + 1, case.patch_size, ())
    ct = Channel("CT", Normalization("ct", lower=-200, upper=400, mean=50, std=100), "CT")
    plan = Plan("SPL", case.working_mm, (ct,), labels, network, crop_to_nonzero=False)
    bundle = SimpleNamespace(
        manifest=SimpleNamespace(plan=plan, name="bench.pointwise", version="1"),
        fold_indices=(0,),
        sha256="",
        load_network=lambda fold: Pointwise(),
    )
    torch.manual_seed(0)
    predictor = Predictor(bundle, device="cpu", overlap=case.overlap)  # type: ignore[arg-type]
    direction = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    array = np.random.default_rng(0).integers(-1000, 1000, (1, *case.shape), dtype=np.int16)
    volume = Volume(array, Geometry(case.shape, case.spacing_mm, (0.0, 0.0, 0.0), direction))
    baseline = peak_gib()
    tiles = []
    prediction = predictor.predict(volume, lambda p: tiles.append(p.total), uncertainty=case.uncertainty)
    seconds = prediction.seconds
    return Result(
        case.name, max(tiles), baseline, peak_gib(), seconds.preprocessing, seconds.prediction, seconds.postprocessing
    )


def markdown(results: list[Result]) -> str:
    """A table for a person."""
    lines = [
        f"Peak memory, {platform.platform()}, {platform.machine()}, Python {platform.python_version()}",
        "",
        "| case | tiles | before | peak | preprocessing | prediction | postprocessing |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for r in results:
        times = " | ".join(f"{s:.1f} s" for s in (r.preprocessing_s, r.prediction_s, r.postprocessing_s))
        lines.append(f"| {r.case} | {r.tiles} | {r.baseline_gib:.2f} GiB | {r.peak_gib:.2f} GiB | {times} |")
    return "\n".join(lines)


def main() -> int:
    """Run the cases; 1 if one needs more than the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", type=int, choices=range(len(CASES)), help="run one case only")
    parser.add_argument("--slices", type=int, default=600, help="slices of the CT")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--here", action="store_true", help="measure in this process and print JSON")
    options = parser.parse_args()
    chosen = range(len(CASES)) if options.case is None else [options.case]
    if options.here:
        case = CASES[options.case or 0]
        print(json.dumps(asdict(measure(replace(case, shape=(options.slices, *case.shape[1:]))))))
        return 0
    results = []
    for index in chosen:
        command = [sys.executable, __file__, "--here", "--case", str(index), "--slices", str(options.slices)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        results.append(Result(**json.loads(output.splitlines()[-1])))
    print(markdown(results))
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")
    return int(any(result.peak_gib > LIMIT_GIB for result in results))


if __name__ == "__main__":
    sys.exit(main())
