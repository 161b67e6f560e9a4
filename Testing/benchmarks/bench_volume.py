"""Whole volumes from file to file on this computer: time of every phase, tiles and peak memory.

    python Testing/benchmarks/bench_volume.py            # 10 cardiac slices of 256 x 256: a minute
    python Testing/benchmarks/bench_volume.py --ct       # and a CT, 150 slices of 512 x 512: ten minutes
    python Testing/benchmarks/bench_volume.py --device cuda --ct --repeats 3

The network is the paper's full-width Multidirectional one (`--preset`) with random weights on the published plans: it costs what a trained
one costs, but calls air anything, so that the CT is not cropped to the body (`MambaSegLib/body_crop.py`) and takes longer than
with a trained one. Each row is a process of its own, because a process never gives back its peak; one tile is computed before
the clock starts. Prints a Markdown table and writes it to OUTPUT.md, with every single measurement in OUTPUT.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "Training"), str(ROOT / "Testing" / "benchmarks" / "common")]

from results import peak_gib, publish

NETWORK = "mamba_unet_multidirectional"


@dataclass(frozen=True)
class Case:
    """A volume in one of the published plans; None stands for the plan's own spacing."""

    plan: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float] | None = None
    tiny: tuple[int, int, int] = (6, 20, 20)


CASES = {
    "cardiac MR": Case("acdc", (10, 256, 256)),
    "abdominal CT": Case("synapse", (150, 512, 512), (3.0, 0.76, 0.76)),
}


@dataclass(frozen=True)
class Row:
    """One volume; seconds of every repeat by phase, and processor seconds of all threads from file to file."""

    case: str
    network: str
    shape: tuple[int, ...]
    quality: str
    tiles: int
    seconds: dict[str, list[float]]
    processor_s: list[float]
    peak_gib: float
    device: str
    backend: str
    threads: int


def measure(name: str, options: argparse.Namespace) -> Row:
    """Segment a volume, in this process."""
    import numpy as np
    import torch
    from MambaSegTraining.named_plans import named_plan
    from volumes import PHASES, from_file_to_file, random_bundle, tiny, tissue_in_air

    from MambaSegLib.devices import place
    from MambaSegLib.label_writing import write_volume
    from MambaSegLib.predictor import Predictor

    if options.threads:
        torch.set_num_threads(options.threads)
    case = CASES[name]
    plan = named_plan(case.plan, NETWORK, {"preset": options.preset}).plan
    if options.tiny:
        plan = replace(plan, network=tiny(plan.network))
    volume = tissue_in_air(case.tiny if options.tiny else case.shape, case.spacing_mm or plan.spacing_mm)
    if plan.channels[0].normalization.scheme != "ct":
        volume = replace(volume, array=np.clip(volume.array, -100, None) + 101)
    predictor = Predictor(random_bundle(plan), device=options.device, engine=options.engine, quality=options.quality)
    tiles, seconds = predictor.tiles(volume), {phase: list[float]() for phase in PHASES}
    processor_s: list[float] = []
    for network in predictor.ensemble.networks:
        place(network, predictor.device)
    noise = torch.randn((1, len(plan.channels), *plan.patch_size)).to(predictor.device)
    predictor.ensemble.tile_probabilities(noise, False)  # compiles
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "image.nii.gz"
        write_volume(volume.array[0], volume.geometry, source)
        del volume
        for repeat in range(options.repeats):
            start = time.process_time()
            prediction, found = from_file_to_file(predictor, source, Path(folder) / f"{repeat}.seg.nrrd")
            processor_s.append(time.process_time() - start)
            for phase, value in found.items():
                seconds[phase].append(value)
    return Row(
        name, f"{NETWORK}, {options.preset}", prediction.labels.array.shape, options.quality, tiles, seconds, processor_s, peak_gib(),
        prediction.device, prediction.backend, torch.get_num_threads(),
    )  # fmt: skip


def table(rows: list[Row]) -> str:
    """Markdown; medians."""
    phases = list(rows[0].seconds)
    lines = [
        f"| volume | network | voxels | quality | tiles | {' | '.join(f'{phase} s' for phase in phases)} | processor s | peak GiB | device |",
        f"|---|---|---|---|{'--:|' * (len(phases) + 3)}---|",
    ]
    for row in rows:
        times = " | ".join(f"{statistics.median(values):.2f}" for values in row.seconds.values())
        lines.append(
            f"| {row.case} | {row.network} | {' x '.join(map(str, row.shape))} | {row.quality} | {row.tiles} | {times} "
            f"| {statistics.median(row.processor_s):.2f} | {row.peak_gib:.2f} | {row.device}, {row.threads} threads |"
        )
    return "\n".join(lines)


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ct", action="store_true", help="also the CT")
    parser.add_argument("--only", choices=CASES, help="one volume")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--engine", default="auto", choices=("auto", "fused", "pytorch"))
    parser.add_argument("--quality", nargs="+", default=["standard"], choices=("fast", "standard", "best"))
    parser.add_argument(
        "--preset",
        default="paper",
        choices=("paper", "released"),
        help="four one-way scans a layer, or eight as released",
    )
    parser.add_argument("--threads", type=int, help="default: all cores")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--tiny", action="store_true", help="sizes that take seconds; the figures mean nothing then")
    parser.add_argument("--output", type=Path, default=Path("bench_volume"), help="without suffix")
    parser.add_argument("--here", action="store_true", help="measure the one volume in this process and print JSON")
    options = parser.parse_args()
    if options.here:
        options.quality = options.quality[0]
        print(json.dumps(asdict(measure(options.only or "cardiac MR", options))))
        return 0
    from MambaSegLib.cpu.choice import computer
    from MambaSegLib.devices import resolve_device
    from MambaSegLib.errors import MambaSegError

    try:
        resolve_device(options.device)
    except MambaSegError as error:
        print(error)
        return error.exit_code
    chosen = [options.only] if options.only else [name for name in CASES if options.ct or name != "abdominal CT"]
    rows: list[Row] = []
    for name in chosen:
        for quality in options.quality:
            command = [sys.executable, __file__, "--here", "--only", name, "--quality", quality]
            command += [
                "--preset",
                options.preset,
                "--device",
                options.device,
                "--engine",
                options.engine,
                "--repeats",
                str(options.repeats),
            ]
            command += ["--threads", str(options.threads)] if options.threads else []
            command += ["--tiny"] if options.tiny else []
            found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            rows.append(Row(**json.loads(found.splitlines()[-1])))
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    where = f"{computer()}, {platform.platform()}, Python {platform.python_version()}"
    text = f"{table(rows)}\n\nMedians of {options.repeats}. {where}\n"
    content = {"computer": where, "rows": [asdict(row) for row in rows]}
    publish(options.output, text, content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
