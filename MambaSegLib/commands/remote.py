"""`mambaseg remote`: the same command on another computer, over SSH; images go there, results come back."""

from __future__ import annotations

import argparse
import re
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from MambaSegLib.bundle import load_bundle
from MambaSegLib.commands.remote_job import OUT
from MambaSegLib.commands.reporting import Reporter
from MambaSegLib.commands.session import Outputs, check_outputs, parse_inputs
from MambaSegLib.commands.wire import PROTOCOL, Wire, safe_name
from MambaSegLib.errors import CancelledError, EnvironmentProblemError, InputError, MambaSegError
from MambaSegLib.progress import Progress
from MambaSegLib.volume_io import files_of

_KINDS = {2: InputError, 3: EnvironmentProblemError, 130: CancelledError}
_UNREACHABLE, _NOT_FOUND = 255, 127
_LAST_WORDS_S = 5.0
_OPTION_AND_FILE = re.compile(r"(--[^=]+=|-o)?(.*)", re.DOTALL)
_VALUES = dict.fromkeys(
    ("--device", "--scan", "--folds", "--quality", "--overlap", "--engine", "--threads", "--frame", "--series",
     "--replace-nonfinite", "--format", "--pattern"), 1
) | {"--roi": 6}  # fmt: skip
"""How many words that are no files follow an option."""
_SSH_OPTIONS = ("-T", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=15", "-o", "ConnectTimeout=15")
_EPILOG = """example:
  mambaseg remote ada@gpu-server segment t1.nii.gz -o t1.seg.nrrd

The other computer needs MambaSegmentation (`pip install`, no server, no open port) and SSH access with a key: no password
is asked for. Images, model and results travel encrypted by SSH; there, they are in a temporary folder that is deleted
in the end. The commands are segment, batch and doctor.
"""


@dataclass
class _Job:
    """What goes to the other computer.

    Attributes:
        words: The command there.
        files: Name there -> file here.
        inputs: Name there -> file or folder here, as the words name it.
        results: Name there -> where it goes here; a folder's name ends with "/".
    """

    words: list[str]
    files: dict[str, Path] = field(default_factory=dict)
    inputs: dict[str, Path] = field(default_factory=dict, kw_only=True)
    results: dict[str, Path] = field(default_factory=dict)


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "remote",
        help="run segment, batch or doctor on another computer, over SSH",
        description="Run a command on another computer, over SSH.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("host", metavar="[USER@]HOST", help="as `ssh` knows it")
    parser.add_argument("--program", default="mambaseg", help="the command there (default: %(default)s)")
    parser.add_argument("--ssh", default="ssh", help="the SSH client here (default: %(default)s)")
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND ...", help="segment, batch or doctor ...")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, reporter: Reporter) -> int:
    """Send a job, relay what it says, take in what it writes."""
    if arguments.host.startswith("-"):
        message = f"{arguments.host} is no name of a computer."
        raise InputError(message)
    job = _job(arguments.words)
    command = [arguments.ssh, *_SSH_OPTIONS, arguments.host, f"{arguments.program} remote-job"]
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except OSError as error:
        message = f"The program {arguments.ssh} could not be started ({error}). Install an SSH client."
        raise EnvironmentProblemError(message) from None
    try:
        return _converse(process, job, reporter, arguments.host, _last_words(process))
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            _close(stream)


def _last_words(process: subprocess.Popen[bytes]) -> Callable[[], str]:
    """Read what the process says beside the answer, all the time: a full pipe would stop it. Returns a way to ask."""
    lines: deque[str] = deque(maxlen=10)

    def read() -> None:
        assert process.stderr is not None
        with process.stderr as stream:
            lines.extend(line.decode("utf-8", errors="replace").strip() for line in stream)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()

    def ask() -> str:
        thread.join(_LAST_WORDS_S)
        return next((line for line in reversed(lines) if line), "no reason given")

    return ask


def _converse(
    process: subprocess.Popen[bytes], job: _Job, reporter: Reporter, host: str, last_words: Callable[[], str]
) -> int:
    assert process.stdin is not None
    assert process.stdout is not None
    wire = Wire(process.stdout, process.stdin)
    try:
        reporter.progress(Progress(f"Sending to {host}", 0, len(job.files) or 1))
        for number, (name, path) in enumerate(job.files.items(), start=1):
            wire.send_file(name, path)
            reporter.progress(Progress(f"Sending to {host}", number, len(job.files)))
        wire.send({"protocol": PROTOCOL, "words": job.words})
    except BrokenPipeError:
        raise _lost(process, host, last_words) from None
    while (message := wire.receive()) is not None:
        if "file" in message:
            wire.receive_file(message, _place(job, message))
        elif message.get("event") == "end":
            return int(message["code"])
        else:
            _relay(message, job, reporter)
    raise _lost(process, host, last_words)


def _relay(message: dict[str, Any], job: _Job, reporter: Reporter) -> None:
    event = message.get("event")
    if event == "progress":
        reporter.progress(Progress(**message["progress"]), **message["details"])
    elif event == "log":
        reporter.log("warning" if message["level"] == "warning" else "info", _here(str(message["message"]), job))
    elif event == "result":
        reporter.result(_here(message["text"], job), **{k: _here(v, job) for k, v in message["details"].items()})
    elif event == "error":
        raise _KINDS.get(int(message["code"]), MambaSegError)(_here(str(message["message"]), job))


def _job(words: Sequence[str]) -> _Job:
    """Which files a command reads and writes, and its words with their names on the other computer."""
    from MambaSegLib.__main__ import build_parser

    if not words or words[0] not in ("segment", "batch", "doctor"):
        message = "Give a command to run there: segment, batch or doctor."
        raise InputError(message)
    parsed = build_parser().parse_args(words)
    job, names = _Job([]), {}
    if words[0] == "segment":
        outputs = Outputs(parsed.output, parsed.uncertainty, parsed.statistics)
        check_outputs(outputs, parse_inputs(parsed.inputs), force=parsed.force)
        for path in outputs.given():
            names[str(path)] = f"{OUT}/{path.name}"
            job.results[names[str(path)]] = path
    elif words[0] == "batch":
        names[str(parsed.folder)] = _add(job, parsed.folder, "in/images", leave_out=parsed.output)
        job.inputs["in/images"] = parsed.folder
        names[str(parsed.output)] = f"{OUT}/cases"
        job.results[f"{OUT}/cases/"] = parsed.output
        if parsed.output.is_dir():  # what an earlier run has done there is skipped there, too
            _add(job, parsed.output, f"{OUT}/cases")
    inputs = getattr(parsed, "inputs", None) or getattr(parsed, "input", None) or ()
    for number, word in enumerate(inputs):
        name, path = _named(word)
        there = _add(job, path, f"in/{number}")
        names[word] = name + there
        job.inputs[there] = path
    job.words = list(_there(_without_model(words), names))
    if words[0] != "doctor" or inputs:
        bundle = load_bundle(parsed.model, models_dir=parsed.models_dir)
        # Sent along, so that it is this very model that computes there.
        job.words += ["--model", _add(job, bundle.path, "in/model" if bundle.path.is_file() else f"in/{bundle.name}")]
    return job


def _without_model(words: Sequence[str]) -> list[str]:
    """The words without those that name the model here, and without --events: the answer is in events anyway."""
    kept, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        if word in ("--model", "--models-dir"):
            rest.pop(0)
        elif not word.startswith(("--model=", "--models-dir=")) and word != "--events":
            kept.append(word)
    return kept


def _there(words: Sequence[str], names: Mapping[str, str]) -> Iterator[str]:
    """Words with the names their files have on the other computer: "FILE", "./FILE", "FOLDER/", "--output=FILE", "-oFILE".

    What follows an option that takes no file stays, even if a file is called so: --frame 1, of the folder 1.
    """
    values = 0
    for word in words:
        option, file = _OPTION_AND_FILE.fullmatch(word).groups("")  # type: ignore[union-attr] # it fits any text
        if values > 0 or option.rstrip("=") in _VALUES:
            yield word
        else:
            yield option + (names.get(file) or names.get(str(Path(file))) or file)
        values = _VALUES.get(word, values - 1)


def _named(word: str) -> tuple[str, Path]:
    """The "NAME=" in front of a file, "" if there is none, and the file."""
    inputs = parse_inputs([word])
    if isinstance(inputs, Mapping):
        ((name, path),) = inputs.items()
        return f"{name}=", path
    return "", inputs[0]


def _add(job: _Job, path: Path, name: str, leave_out: Path | None = None) -> str:
    """Send a file or a folder, without a folder in it that is left out; returns what it is called there."""
    if path.is_dir():
        for file in files_of(path):
            if leave_out is not None and file.absolute().is_relative_to(leave_out.absolute()):
                continue
            job.files[f"{name}/{file.relative_to(path).as_posix()}"] = file
        return name
    # All lie beside the file that was named, or in folders there.
    job.files |= {f"{name}/{file.relative_to(path.parent).as_posix()}": file for file in files_of(path)}
    return f"{name}/{path.name}"


def _place(job: _Job, message: dict[str, Any]) -> Path:
    """Where a file from the other computer goes; only what was asked for is taken."""
    name = str(safe_name(message["file"]))
    if name in job.results:
        return job.results[name]
    for folder, target in job.results.items():
        if folder.endswith("/") and name.startswith(folder):
            return target / name.removeprefix(folder)
    error = f"The other computer sent a file nobody asked for: {name}."
    raise InputError(error)


def _here(value: Any, job: _Job) -> Any:
    """Names of files there as names of files here, in what is said there."""
    places = job.inputs | {name.rstrip("/"): path for name, path in job.results.items()}
    if not isinstance(value, str) or not places:
        return value
    # All in one go: a path here may hold what is a name there.
    names = "|".join(map(re.escape, sorted(places, key=len, reverse=True)))
    return re.sub(rf"(?<![\w/])({names})(?!\w)", lambda found: str(places[found[0]]), value)


def _lost(process: subprocess.Popen[bytes], host: str, last_words: Callable[[], str]) -> MambaSegError:
    """Why there is no more to be read."""
    _close(process.stdin)
    code, last = process.wait(), last_words()
    if code == _UNREACHABLE:
        return EnvironmentProblemError(
            f"{host} could not be reached: {last}. `ssh {host}` must work without a password; set up a key for it."
        )
    if code == _NOT_FOUND:
        return EnvironmentProblemError(
            f"{host} has no command mambaseg ({last}). Install MambaSegmentation there, or give its place with --program."
        )
    return EnvironmentProblemError(f"The connection to {host} ended unexpectedly (exit code {code}): {last}.")


def _close(stream: IO[bytes] | None) -> None:
    if stream is not None:
        try:
            stream.close()
        except BrokenPipeError:
            return
