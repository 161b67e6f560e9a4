"""Folds fan out into real processes; what is done stays done, and one failure takes no other fold with it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from MambaSegTraining import local_folds
from MambaSegTraining.cross_validation import cross_validate
from MambaSegTraining.files import write_json
from MambaSegTraining.fold_tasks import FoldOutcome, FoldTask, JobSettings, all_tasks, outcome_table
from MambaSegTraining.run_folder import WEIGHTS_FILE, RunFolder
from MambaSegTraining.slurm_folds import FoldWork
from MambaSegTraining.splits import Fold, Splits

from MambaSegLib.errors import EnvironmentProblemError, InputError

ROOT = Path(__file__).resolve().parents[2]

STEP = '''
import os, signal, sys, time
from pathlib import Path

def step(words):
    """Stands for the long work of a step: leaves its trace, and fails for fold 1."""
    name, run, fold = words[0], Path(words[1]), words[3]
    folder = run / f"fold_{fold}"
    folder.mkdir(exist_ok=True)
    with (folder / "steps.txt").open("a") as log:
        log.write(" ".join(words) + "\\n")
    (folder / "gpus.txt").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
    if name == "train" and (run / "endless").exists():
        return train_until_interrupted(folder)
    if name == "train":
        if fold == "1" and not (run / "repaired").exists():
            raise RuntimeError("the loss is no number")
        (folder / "weights.safetensors").write_text("weights")
    else:
        (folder / "validation").mkdir(exist_ok=True)
        (folder / "validation" / "scores.json").write_text("{}")
    return 0

def train_until_interrupted(folder):
    """Stands for a training that saves a checkpoint when it is asked to stop."""
    asked = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    (folder / "started").touch()
    deadline = time.monotonic() + 60
    while not asked and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    (folder / "checkpoint.pt").write_text(f"asked {len(asked)} times")
    return 130

if __name__ == "__main__":
    sys.exit(step(sys.argv[1:]))
'''


@pytest.fixture
def step_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FoldWork:
    """Work that other processes can import."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "quick_step.py").write_text(STEP)
    paths = [str(tmp_path / "code"), str(ROOT), str(ROOT / "Training")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.syspath_prepend(paths[0])
    from quick_step import step

    return FoldWork(step)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """What stands for `mambaseg-train` in local processes."""
    (tmp_path / "quick_step.py").write_text(STEP)
    monkeypatch.setattr(local_folds, "POLL_S", 0.05)
    return sys.executable, str(tmp_path / "quick_step.py")


def make_run(path: Path, folds: int = 3) -> Path:
    path.mkdir()
    parts = tuple(Fold(("a",), (f"b{k}",)) for k in range(folds))
    write_json(RunFolder(path).splits_file, Splits(parts, "by hand", "case", {"a": "a"}))
    return path


def test_one_failed_fold_leaves_the_others_and_a_second_call_finishes_it(
    tmp_path: Path, program: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    run = make_run(tmp_path / "run")
    tasks = all_tasks([run])
    settings = JobSettings(parallel=3)
    first = cross_validate(tasks, settings, tmp_path / "jobs", program=program)
    assert [outcome.status for outcome in first] == ["done", "failed", "done"]
    assert first[1].reason == "RuntimeError: the loss is no number"
    assert "the loss is no number" in Path(first[1].log).read_text()
    assert f"run fold 1: started, its log is {first[1].log}" in caplog.messages
    (run / "repaired").touch()
    second = cross_validate(tasks, settings, tmp_path / "jobs", program=program)
    assert [outcome.status for outcome in second] == ["was done", "done", "was done"]
    assert (run / "fold_0" / "steps.txt").read_text().count("train ") == 1
    assert "1 done, 2 was done" in outcome_table(second)


def test_a_trained_fold_is_only_validated_and_each_place_has_its_device(
    tmp_path: Path, program: tuple[str, ...]
) -> None:
    run = make_run(tmp_path / "run", 1)
    (run / "fold_0").mkdir()
    (run / "fold_0" / WEIGHTS_FILE).write_text("weights")
    settings = JobSettings(devices=("cuda:3",))
    outcomes = cross_validate(all_tasks([run]), settings, tmp_path / "jobs", program=program)
    assert outcomes[0].status == "done"
    assert (run / "fold_0" / "steps.txt").read_text() == f"validate {run} --fold 0 --device cuda:3\n"


def test_devices_are_the_places_so_another_number_of_places_is_refused() -> None:
    with pytest.raises(InputError, match="--parallel 3 and 2 device"):
        JobSettings(parallel=3, devices=("cuda:0", "cuda:1"))
    assert JobSettings(parallel=2, devices=("cuda:0", "cuda:0")).devices == ("cuda:0", "cuda:0")


def test_local_folds_see_the_gpus_that_the_command_sees(
    tmp_path: Path, program: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", 1)
    for visible in ("0,1", None):
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
            shutil.rmtree(run / "fold_0")
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        cross_validate(all_tasks([run]), JobSettings(), tmp_path / "jobs", program=program)
        assert (run / "fold_0" / "gpus.txt").read_text() == (visible or "all")


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("number", "ctrl_c"),
    [(signal.SIGINT, signal.SIG_DFL), (signal.SIGTERM, signal.SIG_DFL), (signal.SIGTERM, signal.SIG_IGN)],
    ids=["Ctrl-C", "terminated", "terminated in a shell's background"],
)
def test_a_stopped_cross_validation_has_its_folds_save_a_checkpoint_and_says_no_more_than_that(
    tmp_path: Path, program: tuple[str, ...], number: signal.Signals, ctrl_c: signal.Handlers
) -> None:
    run = make_run(tmp_path / "run", 3)
    (run / "endless").touch()
    script = tmp_path / "cross_validate.py"
    script.write_text(
        "import sys\n"
        "from MambaSegTraining import cross_validation, local_folds\n"
        "from MambaSegTraining.__main__ import main\n"
        f"cross_validation.cross_validate.__kwdefaults__['program'] = {program!r}\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, str(script), "cross-validate", str(run), "--parallel", "2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "Training")])}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, ctrl_c),  # noqa: PLW1509 (no threads here that could hold a lock)
    )  # fmt: skip
    folders = [run / "fold_0", run / "fold_1"]
    deadline = time.monotonic() + 60
    while not all((folder / "started").exists() for folder in folders) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, number)  # as a terminal does: everything in its group
    words = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert "Traceback" not in words
    assert words.splitlines()[-1] == "Stopped; the same command goes on."
    assert [(folder / "checkpoint.pt").read_text() for folder in folders] == ["asked 1 times"] * 2
    assert not (run / "fold_2").exists()


def test_weights_newer_than_their_validation_are_not_done(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 1)
    scores = run / "fold_0" / "validation" / "scores.json"
    scores.parent.mkdir(parents=True)
    scores.write_text("{}")
    weights = run / "fold_0" / WEIGHTS_FILE
    weights.write_text("weights")
    task = all_tasks([run])[0]
    now = time.time()
    os.utime(scores, (now, now))
    os.utime(weights, (now + 5, now + 5))
    assert not task.is_done
    os.utime(weights, (now - 5, now - 5))
    assert task.is_done


def test_several_runs_give_every_fold_of_each(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "one", 2), make_run(tmp_path / "other", 3)]
    assert [(task.run.name, task.fold) for task in all_tasks(runs)] == [
        ("one", 0), ("one", 1), ("other", 0), ("other", 1), ("other", 2),
    ]  # fmt: skip
    with pytest.raises(InputError, match="has the folds 0 to 1, not 2"):
        all_tasks(runs, folds=(2,))


def test_runs_of_one_name_and_later_attempts_have_logs_of_their_own(tmp_path: Path, program: tuple[str, ...]) -> None:
    for parent in ("one", "other"):
        (tmp_path / parent).mkdir()
    runs = [make_run(tmp_path / parent / "run", 2) for parent in ("one", "other")]
    for _ in range(2):  # fold 1 fails both times
        outcomes = cross_validate(all_tasks(runs), JobSettings(parallel=4), tmp_path / "jobs", program=program)
        assert [outcome.status for outcome in outcomes if outcome.fold == 1] == ["failed", "failed"]
    assert sorted(path.name for path in (tmp_path / "jobs").iterdir()) == sorted(
        [
            "run_fold_0.log",
            "run_fold_0_2.log",
            "run_fold_1.log",
            "run_fold_1_2.log",
            "run_fold_1_3.log",
            "run_fold_1_4.log",
        ]
    )


def test_without_slurm_the_message_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentProblemError, match="--executor local"):
        cross_validate(all_tasks([make_run(tmp_path / "run")]), JobSettings("slurm"), tmp_path / "jobs")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for SLURM's programs: sbatch keeps what it is given, sacct says that every job waits."""
    pytest.importorskip("submitit")
    folder = tmp_path / "bin"
    folder.mkdir()
    programs = {
        "srun": (
            "import os, sys\n"
            "words = sys.argv[1:]\n"
            "while not os.path.isfile(words[0]):  # srun's own options\n"
            "    words = words[1:]\n"
            "os.execv(words[0], words)"
        ),
        "sbatch": (
            "import shutil, sys\n"
            f"shutil.copy(sys.argv[-1], {str(tmp_path / 'submitted.sh')!r})\n"
            f"open({str(tmp_path / 'calls.txt')!r}, 'a').write('sbatch\\n')\n"
            "print('Submitted batch job 77')"
        ),
        "sacct": "print('JobID|State|NodeList')\n" + "".join(f"print('77_{k}|PENDING|')\n" for k in range(3)),
    }
    for name, body in programs.items():
        path = folder / name
        path.write_text(f"#!{sys.executable}\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def test_slurm_gets_one_array_with_the_asked_resources(cluster: Path) -> None:
    tasks = all_tasks([make_run(cluster / "run")])
    settings = JobSettings(
        "slurm", parallel=2, minutes=90, cpus=6, memory_gb=48, gpus=1, partition="gpu", account="heart"
    )
    outcomes = cross_validate(tasks, settings, cluster / "jobs")
    script = (cluster / "submitted.sh").read_text()
    wanted = {
        "array": "0-2%2", "time": "90", "cpus-per-task": "6", "mem": "48GB", "gpus-per-node": "1", "partition": "gpu",
        "account": "heart", "nodes": "1", "ntasks-per-node": "1", "job-name": "mambaseg",
    }  # fmt: skip
    lines = dict(
        line[len("#SBATCH --") :].split("=", 1)
        for line in script.splitlines()
        if line.startswith("#SBATCH --") and "=" in line
    )
    assert {name: lines.get(name) for name in wanted} == wanted
    assert "--signal=USR2" in script  # a warning before the time limit, so that the fold is queued again
    assert [outcome.status for outcome in outcomes] == ["submitted"] * 3


def test_the_submitted_script_trains_and_validates_each_fold_where_slurm_starts_it(
    cluster: Path, step_work: FoldWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script that sbatch got, run for each task of the array with SLURM's variables; srun runs what it is given."""
    monkeypatch.setenv("PATH", f"{cluster / 'bin'}{os.pathsep}{os.environ['PATH']}")
    run = make_run(cluster / "run")
    (run / "repaired").touch()
    tasks, settings = all_tasks([run]), JobSettings("slurm", minutes=5)
    assert [one.status for one in cross_validate(tasks, settings, cluster / "jobs", work=step_work)] == [
        "submitted"
    ] * 3
    for fold in range(3):
        job = {"SLURM_JOB_ID": f"{77 + fold}", "SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": str(fold),
               "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_NODEID": "0", "SLURM_PROCID": "0",
               "SLURM_LOCALID": "0", "SLURM_JOB_NODELIST": "node1"}  # fmt: skip
        subprocess.run(["bash", str(cluster / "submitted.sh")], env={**os.environ, **job}, check=True)
        assert (run / f"fold_{fold}" / "steps.txt").read_text().split()[0::4][:1] == ["train"]
    again = cross_validate(tasks, settings, cluster / "jobs", work=step_work)
    assert [one.status for one in again] == ["was done"] * 3
    assert (cluster / "calls.txt").read_text() == "sbatch\n"


def test_folds_that_wait_on_the_cluster_are_not_submitted_twice(cluster: Path) -> None:
    tasks = all_tasks([make_run(cluster / "run")])
    cross_validate(tasks, JobSettings("slurm"), cluster / "jobs")
    again = cross_validate(tasks, JobSettings("slurm"), cluster / "jobs")
    assert [outcome.status for outcome in again] == ["running"] * 3
    assert (cluster / "calls.txt").read_text() == "sbatch\n"
    assert len(json.loads((cluster / "jobs" / "submitted.json").read_text())["jobs"]) == 3


def test_a_job_that_slurm_is_about_to_end_is_queued_again_with_the_same_fold() -> None:
    pytest.importorskip("submitit")
    task = FoldTask(Path("/runs/one"), 3)
    delayed = FoldWork().checkpoint(task)
    assert delayed.args == (task,)
    assert isinstance(delayed.function, FoldWork)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_fold_on_the_cluster_waits_for_the_signal_that_queues_it_again(tmp_path: Path) -> None:
    """SLURM asks a job to terminate before; a training that stopped then would count as failed."""
    from MambaSegTraining.__main__ import _stop_on_signals

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    stopped: list[list[int]] = []

    def step(words: Sequence[str]) -> int:
        stopped.append(_stop_on_signals(patient=False))
        os.kill(os.getpid(), signal.SIGTERM)
        return 0

    try:
        FoldWork(step)(FoldTask(make_run(tmp_path / "run"), 0))
    finally:
        signal.signal(signal.SIGINT, before[0])
    assert stopped == [[], []]  # training and validation
    assert signal.getsignal(signal.SIGTERM) == before[1]


def test_the_table_tells_the_reason_of_a_failure() -> None:
    table = outcome_table([FoldOutcome(Path("/runs/one"), 0, "failed", 1.5, "DivergedError: no number", "/log")])
    assert table.splitlines()[1:] == [
        "one     0  failed         1.5",
        "           DivergedError: no number",
        "           log: /log",
        "1 failed",
    ]


@pytest.mark.slow
def test_two_real_folds_are_trained_and_validated_in_their_own_processes(
    ball_dataset: Path, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from MambaSegTraining.__main__ import main

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "Training")]))
    run = tmp_path / "run"
    assert main(["plan", str(ball_dataset), str(run), "--config", str(config_file), "--workers", "0"]) == 0
    assert main(["preprocess", str(run), "--workers", "0"]) == 0
    tasks = all_tasks(
        [run], (0, 1), arguments=("--device", "cpu", "--threads", "1"), train_arguments=("--workers", "0")
    )
    outcomes = cross_validate(tasks, JobSettings(parallel=2), tmp_path / "jobs")
    assert [(outcome.status, outcome.reason) for outcome in outcomes] == [("done", ""), ("done", "")]
    assert RunFolder(run).trained_folds() == (0, 1)
    assert all(task.is_done for task in tasks)
