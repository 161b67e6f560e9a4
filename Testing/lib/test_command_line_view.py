"""`mambaseg view`: its command line, and what it says where the viewer's packages are missing."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import pytest

from MambaSegLib.__main__ import main
from MambaSegLib.commands import view
from MambaSegLib.errors import InputError
from MambaSegView.access import is_allowed, is_loopback, new_key


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Empty files to name on the command line, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("t1.nii.gz", "flair.nii.gz", "t1.seg.nrrd", "third.nrrd", "a=b.nrrd"):
        (tmp_path / name).touch()


@pytest.mark.skipif(importlib.util.find_spec("trame_slicer") is not None, reason="the viewer's packages are installed")
def test_without_its_packages_the_viewer_says_how_to_get_them(files, capfd):
    assert main(["view", "t1.nii.gz"]) == 3
    said = capfd.readouterr().err
    assert "trame-slicer" in said
    assert 'pip install ".[torch,view]"' in said


def test_what_is_missing_is_named(monkeypatch, files, capfd):
    monkeypatch.setattr(view, "NEEDED", {"numpy": "numpy", "surely_not_there": "a-package"})
    assert main(["view", "t1.nii.gz"]) == 3
    said = capfd.readouterr().err
    assert "a-package" in said
    assert "numpy" not in said


@pytest.mark.parametrize(
    ("words", "images", "segmentation"),
    [
        (["t1.nii.gz"], [Path("t1.nii.gz")], None),
        (["t1.nii.gz", "t1.seg.nrrd"], [Path("t1.nii.gz")], Path("t1.seg.nrrd")),
        (["a=b.nrrd"], [Path("a=b.nrrd")], None),
        (
            ["FLAIR=flair.nii.gz", "T1=t1.nii.gz", "t1.seg.nrrd"],
            {"FLAIR": Path("flair.nii.gz"), "T1": Path("t1.nii.gz")},
            Path("t1.seg.nrrd"),
        ),
    ],
)
def test_the_image_is_told_from_the_segmentation(files, words, images, segmentation):
    assert view.split_words(words) == (images, segmentation)


@pytest.mark.parametrize("words", [["t1.nii.gz", "t1.seg.nrrd", "third.nrrd"], ["t1.nii.gz", "not_there.nrrd"]])
def test_files_that_do_not_fit_are_refused(files, words):
    with pytest.raises(InputError):
        view.split_words(words)


@pytest.mark.parametrize("name", ["t1.nii.gz", "t1.nrrd", "t1.mha", "t1"])
def test_the_suggested_file_lies_beside_the_image(tmp_path, name):
    assert view.suggested_output(tmp_path / name) == tmp_path / "t1.seg.nrrd"


@pytest.mark.parametrize("text", ["-1", "65536", "http"])
def test_what_is_no_port_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError):
        view.port(text)


def test_the_viewer_listens_on_this_computer_unless_told_otherwise():
    from MambaSegLib.__main__ import build_parser
    from MambaSegView.settings import Settings

    arguments = build_parser().parse_args(["view", "t1.nii.gz"])
    assert is_loopback(arguments.host)
    assert is_loopback(Settings.host)


@pytest.mark.parametrize(
    ("host_header", "origin", "bound", "allowed"),
    [
        ("127.0.0.1:8080", None, "127.0.0.1", True),
        ("localhost:8080", "http://localhost:8080", "127.0.0.1", True),
        ("[::1]:8080", "http://[::1]:8080", "::1", True),
        ("127.0.0.1:8080", "http://evil.example", "127.0.0.1", False),  # a page elsewhere connects to the port
        ("127.0.0.1:8080", "http://127.0.0.1:9090", "127.0.0.1", False),  # another program's page on this computer
        ("127.0.0.1:8080", "null", "127.0.0.1", False),  # a sandboxed frame
        ("evil.example:8080", None, "127.0.0.1", False),  # a name that was made to point here
        ("evil.example:8080", "http://evil.example:8080", "127.0.0.1", False),
        ("", None, "127.0.0.1", False),
        ("clinic.example:8080", "http://clinic.example:8080", "0.0.0.0", True),
        ("clinic.example:8080", "http://evil.example", "0.0.0.0", False),
    ],
)
def test_only_the_viewers_own_page_is_answered(host_header, origin, bound, allowed):
    assert is_allowed(host_header, origin, bound) is allowed


def test_addresses_of_this_computer_are_known():
    assert all(map(is_loopback, ("127.0.0.1", "127.0.0.9", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "192.168.1.5", "::", "clinic.example")))


def test_keys_differ_and_are_never_read_as_numbers():
    keys = {new_key() for _ in range(50)}
    assert len(keys) == 50
    assert all(key[0].isalpha() and len(key) > 30 for key in keys)


@pytest.mark.parametrize("words", [["--threads", "1"], ["--overlap", "0.5"], ["--engine", "fused"]])
def test_options_the_viewer_would_not_heed_are_refused(files, words, capfd):
    assert main(["view", "t1.nii.gz", *words]) == 2
    assert "unrecognized arguments" in capfd.readouterr().err
