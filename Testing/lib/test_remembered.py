"""What is remembered about this computer helps where it can, and harms nowhere."""

import json
import tempfile
from pathlib import Path

import pytest

from MambaSegLib.model_folders import default_models_folder
from MambaSegLib.remembered import cache_folder, recall, remember


def test_entries_are_added_and_replaced(tmp_path):
    file = tmp_path / "new folder" / "speeds.json"
    remember(file, "a", 1)
    remember(file, "b", 2.5)
    remember(file, "a", 3)
    assert recall(file) == {"a": 3, "b": 2.5}
    assert [entry.name for entry in file.parent.iterdir()] == ["speeds.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\x00\xff", b'"text"'])
def test_a_damaged_file_holds_nothing_and_is_replaced(content, tmp_path):
    file = tmp_path / "speeds.json"
    file.write_bytes(content)
    assert recall(file) == {}
    remember(file, "a", 1)
    assert json.loads(file.read_text()) == {"a": 1}


def test_a_place_that_cannot_be_written_or_read_is_no_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    remember(tmp_path / "file" / "speeds.json", "a", 1)
    assert recall(tmp_path / "file" / "speeds.json") == {}
    assert recall(tmp_path) == {}


def test_a_user_without_a_home_has_a_place_for_temporary_files(monkeypatch):
    def unknown():
        raise RuntimeError("Could not determine home directory.")  # noqa: EM101 (as pathlib says it)

    monkeypatch.setattr(Path, "home", unknown)
    for folder in (cache_folder(), default_models_folder()):
        assert folder.is_relative_to(tempfile.gettempdir())
