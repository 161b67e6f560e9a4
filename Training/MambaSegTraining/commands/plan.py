"""`mambaseg-train plan`: check a data set, read its fingerprint, choose plan and folds, and look for leaks between them."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from MambaSegTraining.commands import AddStep
from MambaSegTraining.files import write_json
from MambaSegTraining.run_folder import RunFolder

if TYPE_CHECKING:
    from MambaSegLib.plan import Plan
    from MambaSegTraining.leakage import LeakageRecord


def add_plan(step: AddStep) -> None:
    """Add the step."""
    plan = step("plan", run_plan, "Check a data set, read its fingerprint, choose plan and folds.")
    plan.add_argument("dataset", type=Path, help="folder in nnU-Net v2's raw layout (dataset.json)")
    plan.add_argument("run_dir", type=Path, help="folder of the run; made if it is not there")
    plan.add_argument("--config", type=Path, help="TOML file with settings; without it, the defaults")
    plan.add_argument("--workers", type=int, help="processes that read cases (default: one per core)")
    plan.add_argument(
        "--force-leaks", action="store_true", help="go on although folds leak; report and bundle will tell"
    )


def run_plan(options: argparse.Namespace) -> int:
    """Step `plan`."""
    from MambaSegTraining.commands.bars import case_bar
    from MambaSegTraining.dataset import read_dataset
    from MambaSegTraining.fingerprint import default_workers, take_fingerprint
    from MambaSegTraining.leakage import CaseContent, check_leakage
    from MambaSegTraining.memory_budget import describe_memory
    from MambaSegTraining.planning import make_plan
    from MambaSegTraining.replanning import check_trained_folds
    from MambaSegTraining.settings import Settings, completed, read_settings
    from MambaSegTraining.split_choice import splits_of

    settings = read_settings(options.config) if options.config else Settings()
    dataset = read_dataset(options.dataset.resolve())
    settings = completed(settings, dataset.name, dataset.license)
    splits = splits_of(dataset, settings)
    check_leakage(splits, force=options.force_leaks)  # by name, before the images take their time
    contents: list[CaseContent] = []
    workers = default_workers() if options.workers is None else options.workers
    with case_bar("Reading", len(dataset.cases)) as advance:
        fingerprint = take_fingerprint(dataset, workers, advance, contents.append, splits.test)
    leakage = check_leakage(splits, contents, force=options.force_leaks)
    plan = make_plan(dataset, fingerprint, settings)
    run = RunFolder(options.run_dir)
    check_trained_folds(run, plan, splits)
    run.path.mkdir(parents=True, exist_ok=True)
    write_json(run.settings_file, settings)
    write_json(run.fingerprint_file, fingerprint)
    write_json(run.plan_file, plan)
    write_json(run.splits_file, splits)
    write_json(run.leakage_file, leakage)
    recomputing = replace(settings, recipe=replace(settings.recipe, recompute=True))
    memory = describe_memory(plan, settings, make_plan(dataset, fingerprint, recomputing))
    print(_describe(run, len(dataset.cases), leakage, memory))
    return 0


def _describe(run: RunFolder, cases: int, leakage: LeakageRecord, memory: str) -> str:
    plan, splits = run.read_plan(), run.read_splits()
    spacing = " x ".join(f"{length:g}" for length in plan.spacing_mm)
    stages = ", ".join(str(stage.features) for stage in plan.network.stages)
    held_out = f", {len(splits.test)} cases held out" if splits.test else ""
    lines = [
        f"{cases} cases; {len(splits.folds)} folds grouped by {splits.grouped_by} ({splits.source}){held_out}",
        splits.note,
        leakage.describe(),
        _describe_regions(plan),
        f"network {plan.network.name}, features {stages}",
        f"patch {plan.patch_size}, spacing {spacing} mm, orientation {plan.orientation}",
        memory,
        f"written to {run.path}",
    ]
    return "\n".join(line for line in lines if line)


def _describe_regions(plan: Plan) -> str:
    values = [f"{region.name} ({'+'.join(map(str, region.labels))})" for region in plan.regions]
    parts = [f"regions {', '.join(values)}"] if values else []
    parts += [] if plan.ignore_value is None else [f"voxels of value {plan.ignore_value} are ignored"]
    return "; ".join(parts)
