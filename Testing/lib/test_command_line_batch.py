"""`mambaseg batch`: every case gets its outcome, one bad one stops nothing, and a second run does only what is left."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from MambaSegLib.__main__ import main
from MambaSegLib.bundle import Bundle, save_bundle
from MambaSegLib.commands.cases import find_cases, parse_patterns
from MambaSegLib.commands.outcomes import Outcome, OutcomeTable
from MambaSegLib.download import sha256_of
from MambaSegLib.errors import InputError
from MambaSegLib.volume import Geometry
from MambaSegLib.volume_io import read_labels, write_volume

NAME = "mamba_unet_unidirectional.tiny"
IDENTITY = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
GRID = Geometry((16, 16, 16), (1.5, 1.0, 1.0), (0.0, 0.0, 0.0), IDENTITY)
QUICK = ("--scan", "pytorch", "--folds", "0", "--device", "cpu")


def write_image(path: Path, seed: int) -> None:
    array = np.random.default_rng(seed).normal(100, 20, GRID.shape).astype(np.float32)
    write_volume(array, GRID, path)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with two images and a broken one between them."""
    folder = tmp_path / "images"
    folder.mkdir()
    write_image(folder / "a.nii.gz", 1)
    (folder / "b.nii.gz").write_bytes(b"not an image")
    write_image(folder / "c.nrrd", 2)
    (folder / "notes.txt").write_text("no image")
    return folder


def rows_of(table: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))


def statuses(text: str) -> dict[str, str]:
    events = [json.loads(line) for line in text.splitlines()]
    return {event["case"]: event["status"] for event in events if event["event"] == "result" and "case" in event}


def test_a_batch_goes_on_after_a_failure_and_resumes(
    tmp_path: Path, images: Path, tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    words = ["batch", str(images), "-o", str(out), "--model", NAME, "--models-dir", str(tiny_bundle.path.parent)]
    words += [*QUICK, "--events", "--statistics"]
    assert main(words) == 2
    text = capsys.readouterr().out
    assert statuses(text) == {"a": "done", "b": "failed", "c": "done"}
    end = json.loads(text.splitlines()[-1])
    assert (end["cases"], end["done"], end["skipped"], end["failed"]) == (3, 2, 0, 1)
    progress = [json.loads(line) for line in text.splitlines() if '"Predicting"' in line]
    assert {(event["case"], event["case_number"], event["cases"]) for event in progress} == {("a", 1, 3), ("c", 3, 3)}
    rows = rows_of(out / "outcomes.csv")
    assert [(row["case"], row["status"]) for row in rows] == [("a", "done"), ("b", "failed"), ("c", "done")]
    assert "b.nii.gz" in rows[1]["message"]
    voxels = int((read_labels(out / "a.seg.nrrd").array == 1).sum())
    assert float(rows[0]["Anterior [ml]"]) == pytest.approx(voxels * 1.5 / 1000, rel=1e-5)
    assert (out / "a.statistics.csv").exists()

    # The broken image is mended and one image changed; only those two are computed again.
    before = (out / "c.seg.nrrd").stat().st_mtime_ns
    write_image(images / "a.nii.gz", 3)
    write_image(images / "b.nii.gz", 4)
    assert main(words) == 0
    assert statuses(capsys.readouterr().out) == {"a": "done", "b": "done", "c": "skipped"}
    assert (out / "c.seg.nrrd").stat().st_mtime_ns == before
    assert len(rows_of(out / "outcomes.csv")) == 5

    # A finished batch loads no weights; a lost output, another setting or other weights are computed again.
    assert main(words) == 0
    assert statuses(capsys.readouterr().out) == dict.fromkeys("abc", "skipped")
    (out / "c.seg.nrrd").unlink()
    assert main(words) == 0
    assert statuses(capsys.readouterr().out) == {"a": "skipped", "b": "skipped", "c": "done"}
    assert main([*words, "--overlap", "0.25"]) == 0
    assert set(statuses(capsys.readouterr().out).values()) == {"done"}
    assert main([*words, "--quality", "fast"]) == 0  # the same by another name
    assert set(statuses(capsys.readouterr().out).values()) == {"skipped"}
    newer = replace(tiny_bundle.manifest, version="1.0.1")
    save_bundle(newer, {0: tiny_bundle.load_weights(0)}, tiny_bundle.path, force=True)
    assert main(words) == 0
    assert set(statuses(capsys.readouterr().out).values()) == {"done"}


def test_files_of_another_origin_are_not_replaced(
    tmp_path: Path, images: Path, tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "c.seg.nrrd").write_text("mine")
    words = ["batch", str(images), "-o", str(out), "--model", str(tiny_bundle.path), *QUICK]
    assert main(words) == 2
    assert "exists already" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["c.seg.nrrd"]
    assert main(["batch", str(images), "-o", str(images), "--model", str(tiny_bundle.path), *QUICK]) == 2
    assert "is the input folder" in capsys.readouterr().err


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def found(folder: Path, channels: list[str], *patterns: str) -> dict[str, dict[str, str]]:
    cases = find_cases(folder, channels, parse_patterns(patterns))
    return {
        case.name: {channel: path.relative_to(folder).as_posix() for channel, path in case.images.items()}
        for case in cases
        if not case.problem
    }


def test_numbered_files_are_the_channels_of_a_case(tmp_path: Path) -> None:
    touch(tmp_path, "p1_0000.nii.gz", "p1_0001.nii.gz", "p2_0001.nii.gz", "p2_0000.nrrd", "p3_0000.nii.gz", ".x.nii")
    assert found(tmp_path, ["T1", "T2"]) == {
        "p1": {"T1": "p1_0000.nii.gz", "T2": "p1_0001.nii.gz"},
        "p2": {"T1": "p2_0000.nrrd", "T2": "p2_0001.nii.gz"},
    }
    (incomplete,) = [case for case in find_cases(tmp_path, ["T1", "T2"], {}) if case.problem]
    assert (incomplete.name, incomplete.problem) == ("p3", "The image for T2 is missing.")
    touch(tmp_path / "more", "p_0000.nii", "p_0001.nii", "p_0002.nii")
    with pytest.raises(InputError, match="is channel 0002, but the model takes T1, T2 only"):
        find_cases(tmp_path / "more", ["T1", "T2"], {})


def test_with_one_channel_every_image_and_every_folder_is_a_case(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz", "b.mha", "dicom/1.dcm", "readme.md", "old.seg.nrrd")
    assert list(found(tmp_path, ["T1"])) == ["a", "b", "dicom"]


def test_a_number_that_is_no_channel_belongs_to_the_name(tmp_path: Path) -> None:
    touch(tmp_path / "numbers", "p_0012.nii.gz", "p_0000.nii.gz")
    assert list(found(tmp_path / "numbers", ["T1"])) == ["p_0000", "p_0012"]
    touch(tmp_path / "channels", "p_0000.nii.gz", "q_0000.nii.gz")
    assert list(found(tmp_path / "channels", ["T1"])) == ["p", "q"]


def test_patterns_find_channels_in_folders_of_their_own(tmp_path: Path) -> None:
    touch(tmp_path, "k1/k1_t1.nii.gz", "k1/k1_t2.nii.gz", "k2/k2_t1.nii.gz", "k2/k1_t2.nii.gz", "k1/seg.nii.gz")
    cases = found(tmp_path, ["T1", "T2"], "t2={case}/{case}_t2.nii.gz", "t1={case}/{case}_t1.nii.gz")
    assert cases == {"k1": {"T1": "k1/k1_t1.nii.gz", "T2": "k1/k1_t2.nii.gz"}}
    with pytest.raises(InputError, match="The model takes the channels T1, T2; --pattern names T1"):
        found(tmp_path, ["T1", "T2"], "T1={case}.nii")
    for wrong in ("T1=a.nii", "{case}.nii"):
        with pytest.raises(InputError, match=r"expected NAME=PATTERN"):
            parse_patterns([wrong])


def test_two_images_for_one_place_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz", "a.nrrd")
    with pytest.raises(InputError, match="both channel T1 of case a"):
        find_cases(tmp_path, ["T1"], {})


def test_a_folder_without_images_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"case_0001\.nii\.gz \(T2\)"):
        find_cases(tmp_path, ["T1", "T2"], {})


def outcome(case: str, status: Any = "done", key: str = "k") -> Outcome:
    return Outcome(case, status, "two\nlines, and a comma", 1.0, f"{case}.nrrd", key, {"L": 1.5})


def test_a_table_cut_by_a_kill_is_continued(tmp_path: Path) -> None:
    table = OutcomeTable(tmp_path, ["L"])
    for case in ("a", "b"):
        table.add(outcome(case))
        (tmp_path / f"{case}.nrrd").write_bytes(b"x")
    content = table.path.read_bytes()
    table.path.write_bytes(content[:-12])
    again = OutcomeTable(tmp_path, ["L"])
    assert again.is_done("a", "k", tmp_path / "a.nrrd")
    assert not again.is_done("b", "k", tmp_path / "b.nrrd")
    again.add(outcome("b"))
    assert OutcomeTable(tmp_path, ["L"]).is_done("b", "k", tmp_path / "b.nrrd")


def test_a_table_cut_in_the_middle_of_a_letter_is_continued(tmp_path: Path) -> None:
    table = OutcomeTable(tmp_path, ["L"])
    table.add(outcome("a"))
    table.add(outcome("é"))
    (tmp_path / "a.nrrd").write_bytes(b"x")
    content = table.path.read_bytes()
    table.path.write_bytes(content[: content.index("é".encode()) + 1])
    assert OutcomeTable(tmp_path, ["L"]).is_done("a", "k", tmp_path / "a.nrrd")


def test_a_name_that_is_no_text_is_kept(tmp_path: Path) -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")  # how Python shows a Latin-1 name on a UTF-8 system
    OutcomeTable(tmp_path, ["L"]).add(outcome(name))
    (tmp_path / "a.nrrd").write_bytes(b"x")
    assert b"caf\xe9" in (tmp_path / "outcomes.csv").read_bytes()
    assert OutcomeTable(tmp_path, ["L"]).is_done(name, "k", tmp_path / "a.nrrd")


def test_a_link_to_itself_is_a_case_that_fails_and_stops_no_other(
    tmp_path: Path, images: Path, tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "loop.nii.gz").symlink_to("loop.nii.gz")
    words = ["batch", str(images), "-o", str(tmp_path / "out"), "--model", str(tiny_bundle.path), *QUICK, "--events"]
    assert main(words) == 2
    found = statuses(capsys.readouterr().out)
    assert found["loop"] == "failed"
    assert found["a"] == "done"


def test_results_in_the_folder_of_images_are_no_images(tmp_path: Path) -> None:
    write_image(tmp_path / "a.nrrd", 1)
    (tmp_path / "out").mkdir()
    write_image(tmp_path / "out" / "a.nrrd", 1)
    assert [case.name for case in find_cases(tmp_path, ["T1"], {}, tmp_path / "out")] == ["a"]
    found = find_cases(tmp_path / "..", ["T1"], {"T1": "{case}/a.nrrd"}, tmp_path)
    assert [case.name for case in found if case.name == tmp_path.name] == []


def test_voxels_beside_their_header_are_part_of_the_image(tmp_path: Path) -> None:
    header = "NDims = 3\nDimSize = 2 1 1\nElementType = MET_UCHAR\nElementSpacing = 1 1 1\nElementDataFile = a.raw\n"
    (tmp_path / "a.mhd").write_text(header)
    nrrd = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 1 1\nencoding: raw\ndata file: a.raw\n"
    (tmp_path / "b.nhdr").write_text(nrrd)
    hashes = []
    for content in (b"xy", b"xz"):
        (tmp_path / "a.raw").write_bytes(content)
        hashes.append([case.sha256() for case in find_cases(tmp_path, ["T1"], {})])
    assert hashes[0][0] != hashes[1][0]
    assert hashes[0][1] != hashes[1][1]


def test_an_image_that_may_not_be_read_stops_no_other(
    tmp_path: Path,
    images: Path,
    tiny_bundle: Bundle,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refusing(path: Path) -> str:  # root may read everything, whatever a file's permissions
        if path.name == "b.nii.gz":
            raise PermissionError(path)
        return sha256_of(path)

    monkeypatch.setattr("MambaSegLib.commands.cases.sha256_of", refusing)
    words = ["batch", str(images), "-o", str(tmp_path / "out"), "--model", str(tiny_bundle.path), *QUICK, "--events"]
    assert main(words) == 2
    assert statuses(capsys.readouterr().out) == {"a": "done", "b": "failed", "c": "done"}


def test_a_folder_of_images_that_may_not_be_read_stops_no_other(
    tmp_path: Path,
    images: Path,
    tiny_bundle: Bundle,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (images / "d" / "more").mkdir(parents=True)
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "more" and allowed(path, mode))
    words = ["batch", str(images), "-o", str(tmp_path / "out"), "--model", str(tiny_bundle.path), *QUICK, "--events"]
    assert main(words) == 2
    assert statuses(capsys.readouterr().out) == {"a": "done", "b": "failed", "c": "done", "d": "failed"}


def test_a_later_failure_undoes_an_earlier_success(tmp_path: Path) -> None:
    table = OutcomeTable(tmp_path, ["L"])
    (tmp_path / "a.nrrd").write_bytes(b"x")
    table.add(outcome("a"))
    table.add(outcome("a", "failed"))
    assert not OutcomeTable(tmp_path, ["L"]).is_done("a", "k", tmp_path / "a.nrrd")


def test_the_table_of_another_model_is_set_aside(tmp_path: Path) -> None:
    OutcomeTable(tmp_path, ["L"]).add(outcome("a"))
    OutcomeTable(tmp_path, ["M"])
    assert [row["case"] for row in rows_of(tmp_path / "outcomes-1.csv")] == ["a"]
    assert rows_of(tmp_path / "outcomes.csv") == []


def test_a_region_limits_every_case_and_makes_another_result(
    tmp_path: Path, images: Path, tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "b.nii.gz").unlink()
    words = ["batch", str(images), "-o", str(tmp_path / "out"), "--model", str(tiny_bundle.path), *QUICK, "--events"]
    # RAS: x and y are negative here. Voxels 0 to 7 along x and all along y and z.
    assert main([*words, "--roi", "-7.2", "1", "-20", "1", "-1", "40"]) == 0
    for name in ("a", "c"):
        labels = read_labels(tmp_path / "out" / f"{name}.seg.nrrd").array
        assert labels.any()
        assert not labels[:, :, 8:].any()
    capsys.readouterr()
    assert main(words) == 0
    assert statuses(capsys.readouterr().out) == {"a": "done", "c": "done"}
