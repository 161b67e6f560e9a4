"""All folds of one or several runs: trained and validated in jobs of their own, here or on a SLURM cluster, by submitit.

A fold that is done is left alone and one that was interrupted goes on from its checkpoint, so the same call again
finishes what is missing. A fold that fails takes no other with it.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from MambaSegLib.errors import EnvironmentProblemError, InputError, MambaSegError
from MambaSegTraining.files import read_json, write_json
from MambaSegTraining.run_folder import RunFolder
from MambaSegTraining.scores import SCORES_FILE

Executor = Literal["local", "slurm"]
Status = Literal["done", "was done", "failed", "submitted", "running"]
SUBMITTED_FILE = "submitted.json"
POLL_S = 1.0
TIMEOUTS = 20
"""How often SLURM may stop a fold at its time limit and start it again; it continues from its checkpoint."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FoldTask:
    """One fold to train and validate.

    Attributes:
        run: Folder of the run, planned and preprocessed.
        fold: Number of the fold.
        arguments: Options of `mambaseg-train train` and `validate` alike: --device, --threads, --scan.
        train_arguments: Options of `train` only: --workers.
    """

    run: Path
    fold: int
    arguments: tuple[str, ...] = ()
    train_arguments: tuple[str, ...] = ()

    @property
    def is_trained(self) -> bool:
        """Whether the final weights are there."""
        return self.fold in RunFolder(self.run).trained_folds()

    @property
    def is_done(self) -> bool:
        """Whether the final weights are there and were validated since."""
        scores = RunFolder(self.run).fold(self.fold) / "validation" / SCORES_FILE
        if not self.is_trained or not scores.is_file():
            return False
        weights = RunFolder(self.run).require_weights(self.fold)
        return scores.stat().st_mtime_ns >= weights.stat().st_mtime_ns


@dataclass(frozen=True)
class JobSettings:
    """Where the folds are computed.

    Attributes:
        executor: "local": processes on this computer; "slurm": a job array.
        parallel: Folds at a time.
        devices: Device per place, for "local", such as ("cuda:0", "cuda:1"); () leaves the choice to each fold.
        minutes: Time limit of a job.
        cpus: Cores per job.
        memory_gb: Memory per job.
        gpus: GPUs per job.
        partition: SLURM's partition; "" for its default.
        account: SLURM's account; "" for its default.
    """

    executor: Executor = "local"
    parallel: int = 1
    devices: tuple[str, ...] = ()
    minutes: int = 24 * 60
    cpus: int = 8
    memory_gb: int = 32
    gpus: int = 1
    partition: str = ""
    account: str = ""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            InputError: Naming the setting.
        """
        if min(self.parallel, self.minutes, self.cpus, self.memory_gb) < 1 or self.gpus < 0:
            msg = f"parallel, minutes, cpus and memory must be 1 or more, and gpus 0 or more; found {self}."
            raise InputError(msg)


@dataclass(frozen=True)
class FoldOutcome:
    """What became of a fold.

    Attributes:
        run: Folder of the run.
        fold: Number of the fold.
        status: "was done" before; "done" now; "failed"; "submitted" or "running" on the cluster.
        minutes: Wall time, of folds that ran here.
        reason: Last line of the error.
        log: Where more is told.
    """

    run: Path
    fold: int
    status: Status
    minutes: float = 0.0
    reason: str = ""
    log: str = ""


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
        if not task.is_trained:
            self._run("train", task, ("--resume", *task.train_arguments))
        self._run("validate", task, ())

    def checkpoint(self, task: FoldTask) -> Any:
        """Called by submitit before SLURM ends the job: have it queued again, to go on from the last checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, task)

    def _run(self, name: str, task: FoldTask, more: Sequence[str]) -> None:
        from MambaSegTraining.__main__ import main

        words = [name, str(task.run), "--fold", str(task.fold), *task.arguments, *more]
        code = (self.step or main)(words)
        if code:
            msg = f"mambaseg-train {' '.join(words)} ended with exit code {code}; its last words are in the log."
            raise MambaSegError(msg)


def cross_validate(
    tasks: Sequence[FoldTask],
    settings: JobSettings,
    folder: Path,
    *,
    work: FoldWork | None = None,
    on_outcome: Callable[[FoldOutcome], None] = lambda outcome: None,
) -> tuple[FoldOutcome, ...]:
    """Have all folds trained and validated.

    "local" returns when all have ended; "slurm" when all are submitted (call again to see what became of them).

    Args:
        tasks: The folds.
        settings: Where.
        folder: For logs and submitit's files.
        work: What a job does.
        on_outcome: Called as soon as something is known about a fold.

    Returns:
        One outcome per task, in their order.

    Raises:
        EnvironmentProblemError: If submitit is not installed, or there is no SLURM.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [task for task in tasks if not task.is_done]
    outcomes = {_key(task): FoldOutcome(task.run, task.fold, "was done") for task in tasks if task.is_done}
    for outcome in outcomes.values():
        on_outcome(outcome)
    run = _run_here if settings.executor == "local" else _submit_to_slurm
    for outcome in run(missing, settings, folder, work or FoldWork()) if missing else ():
        outcomes[outcome.run, outcome.fold] = outcome
        on_outcome(outcome)
    return tuple(outcomes[_key(task)] for task in tasks)


def all_tasks(runs: Sequence[Path], folds: Sequence[int] = (), **arguments: tuple[str, ...]) -> tuple[FoldTask, ...]:
    """Every fold of every run, or the given ones.

    Raises:
        InputError: If a run is not planned or has no such fold.
    """
    tasks = []
    for run in runs:
        count = len(RunFolder(run).read_splits().folds)
        unknown = sorted(set(folds) - set(range(count)))
        if unknown:
            msg = f"{run} has the folds 0 to {count - 1}, not {', '.join(map(str, unknown))}."
            raise InputError(msg)
        tasks += [FoldTask(run.resolve(), fold, **arguments) for fold in folds or range(count)]
    return tuple(tasks)


def outcome_table(outcomes: Sequence[FoldOutcome]) -> str:
    """A line per fold, failed ones with their reason, and how many of each."""
    width = max((len(outcome.run.name) for outcome in outcomes), default=3)
    lines = [f"{'run':{width}}  fold  status     minutes"]
    for outcome in outcomes:
        time_text = f"{outcome.minutes:7.1f}" if outcome.minutes else "      -"
        lines.append(f"{outcome.run.name:{width}}  {outcome.fold:4d}  {outcome.status:9}  {time_text}")
        if outcome.reason:
            lines.append(f"{'':{width}}        {outcome.reason}\n{'':{width}}        log: {outcome.log}")
    counts = [(status, sum(outcome.status == status for outcome in outcomes)) for status in
              ("done", "was done", "running", "submitted", "failed")]  # fmt: skip
    return "\n".join([*lines, ", ".join(f"{count} {status}" for status, count in counts if count)])


def make_executor(settings: JobSettings, folder: Path) -> Any:
    """The submitit executor of these settings.

    Raises:
        EnvironmentProblemError: If submitit is not installed, or there is no SLURM.
    """
    try:
        import submitit
    except ImportError as error:
        msg = "Cross-validation needs submitit: pip install 'mambasegmentation[train]'."
        raise EnvironmentProblemError(msg) from error
    try:
        executor = submitit.AutoExecutor(folder, cluster=settings.executor, slurm_max_num_timeout=TIMEOUTS)
    except RuntimeError as error:
        msg = f"This computer has no SLURM ({error}). Log in to the cluster, or take --executor local."
        raise EnvironmentProblemError(msg) from error
    executor.update_parameters(name="mambaseg", timeout_min=settings.minutes)
    if settings.executor == "slurm":
        chosen = {"slurm_partition": settings.partition, "slurm_account": settings.account}
        executor.update_parameters(
            nodes=1,
            tasks_per_node=1,
            cpus_per_task=settings.cpus,
            mem_gb=settings.memory_gb,
            gpus_per_node=settings.gpus,
            slurm_array_parallelism=settings.parallel,
            **{name: value for name, value in chosen.items() if value},
        )
    return executor


def _run_here(tasks: Sequence[FoldTask], settings: JobSettings, folder: Path, work: FoldWork) -> Iterator[FoldOutcome]:
    """Keep `parallel` jobs going until all have ended; interrupted, ask them to save a checkpoint and stop."""
    executor = make_executor(settings, folder)
    waiting, places = deque(tasks), deque(settings.devices or [""] * settings.parallel)
    running: list[tuple[Any, FoldTask, str, float]] = []
    try:
        while waiting or running:
            while waiting and places:
                task, device = waiting.popleft(), places.popleft()
                placed = _on_device(task, device)
                job = executor.submit(work, placed)
                log.info("%s fold %d: started, its log is %s", task.run.name, task.fold, job.paths.stderr)
                running.append((job, task, device, time.monotonic()))
            ended = [entry for entry in running if entry[0].done()]
            for entry in ended:
                running.remove(entry)
                places.append(entry[2])
                yield _outcome(entry[0], entry[1], (time.monotonic() - entry[3]) / 60)
            if not ended:
                time.sleep(POLL_S)
    finally:
        for job, *_ in running:
            job.cancel(check=False)


def _submit_to_slurm(
    tasks: Sequence[FoldTask], settings: JobSettings, folder: Path, work: FoldWork
) -> Iterator[FoldOutcome]:
    """Submit the folds that are not on the cluster already, as one job array."""
    executor = make_executor(settings, folder)
    known = _still_there(folder)
    for task in tasks:
        if _key(task) in known:
            yield FoldOutcome(task.run, task.fold, "running", log=str(known[_key(task)].paths.stderr))
    fresh = [task for task in tasks if _key(task) not in known]
    if not fresh:
        return
    jobs = executor.map_array(work, fresh)
    noted = [Submitted(str(run), fold, job.job_id) for (run, fold), job in known.items()]
    noted += [Submitted(str(task.run), task.fold, job.job_id) for task, job in zip(fresh, jobs, strict=True)]
    write_json(folder / SUBMITTED_FILE, SubmittedJobs(tuple(noted)))
    for task, job in zip(fresh, jobs, strict=True):
        yield FoldOutcome(task.run, task.fold, "submitted", log=str(job.paths.stderr))


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


def _outcome(job: Any, task: FoldTask, minutes: float) -> FoldOutcome:
    error = _error(job)
    if error is None:
        return FoldOutcome(task.run, task.fold, "done", minutes)
    return FoldOutcome(task.run, task.fold, "failed", minutes, error, str(job.paths.stderr))


def _error(job: Any) -> str | None:
    """Last line of what went wrong in a job that has ended; None if nothing did."""
    import submitit

    try:
        error = job.exception()
    except submitit.core.utils.UncompletedJobError as unfinished:
        return f"the job ended without a result; was it killed? ({str(unfinished).splitlines()[0]})"
    if error is None:
        return None
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # submitit puts the traceback between two rules, and below them where the logs are.
    rules = [number for number, line in enumerate(lines) if set(line) == {"-"}]
    told = lines[: rules[-1]] if rules else lines
    return told[-1] if told else type(error).__name__


def _on_device(task: FoldTask, device: str) -> FoldTask:
    if not device:
        return task
    return FoldTask(task.run, task.fold, (*task.arguments, "--device", device), task.train_arguments)


def _key(task: FoldTask) -> tuple[Path, int]:
    return task.run, task.fold
