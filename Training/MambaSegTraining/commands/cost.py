"""`mambaseg-train cost`: parameters, multiply-adds, memory and time of networks, side by side."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from MambaSegTraining.commands import AddStep

if TYPE_CHECKING:
    from MambaSegTraining.costs.compute import MeasureSettings
    from MambaSegTraining.costs.records import NetworkCost
    from MambaSegTraining.costs.targets import Target
    from MambaSegTraining.run_folder import RunFolder


def add_cost(step: AddStep) -> None:
    """Add the step."""
    cost = step("cost", run_cost, "Count and measure what networks cost: parameters, multiply-adds, memory, time.")
    cost.add_argument(
        "--plan", action="append", default=[],
        help="acdc, braintumour, synapse or a plan.json (again for more; default: these three, unless --run is given)",
    )  # fmt: skip
    cost.add_argument(
        "--network", action="append", default=[], help="network on the plans (again for more; default: all)"
    )
    cost.add_argument("--preset", help="preset of the networks that have some: released (default) or paper")
    cost.add_argument(
        "--run",
        dest="runs",
        type=Path,
        action="append",
        default=[],
        help="folder of a run, gets a cost.json (again for more)",
    )
    cost.add_argument(
        "-o", "--output", type=Path, help="folder for costs.md, costs.json and, for validated runs, costs.png"
    )
    cost.add_argument("--no-measure", action="store_true", help="count only, in seconds")
    cost.add_argument(
        "--patch", type=int, nargs=3, metavar=("Z", "Y", "X"), help="measure this patch instead of the plan's"
    )
    cost.add_argument("--batch-size", type=int, help="measure this batch instead of the plan's or the run's")
    cost.add_argument(
        "--precision", choices=("bf16", "fp16", "off"), help="of the training step instead of the recipe's (bf16)"
    )
    cost.add_argument(
        "--repeats", type=int, default=3, help="steps and patches the medians are of (default: %(default)s)"
    )
    cost.add_argument(
        "--max-minutes", type=float, help="give a network up after this time, for training and for prediction"
    )
    cost.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: %(default)s)")
    cost.add_argument(
        "--threads", type=int, default=0, help="threads for computing on the CPU (default: PyTorch's choice)"
    )
    cost.add_argument("--scan", default="auto", help="backend of the selective scan (default: %(default)s)")


def run_cost(options: argparse.Namespace) -> int:
    """Step `cost`."""
    from MambaSegLib.manifest import utc_now
    from MambaSegTraining.costs.compute import cost_of
    from MambaSegTraining.costs.counting import CONVENTION
    from MambaSegTraining.costs.plot import Point, draw_costs, mean_dsc
    from MambaSegTraining.costs.records import CostReport, write_cost
    from MambaSegTraining.costs.tables import as_markdown
    from MambaSegTraining.files import write_json, write_text
    from MambaSegTraining.provenance import code_version

    settings = _measure_settings(options)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)  # before the work, so that a bad path costs nothing
    costs: list[NetworkCost] = []
    points: list[Point] = []
    for target, run in _targets(options):
        cost = cost_of(target, settings)
        print(_line(cost), flush=True)
        costs.append(cost)
        if run is not None:
            write_cost(run, cost)
            dsc = mean_dsc(run)
            if dsc is not None and cost.measured is not None:
                points.append(Point(cost, dsc))
    if options.output is not None:
        write_json(options.output / "costs.json", CostReport(utc_now(), code_version(), CONVENTION, tuple(costs)))
        write_text(options.output / "costs.md", as_markdown(costs))
        if points:
            draw_costs(points, options.output / "costs.png")
        print(options.output / "costs.md")
    return 0


def _targets(options: argparse.Namespace) -> list[tuple[Target, RunFolder | None]]:
    from MambaSegTraining.costs.targets import target_of_run, targets_of_plan
    from MambaSegTraining.named_plans import NAMED_PLANS
    from MambaSegTraining.run_folder import RunFolder

    plans = options.plan or ([] if options.runs else NAMED_PLANS)
    preset = {"preset": options.preset} if options.preset else None
    found: list[tuple[Target, RunFolder | None]] = [
        (target, None) for plan in plans for target in targets_of_plan(plan, options.network, preset)
    ]
    runs = [RunFolder(path) for path in options.runs]
    return found + [(target_of_run(run), run) for run in runs]


def _measure_settings(options: argparse.Namespace) -> MeasureSettings | None:
    if options.no_measure:
        return None
    from MambaSegTraining.commands.device import device_of
    from MambaSegTraining.costs.compute import MeasureSettings

    minutes = options.max_minutes
    return MeasureSettings(
        device=device_of(options),
        threads=options.threads,
        scan=options.scan,
        repeats=options.repeats,
        patch_size=tuple(options.patch) if options.patch else None,
        batch_size=options.batch_size,
        precision=options.precision,
        timeout_s=None if minutes is None else 60 * minutes,
    )


def _line(cost: NetworkCost) -> str:
    if cost.macs is None or cost.parameters is None:
        return f"{cost.dataset} {cost.network}: {cost.problem}"
    text = f"{cost.dataset} {cost.network}: {cost.parameters / 1e6:.2f} M parameters, {cost.macs.total / 1e9:.2f} GMACs"
    if cost.measured is not None:
        text += f", training step {cost.measured.training_step_s:.3g} s, image {cost.measured.volume_s:.3g} s"
    return f"{text}; {cost.problem}" if cost.problem else text
