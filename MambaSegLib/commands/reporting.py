"""What a command tells: lines for a person, or with `--events` one JSON object a line for another program.

Events go to standard output, and nothing else does; everything else a library prints there is sent to standard error.
Every event has the key "event":

    {"event": "progress", "stage": "Predicting", "done": 3, "total": 8, "seconds_left": 12.5}
        stage: text for a person. seconds_left: for the whole work; null while unknown. In `batch` also
        "case": name, "case_number": from 1, "cases": how many.
    {"event": "log", "level": "info" | "warning", "message": "..."}
        A warning is for the person to read, e.g. an image unlike the training images.
    {"event": "result", ...}
        The work is done; the files are complete. `segment`: "output", "uncertainty", "statistics" (paths or null),
        "model", "model_version", "model_sha256", "folds", "device", "backend", "seconds" (phase -> s), "notices",
        "labels": [{"value", "name", "voxels", "volume_ml"}], "regions": the same for structures of several labels, with
        a value such as "1+2+3". `batch`: one per case with "case", "status" ("done", "skipped", "failed"), "message" and
        "output", and a last one with "cases", "done", "skipped", "failed" and "outcomes" (path of the table). `models
        install`: "name", "path". `models convert`: the same and "folds". `doctor`: what its --json prints.
    {"event": "error", "code": 2, "kind": "InputError", "message": "..."}
        The last event of work that failed; code is the exit code: 2 bad input or usage, 3 environment, 130 cancelled,
        1 a defect of the program.

Keys may be added; a reader ignores the ones it does not know. Text is ASCII, other letters as JSON escapes.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Protocol

from MambaSegLib.progress import Progress

Level = Literal["info", "warning"]
_SECONDS_BETWEEN_EVENTS = 0.1
_SECONDS_BETWEEN_LINES = 10.0


class Reporter(Protocol):
    """Where a command's words go."""

    def progress(self, progress: Progress, **details: object) -> None:
        """Tell how far the work has come."""

    def log(self, level: Level, message: str) -> None:
        """Tell something along the way."""

    def result(self, text: str, **details: object) -> None:
        """Tell what came out: `text` to a person, `details` to a program."""

    def error(self, code: int, kind: str, message: str) -> None:
        """Tell why the work ended."""


class HumanReporter:
    """Progress and notices on standard error, results on standard output."""

    def __init__(self, *, verbose: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with an empty line."""
        self._verbose = verbose
        self._clock = clock
        self._width = 0
        self._last: tuple[str, float] = ("", -_SECONDS_BETWEEN_LINES)
        self._told: set[str] = set()

    def progress(self, progress: Progress, **details: object) -> None:
        """Rewrite one line on a terminal; in a file, write a line now and then."""
        number, cases = details.get("case_number"), details.get("cases")
        prefix = f"[{number}/{cases}] " if number else ""
        line = prefix + progress_line(progress)
        if sys.stderr.isatty():
            self._rewrite(line)
            return
        stage, when = self._last
        now = self._clock()
        if progress.stage != stage or now - when >= _SECONDS_BETWEEN_LINES:
            self._last = (progress.stage, now)
            print(line, file=sys.stderr, flush=True)

    def log(self, level: Level, message: str) -> None:
        """Print warnings; print the rest only where asked to."""
        if (level == "warning" or self._verbose) and message not in self._told:
            self._told.add(message)
            self._rewrite("")
            print(f"{'Notice: ' if level == 'warning' else ''}{message}", file=sys.stderr, flush=True)

    def result(self, text: str, **details: object) -> None:
        """Print the text."""
        self._told.clear()
        self._rewrite("")
        print(text, flush=True)

    def error(self, code: int, kind: str, message: str) -> None:
        """Print the message."""
        self._rewrite("")
        print(f"mambaseg: {message}", file=sys.stderr, flush=True)

    def _rewrite(self, line: str) -> None:
        if not sys.stderr.isatty():
            return
        padding = " " * max(0, self._width - len(line))
        print(f"\r{line}{padding}", end="" if line else "\r", file=sys.stderr, flush=True)
        self._width = len(line)


class EventReporter:
    """One JSON object a line."""

    def __init__(self, write: Callable[[str], object], *, clock: Callable[[], float] = time.monotonic) -> None:
        """Hand each line to `write`."""
        self._write_line = write
        self._clock = clock
        self._last: tuple[str, float] = ("", 0.0)
        self._told: set[str] = set()

    def progress(self, progress: Progress, **details: object) -> None:
        """Write a progress event, at most ten a second but for the first and last of a stage."""
        stage, when = self._last
        now = self._clock()
        ends = progress.stage != stage or progress.done >= progress.total
        if ends or now - when >= _SECONDS_BETWEEN_EVENTS:
            self._last = (progress.stage, now)
            self._write("progress", asdict(progress) | details)

    def log(self, level: Level, message: str) -> None:
        """Write a log event, once: the library logs some notices that come with the result as well."""
        if message not in self._told:
            self._told.add(message)
            self._write("log", {"level": level, "message": message})

    def result(self, text: str, **details: object) -> None:
        """Write a result event."""
        self._told.clear()
        self._write("result", details)

    def error(self, code: int, kind: str, message: str) -> None:
        """Write an error event; the message goes to standard error, too, for logs."""
        self._write("error", {"code": code, "kind": kind, "message": message})
        print(f"mambaseg: {message}", file=sys.stderr, flush=True)

    def _write(self, event: str, details: Mapping[str, Any]) -> None:
        self._write_line(json.dumps({"event": event, **details}, allow_nan=False, default=str) + "\n")


def progress_line(progress: Progress) -> str:
    """E.g. "Predicting 37 % (3 of 8), about 2 min left"; just "Reading" where there is one step."""
    if progress.total <= 1:
        return progress.stage
    share = 100 * progress.done // max(progress.total, 1)
    left = "" if progress.seconds_left is None else f", about {duration(progress.seconds_left)} left"
    return f"{progress.stage} {share} % ({progress.done} of {progress.total}){left}"


def duration(seconds: float) -> str:
    """A time span in words: "12 s", "3 min 20 s", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def open_missing_streams() -> None:
    """Give a program that was started without them standard streams that lead nowhere.

    A scheduler or a Windows program without a console may start it so. Without them printing fails, and files that are
    opened take their places, in which libraries written in C print.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 (as long as the program)


@contextlib.contextmanager
def reporter(*, events: bool, verbose: bool = False) -> Iterator[Reporter]:
    """A reporter that also receives the library's log, for the time of one command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name no code page knows must not end the work
    with contextlib.ExitStack() as stack:
        person = HumanReporter(verbose=verbose)
        chosen: Reporter = EventReporter(stack.enter_context(_private_stdout())) if events else person
        stack.enter_context(library_log(chosen))
        yield chosen


@contextlib.contextmanager
def _private_stdout() -> Iterator[Callable[[str], object]]:
    """Standard output for the events alone: what libraries print there, C code included, goes to standard error."""
    try:
        number = sys.stdout.fileno()
    except (OSError, ValueError):  # not a real stream, e.g. inside a test
        yield sys.stdout.write
        return
    sys.stdout.flush()
    private = os.dup(number)
    os.dup2(sys.stderr.fileno(), number)
    try:
        yield lambda text: _write_all(private, text.encode("ascii"))
    finally:
        sys.stdout.flush()
        os.dup2(private, number)
        os.close(private)


def _write_all(descriptor: int, data: bytes) -> None:
    """Write without a buffer: a reader sees each event at once, and one that has gone away is noticed at once."""
    while data:
        data = data[os.write(descriptor, data) :]


@contextlib.contextmanager
def library_log(target: Reporter) -> Iterator[None]:
    """Hand what the library logs to a reporter."""
    logger = logging.getLogger("MambaSegLib")
    handler = _Forward(target)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


class _Forward(logging.Handler):
    def __init__(self, target: Reporter) -> None:
        super().__init__()
        self._target = target

    def emit(self, record: logging.LogRecord) -> None:
        self._target.log("warning" if record.levelno >= logging.WARNING else "info", record.getMessage())
