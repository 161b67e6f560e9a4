"""What `mambaseg doctor` predicts for volumes, against the time and the tiles they then take on this computer's CPU.

    python Testing/benchmarks/bench_estimate.py                                   # made-up volumes, a few minutes
    python Testing/benchmarks/bench_estimate.py --data FOLDER --cases 3           # real ones, see below
    python Testing/benchmarks/bench_estimate.py --cases 1 --only hippocampus

FOLDER holds data sets in nnU-Net's layout (NAME/Dataset*/imagesTr) and CTs anywhere below volumes/ct_*. Hippocampus images are
segmented by the model that comes along; other MR by a Multidirectional network with random weights on a plan made of the
images' own size; CTs by the one of the "synapse" plan with random weights, or "--ct-width" of it. Each volume is estimated,
then segmented. "ratio" is predicted over true time; right within 30 % means 0.77 to 1.30 on a computer that does nothing else.
On a busy one, "load" tells what share of its time the process was given while estimating and while segmenting, and "ratio,
processor" is what the ratio would be had both been the same.
Prints a Markdown table and writes it to OUTPUT.md, with the figures in OUTPUT.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "Training"), str(ROOT / "Testing" / "benchmarks" / "common")]

import numpy as np
import torch
from MambaSegTraining.named_plans import named_plan
from results import publish
from volumes import narrowed, random_bundle, tiny, tissue_in_air

from MambaSegLib.bundle import load_bundle
from MambaSegLib.commands.estimate import estimate
from MambaSegLib.cpu.choice import computer
from MambaSegLib.plan import Channel, Normalization, Plan
from MambaSegLib.predictor import Predictor
from MambaSegLib.progress import Progress
from MambaSegLib.volume import Volume
from MambaSegLib.volume_io import read_volume

T = TypeVar("T")
HIPPOCAMPUS = "mamba_unet_multidirectional.hippocampus"


@dataclass(frozen=True)
class Row:
    """One volume."""

    case: str
    shape: tuple[int, ...]
    predicted_tiles: int
    tiles: int
    predicted_s: float
    true_s: float
    estimating_s: float
    share_estimating: float
    share_segmenting: float

    @property
    def processor_ratio(self) -> float:
        """The same in processor time, which other programs change little."""
        return self.ratio * self.share_estimating / self.share_segmenting

    @property
    def ratio(self) -> float:
        """Predicted over true time."""
        return self.predicted_s / self.true_s


def measure(case: str, predictor: Predictor, volume: Volume) -> Row:
    """Estimate, then segment."""
    need, estimating_s, share = watched(lambda: estimate(predictor, volume))
    totals: list[int] = [0]

    def on_progress(progress: Progress) -> None:
        totals.append(progress.total if progress.stage == "Predicting" else 0)

    found, _, true_share = watched(lambda: predictor.predict(volume, on_progress))
    return Row(
        case, volume.geometry.shape, need.tiles, max(totals), need.seconds, found.seconds.total, estimating_s, share,
        true_share,
    )  # fmt: skip


def watched(work: Callable[[], T]) -> tuple[T, float, float]:
    """What `work` returns, its seconds, and the processor seconds per second and thread in it."""
    start, used = time.perf_counter(), time.process_time()
    result = work()
    seconds = time.perf_counter() - start
    return result, seconds, (time.process_time() - used) / seconds / torch.get_num_threads()


def mr_plan(volume: Volume, width: int) -> Plan:
    """The ACDC plan's network on an MR volume of any kind, at that volume's spacing."""
    plan = narrowed(named_plan("acdc", "mamba_unet_multidirectional").plan, width)
    network = replace(plan.network, in_channels=len(volume.array))
    channels = tuple(Channel(f"c{k}", Normalization("zscore")) for k in range(len(volume.array)))
    turned = volume.geometry.reoriented(volume.geometry.reorientation_to(plan.orientation))
    return replace(plan, network=network, channels=channels, spacing_mm=turned.spacing_mm, fingerprint=None)


def cases(options: argparse.Namespace) -> Iterator[tuple[str, Predictor, Volume]]:
    """Name, model and volume of everything to be measured."""
    how: dict[str, Any] = {"device": "cpu", "engine": options.engine, "quality": options.quality}
    ct_plan = narrowed(named_plan("synapse", "mamba_unet_multidirectional").plan, options.ct_width)
    if options.tiny:
        how["scan"], ct_plan = "pytorch", replace(ct_plan, network=tiny(ct_plan.network))
        yield "CT, tiny", Predictor(random_bundle(ct_plan), **how), tissue_in_air((10, 20, 20), ct_plan.spacing_mm)
        return
    if options.data is None:
        image = tissue_in_air((24, 180, 200), (3.0, 1.5, 1.5))
        yield "CT, made up", Predictor(random_bundle(ct_plan), **how), image
        mr = replace(image, array=np.clip(image.array, -60, 200))
        yield "MR, made up", Predictor(random_bundle(mr_plan(mr, options.mr_width)), **how), mr
        return
    for file in sorted(options.data.glob("hippocampus/*/imagesTr/*.nii.gz"))[: options.cases]:
        yield file.name, Predictor(load_bundle(HIPPOCAMPUS), **how), read_volume(file)
    for file in sorted(options.data.glob("sts_mr/*/imagesTr/*_0000.*"))[: options.cases]:
        volume = read_volume(file)
        yield file.name, Predictor(random_bundle(mr_plan(volume, options.mr_width)), **how), volume
    for file in sorted(options.data.glob("volumes/ct_*/*ct*.nii.gz"))[: options.cases]:
        yield file.name, Predictor(random_bundle(ct_plan), **how), replace(read_volume(file), channels=("CT",))


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = [
        "| case | voxels | tiles predicted | tiles | predicted s | true s | ratio | load | ratio, processor | estimating s |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {row.case} | {' x '.join(map(str, row.shape))} | {row.predicted_tiles} | {row.tiles} "
        f"| {row.predicted_s:.2f} | {row.true_s:.2f} | {row.ratio:.2f} "
        f"| {row.share_estimating:.2f}, {row.share_segmenting:.2f} | {row.processor_ratio:.2f} | {row.estimating_s:.1f} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of real volumes")
    parser.add_argument("--cases", type=int, default=3, help="of each kind")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--mr-width", type=int, default=4, help="divide the channels of the MR network by this")
    parser.add_argument(
        "--ct-width", type=int, default=4, help="divide the channels of the CT network by this; 1 is the paper's"
    )
    parser.add_argument("--engine", default="auto", choices=("auto", "fused", "pytorch"))
    parser.add_argument("--quality", default="standard", choices=("fast", "standard", "best"))
    parser.add_argument(
        "--tiny", action="store_true", help="something that takes seconds; the figures mean nothing then"
    )
    parser.add_argument("--threads", type=int)
    parser.add_argument("--output", type=Path, default=Path("bench_estimate"), help="without suffix")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    rows: list[Row] = []
    for case, predictor, volume in cases(options):
        if options.only in case:
            rows.append(measure(case, predictor, volume))
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    off = statistics.median(max(row.ratio, 1 / row.ratio) for row in rows)
    text = f"{table(rows)}\n\nOff by {off:.2f} times (median). {computer()}, {torch.get_num_threads()} threads\n"
    content = {
        "computer": computer(),
        "rows": [asdict(row) | {"ratio": row.ratio, "processor_ratio": row.processor_ratio} for row in rows],
    }
    publish(options.output, text, content)


if __name__ == "__main__":
    main()
