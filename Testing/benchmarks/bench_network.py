"""Whole networks on this computer's CPU, one patch of a data set of the paper: time, processor time and peak memory.

    python Testing/benchmarks/bench_network.py                                    # all, a quarter of an hour
    python Testing/benchmarks/bench_network.py --plans acdc --networks unidirectional --engines fused --repeats 2

Each row is a process of its own, because a process never gives back its peak. "no Mamba" is the paper's residual U-Net with
its Mamba layers taken out. Processor time is that of all threads: on a busy computer it says more than the time on the wall.
Prints a Markdown table and writes it to OUTPUT.md, with every single measurement in OUTPUT.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "Training"), str(ROOT / "Testing" / "benchmarks" / "common")]

from results import peak_gib, publish

PLANS = ("acdc", "braintumour", "synapse")
NETWORKS: dict[str, tuple[str, dict[str, str]]] = {
    "nnunet_resenc": ("nnunet_resenc", {}),
    "no Mamba": ("mamba_unet_unidirectional", {}),
    "unidirectional": ("mamba_unet_unidirectional", {"preset": "paper"}),
    "bidirectional": ("mamba_unet_bidirectional", {"preset": "paper"}),
    "multidirectional": ("mamba_unet_multidirectional", {"preset": "paper"}),
    "multidirectional, released": ("mamba_unet_multidirectional", {"preset": "released"}),
}
ENGINES = ("fused", "pytorch", "pytorch bfloat16")
"""The last one is PyTorch's autocast: a comparison only, the product does not use it."""


@dataclass(frozen=True)
class Row:
    """One network with one engine on one plan's patch; seconds of every repeat after the first run."""

    plan: str
    network: str
    engine: str
    patch: tuple[int, ...]
    threads: int
    first_s: float
    wall_s: list[float]
    processor_s: list[float]
    peak_gib: float


def measure(plan_name: str, network_name: str, engine: str, threads: int | None, repeats: int) -> Row:
    """Run one network, in this process."""
    import torch
    from MambaSegTraining.named_plans import named_plan
    from torch import nn

    from MambaSegLib.cpu.network import prepared
    from MambaSegLib.networks import create_network

    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    name, options = NETWORKS[network_name]
    plan = replace(named_plan(plan_name, name, options).plan.network, deep_supervision=False)
    network = create_network(plan).eval().requires_grad_(False)
    if network_name == "no Mamba":
        network.encoder.after_stage = nn.ModuleList(nn.Identity() for _ in plan.stages)
    (ready,) = prepared([network], engine.split()[0], torch.device("cpu"))
    ready.eval()
    image = torch.randn(1, plan.in_channels, *plan.patch_size)
    times: list[tuple[float, float]] = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled="bfloat16" in engine):
        for _ in range(repeats + 1):
            start, used = time.perf_counter(), time.process_time()
            ready(image)
            times.append((time.perf_counter() - start, time.process_time() - used))
    walls, used_s = zip(*times[1:], strict=True)
    return Row(
        plan_name,
        network_name,
        engine,
        plan.patch_size,
        torch.get_num_threads(),
        times[0][0],
        list(walls),
        list(used_s),
        peak_gib(),
    )


def table(rows: list[Row]) -> str:
    """Markdown, with times as multiples of the network without Mamba layers in PyTorch."""
    lines = [
        "| plan | patch | network | engine | time s | processor s | x no Mamba in PyTorch | x no Mamba, same engine | peak GiB |",
        "|---|---|---|---|--:|--:|--:|--:|--:|",
    ]
    used = {(row.plan, row.network, row.engine): statistics.median(row.processor_s) for row in rows}
    for row in rows:
        mine = used[row.plan, row.network, row.engine]
        ratios = [
            f"{mine / used[row.plan, 'no Mamba', engine]:.2f}" if (row.plan, "no Mamba", engine) in used else ""
            for engine in ("pytorch", row.engine)
        ]
        lines.append(
            f"| {row.plan} | {' x '.join(map(str, row.patch))} | {row.network} | {row.engine} "
            f"| {statistics.median(row.wall_s):.2f} | {mine:.2f} | {' | '.join(ratios)} | {row.peak_gib:.2f} |"
        )
    return "\n".join(lines)


def computer() -> str:
    """What the numbers were measured on."""
    from MambaSegLib.cpu.choice import computer as described

    return f"{described()}, {platform.platform()}, Python {platform.python_version()}"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", nargs="+", choices=PLANS, default=list(PLANS))
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--threads", type=int, help="default: all cores")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("bench_network"), help="without suffix")
    parser.add_argument("--here", action="store_true", help="measure the first choice in this process and print JSON")
    options = parser.parse_args()
    if options.here:
        row = measure(options.plans[0], options.networks[0], options.engines[0], options.threads, options.repeats)
        print(json.dumps(asdict(row)))
        return
    rows: list[Row] = []
    for plan in options.plans:
        for network in options.networks:
            for engine in options.engines:
                command = [
                    sys.executable,
                    __file__,
                    "--here",
                    "--plans",
                    plan,
                    "--networks",
                    network,
                    "--engines",
                    engine,
                ]
                command += ["--repeats", str(options.repeats)]
                command += ["--threads", str(options.threads)] if options.threads else []
                found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                rows.append(Row(**json.loads(found.splitlines()[-1])))
                print(table(rows[-1:]).splitlines()[-1], flush=True)
    text = f"{table(rows)}\n\nMedians of {options.repeats}. {computer()}\n"
    content = {"computer": computer(), "rows": [asdict(row) for row in rows]}
    publish(options.output, text, content)


if __name__ == "__main__":
    main()
