"""Installing, listing and removing trained models; a failed installation leaves no trace.

Sources are a folder, a .zip, or an http(s) or file address. Whatever the source, a model is opened and checked in place
(`bundle_files`, `bundle`), every weight file is verified, and only then are its known files copied, under a name that
is safe by construction.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from MambaSegLib.atomic import new_folder
from MambaSegLib.bundle import Bundle
from MambaSegLib.bundle_files import open_bundle_files
from MambaSegLib.download import DEFAULT_TIMEOUT_S, MAX_DOWNLOAD_BYTES, download, is_address, sha256_of
from MambaSegLib.errors import BundleError, EnvironmentProblemError, InputError
from MambaSegLib.manifest import BundleManifest
from MambaSegLib.model_folders import (
    BUNDLED_MODELS,
    default_models_folder,
    entries_without_name,
    find_model_folder,
    model_names,
)

Origin = Literal["bundled", "installed"]
_DISK_RESERVE_BYTES = 100 * 1024**2


@dataclass(frozen=True)
class ListedModel:
    """One model a person can choose.

    Attributes:
        name: `network.dataset`.
        origin: "bundled" came with the program, "installed" was added by a person.
        path: Its folder.
        manifest: What it says about itself; None if it is damaged.
        problem: Why it cannot be used; "" if it can.
    """

    name: str
    origin: Origin
    path: Path
    manifest: BundleManifest | None
    problem: str = ""


def list_models(models_dir: Path | None = None) -> tuple[ListedModel, ...]:
    """All models, bundled ones first; damaged ones are listed with their problem, and so is what was only copied there.

    Args:
        models_dir: Folder of installed models; None takes the user's own.
    """
    bundled = [_listed(BUNDLED_MODELS / name, "bundled") for name in model_names(BUNDLED_MODELS)]
    installed_folder = models_dir or default_models_folder()
    shadowed = {model.name for model in bundled}
    names = [name for name in model_names(installed_folder) if name not in shadowed]
    installed = [_listed(installed_folder / name, "installed") for name in names]
    return (*bundled, *installed, *_uninstalled(installed_folder))


def install_model(
    source: str | Path,
    *,
    models_dir: Path | None = None,
    sha256: str | None = None,
    force: bool = False,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    on_progress: Callable[[int, int | None], None] | None = None,
) -> ListedModel:
    """Check a model and copy it to the models folder, whole or not at all.

    Args:
        source: Folder, .zip, or an https://, http:// or file:// address of a .zip.
        models_dir: Folder of installed models; None takes the user's own.
        sha256: Expected SHA-256 of the .zip. Required for http://, where anybody on the way may change the file.
        force: Replace an installed model of the same name.
        timeout_s: How long the server may stay silent.
        on_progress: Called with (bytes so far, bytes in all or None) while downloading; raising stops the download.

    Returns:
        The model as installed.

    Raises:
        BundleError: If the model is damaged, hostile, of a newer version, or installed already.
        InputError: If the address cannot be used or the hash differs.
        EnvironmentProblemError: If the server cannot be reached or the disk is full.
    """
    target_folder = models_dir or default_models_folder()
    text = str(source)
    if not is_address(text):
        if sha256 is not None:
            _compare_hash(Path(source), sha256)
        return _install_files(Path(source), target_folder, force)
    with tempfile.TemporaryDirectory(prefix="mambaseg-") as folder:
        archive = Path(folder) / "model.zip"
        download(text, archive, sha256=sha256, limit=MAX_DOWNLOAD_BYTES, timeout_s=timeout_s, on_progress=on_progress)
        return _install_files(archive, target_folder, force)


def remove_model(name: str, *, models_dir: Path | None = None) -> None:
    """Delete an installed model.

    Raises:
        InputError: If there is no such model or it came with the program.
    """
    folder = models_dir or default_models_folder()
    if name in model_names(BUNDLED_MODELS):
        message = f"{name} came with the program and cannot be removed."
        raise InputError(message)
    if name not in model_names(folder):
        installed = ", ".join(model_names(folder)) or "none"
        message = f'There is no installed model "{name}". Installed: {installed}.'
        raise InputError(message)
    # Renamed first: a kill in the middle of deleting leaves no half of a model under its name.
    aside = Path(tempfile.mkdtemp(prefix=".tmp-", dir=folder))
    try:
        (folder / name).rename(aside / name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _listed(path: Path, origin: Origin) -> ListedModel:
    try:
        bundle = Bundle(open_bundle_files(path))
    except (BundleError, OSError) as error:
        return ListedModel(path.name, origin, path, None, str(error))
    if bundle.name != path.name:
        problem = f'The folder {path.name} holds a model that calls itself "{bundle.name}".'
        return ListedModel(path.name, origin, path, None, problem)
    return ListedModel(bundle.name, origin, path, bundle.manifest)


def _uninstalled(folder: Path) -> list[ListedModel]:
    """Models that somebody has copied into the folder, where they are not found by a name."""
    problem = "It was copied into {folder} and is not installed. Install it from there (mambaseg models install), then delete the copy."
    return [
        ListedModel(path.name, "installed", path, None, problem.format(folder=folder))
        for path in entries_without_name(folder)
    ]


def _install_files(source: Path, models_dir: Path, force: bool) -> ListedModel:
    bundle = Bundle(open_bundle_files(source))
    target = models_dir / bundle.name
    _check_target(bundle, target, force)
    _check_disk(bundle, models_dir)
    with new_folder(target) as work:
        _copy_checked(bundle, work)
    return _listed(target, "installed")


def _check_target(bundle: Bundle, target: Path, force: bool) -> None:
    if bundle.name in model_names(BUNDLED_MODELS):
        message = f"{bundle.name} comes with the program already; a model of the same name cannot be installed."
        raise BundleError(message)
    if target.resolve() == bundle.path.resolve():
        message = f"{bundle.path} is where {bundle.name} is installed already."
        raise BundleError(message)
    if find_model_folder(bundle.name, target.parent) is not None and not force:
        message = f"{bundle.name} is installed already ({target}). Use --force to replace it, or remove it first."
        raise BundleError(message)


def _check_disk(bundle: Bundle, models_dir: Path) -> None:
    models_dir.mkdir(parents=True, exist_ok=True)
    needed = sum(bundle.files.size(name) for name in bundle.files.names()) + _DISK_RESERVE_BYTES
    free = shutil.disk_usage(models_dir).free
    if free < needed:
        message = f"{models_dir} has {free >> 20} MiB left, {bundle.name} needs {needed >> 20} MiB. Free some space."
        raise EnvironmentProblemError(message)


def _copy_checked(bundle: Bundle, work: Path) -> None:
    """Write exactly the bytes that were verified, one file after the other."""
    entries = {entry.file: entry for entry in bundle.manifest.folds}
    for name in bundle.files.names():
        if name.endswith(".safetensors") and name not in entries:
            message = f"{name} is not listed in the manifest of {bundle.name}. The model is refused."
            raise BundleError(message)
        content = bundle.verified_bytes(entries[name]) if name in entries else bundle.files.read(name)
        (work / name).parent.mkdir(exist_ok=True)
        (work / name).write_bytes(content)
    if Bundle(open_bundle_files(work)).sha256 != bundle.sha256:
        message = f"{bundle.path} changed while it was being installed. Try again."
        raise BundleError(message)


def _compare_hash(path: Path, sha256: str) -> None:
    if not path.is_file():
        message = f"{path} is no file; a SHA-256 can be compared for a .zip only."
        raise InputError(message)
    found = sha256_of(path)
    if found != sha256.lower():
        message = f"{path} has SHA-256 {found}, expected {sha256.lower()}. It is not the file you were promised."
        raise InputError(message)
