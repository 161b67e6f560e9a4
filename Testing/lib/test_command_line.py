"""The `mambaseg` command: exit codes, messages, outputs and events, mostly in this process, the rest in its own."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from MambaSegLib.__main__ import main
from MambaSegLib.bundle import Bundle
from MambaSegLib.commands.failures import explained
from MambaSegLib.volume import Geometry
from MambaSegLib.volume_io import read_labels, read_volume, write_volume

ROOT = Path(__file__).resolve().parents[2]
NAME = "mamba_unet_unidirectional.tiny"
IDENTITY = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
GRID = Geometry((16, 16, 16), (1.5, 1.0, 1.0), (-8.0, 5.0, 20.0), IDENTITY)
QUICK = ("--scan", "pytorch", "--folds", "0", "--device", "cpu")
"""No compilation, one fold."""


def write_image(path: Path, seed: int = 0, geometry: Geometry = GRID) -> Path:
    array = np.random.default_rng(seed).normal(100, 20, geometry.shape).astype(np.float32)
    write_volume(array, geometry, path)
    return path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return write_image(tmp_path / "image.nii.gz")


@pytest.fixture
def model(tiny_bundle: Bundle) -> tuple[str, ...]:
    """The options that choose the tiny model."""
    return ("--model", NAME, "--models-dir", str(tiny_bundle.path.parent))


def events_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def run_alone(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "MambaSegLib", *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


def test_a_volume_is_segmented_with_names_statistics_and_uncertainty(
    tmp_path: Path, image: Path, model: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    output, table, sure = tmp_path / "o.seg.nrrd", tmp_path / "s.csv", tmp_path / "u.nii.gz"
    words = ["segment", str(image), "-o", str(output), *model, *QUICK]
    assert main([*words, "--statistics", str(table), "--uncertainty", str(sure)]) == 0
    labels = read_labels(output)
    assert [label.name for label in labels.table] == ["Anterior", "Posterior"]
    assert labels.geometry.is_close(GRID)
    rows = list(csv.DictReader(table.read_text().splitlines()))
    counts = np.bincount(labels.array.ravel(), minlength=3)[1:]
    assert [int(row["voxels"]) for row in rows] == counts.tolist()
    assert [float(row["volume_ml"]) for row in rows] == pytest.approx((counts * 1.5 / 1000).tolist())
    assert "T1 mean" in table.read_text(encoding="utf-8").splitlines()[0], "channels have the model's names"
    uncertainty = read_volume(sure).array
    assert 0 <= uncertainty.min() <= uncertainty.max() <= 1
    assert uncertainty.max() > 0
    captured = capsys.readouterr()
    assert f"{NAME} 1.0.0: {output}" in captured.out
    assert "Not a medical device" in captured.out
    assert "scan backend pytorch" in captured.out
    assert "Predicting" in captured.err


def test_events_are_json_lines_that_end_in_the_result(
    tmp_path: Path, image: Path, model: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "o.nii.gz"
    assert main(["segment", str(image), "-o", str(output), *model, *QUICK, "--events"]) == 0
    events = events_of(capsys.readouterr().out)
    assert {event["event"] for event in events[:-1]} <= {"progress", "log"}
    stages = list(dict.fromkeys(event["stage"] for event in events if event["event"] == "progress"))
    assert stages == ["Reading", "Loading the model", "Preprocessing", "Predicting", "Postprocessing", "Writing"]
    result = events[-1]
    assert (result["event"], result["output"], result["backend"]) == ("result", str(output), "pytorch")
    assert (result["uncertainty"], result["statistics"], result["folds"]) == (None, None, [0])
    labels = read_labels(output).array
    assert [row["voxels"] for row in result["labels"]] == [int((labels == value).sum()) for value in (1, 2)]
    assert re.fullmatch("[0-9a-f]{64}", result["model_sha256"])


def test_a_region_given_in_ras_is_the_region_segmented(
    tmp_path: Path, image: Path, model: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    output, sure = tmp_path / "o.nii.gz", tmp_path / "u.nii.gz"
    # LPS x from -4 to 2, y from 9 to 13, z from 23 to 29: the grid starts at (-8, 5, 20), voxels are 1 x 1 x 1.5 mm.
    region = ["-2", "4", "-13", "-9", "23", "29"]
    words = ["segment", str(image), "-o", str(output), *model, *QUICK, "--uncertainty", str(sure), "--roi", *region]
    assert main(words) == 0
    looked_at = np.argwhere(read_volume(sure).array[0] > 0)
    # Voxel centers lie at whole mm, so both bounds cut a voxel that then belongs to the region.
    assert looked_at.min(axis=0).tolist() == [2, 4, 4]
    assert looked_at.max(axis=0).tolist() == [6, 8, 10]


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["segment", "{image}", "-o", "{tmp}/o.txt"], 2, "must end with one of"),
        (["segment", "{image}", "-o", "{tmp}/no/o.nii.gz"], 2, "does not exist"),
        (["segment", "{image}", "-o", "{image}", "--force"], 2, "is an input; it is not overwritten"),
        (["segment", "{tmp}/none.nii.gz", "-o", "{tmp}/o.nii.gz"], 2, "none.nii.gz does not exist"),
        (["segment", "{image}", "-o", "{tmp}/o.nii.gz", "--statistics", "{tmp}/s.txt"], 2, "written as .csv or .json"),
        (["segment", "{image}", "-o", "{tmp}/o.nii.gz", "--uncertainty", "{tmp}/u.seg.nrrd"], 2, "is an image; use"),
        (["segment", "{image}", "-o", "{tmp}/o.nii.gz", "--uncertainty", "{tmp}/o.nii.gz"], 2, "the same name"),
        (["segment", "T1={image}", "{image}", "-o", "{tmp}/o.nii.gz"], 2, "Name all images or none"),
        (["segment", "T1={image}", "T1={image}", "-o", "{tmp}/o.nii.gz"], 2, "given twice"),
        (["segment", "{image}", "{image}", "-o", "{tmp}/o.nii.gz"], 2, "the model expects 1 channel (T1), got 2"),
        (["segment", "T2={image}", "-o", "{tmp}/o.nii.gz"], 2, "the model expects 1 channel (T1), got T2"),
        (["segment", "{image}", "-o", "{tmp}/o.nii.gz", "--folds", "7"], 2, "has no fold 7; it has 0, 1"),
        (["segment", "{image}", "-o", "{tmp}/o.nii.gz", "--folds", "0,x"], 2, 'neither "all" nor fold numbers'),
        (["segment", "{image}", "-o", "{tmp}/o.nii.gz", "--overlap", "1"], 2, "not a fraction from 0 to 0.9"),
        (["segment", "{image}", "-o", "{tmp}/o.nii.gz", "--threads", "0"], 2, "not a whole number from 1"),
        (["segment", "{image}", "-o", "{tmp}/o.nii.gz", "--device", "tpu"], 2, "there is no device 'tpu'"),
        (["segment", "{image}", "-o", "{tmp}/o.nii.gz", "--scan", "magic"], 2, "invalid choice: 'magic'"),
        (["segment", "{image}", "-o", "{tmp}/o.nii.gz", "--scan", "mamba_ssm"], 3, "cannot run on cpu"),
        (["segment", "{image}", "-o", "{tmp}/o.nii.gz", "--device", "cuda:99"], 3, "cuda:99 is not there"),
        (["segment", "{image}", "-o", "{tmp}/o.nii.gz", "--frame", "3"], 2, "frame"),
        (
            ["segment", "{image}", "-o", "{tmp}/o.nii.gz", "--roi", *["5", "1", "0", "9", "0", "9"]],
            2,
            "must be below the second",
        ),
        (
            ["segment", "{image}", "-o", "{tmp}/o.nii.gz", "--roi", *["500", "510", "0", "9", "0", "9"]],
            2,
            "The region lies outside the image, which covers x",
        ),
        (
            ["segment", "{image}", "-o", "{tmp}/o.nii.gz", "--roi", *["0", "inf", "0", "9", "0", "9"]],
            2,
            "must be below the second",
        ),
        (["segment", "{tmp}", "-o", "{tmp}/o.nii.gz"], 2, ""),
        (["segment"], 2, "the following arguments are required: INPUT, -o/--output"),
        ([], 2, "the following arguments are required: COMMAND"),
        (["segment", "{image}", "-o", "{tmp}/loop.nii.gz"], 2, "loop.nii.gz exists already"),
        (["segment", "{image}", "-o", "{tmp}/dead.nii.gz"], 2, "dead.nii.gz exists already"),
        (["segment", "{tmp}/loop.nii.gz", "-o", "{tmp}/o.nii.gz"], 2, "loop.nii.gz does not exist"),
        (["segment", "{image}", "-o", "{tmp}/" + "x" * 300 + ".nii.gz"], 2, "File name too long"),
        (["models", "show", "nothing"], 2, 'There is no model "nothing"'),
        (["models", "remove", "nothing"], 2, 'There is no installed model "nothing"'),
        (["models", "install", "ftp://example.org/m.zip"], 2, 'not from "ftp:"'),
        (["segment", "", "-o", "{tmp}/o.nii.gz"], 2, "The name of an input is empty"),
        (["batch", "{tmp}/none", "-o", "{tmp}/out"], 2, "does not exist"),
        (["batch", "{image}", "-o", "{tmp}/out"], 2, "image.nii.gz is a file; a folder of images is needed"),
        (["batch", "{tmp}", "-o", "{image}"], 2, "image.nii.gz is a file; choose a folder"),
    ],
)
def test_what_cannot_work_ends_with_its_code_and_a_message_before_any_output(
    tmp_path: Path,
    image: Path,
    model: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    expected: str,
) -> None:
    if "cuda" in " ".join(words) or "mamba_ssm" in words:
        _skip_with_cuda()
    (tmp_path / "loop.nii.gz").symlink_to("loop.nii.gz")
    (tmp_path / "dead.nii.gz").symlink_to("nowhere")
    before = sorted(tmp_path.rglob("*"))
    given = [word.format(tmp=tmp_path, image=image) for word in words]
    chosen = model if words[:1] in (["segment"], ["batch"]) and len(words) > 1 else ()
    options = () if "--scan" in words or "--folds" in words or not chosen else QUICK[:4]
    device = ("--device", "cpu") if chosen and "--device" not in words else ()
    assert main([*given, *chosen, *options, *device]) == code
    captured = capsys.readouterr()
    assert expected in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert sorted(tmp_path.rglob("*")) == before


def _skip_with_cuda() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this computer has the device that is to be missing")


def test_an_existing_output_is_replaced_only_with_force(
    tmp_path: Path, image: Path, model: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "o.nii.gz"
    output.write_text("mine")
    words = ["segment", str(image), "-o", str(output), *model, *QUICK]
    assert main(words) == 2
    assert "exists already" in capsys.readouterr().err
    assert output.read_text() == "mine"
    assert main([*words, "--force"]) == 0
    read_labels(output)


def test_an_input_under_another_name_is_not_overwritten(
    tmp_path: Path, image: Path, model: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    same = tmp_path / "IMAGE.nii.gz"  # as a disk that does not tell capital letters from small ones shows it
    same.hardlink_to(image)
    assert main(["segment", str(image), "-o", str(same), *model, "--force"]) == 2
    assert "is an input; it is not overwritten" in capsys.readouterr().err


def test_an_image_that_is_not_finite_needs_a_replacement(
    tmp_path: Path, model: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    array = np.ones(GRID.shape, dtype=np.float32)
    array[3, 4, 5] = np.nan
    array[0] = 7
    write_volume(array, GRID, tmp_path / "nan.nrrd")
    words = ["segment", str(tmp_path / "nan.nrrd"), "-o", str(tmp_path / "o.nii.gz"), *model, *QUICK]
    assert main(words) == 2
    assert "--replace-nonfinite" in capsys.readouterr().err
    assert main([*words, "--replace-nonfinite", "0"]) == 0
    assert "Notice: " in capsys.readouterr().err


def test_events_tell_usage_errors_and_defects_too(
    monkeypatch: pytest.MonkeyPatch, image: Path, model: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["segment", "--events", "--nonsense"]) == 2
    (usage,) = events_of(capsys.readouterr().out)
    assert (usage["event"], usage["code"], usage["kind"]) == ("error", 2, "UsageError")

    def break_down(*_: object, **__: object) -> None:
        message = "a bug"
        raise ZeroDivisionError(message)

    monkeypatch.setattr("MambaSegLib.commands.segment.load_bundle", break_down)
    output = image.with_name("o.nii.gz")
    assert main(["segment", str(image), "-o", str(output), *model, "--events"]) == 1
    captured = capsys.readouterr()
    (defect,) = events_of(captured.out)
    log = re.search(r"The details are in (\S+\.log)\.", defect["message"])
    assert log is not None
    assert "a bug" in defect["message"]
    assert "ZeroDivisionError: a bug" in Path(log[1]).read_text()
    assert "Traceback" not in captured.err
    Path(log[1]).unlink()


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (MemoryError(), 3, "Not enough memory"),
        (OSError(28, "No space left on device", "/x"), 3, "/x: the disk is full"),
        (PermissionError(13, "Permission denied", "/x"), 3, "/x: Permission denied"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 3, "pip install torch"),
        (ImportError("DLL load failed", name="numba"), 3, "numba, which cannot be loaded (DLL load failed)"),
        (KeyboardInterrupt(), 130, "Cancelled."),
    ],
)
def test_what_the_computer_lacks_is_told_with_a_cure(
    monkeypatch: pytest.MonkeyPatch,
    image: Path,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    expected: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("MambaSegLib.commands.segment.load_bundle", fail)
    assert main(["segment", str(image), "-o", str(image.with_name("o.nii.gz"))]) == code
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [ImportError("libx.so: failed to map"), ModuleNotFoundError("No module named 'y'", name="y")]
)
def test_a_package_that_cannot_load_a_part_of_itself_is_named(error: ImportError) -> None:
    with pytest.raises(ImportError) as raised:
        exec("raise error", {"__name__": "torch._C", "error": error})  # noqa: S102 (a frame of another module)
    explanation = explained(raised.value)
    assert explanation.exit_code == 3
    assert f"the package torch, which cannot be loaded ({error})" in str(explanation)


def test_without_pytorch_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, image: Path, model: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["segment", str(image), "-o", str(image.with_name("o.nii.gz")), *model, *QUICK]) == 3
    assert "pip install torch" in capsys.readouterr().err
    assert main(["models"]) == 0


def test_models_are_installed_listed_shown_and_removed(
    tmp_path: Path, tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ("--models-dir", str(tmp_path / "models"))
    assert main(["models", "install", str(tiny_bundle.path), *folder]) == 0
    assert main(["models", "list", "--json", *folder]) == 0
    text = capsys.readouterr().out
    listed = json.loads(text[text.index("{") :])
    assert listed["models_dir"] == str(tmp_path / "models")
    (model,) = [entry for entry in listed["models"] if entry["origin"] == "installed"]
    assert (model["name"], model["manifest"]["intended_use"]) == (NAME, "Testing.")
    assert main(["models", "list", *folder]) == 0
    listing = capsys.readouterr().out
    assert f"{NAME}  1.0.0 (installed)" in listing
    assert f"Installed models: {tmp_path / 'models'}" in listing
    assert main(["models", "show", NAME, *folder]) == 0
    assert "Not a medical device" in capsys.readouterr().out
    assert main(["models", "remove", NAME, *folder]) == 0
    assert list((tmp_path / "models").iterdir()) == []


def test_networks_are_listed_as_text_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["networks"]) == 0
    assert capsys.readouterr().out.startswith("mamba_unet_unidirectional")
    assert main(["networks", "--json"]) == 0
    assert "mamba_unet_multidirectional" in [entry["name"] for entry in json.loads(capsys.readouterr().out)]


def test_help_names_the_exit_policy_and_the_axes_of_the_region(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["segment", "--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "mm in RAS" in text
    assert "An output that exists is left alone" in text
    assert "Not a medical device" in text


_LIGHT = """
import runpy, sys
sys.argv = ["mambaseg", *{words!r}]
try:
    runpy.run_module("MambaSegLib", run_name="__main__")
except SystemExit as end:
    assert end.code == 0, end.code
heavy = [name for name in ("torch", "SimpleITK", "numba", "scipy", "safetensors") if name in sys.modules]
assert not heavy, heavy
"""


@pytest.mark.parametrize("words", [["--help"], ["segment", "--help"], ["models"], ["networks"]])
def test_help_and_lists_start_without_heavy_packages(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LIGHT.format(words=words)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_nothing_but_events_reaches_standard_output(tmp_path: Path, image: Path, model: tuple[str, ...]) -> None:
    # A library that prints, from Python and past it, is simulated where the interpreter starts.
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, os, MambaSegLib.commands.session as s\n"
        "real = s.make_predictor\n"
        "def noisy(*a):\n    print('noise'); os.write(1, b'more noise\\n'); return real(*a)\n"
        "import MambaSegLib.commands.segment as g\ng.make_predictor = noisy\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    output = tmp_path / "o.seg.nrrd"
    done = run_alone("segment", image, "-o", output, *model, *QUICK, "--events", env=environment)
    assert done.returncode == 0, done.stderr
    assert events_of(done.stdout)[-1]["event"] == "result"
    assert "noise" in done.stderr
    assert "more noise" in done.stderr


def test_a_reader_that_goes_away_ends_the_work_quietly(tmp_path: Path, image: Path, model: tuple[str, ...]) -> None:
    words = ["segment", str(image), "-o", str(tmp_path / "o.nii.gz"), *model, *QUICK, "--events"]
    process = subprocess.Popen(
        [sys.executable, "-m", "MambaSegLib", *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr as stream:
        errors = stream.read()
    assert process.wait(timeout=120) == 130
    assert b"Traceback" not in errors
    assert not (tmp_path / "o.nii.gz").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signal that another process can send like this")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_an_interrupted_run_leaves_no_file_and_says_cancelled(
    tmp_path: Path, model: tuple[str, ...], name: str
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    big = write_image(tmp_path / "big.nii.gz", geometry=replace(GRID, shape=(64, 64, 64)))
    words = ["segment", str(big), "-o", str(folder / "o.seg.nrrd"), *model, *QUICK, "--events", "--overlap", "0.9"]
    number = getattr(signal, name)
    with subprocess.Popen(
        [sys.executable, "-m", "MambaSegLib", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Tests that run in a shell's background ignore Ctrl-C, and hand that on.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # noqa: PLW1509 (no threads here that could hold a lock)
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line).get("stage") == "Predicting":
                process.send_signal(number)
                break
        last = process.stdout.read().splitlines()[-1]
        process.wait(timeout=120)
    assert process.returncode == 130
    assert json.loads(last) == {"event": "error", "code": 130, "kind": "CancelledError", "message": "Cancelled."}
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signal that is ignored like this")
def test_a_signal_the_process_was_started_to_ignore_stays_ignored() -> None:
    code = (
        "import os, signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from MambaSegLib.commands.failures import interruptible\n"
        "with interruptible(): os.kill(os.getpid(), signal.SIGINT); print('went on')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "went on\n", done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="file descriptors are inherited otherwise there")
@pytest.mark.parametrize("missing", [(2,), (0, 1, 2)])
def test_a_program_started_without_standard_streams_works(
    tmp_path: Path, image: Path, model: tuple[str, ...], missing: tuple[int, ...]
) -> None:
    closed = " ".join(f"{number}>&-" for number in missing)
    words = ["segment", image, "-o", tmp_path / "o.nii.gz", *model, *QUICK]
    command = shlex.join([sys.executable, "-m", "MambaSegLib", *map(str, words)])
    done = subprocess.run(["sh", "-c", f"{command} {closed}"], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert read_labels(tmp_path / "o.nii.gz").geometry.is_close(GRID)


def test_letters_no_code_page_knows_do_not_end_the_work(tmp_path: Path, model: tuple[str, ...]) -> None:
    image = write_image(tmp_path / "Lékař 脳.nii.gz")
    environment: Mapping[str, str] = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    output = tmp_path / "Lékař 脳.seg.nrrd"
    done = run_alone("segment", image, "-o", output, *model, *QUICK, env=environment)
    assert done.returncode == 0, done.stderr
    assert output.exists()
