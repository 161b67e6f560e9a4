"""`mambaseg-train cross-validate`: all folds of one or more runs, here or on a cluster."""

from __future__ import annotations

import argparse
from pathlib import Path

from MambaSegTraining.commands import AddStep


def add_cross_validate(step: AddStep) -> None:
    """Add the step."""
    fan_out = step("cross-validate", run_cross_validate, "Train and validate all folds of one or more runs.")
    fan_out.add_argument("run_dir", type=Path, nargs="+", help="folders of the runs, planned and preprocessed")
    fan_out.add_argument("--fold", type=int, action="append", help="only this fold (again for more)")
    fan_out.add_argument("--executor", choices=("local", "slurm"), default="local", help="where (%(default)s)")
    fan_out.add_argument("--parallel", type=int, default=1, help="folds at a time (default: %(default)s)")
    fan_out.add_argument("--device", action="append", help="local: a device to keep busy (again for more)")
    fan_out.add_argument("--threads", type=int, help="threads for computing on the CPU, per fold")
    fan_out.add_argument("--scan", default="auto", help="backend of the selective scan (default: %(default)s)")
    fan_out.add_argument("--workers", type=int, default=1, help="processes that make batches, per fold (%(default)s)")
    fan_out.add_argument("--jobs", type=Path, help="folder for logs (default: cross_validation beside the first run)")
    fan_out.add_argument("--minutes", type=int, default=1440, help="slurm: time limit per job (default: %(default)s)")
    fan_out.add_argument("--cpus", type=int, default=8, help="slurm: cores per fold (default: %(default)s)")
    fan_out.add_argument("--memory-gb", type=int, default=32, help="slurm: memory per fold (default: %(default)s)")
    fan_out.add_argument("--gpus", type=int, default=1, help="slurm: GPUs per fold (default: %(default)s)")
    fan_out.add_argument("--partition", default="", help="slurm: partition")
    fan_out.add_argument("--account", default="", help="slurm: account")


def run_cross_validate(options: argparse.Namespace) -> int:
    """Step `cross-validate`; ends with 1 if a fold failed."""
    from MambaSegTraining.cross_validation import cross_validate
    from MambaSegTraining.fold_tasks import JobSettings, all_tasks, outcome_table

    common = ["--scan", options.scan, *(["--threads", str(options.threads)] if options.threads else [])]
    tasks = all_tasks(
        options.run_dir,
        tuple(options.fold or ()),
        arguments=tuple(common),
        train_arguments=("--workers", str(options.workers)),
    )
    settings = JobSettings(
        executor=options.executor, parallel=options.parallel, devices=tuple(options.device or ()),
        minutes=options.minutes, cpus=options.cpus, memory_gb=options.memory_gb, gpus=options.gpus,
        partition=options.partition, account=options.account,
    )  # fmt: skip
    folder = options.jobs or options.run_dir[0].resolve().parent / "cross_validation"
    try:
        outcomes = cross_validate(
            tasks,
            settings,
            folder,
            on_outcome=lambda one: print(f"{one.run.name} fold {one.fold}: {one.status}", flush=True),
        )
    except KeyboardInterrupt:
        print("Stopped; the same command goes on.", flush=True)
        raise
    print(outcome_table(outcomes))
    _print_scores(options.run_dir)
    return 1 if any(outcome.status == "failed" for outcome in outcomes) else 0


def _print_scores(runs: list[Path]) -> None:
    from MambaSegTraining.run_folder import RunFolder
    from MambaSegTraining.scores import read_scores
    from MambaSegTraining.validation import summarize

    for run in runs:
        if read_scores(RunFolder(run)):
            print(f"\n{run.name}\n{summarize(RunFolder(run))}")
