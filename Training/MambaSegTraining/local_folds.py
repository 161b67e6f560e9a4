"""Folds computed on this computer, each in processes of its own: the commands a person would type, with a log."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from MambaSegTraining.fold_tasks import FoldOutcome, FoldTask, JobSettings

POLL_S = 1.0
PROGRAM = (sys.executable, "-m", "MambaSegTraining")
"""How `mambaseg-train` is started."""
SAYS = "mambaseg-train: "
"""What its error messages begin with."""

log = logging.getLogger(__name__)


def run_here(
    tasks: Sequence[FoldTask], settings: JobSettings, folder: Path, program: Sequence[str] = PROGRAM
) -> Iterator[FoldOutcome]:
    """Keep as many folds going as there are places until all have ended.

    Interrupted, it asks those that run to save a checkpoint and waits for that; interrupted again, it ends them at once.

    Args:
        tasks: The folds.
        settings: Give the places.
        folder: For the logs.
        program: What the words of `FoldTask.commands` are handed to.
    """
    waiting, places = deque(tasks), deque(settings.devices or [""] * settings.parallel)
    running: list[LocalFold] = []
    try:
        while waiting or running:
            while waiting and places:
                running.append(LocalFold(waiting.popleft(), places.popleft(), folder, program))
            ended = [fold for fold in running if fold.exit_code() is not None]
            for fold in ended:
                running.remove(fold)
                places.append(fold.device)
                yield fold.outcome()
            if not ended:
                time.sleep(POLL_S)
    finally:
        _stop(running)


def _stop(running: Sequence[LocalFold]) -> None:
    if not running:
        return
    log.info("Waiting until %d fold(s) have saved a checkpoint; Ctrl-C ends them at once.", len(running))
    for fold in running:
        fold.interrupt()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)  # the next one comes back here, to kill
    try:
        while any(fold.exit_code() is None for fold in running):
            time.sleep(min(POLL_S, 0.2))
    finally:
        for fold in running:
            fold.kill()


class LocalFold:
    """A fold that runs: training, unless that is done, and then validation.

    Attributes:
        device: What it was given to compute on; "" for its own choice.
    """

    def __init__(self, task: FoldTask, device: str, folder: Path, program: Sequence[str]) -> None:
        """Start the first command.

        Args:
            task: The fold.
            device: Device to compute on; "" leaves the choice to the commands.
            folder: For the log.
            program: What the commands are handed to.
        """
        self.device = device
        self._task, self._program = task, tuple(program)
        self._commands = deque(task.on_device(device).commands)
        self._start, self._is_stopping = time.monotonic(), False
        self._log = _new_log(folder, f"{task.run.name}_fold_{task.fold}")
        self._process = self._next_command()
        log.info("%s fold %d: started, its log is %s", task.run.name, task.fold, self._log)

    def exit_code(self) -> int | None:
        """Of the command that ended the fold, 0 if all went well; None while it runs."""
        code = self._process.poll()
        if code == 0 and self._commands and not self._is_stopping:
            self._process = self._next_command()
            return None
        return code

    def outcome(self) -> FoldOutcome:
        """What became of the fold, once it has ended."""
        minutes, code = (time.monotonic() - self._start) / 60, self._process.poll()
        if code == 0:
            return FoldOutcome(*self._task.key, "done", minutes)
        return FoldOutcome(*self._task.key, "failed", minutes, self._reason(code), str(self._log))

    def interrupt(self) -> None:
        """Ask the command to stop in order, as Ctrl-C does.

        Not by Ctrl-C's own signal: a process started from a shell's background ignores that one.
        """
        self._is_stopping = True
        if self._process.poll() is None and sys.platform != "win32":  # there, Ctrl-C has reached it already
            self._process.terminate()

    def kill(self) -> None:
        """End the command if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _next_command(self) -> subprocess.Popen[bytes]:
        command = [*self._program, *self._commands.popleft()]
        with self._log.open("ab") as stream:
            # A session of its own: a Ctrl-C in the terminal reaches this process only, which passes it on, once.
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
                                    start_new_session=sys.platform != "win32")  # fmt: skip

    def _reason(self, code: int | None) -> str:
        """The last thing the command said."""
        if code is not None and code < 0:
            return f"the process was ended by signal {-code}"
        lines = [line.strip() for line in self._log.read_text(encoding="utf-8", errors="replace").splitlines()]
        told = [line for line in lines if line.startswith(SAYS)] or [line for line in lines if line]
        return told[-1].removeprefix(SAYS) if told else f"ended with exit code {code}"


def _new_log(folder: Path, stem: str) -> Path:
    """Make an empty file that no other fold, and no earlier attempt, has."""
    number = 1
    while True:
        path = folder / (f"{stem}.log" if number == 1 else f"{stem}_{number}.log")
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            number += 1
        else:
            return path
