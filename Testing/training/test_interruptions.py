"""A full disk, a kill at any step, a damaged file: a message, nothing half-written, and the same step goes on later."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from MambaSegTraining import fold_training
from MambaSegTraining.__main__ import main
from MambaSegTraining.batches import Batch, stream_batches
from MambaSegTraining.case_pool import map_cases
from MambaSegTraining.dataset import Case
from MambaSegTraining.files import LEFTOVER_S, load_weights, read_json, remove_leftovers, save_weights, write_text
from MambaSegTraining.interrupts import ignoring
from MambaSegTraining.run_folder import CHECKPOINT_FILE, WEIGHTS_FILE
from MambaSegTraining.scores import FoldScores
from MambaSegTraining.store import open_case

from MambaSegLib.errors import EnvironmentProblemError

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ("--device", "cpu", "--workers", "0", "--threads", "1")


@contextmanager
def files_of_at_most(limit: int) -> Iterator[None]:
    """No file grows beyond this: the system refuses the rest of a write in the middle, as on a full disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def leftovers(folder: Path) -> list[Path]:
    return sorted(folder.rglob(".tmp-*"))


@pytest.fixture
def run(validated_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(validated_run, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("workers", ["0", "1"])
def test_preprocessing_stops_with_a_message_and_goes_on_when_there_is_room(
    planned_run: Path, workers: str, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["preprocess", str(planned_run), "--workers", workers]
    with files_of_at_most(16_000):  # an image takes 32 kB
        assert main(command) == 3
    message = capfd.readouterr().err
    assert "was not written: the disk is full" in message
    assert "Traceback" not in message
    assert leftovers(planned_run) == []
    assert list((planned_run / "preprocessed").glob("s*.json")) == []
    assert main(command) == 0
    assert "6 case(s) preprocessed" in capfd.readouterr().out


def test_a_checkpoint_that_does_not_fit_leaves_the_last_one_to_go_on_from(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    unbroken = load_weights(run / "fold_0" / WEIGHTS_FILE)
    shutil.rmtree(run / "fold_0")
    command = ["train", str(run), "--fold", "0", *TRAIN]
    assert main([*command, "--max-minutes", "0"]) == 130
    checkpoint = (run / "fold_0" / CHECKPOINT_FILE).read_bytes()
    assert len(checkpoint) > 30_000
    with files_of_at_most(30_000):
        assert main([*command, "--resume"]) == 3
    message = capfd.readouterr().err
    assert "was not written: the disk is full" in message
    assert "Traceback" not in message
    assert leftovers(run) == []
    assert (run / "fold_0" / CHECKPOINT_FILE).read_bytes() == checkpoint
    assert main([*command, "--resume"]) == 0
    finished = load_weights(run / "fold_0" / WEIGHTS_FILE)
    assert all(np.array_equal(finished[name], weights) for name, weights in unbroken.items())


@pytest.mark.parametrize(
    ("words", "written"),
    [
        (["validate", "{run}", "--fold", "0", "--device", "cpu", "--again"], "fold_0/validation/scores.json"),
        (["report", "{run}", "-o", "{run}/report"], "report/report.html"),
        (["export", "{run}", "{run}/bundle"], "bundle/bundle.json"),
        (["export", "{run}", "{run}/bundle.zip"], "bundle.zip"),
    ],
)
def test_later_steps_stop_with_a_message_and_can_be_repeated(
    run: Path, words: list[str], written: str, capfd: pytest.CaptureFixture[str]
) -> None:
    command = [word.format(run=run) for word in words]
    with files_of_at_most(12_000):
        assert main(command) == 3
    message = capfd.readouterr().err
    assert message.startswith("mambaseg-train: ")
    assert "Traceback" not in message
    assert leftovers(run) == []
    if words[0] != "validate":
        assert not (run / written).exists()
    assert main(command) == 0
    assert (run / written).is_file()


def test_weights_that_do_not_fit_are_told_and_leave_the_old_ones(tmp_path: Path) -> None:
    import torch

    path = tmp_path / "weights.safetensors"
    save_weights(path, {"a": torch.ones(3)})
    with files_of_at_most(4_000), pytest.raises(EnvironmentProblemError, match="the disk is full"):
        save_weights(path, {"a": torch.ones(3_000)})
    assert load_weights(path)["a"].tolist() == [1, 1, 1]
    assert leftovers(tmp_path) == []


def test_a_damaged_file_in_the_middle_is_one_entry_of_one_list(
    planned_run: Path, tmp_path: Path, config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found by planning; damaged later, by preprocessing, which makes all other cases."""
    images = planned_run.parent / "Dataset900_Balls" / "imagesTr"
    whole = (images / "s1_a_0000.nii.gz").read_bytes()
    (images / "s1_a_0000.nii.gz").write_bytes(whole[: len(whole) // 2])
    (images / "s2_b_0000.nii.gz").write_bytes(b"no image")
    assert main(["preprocess", str(planned_run), "--workers", "1"]) == 2
    told = capsys.readouterr().err
    assert "2 of 6 case(s) could not be preprocessed, the others are done:" in told
    for name in ("s1_a: ", "s2_b: "):
        assert f"\n  {name}" in told
    assert "Traceback" not in told
    assert len(list((planned_run / "preprocessed").glob("s*.json"))) == 4
    plan = ["plan", str(images.parent), str(tmp_path / "other"), "--config", str(config_file), "--workers", "0"]
    assert main(plan) == 2
    told = capsys.readouterr().err
    assert "has 2 problem(s):\n  s1_a: " in told
    assert "\n  s2_b: " in told
    (images / "s1_a_0000.nii.gz").write_bytes(whole)
    (images / "s2_b_0000.nii.gz").write_bytes((images / "s2_a_0000.nii.gz").read_bytes())
    assert main(["preprocess", str(planned_run), "--workers", "0"]) == 0


def killed_when(command: list[str], condition: Callable[[], bool]) -> None:
    """Run a step in a process of its own, and end it by SIGKILL as soon as the condition holds."""
    process = subprocess.Popen(
        [sys.executable, "-m", "MambaSegTraining", *command],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'Training'}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not condition():
        assert process.poll() is None, "ended too early"
        time.sleep(0.002)
    process.kill()
    process.wait()


def test_preprocessing_killed_in_the_middle_goes_on_to_the_same_arrays(
    planned_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = planned_run / "preprocessed"
    command = ["preprocess", str(planned_run), "--workers", "0"]
    killed_when(command, lambda: any(store.glob("s*.json")))
    finished = len(list(store.glob("s*.json")))
    assert main(command) == 0
    assert f"{6 - finished} case(s) preprocessed, {finished} were up to date" in capsys.readouterr().out
    store.rename(planned_run / "interrupted")
    assert main(command) == 0
    for record in store.glob("s*.json"):
        one, other = open_case(store, record.stem), open_case(planned_run / "interrupted", record.stem)
        assert np.array_equal(one.image, other.image)
        assert np.array_equal(one.labels, other.labels)


def test_validation_killed_in_the_middle_goes_on_to_the_same_scores(run: Path) -> None:
    unbroken = read_json(FoldScores, run / "fold_1" / "validation" / "scores.json")
    shutil.rmtree(run / "fold_1" / "validation")
    partial = run / "fold_1" / "validation" / "scores.partial.jsonl"
    command = ["validate", str(run), "--fold", "1", "--device", "cpu", "--threads", "1"]
    killed_when(command, lambda: partial.is_file() and partial.read_text().count("\n") > 1)
    assert not (run / "fold_1" / "validation" / "scores.json").exists()
    assert main(command) == 0
    assert read_json(FoldScores, run / "fold_1" / "validation" / "scores.json").scores == unbroken.scores


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_validation_asked_to_end_does_so_in_order_also_in_a_shells_background(run: Path) -> None:
    """A shell starts what is in its background so that it ignores Ctrl-C; a request to terminate is heard nevertheless."""
    shutil.rmtree(run / "fold_1" / "validation")
    partial = run / "fold_1" / "validation" / "scores.partial.jsonl"
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "MambaSegTraining",
            "validate",
            str(run),
            "--fold",
            "1",
            "--device",
            "cpu",
            "--threads",
            "1",
        ],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'Training'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),  # noqa: PLW1509 (no threads here that could hold a lock)
    )
    while not (partial.is_file() and partial.read_text().count("\n") > 1):
        assert process.poll() is None, "ended too early"
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    process.terminate()
    words = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert b"Traceback" not in words
    assert leftovers(run) == []


def _end_process(case: Case) -> None:
    os._exit(1)


def test_a_process_ended_by_the_system_is_told_with_what_to_do(tmp_path: Path) -> None:
    cases = [Case(name, (), tmp_path) for name in "ab"]
    with pytest.raises(EnvironmentProblemError, match=r"memory ran out.*--workers 1"):
        list(map_cases(_end_process, cases, 2))


def test_unfinished_files_of_a_killed_process_are_removed_once_they_are_old(tmp_path: Path) -> None:
    for name, age_s in ((".tmp-old", LEFTOVER_S + 60), (".tmp-new", 0), ("kept", LEFTOVER_S + 60)):
        write_text(tmp_path / name, json.dumps(name))
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tmp-new", "kept"]


def test_unfinished_folders_are_removed_as_well(tmp_path: Path) -> None:
    (tmp_path / ".tmp-x" / "new").mkdir(parents=True)
    (tmp_path / ".tmp-x" / "new" / "fold_0.safetensors").write_text("half a bundle")
    remove_leftovers(tmp_path)
    assert (tmp_path / ".tmp-x").is_dir()
    os.utime(tmp_path / ".tmp-x", (time.time() - LEFTOVER_S - 60,) * 2)
    remove_leftovers(tmp_path)
    assert not (tmp_path / ".tmp-x").exists()


@pytest.mark.parametrize(
    ("words", "folder", "told"),
    [
        (["train", "--fold", "0", *TRAIN, "--max-minutes", "0"], "fold_0", "Fold 0 is trained"),
        (["validate", "--fold", "1", "--device", "cpu", "--again"], "fold_1/validation", "Fold 1 is validated"),
    ],
    ids=["train", "validate"],
)
def test_one_fold_is_worked_on_by_one_process_and_a_dead_one_does_not_count(
    run: Path, capsys: pytest.CaptureFixture[str], words: list[str], folder: str, told: str
) -> None:
    shutil.rmtree(run / folder)
    (run / folder).mkdir()
    lock = run / folder / f"{words[0]}.lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(lock)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "Training")])},
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    command = [words[0], str(run), *words[1:]]
    assert main(command) == 2
    assert f"{told} in another process already" in capsys.readouterr().err
    assert list((run / folder).iterdir()) == [lock]
    holder.kill()
    holder.communicate()
    assert main(command) == {"train": 130, "validate": 0}[words[0]]


HOLDER = """
import sys, time
from pathlib import Path
from MambaSegTraining.locks import held_by_one

with held_by_one(Path(sys.argv[1]), "A test is done"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_processes_started_meanwhile_ignore_ctrl_c_from_the_start() -> None:
    command = [sys.executable, "-c", "import signal; print(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)"]
    before = signal.getsignal(signal.SIGINT)
    with ignoring(signal.SIGINT):
        inside = subprocess.run(command, capture_output=True, check=True).stdout
    assert inside == b"True\n"
    assert signal.getsignal(signal.SIGINT) is before
    assert subprocess.run(command, capture_output=True, check=True).stdout == b"False\n"


class _Dying:
    """Batches whose maker the system ends, as it does when memory runs out."""

    def __getitem__(self, number: int) -> Batch:
        if number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return Batch(torch.zeros(1), torch.zeros(1))


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_process_of_batches_ended_by_the_system_is_told_with_what_to_do() -> None:
    with pytest.raises(EnvironmentProblemError, match=r"makes batches was ended.*fewer --workers"):
        list(stream_batches(_Dying(), range(6), workers=1))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore"), 3, "recompute = true"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 3, "recompute = true"),
        (RuntimeError("an odd thing"), 1, "Something went wrong in the program itself (RuntimeError: an odd thing)"),
    ],
)
def test_no_failure_ends_in_a_bare_traceback(
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    code: int,
    told: str,
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    shutil.rmtree(run / "fold_0")
    monkeypatch.setattr(fold_training, "train_step", fail)
    assert main(["train", str(run), "--fold", "0", *TRAIN]) == code
    message = capsys.readouterr().err
    assert told in message
    assert "Traceback" not in message
