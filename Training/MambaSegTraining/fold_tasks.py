"""One fold to train and validate: what it is, whether it is done, which commands do it, what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from MambaSegLib.errors import InputError
from MambaSegTraining.run_folder import RunFolder
from MambaSegTraining.scores import SCORES_FILE

Executor = Literal["local", "slurm"]
Status = Literal["done", "was done", "failed", "submitted", "running"]


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
    def key(self) -> tuple[Path, int]:
        """What tells it from other folds."""
        return self.run, self.fold

    @property
    def is_trained(self) -> bool:
        """Whether the final weights are there."""
        return self.fold in RunFolder(self.run).trained_folds()

    @property
    def is_done(self) -> bool:
        """Whether the final weights are there and were validated since."""
        scores = RunFolder(self.run).validation(self.fold) / SCORES_FILE
        if not self.is_trained or not scores.is_file():
            return False
        weights = RunFolder(self.run).require_weights(self.fold)
        return scores.stat().st_mtime_ns >= weights.stat().st_mtime_ns

    @property
    def commands(self) -> tuple[tuple[str, ...], ...]:
        """What is left to do, as words after `mambaseg-train`: train, unless that is done, and validate."""
        about = (str(self.run), "--fold", str(self.fold), *self.arguments)
        train = ("train", *about, "--resume", *self.train_arguments)
        validate = ("validate", *about)
        return (validate,) if self.is_trained else (train, validate)

    def on_device(self, device: str) -> FoldTask:
        """The same on a device; "" leaves the choice to the commands."""
        return replace(self, arguments=(*self.arguments, "--device", device)) if device else self


@dataclass(frozen=True)
class JobSettings:
    """Where the folds are computed.

    Attributes:
        executor: "local": processes on this computer; "slurm": a job array.
        parallel: Folds at a time.
        devices: Device per place, for "local", such as ("cuda:0", "cuda:1"); () leaves the choice to each fold.
        minutes: Time limit of a job on a cluster.
        cpus: Cores per job on a cluster.
        memory_gb: Memory per job on a cluster.
        gpus: GPUs per job on a cluster.
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
        if self.devices and self.parallel not in (1, len(self.devices)):
            msg = (
                f"--parallel {self.parallel} and {len(self.devices)} device(s) contradict each other: each --device is a place for "
                "one fold at a time. Leave out --parallel, and name a device twice to give it two folds."
            )
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
