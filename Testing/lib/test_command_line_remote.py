"""`mambaseg remote`, with a stand-in for ssh that runs the command on this computer: real processes, real pipes."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from MambaSegLib.__main__ import main
from MambaSegLib.bundle import Bundle
from MambaSegLib.commands.remote import _here, _Job, _job, _place
from MambaSegLib.commands.wire import Wire, safe_name
from MambaSegLib.errors import InputError
from MambaSegLib.volume import Geometry
from MambaSegLib.volume_io import read_labels, write_volume

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for ssh is a shell script")
GRID = Geometry((16, 16, 16), (1.5, 1.0, 1.0), (0.0, 0.0, 0.0), ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)))
QUICK = ["--scan", "pytorch", "--folds", "0", "--device", "cpu"]


@pytest.fixture
def ssh(tmp_path: Path) -> str:
    """A program that does what ssh does, but stays here; it works in a folder of its own."""
    there = tmp_path / "there"
    there.mkdir()
    path = tmp_path / "ssh"
    path.write_text(
        f'#!/bin/sh\necho "Welcome!"\nfor last; do :; done\ncd {there} && TMPDIR={there} exec sh -c "$last"\n'
    )
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def there(ssh: str, tmp_path: Path) -> list[str]:
    """The words before the command."""
    return ["remote", "--ssh", ssh, "--program", f"{sys.executable} -m MambaSegLib", "ada@far"]


@pytest.fixture(autouse=True)
def _library(monkeypatch: pytest.MonkeyPatch) -> None:
    parent = str(Path(__file__).resolve().parents[2])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([parent, os.environ.get("PYTHONPATH", "")]))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    array = np.random.default_rng(0).normal(100, 20, GRID.shape).astype(np.float32)
    write_volume(array, GRID, tmp_path / "i.nrrd")
    return tmp_path / "i.nrrd"


def test_the_result_is_the_one_computed_here_and_nothing_stays_there(
    tmp_path: Path, there: list[str], image: Path, tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(image), "--model", str(tiny_bundle.path), *QUICK, "--statistics"]
    assert main(["segment", *words, str(tmp_path / "a.csv"), "-o", str(tmp_path / "a.seg.nrrd")]) == 0
    capsys.readouterr()
    far = [*there, "segment", *words, str(tmp_path / "b.csv"), "-o", str(tmp_path / "b.seg.nrrd"), "--events"]
    assert main(far) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[-1]["event"] == "result"
    assert events[-1]["output"] == str(tmp_path / "b.seg.nrrd")
    stages = {event["stage"] for event in events if event["event"] == "progress"}
    assert {"Sending to ada@far", "Predicting"} <= stages
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    expected, found = read_labels(tmp_path / "a.seg.nrrd"), read_labels(tmp_path / "b.seg.nrrd")
    assert np.array_equal(expected.array, found.array)
    assert dict(expected.tags)["ModelSHA256"] == dict(found.tags)["ModelSHA256"]
    assert list((tmp_path / "there").iterdir()) == []


def test_a_folder_is_resumed_from_what_is_here(
    tmp_path: Path, there: list[str], image: Path, tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "images"
    source.mkdir()
    image.rename(source / "a.nrrd")
    (source / "b.nrrd").write_bytes(b"no image")
    words = [*there, "batch", str(source), "-o", str(tmp_path / "out"), "--model", str(tiny_bundle.path), *QUICK]
    for expected in ("1 done, 0 skipped, 1 failed", "0 done, 1 skipped, 1 failed"):
        assert main(words) == 2
        text = capsys.readouterr().out
        assert expected in text
        assert f"Table: {tmp_path / 'out' / 'outcomes.csv'}" in text
        assert f"b: failed. {source / 'b.nrrd'}" in text
        assert (tmp_path / "out" / "a.seg.nrrd").is_file()


@pytest.mark.parametrize(
    "output", [["-o", "x.seg.nrrd"], ["-o", "./x.seg.nrrd"], ["-ox.seg.nrrd"], ["--output=x.seg.nrrd"]]
)
def test_however_an_output_is_written_it_comes_back(
    output: list[str], tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = _job(["segment", image.name, *output, "--statistics=s.csv"])
    assert "".join(job.words).count("out/x.seg.nrrd") == 1
    assert "--statistics=out/s.csv" in job.words
    assert set(job.results) == {"out/x.seg.nrrd", "out/s.csv"}


def test_a_folder_with_a_slash_behind_its_name_is_sent(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    image.rename(tmp_path / "images" / image.name)
    job = _job(["batch", "images/", "-o", "new/"])
    assert job.words[:4] == ["batch", "in/images", "-o", "out/cases"]


@pytest.mark.parametrize("option", ["--frame", "--series", "--folds", "--roi", "--overlap"])
def test_the_value_of_an_option_is_never_taken_for_a_file(
    option: str, tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "0").mkdir()
    image.rename(tmp_path / "0" / image.name)
    values = ["0", "1", "0", "1", "0", "1"] if option == "--roi" else ["0"]
    for words in (["0", option, *values], [option, *values, "--force", "0"]):
        job = _job(["segment", *words, "-o", "x.nrrd"])
        at = job.words.index(option)
        assert job.words[at + 1 : at + 1 + len(values)] == values
        assert job.words.count("in/0") == 1


def test_a_dicom_file_is_sent_with_its_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "study"
    (folder / "more").mkdir(parents=True)
    for name in ("1.dcm", "2.dcm", "more/IM3"):
        (folder / name).write_bytes(bytes(128) + b"DICM")
    (folder / "notes.txt").write_text("not DICOM")
    job = _job(["segment", str(folder / "1.dcm"), "-o", str(tmp_path / "x.nrrd")])
    assert {name for name in job.files if name.startswith("in/0/")} == {"in/0/1.dcm", "in/0/2.dcm", "in/0/more/IM3"}
    assert job.words[1] == "in/0/1.dcm"


def test_a_folder_that_may_not_be_read_is_not_left_out_of_what_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "study" / "more").mkdir(parents=True)
    (tmp_path / "study" / "1.dcm").write_bytes(bytes(128) + b"DICM")
    scan = os.scandir

    def refusing(path: str) -> object:  # root may read everything, whatever a folder's permissions
        if Path(path).name == "more":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    for words in (["segment", str(tmp_path / "study")], ["segment", str(tmp_path / "study" / "1.dcm")]):
        with pytest.raises(InputError, match="more cannot be read: Permission denied"):
            _job([*words, "-o", str(tmp_path / "x.nrrd")])


def test_an_image_in_two_files_is_sent_whole(tmp_path: Path) -> None:
    (tmp_path / "a.mhd").write_text("NDims = 3\nElementDataFile = voxels.raw\n")
    (tmp_path / "voxels.raw").write_bytes(b"x")
    job = _job(["segment", str(tmp_path / "a.mhd"), "-o", str(tmp_path / "x.nrrd")])
    assert job.words[1] == "in/0/a.mhd"
    assert {name for name in job.files if name.startswith("in/0/")} == {"in/0/a.mhd", "in/0/voxels.raw"}


def test_what_is_refused_there_is_an_error_here(
    tmp_path: Path, there: list[str], tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.nrrd").write_bytes(b"no image")
    words = ["segment", str(tmp_path / "bad.nrrd"), "-o", str(tmp_path / "x.nrrd"), "--model", str(tiny_bundle.path)]
    assert main([*there, *words]) == 2
    assert str(tmp_path / "bad.nrrd") in capsys.readouterr().err, "not by its name there"
    assert not (tmp_path / "x.nrrd").exists()


def test_a_computer_that_cannot_be_reached_or_lacks_the_program_is_told_with_the_cure(
    tmp_path: Path, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["segment", str(image), "-o", str(tmp_path / "x.nrrd")]
    path = tmp_path / "closed"
    path.write_text("#!/bin/sh\necho 'Permission denied (publickey).' >&2\nexit 255\n")
    path.chmod(0o755)
    assert main(["remote", "--ssh", str(path), "ada@far", *words]) == 3
    said = capsys.readouterr().err
    assert "Permission denied" in said
    assert "set up a key" in said
    path.write_text("#!/bin/sh\necho 'sh: mambaseg: not found' >&2\nexit 127\n")
    assert main(["remote", "--ssh", str(path), "ada@far", *words]) == 3
    assert "Install MambaSegmentation there" in capsys.readouterr().err
    assert main(["remote", "--ssh", "/no/such/ssh", "ada@far", *words]) == 3
    assert "Install an SSH client" in capsys.readouterr().err
    assert main(["remote", "--ssh", str(path), "ada@far", "models"]) == 2
    assert main(["remote", "--ssh", str(path), "--", "-oProxyCommand=x", *words]) == 2


def test_a_talkative_far_end_does_not_get_stuck(
    tmp_path: Path, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "talkative"
    path.write_text(
        "#!/bin/sh\nexec 3<&0\ncat <&3 >/dev/null &\ni=0; while [ $i -lt 3000 ]; do echo 'a warning of sixty letters, again and again and again and' >&2;"
        ' i=$((i+1)); done\necho \'{"event": "end", "code": 0}\'\n'
    )
    path.chmod(0o755)
    assert main(["remote", "--ssh", str(path), "ada@far", "segment", str(image), "-o", str(tmp_path / "x.nrrd")]) == 0


def test_the_far_end_stops_and_cleans_up_when_the_near_end_goes(
    tmp_path: Path, image: Path, tiny_bundle: Bundle
) -> None:
    far = tmp_path / "far"
    far.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "MambaSegLib", "remote-job"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(far)},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    wire = Wire(process.stdout, process.stdin)
    wire.send_file("in/0/i.nrrd", image)
    end = time.monotonic() + 60
    while not list(far.rglob("i.nrrd")) and time.monotonic() < end:
        time.sleep(0.02)
    assert list(far.rglob("i.nrrd"))
    process.stdin.close()
    assert process.wait(60) != 0
    assert list(far.iterdir()) == []
    process.stdout.close()


def test_another_version_is_refused(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "MambaSegLib", "remote-job"],
        input=b'{"protocol": 99, "words": []}\n',
        capture_output=True,
        check=False,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert b"different versions" in process.stdout
    assert json.loads(process.stdout.splitlines()[-1]) == {"event": "end", "code": 2}


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../b", "", "a//b", ".", "a/\0"])
def test_names_that_lead_elsewhere_are_refused(name: str, windows: bool) -> None:
    with pytest.raises(InputError, match="not accepted"):
        safe_name(name, windows=windows)


@pytest.mark.parametrize("name", ["a\\..\\b", "C:/x", "in/0/scan:1.nii.gz"])
def test_what_means_a_drive_a_stream_or_a_folder_on_windows_is_a_plain_name_elsewhere(name: str) -> None:
    assert str(safe_name(name, windows=False)) == name
    with pytest.raises(InputError, match="Windows takes no : "):
        safe_name(name, windows=True)


def test_images_and_results_with_colons_in_their_names_travel(
    tmp_path: Path, there: list[str], image: Path, tiny_bundle: Bundle
) -> None:
    image = image.rename(tmp_path / "2026-01-01 10:30\\T1.nrrd")
    output = tmp_path / "10:30.seg.nrrd"
    assert main([*there, "segment", str(image), "-o", str(output), "--model", str(tiny_bundle.path), *QUICK]) == 0
    assert read_labels(output).geometry.shape == GRID.shape


def test_only_files_that_were_asked_for_are_taken(tmp_path: Path) -> None:
    job = _Job([], {}, {"out/a.nrrd": tmp_path / "mine.nrrd", "out/cases/": tmp_path / "cases"})
    assert _place(job, {"file": "out/a.nrrd"}) == tmp_path / "mine.nrrd"
    assert _place(job, {"file": "out/cases/b/c.csv"}) == tmp_path / "cases" / "b" / "c.csv"
    with pytest.raises(InputError, match="nobody asked for"):
        _place(job, {"file": "out/other.nrrd"})


def test_a_file_that_is_cut_off_leaves_nothing(tmp_path: Path) -> None:
    wire = Wire(io.BytesIO(b'{"file": "a", "bytes": 10}\n12345'), io.BytesIO())
    message = wire.receive()
    assert message is not None
    with pytest.raises(InputError, match="ended in the middle"):
        wire.receive_file(message, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_results_inside_the_folder_of_images_are_not_sent_as_images(
    tmp_path: Path, image: Path, tiny_bundle: Bundle
) -> None:
    (tmp_path / "images" / "out").mkdir(parents=True)
    image.rename(tmp_path / "images" / "i.nrrd")
    (tmp_path / "images" / "out" / "i.seg.nrrd").write_bytes(b"done before")
    images = tmp_path / "images"
    job = _job(["batch", str(images), "-o", str(images / "out"), "--model", str(tiny_bundle.path)])
    assert [name for name in job.files if name.startswith("in/images")] == ["in/images/i.nrrd"]
    assert "out/cases/i.seg.nrrd" in job.files


def test_what_is_said_there_names_the_files_here_even_where_their_names_are_alike() -> None:
    inputs = {"in/0/a.nrrd": Path("/x/in/1/b.nrrd"), "in/1/b.nrrd": Path("out/cases/b.nrrd")}
    job = _Job([], results={"out/cases/": Path("/y")}, inputs=inputs)
    said = "in/0/a.nrrd and in/1/b.nrrd, begin/0/a.nrrd: see out/cases/table.csv"
    expected = f"{Path('/x/in/1/b.nrrd')} and {Path('out/cases/b.nrrd')}, begin/0/a.nrrd: see {Path('/y')}/table.csv"
    assert _here(said, job) == expected
    assert _here(said, _Job([])) == said
