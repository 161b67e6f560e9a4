"""Folds computed on a SLURM cluster, as one job array, by submitit."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from MambaSegLib.errors import EnvironmentProblemError, MambaSegError
from MambaSegTraining.files import read_json, write_json
from MambaSegTraining.fold_tasks import FoldOutcome, FoldTask, JobSettings
from MambaSegTraining.interrupts import ignoring

SUBMITTED_FILE = "submitted.json"
TIMEOUTS = 20
"""How often SLURM may stop a fold at its time limit and start it again; it continues from its checkpoint."""


@dataclass(frozen=True)
class Submitted:
    """A fold that waits or runs on a cluster."""

    run: str
    fold: int
    job: str


@dataclass(frozen=True)
class SubmittedJobs:
    """All of them."""

    jobs: tuple[Submitted, ...] = ()


@dataclass
class FoldWork:
    """What a job does; submitit stores it in a file and calls it elsewhere.

    Attributes:
        step: Runs one step of `mambaseg-train` and returns its exit code; None: the command itself.
    """

    step: Callable[[Sequence[str]], int] | None = field(default=None)

    def __call__(self, task: FoldTask) -> None:
        """Train, unless that is done, and validate.

        Raises:
            MambaSegError: If a step ends with an error; the log tells which.
        """
        from MambaSegTraining.__main__ import main

        for words in task.commands:
            with ignoring(signal.SIGTERM):  # SLURM sends it before the signal that submitit queues the fold again by
                code = (self.step or main)(words)
            if code:
                msg = f"mambaseg-train {' '.join(words)} ended with exit code {code}; its last words are in the log."
                raise MambaSegError(msg)

    def checkpoint(self, task: FoldTask) -> Any:
        """Called by submitit before SLURM ends the job: have it queued again, to go on from the last checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, task)


def submit_to_slurm(
    tasks: Sequence[FoldTask], settings: JobSettings, folder: Path, work: FoldWork
) -> Iterator[FoldOutcome]:
    """Submit the folds that are not on the cluster already, as one job array.

    Raises:
        EnvironmentProblemError: If submitit is not installed, or there is no SLURM.
    """
    executor = make_executor(settings, folder)
    known = _still_there(folder)
    for task in tasks:
        if task.key in known:
            yield FoldOutcome(*task.key, "running", log=str(known[task.key].paths.stderr))
    fresh = [task for task in tasks if task.key not in known]
    if not fresh:
        return
    jobs = executor.map_array(work, fresh)
    noted = [Submitted(str(run), fold, job.job_id) for (run, fold), job in known.items()]
    noted += [Submitted(str(task.run), task.fold, job.job_id) for task, job in zip(fresh, jobs, strict=True)]
    write_json(folder / SUBMITTED_FILE, SubmittedJobs(tuple(noted)))
    for task, job in zip(fresh, jobs, strict=True):
        yield FoldOutcome(*task.key, "submitted", log=str(job.paths.stderr))


def make_executor(settings: JobSettings, folder: Path) -> Any:
    """The submitit executor of these settings.

    Raises:
        EnvironmentProblemError: If submitit is not installed, or there is no SLURM.
    """
    try:
        import submitit
    except ImportError as error:
        msg = "Jobs on a cluster need submitit: pip install 'mambasegmentation[train]'."
        raise EnvironmentProblemError(msg) from error
    try:
        executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=TIMEOUTS)
    except RuntimeError as error:
        msg = f"This computer has no SLURM ({error}). Log in to the cluster, or take --executor local."
        raise EnvironmentProblemError(msg) from error
    chosen = {"slurm_partition": settings.partition, "slurm_account": settings.account}
    executor.update_parameters(
        name="mambaseg",
        timeout_min=settings.minutes,
        nodes=1,
        tasks_per_node=1,
        cpus_per_task=settings.cpus,
        mem_gb=settings.memory_gb,
        gpus_per_node=settings.gpus,
        slurm_array_parallelism=settings.parallel,
        **{name: value for name, value in chosen.items() if value},
    )
    return executor


def _still_there(folder: Path) -> dict[tuple[Path, int], Any]:
    """Jobs of an earlier call that wait or run."""
    import submitit

    if not (folder / SUBMITTED_FILE).is_file():
        return {}
    noted = read_json(SubmittedJobs, folder / SUBMITTED_FILE).jobs
    jobs: dict[tuple[Path, int], Any] = {
        (Path(entry.run), entry.fold): submitit.SlurmJob(folder, entry.job) for entry in noted
    }
    return {key: job for key, job in jobs.items() if not job.done(force_check=True)}
