"""Models are installed whole or not at all, from files, folders and addresses; hostile archives leave no trace."""

from __future__ import annotations

import http.server
import json
import os
import pickle
import shutil
import stat
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from MambaSegLib import model_zoo
from MambaSegLib.bundle import Bundle, load_bundle, pack_bundle, save_bundle
from MambaSegLib.download import download, is_address
from MambaSegLib.errors import BundleError, CancelledError, EnvironmentProblemError, InputError, MambaSegError
from MambaSegLib.model_zoo import install_model, list_models, remove_model

NAME = "mamba_unet_unidirectional.tiny"


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def archive(tmp_path: Path, tiny_bundle: Bundle) -> Path:
    """The tiny model as a .zip."""
    pack_bundle(tiny_bundle, tmp_path / "tiny.zip")
    return tmp_path / "tiny.zip"


def leftovers(models_dir: Path) -> list[str]:
    return sorted(entry.name for entry in models_dir.rglob("*")) if models_dir.exists() else []


def installed(models_dir: Path) -> list[str]:
    return [model.name for model in list_models(models_dir) if model.origin == "installed"]


def test_a_model_from_a_zip_can_be_loaded_by_name_and_removed(archive: Path, models_dir: Path) -> None:
    model = install_model(archive, models_dir=models_dir)
    assert (model.name, model.origin, model.problem) == (NAME, "installed", "")
    assert installed(models_dir) == [NAME]
    load_bundle(NAME, models_dir=models_dir).verify()
    remove_model(NAME, models_dir=models_dir)
    assert leftovers(models_dir) == []


def test_a_model_from_a_folder_or_a_zip_with_one_top_folder_is_the_same(
    tmp_path: Path, tiny_bundle: Bundle, archive: Path, models_dir: Path
) -> None:
    nested = tmp_path / "nested.zip"
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(nested, "w") as target:
        target.mkdir("anything")
        for info in source.infolist():
            target.writestr(f"anything/{info.filename}", source.read(info))
        target.writestr("__MACOSX/anything/._bundle.json", b"x")
    for place in (tiny_bundle.path, nested):
        install_model(place, models_dir=models_dir, force=True)
        assert load_bundle(NAME, models_dir=models_dir).sha256 == tiny_bundle.sha256
    assert "._bundle.json" not in leftovers(models_dir)


def test_an_installed_model_is_replaced_only_on_request(archive: Path, models_dir: Path, tiny_bundle: Bundle) -> None:
    install_model(archive, models_dir=models_dir)
    with pytest.raises(BundleError, match=r"is installed already.*--force"):
        install_model(archive, models_dir=models_dir)
    newer = replace(tiny_bundle.manifest, version="2.0.0")
    save_bundle(newer, {0: tiny_bundle.load_weights(0)}, tiny_bundle.path, force=True)
    install_model(tiny_bundle.path, models_dir=models_dir, force=True)
    assert load_bundle(NAME, models_dir=models_dir).manifest.version == "2.0.0"
    assert "fold_1.safetensors" not in leftovers(models_dir)


def test_bundled_models_can_be_neither_removed_nor_replaced(
    monkeypatch: pytest.MonkeyPatch, tiny_bundle: Bundle, archive: Path, models_dir: Path
) -> None:
    monkeypatch.setattr(model_zoo, "BUNDLED_MODELS", tiny_bundle.path.parent)
    with pytest.raises(InputError, match="came with the program"):
        remove_model(NAME, models_dir=models_dir)
    with pytest.raises(BundleError, match="comes with the program already"):
        install_model(archive, models_dir=models_dir, force=True)
    assert [(model.name, model.origin) for model in list_models(models_dir)] == [(NAME, "bundled")]
    assert leftovers(models_dir) == []


def test_every_bundled_model_can_be_used() -> None:
    for model in list_models(Path("no such folder")):
        assert model.problem == ""
        load_bundle(model.path).verify()


def test_removing_what_is_not_installed_says_what_is(archive: Path, models_dir: Path) -> None:
    install_model(archive, models_dir=models_dir)
    for name in ("other.model", "../made", "", ".."):
        with pytest.raises(InputError, match=f"Installed: {NAME}"):
            remove_model(name, models_dir=models_dir)


def test_a_damaged_model_is_listed_with_its_problem(archive: Path, models_dir: Path) -> None:
    install_model(archive, models_dir=models_dir)
    (models_dir / NAME / "bundle.json").write_text("{")
    (model,) = [model for model in list_models(models_dir) if model.origin == "installed"]
    assert model.manifest is None
    assert "not valid JSON" in model.problem


def test_a_model_that_was_only_copied_into_the_folder_is_listed_with_what_to_do(
    archive: Path, tiny_bundle: Bundle, models_dir: Path
) -> None:
    models_dir.mkdir()
    (models_dir / "tiny.zip").write_bytes(archive.read_bytes())
    shutil.copytree(tiny_bundle.path, models_dir / "My model")
    (models_dir / ".tmp-half").mkdir()
    (models_dir / "notes").mkdir()
    (models_dir / "accepted-licenses.json").write_text("{}", encoding="utf-8")
    found = {model.name: model for model in list_models(models_dir) if model.origin == "installed"}
    assert sorted(found) == ["My model", "tiny.zip"]
    assert all("models install" in model.problem and model.manifest is None for model in found.values())


def test_a_model_under_another_name_is_listed_with_its_problem(archive: Path, models_dir: Path) -> None:
    install_model(archive, models_dir=models_dir)
    (models_dir / NAME).rename(models_dir / "nnunet.tiny")
    (model,) = [model for model in list_models(models_dir) if model.origin == "installed"]
    assert "calls itself" in model.problem


Entry = tuple[zipfile.ZipInfo | str, bytes]


def link_entry() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("LICENSE")
    info.create_system = 3
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


HOSTILE_ENTRIES: dict[str, tuple[Entry, str]] = {
    "climbs": (("../evil.txt", b"x"), "unsafe path"),
    "climbs inside": (("figures/../../evil.png", b"x"), "unsafe path"),
    "absolute": (("/evil.txt", b"x"), "unsafe path"),
    "drive": (("C:/evil.txt", b"x"), "unsafe path"),
    "backslash": (("..\\evil.txt", b"x"), "unsafe path"),
    "dot": (("./LICENSE", b"x"), "unsafe path"),
    "link": ((link_entry(), b"/etc/passwd"), "a link or a special file"),
    "pickle": (("fold_0.pth", pickle.dumps(1)), "no place in a model"),
    "code": (("network.py", b"print(1)"), "no place in a model"),
    "same name in capitals": (("FOLD_0.safetensors", b"x"), "two files of the same name"),
    "control character": (("LICENSE\x1b[31m", b"x"), "no place in a model"),
    "fold not in the manifest": (("fold_7.safetensors", b"x"), "not listed in the manifest"),
    "bomb": (("figures/big.png", bytes(30 * 1024**2)), "times its size"),
}


@pytest.mark.parametrize(("entry", "expected"), HOSTILE_ENTRIES.values(), ids=HOSTILE_ENTRIES.keys())
def test_a_hostile_archive_is_refused_without_a_trace(
    tmp_path: Path, archive: Path, models_dir: Path, entry: Entry, expected: str
) -> None:
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_DEFLATED) as target:
        target.writestr(*entry)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BundleError, match=expected):
        install_model(archive, models_dir=models_dir)
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before and path != models_dir] == []


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_with_a_name_twice_is_refused(archive: Path, models_dir: Path) -> None:
    with zipfile.ZipFile(archive, "a") as target:
        target.writestr("bundle.json", b"{}")
    with pytest.raises(BundleError, match="two files of the same name"):
        install_model(archive, models_dir=models_dir)


def test_an_archive_of_countless_files_is_refused(tmp_path: Path, models_dir: Path) -> None:
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as target:
        for index in range(201):
            target.writestr(f"figures/{index}.png", b"")
    with pytest.raises(BundleError, match="more than 200 files"):
        install_model(tmp_path / "many.zip", models_dir=models_dir)


@pytest.mark.parametrize("zip64", [False, True])
def test_an_archive_whose_directory_would_fill_the_memory_is_refused(
    tmp_path: Path, models_dir: Path, zip64: bool
) -> None:
    small, huge = (2 * 1024**2).to_bytes(4, "little"), (2**40).to_bytes(8, "little")
    extended = b"PK\6\6" + bytes(36) + huge + bytes(8) + b"PK\6\7" + bytes(16)
    end = b"PK\5\6" + bytes(8) + (bytes(4) if zip64 else small) + bytes(6)
    (tmp_path / "m.zip").write_bytes(bytes(100) + (extended if zip64 else b"") + end)
    with pytest.raises(BundleError, match="far more files than a model"):
        install_model(tmp_path / "m.zip", models_dir=models_dir)


def test_archives_damaged_at_random_are_refused_or_unharmed(archive: Path, models_dir: Path) -> None:
    content = archive.read_bytes()
    directory = content.find(b"PK\x01\x02")
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(100):
        damaged = bytearray(content)
        for _ in range(random.integers(1, 9)):
            damaged[random.integers(directory, len(content))] = random.choice([0, 1, 46, 47, 255])
        archive.write_bytes(damaged)
        try:
            install_model(archive, models_dir=models_dir, force=True)
        except BundleError:
            refused += 1
    assert 30 < refused < 100


def test_an_archive_that_lies_about_its_sizes_is_refused(archive: Path, models_dir: Path) -> None:
    content = archive.read_bytes()
    with zipfile.ZipFile(archive) as source:
        true_size = source.getinfo("MODEL_CARD.md").file_size
    # Both the local header and the directory state the size, little endian; claim one byte.
    lied = content.replace(true_size.to_bytes(4, "little"), (1).to_bytes(4, "little"))
    assert lied != content
    archive.write_bytes(lied)
    with pytest.raises(BundleError, match="MODEL_CARD"):
        install_model(archive, models_dir=models_dir)
    assert leftovers(models_dir) == []


@pytest.mark.parametrize("position", [0.3, 0.9, 0.999])
def test_a_damaged_or_cut_archive_is_refused_without_a_trace(archive: Path, models_dir: Path, position: float) -> None:
    content = archive.read_bytes()
    at = int(len(content) * position)
    for damaged in (content[:at], content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]):
        archive.write_bytes(damaged)
        try:
            install_model(archive, models_dir=models_dir)
        except BundleError:
            assert leftovers(models_dir) == []
        else:  # the byte carries no content, e.g. a date: what was installed is the model
            load_bundle(NAME, models_dir=models_dir).verify()
            remove_model(NAME, models_dir=models_dir)


def test_a_failure_while_copying_leaves_the_old_model(
    monkeypatch: pytest.MonkeyPatch, archive: Path, models_dir: Path
) -> None:
    install_model(archive, models_dir=models_dir)
    before = leftovers(models_dir)

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        install_model(archive, models_dir=models_dir, force=True)
    assert leftovers(models_dir) == before
    load_bundle(NAME, models_dir=models_dir).verify()


class Server(http.server.BaseHTTPRequestHandler):
    """Serves one archive; some paths misbehave."""

    content: ClassVar[bytes] = b""

    def do_GET(self) -> None:
        if self.path in ("/to-file", "/to-ftp"):
            self.send_response(302)
            self.send_header("Location", "file:///etc/passwd" if self.path == "/to-file" else "ftp://127.0.0.1/m.zip")
            self.end_headers()
            return
        if self.path == "/missing":
            self.send_error(404)
            return
        stated = len(self.content) + (100 if self.path == "/cut" else 0)
        self.send_response(200)
        self.send_header("Content-Length", str(10**12 if self.path == "/huge" else stated))
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def address(archive: Path) -> Iterator[str]:
    Server.content = archive.read_bytes()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def digest_of(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def test_a_model_is_installed_from_a_web_address_with_its_hash(address: str, archive: Path, models_dir: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    install_model(
        f"{address}/m.zip",
        models_dir=models_dir,
        sha256=digest_of(archive).upper(),
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert installed(models_dir) == [NAME]
    assert seen[-1] == (archive.stat().st_size,) * 2


def test_a_model_is_installed_from_a_file_address(archive: Path, models_dir: Path) -> None:
    install_model(archive.as_uri(), models_dir=models_dir)
    assert installed(models_dir) == [NAME]


@pytest.mark.parametrize(
    ("path", "error", "expected"),
    [
        ("/cut", EnvironmentProblemError, "cannot be read|ended after"),
        ("/huge", InputError, "larger than"),
        ("/missing", EnvironmentProblemError, "Not Found"),
        ("/to-file", EnvironmentProblemError, "is not allowed"),
        ("/to-ftp", InputError, "which is not followed"),
    ],
)
def test_a_download_that_goes_wrong_leaves_nothing(
    tmp_path: Path, address: str, archive: Path, path: str, error: type[MambaSegError], expected: str
) -> None:
    target = tmp_path / "download.zip"
    with pytest.raises(error, match=expected):
        download(address + path, target, sha256=digest_of(archive))
    assert not target.exists()


def test_a_download_with_another_hash_or_cancelled_leaves_nothing(tmp_path: Path, address: str, archive: Path) -> None:
    target = tmp_path / "download.zip"
    with pytest.raises(InputError, match="not the file you were promised"):
        download(f"{address}/m.zip", target, sha256="0" * 64)

    def stop(done: int, total: int | None) -> None:
        raise CancelledError

    with pytest.raises(CancelledError):
        download(f"{address}/m.zip", target, sha256=digest_of(archive), on_progress=stop)
    with pytest.raises(InputError, match="larger than"):
        download(f"{address}/m.zip", target, sha256=digest_of(archive), limit=1000)
    assert not target.exists()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("ftp://example.org/m.zip", 'not from "ftp:"'),
        ("data:application/zip;base64,AAAA", 'not from "data:"'),
        ("http://example.org/m.zip", "not encrypted"),
        ("file://elsewhere/m.zip", "names another computer"),
    ],
)
def test_addresses_that_cannot_be_trusted_are_refused(models_dir: Path, source: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        install_model(source, models_dir=models_dir)


def test_a_hash_that_is_none_is_refused(models_dir: Path, archive: Path) -> None:
    with pytest.raises(InputError, match="64 hexadecimal digits"):
        install_model("https://example.org/m.zip", sha256="abc", models_dir=models_dir)
    with pytest.raises(InputError, match="not the file you were promised"):
        install_model(archive, sha256="0" * 64, models_dir=models_dir)


def test_an_address_that_cannot_be_reached_says_so(models_dir: Path) -> None:
    with pytest.raises(EnvironmentProblemError, match="Check the address and the network"):
        install_model("http://127.0.0.1:9/m.zip", sha256="0" * 64, models_dir=models_dir, timeout_s=2)
    with pytest.raises(EnvironmentProblemError, match="cannot be read"):
        install_model("file:///no/such/file.zip", models_dir=models_dir)


def test_paths_are_not_addresses() -> None:
    assert not is_address("C:\\models\\m.zip")
    assert not is_address("models/m.zip")
    assert is_address("https://example.org/m.zip")


def test_installing_from_the_installed_folder_itself_is_refused(archive: Path, models_dir: Path) -> None:
    install_model(archive, models_dir=models_dir)
    with pytest.raises(BundleError, match=r"is where .* is installed already"):
        install_model(models_dir / NAME, models_dir=models_dir, force=True)
    load_bundle(NAME, models_dir=models_dir).verify()


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_installed_models_can_be_read_by_others(archive: Path, models_dir: Path) -> None:
    install_model(archive, models_dir=models_dir)
    assert stat.S_IMODE((models_dir / NAME).stat().st_mode) & 0o055 == 0o055
    assert json.loads((models_dir / NAME / "bundle.json").read_text())["name"] == NAME


class Unreadable(type(Path())):  # type: ignore[misc] # root may read everything, whatever the permissions
    """A place that may not be looked at."""

    def iterdir(self) -> Iterator[Path]:
        raise PermissionError(self)

    is_dir = is_file = iterdir


class Listed(type(Path())):  # type: ignore[misc]
    """A folder whose names may be listed, but not what they name."""

    def iterdir(self) -> Iterator[Path]:
        return iter([Unreadable(self / "some.model")])


def test_a_models_folder_that_may_not_be_read_hides_no_bundled_model(tmp_path: Path) -> None:
    folder = Unreadable(tmp_path)
    for hidden in (folder, Listed(tmp_path)):
        assert [model.origin for model in list_models(hidden)] == ["bundled", "bundled"]
    with pytest.raises(BundleError, match="no model"):
        load_bundle("no.such", models_dir=folder)
