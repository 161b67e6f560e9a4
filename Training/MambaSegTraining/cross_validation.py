"""All folds of one or several runs: trained and validated in processes of their own, here or on a SLURM cluster.

A fold that is done is left alone and one that was interrupted goes on from its checkpoint, so the same call again
finishes what is missing. A fold that fails takes no other with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from MambaSegTraining.fold_tasks import FoldOutcome, FoldTask, JobSettings
from MambaSegTraining.local_folds import PROGRAM, run_here
from MambaSegTraining.slurm_folds import FoldWork, submit_to_slurm


def cross_validate(
    tasks: Sequence[FoldTask],
    settings: JobSettings,
    folder: Path,
    *,
    program: Sequence[str] = PROGRAM,
    work: FoldWork | None = None,
    on_outcome: Callable[[FoldOutcome], None] = lambda outcome: None,
) -> tuple[FoldOutcome, ...]:
    """Have all folds trained and validated.

    "local" returns when all have ended; "slurm" when all are submitted (call again to see what became of them).

    Args:
        tasks: The folds.
        settings: Where.
        folder: For logs and submitit's files.
        program: What is run here.
        work: What a job on the cluster does.
        on_outcome: Called as soon as something is known about a fold.

    Returns:
        One outcome per task, in their order.

    Raises:
        EnvironmentProblemError: If submitit or SLURM is needed and is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    outcomes = {task.key: FoldOutcome(*task.key, "was done") for task in tasks if task.is_done}
    missing = [task for task in tasks if task.key not in outcomes]
    for outcome in outcomes.values():
        on_outcome(outcome)
    for outcome in _run(missing, settings, folder, program, work or FoldWork()) if missing else ():
        outcomes[outcome.run, outcome.fold] = outcome
        on_outcome(outcome)
    return tuple(outcomes[task.key] for task in tasks)


def _run(
    tasks: Sequence[FoldTask], settings: JobSettings, folder: Path, program: Sequence[str], work: FoldWork
) -> Iterator[FoldOutcome]:
    if settings.executor == "local":
        return run_here(tasks, settings, folder, program)
    return submit_to_slurm(tasks, settings, folder, work)
