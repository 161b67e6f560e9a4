"""What a GPU makes of the scan, the Mamba layer, whole networks and a whole CT; one command, one process, medians.

    python Testing/benchmarks/bench_gpu.py                                # everything, on the first CUDA device
    python Testing/benchmarks/bench_gpu.py --tune --only scan             # first find the fastest division of each scan
    python Testing/benchmarks/bench_gpu.py --only layer networks --repeats 10 --output results/h100
    python Testing/benchmarks/bench_gpu.py --device cpu --tiny            # do the benchmarks themselves work?

Prints Markdown tables as they come, and writes all of them to OUTPUT.md and every single measurement to OUTPUT.json. The
first variant of each case is the baseline: mamba_ssm, or the layer as the paper's released code computes it. A variant that
cannot run here says why. `--tune` keeps what it finds for this GPU in the user's cache folder (`triton_tuning`). Without a GPU it
says so and ends, with exit code 3 if the device was asked for.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path

HERE = Path(__file__).resolve().parent
for folder in (HERE / "gpu", HERE / "common", HERE.parents[1] / "Training", HERE.parents[1]):
    sys.path.insert(0, str(folder))

import torch
from measuring import Row, Settings, as_json, computer, markdown

from MambaSegLib.devices import resolve_device
from MambaSegLib.errors import MambaSegError

PARTS = ("scan", "layer", "networks", "ct")


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", help="default: the first CUDA device")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="sizes for a CPU; the figures mean nothing then")
    parser.add_argument("--tune", action="store_true", help="search the fastest division of each scan first")
    parser.add_argument("--plans", nargs="+", default=["synapse", "acdc", "braintumour"], help="of the networks")
    parser.add_argument("--networks", nargs="+", default=[], help="by name (default: the paper's and nnU-Net's)")
    parser.add_argument("--output", type=Path, default=Path("bench_gpu"), help="without suffix")
    options = parser.parse_args()
    asked_for, options.device = options.device is not None, options.device or "cuda"
    try:
        resolve_device(options.device)
    except MambaSegError as error:
        print(f"{error}\nNothing was measured; --device cpu --tiny shows that the benchmarks work.")
        return error.exit_code if asked_for else 0
    if options.tiny:
        torch.set_num_threads(1)  # threads that wait for one another take longer than the work
    settings = Settings(options.device, options.repeats, options.tiny, tuple(options.plans), tuple(options.networks))
    host = computer(options.device)
    print(", ".join(f"{key}: {value}" for key, value in host.items()), flush=True)
    if options.tune:
        for line in import_module("scan").tune(settings):
            print(line, flush=True)
    rows: list[Row] = []
    for part in options.only:
        for table in import_module(part).measure(settings):
            print(f"\n{markdown(table)}", flush=True)
            rows += table
            _write(options.output, host, rows)
    return 0


def _write(output: Path, host: dict[str, str], rows: list[Row]) -> None:
    """After every table: an interruption loses none."""
    output.parent.mkdir(parents=True, exist_ok=True)
    footer = ", ".join(f"{key}: {value}" for key, value in host.items())
    output.with_suffix(".md").write_text(f"{markdown(rows)}\n\n{footer}\n", encoding="utf-8")
    content = {"computer": host, "rows": as_json(rows)}
    output.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
