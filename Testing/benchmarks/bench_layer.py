"""The paper's Mamba layer on this computer's CPU: fused, against PyTorch's dataflow with the same scan, at a network's stages.

    python Testing/benchmarks/bench_layer.py                     # a few minutes
    python Testing/benchmarks/bench_layer.py --stages 1 --orders # every order against memory order

"unfused" makes every intermediate result in memory, as mamba-ssm's modules do, with this library's numba scan and convolution.
"training" is forward and backward of that form, with gradients of the features and all weights; `--no-training` leaves it out.
Feature maps are an eighth of a 48 x 192 x 192 patch's first two stages and whole ones beyond; cost is linear in the voxels.
Processor time of one thread, the smallest of the repeats. Prints Markdown, and writes OUTPUT.md and OUTPUT.json.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from itertools import permutations
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE / "common")]

import numpy as np
import torch
from results import publish
from torch import Tensor

from MambaSegLib.cpu.choice import computer
from MambaSegLib.cpu.layers import FeatureMap, Workspace
from MambaSegLib.cpu.mamba_layer import FusedMambaLayer
from MambaSegLib.networks.mamba import MambaLayer3d
from MambaSegLib.scan.order import ScanPath

STAGES = {
    1: (32, (12, 96, 192)),
    2: (64, (24, 48, 48)),
    3: (128, (24, 48, 48)),
    4: (256, (12, 24, 24)),
    5: (320, (6, 12, 12)),
}


@dataclass(frozen=True)
class Measurement:
    """One layer with one scan; processor seconds of every repeat."""

    stage: int
    channels: int
    states: int
    order: str
    voxels: int
    fused_s: list[float]
    unfused_s: list[float]
    training_s: list[float]

    @property
    def speedup(self) -> float:
        """Unfused over fused."""
        return min(self.unfused_s) / min(self.fused_s)


def measure(stage: int, states: int, order: str, repeats: int, training: bool) -> Measurement:
    """All forms in turn, so that a busy moment of the computer meets them alike."""
    channels, sizes = STAGES[stage]
    torch.manual_seed(0)
    trained = MambaLayer3d(channels, [ScanPath.parse(order)], min(states, channels), False, "linear")
    layer = deepcopy(trained).requires_grad_(False)
    features = torch.randn(1, channels, *sizes).to(memory_format=torch.channels_last_3d)
    tokens = FeatureMap(np.ascontiguousarray(features[0].permute(1, 2, 3, 0).numpy()), channels)
    twin, workspace = FusedMambaLayer(layer), Workspace()

    def unfused() -> Tensor:
        with torch.enable_grad():  # the layer then takes no short cut; nothing has a gradient, so nothing is kept
            result: Tensor = layer(features)
        return result

    def fused() -> None:
        workspace.give(twin.run(tokens, workspace, 1).array)

    leaf = features.clone().requires_grad_()

    def forward_and_backward() -> None:
        leaf.grad = None
        trained.zero_grad()
        trained(leaf).sum().backward()

    forms = (fused, unfused, forward_and_backward) if training else (fused, unfused)
    times = [[_processor_s(form) for form in forms] for _ in range(repeats + 1)][1:]
    voxels = sizes[0] * sizes[1] * sizes[2]
    columns = [list(column) for column in zip(*times, strict=True)]
    return Measurement(
        stage, channels, min(states, channels), order, voxels, columns[0], columns[1], columns[2] if training else []
    )


def _processor_s(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def table(measurements: list[Measurement]) -> str:
    """Markdown."""
    lines = [
        "| stage | channels | states | order | fused ns/voxel | unfused ns/voxel | speed-up | 1e9 updates/s, fused | training ns/voxel | x unfused |",
        "|--:|--:|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    for m in measurements:
        fused, unfused = (min(t) / m.voxels * 1e9 for t in (m.fused_s, m.unfused_s))
        rate = 2 * m.channels * m.states / fused
        training = [min(m.training_s) / m.voxels * 1e9] if m.training_s else []
        last = " | ".join(f"{t:.0f} | {t / unfused:.2f}" for t in training) or " | "
        lines.append(
            f"| {m.stage} | {m.channels} | {m.states} | {m.order} | {fused:.0f} | {unfused:.0f} | {m.speedup:.1f} | {rate:.2f} "
            f"| {last} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", type=int, choices=STAGES, default=list(STAGES))
    parser.add_argument("--states", nargs="+", type=int, default=[16, 256], help="at most as many as channels")
    parser.add_argument("--orders", action="store_true", help="all twelve orders, not memory order alone")
    parser.add_argument("--no-training", action="store_true", help="leave forward + backward out")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("bench_layer"), help="without suffix")
    options = parser.parse_args()
    torch.set_num_threads(1)
    letters = ["".join(p) for p in permutations("HWD")] if options.orders else ["HWD"]
    orders = (
        [f"{one}:{way}" for one in letters for way in ("forward", "backward")] if options.orders else ["HWD:forward"]
    )
    found: list[Measurement] = []
    for stage in options.stages:
        for states in options.states:
            for order in orders:
                found.append(measure(stage, states, order, options.repeats, not options.no_training))
                print(table(found[-1:]).splitlines()[-1], flush=True)
    text = f"{table(found)}\n\nLeast of {options.repeats}. {computer()}\n"
    content = {"computer": computer(), "measurements": [asdict(m) for m in found]}
    publish(options.output, text, content)


if __name__ == "__main__":
    main()
