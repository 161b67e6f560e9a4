"""Packages a segmentation needs beyond what Slicer brings, and installing them once the person has agreed.

Nothing is imported or installed when this file is imported. PyTorch comes through Slicer's PyTorch extension, which
picks the build for the computer's GPU; the rest through `slicer.packaging` (Slicer 5.12) or `slicer.util.pip_install`.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import invalidate_caches, metadata, util
from pathlib import Path
from typing import Any

from MambaSegLib.errors import EnvironmentProblemError
from MambaSegmentationLib.translation import tr as _


@dataclass(frozen=True)
class Package:
    """A package a segmentation needs.

    Attributes:
        name: Name it is installed and imported by.
        requirement: With the versions that do.
        megabytes: About how much is downloaded.
        reason: What it is for.
    """

    name: str
    requirement: str
    megabytes: int
    reason: str


@dataclass(frozen=True)
class Consent:
    """What a person is asked before anything is installed.

    Attributes:
        title: Of the dialog.
        text: What, how big and why.
    """

    title: str
    text: str


PACKAGES = (
    Package("torch", "torch>=2.6", 250, _("computes the networks; up to 3000 MB with support for NVIDIA GPUs")),
    Package("numba", "numba>=0.60", 50, _("makes segmenting without a GPU many times faster")),
    Package("safetensors", "safetensors>=0.4.5", 1, _("reads model weights without running code from them")),
    Package("scipy", "scipy>=1.13", 40, _("resamples images")),
    Package("SimpleITK", "SimpleITK>=2.3", 50, _("reads images")),
)
"""In the order they are installed in; scipy and SimpleITK are part of Slicer."""

SLICERS_OWN = ("numpy", "scipy", "SimpleITK", "vtk")
"""Never replaced: another version of these breaks Slicer."""


def missingPackages(isInstalled: Callable[[str], bool] | None = None) -> tuple[Package, ...]:
    """Packages that are not there, or too old; nothing is imported to find out.

    Args:
        isInstalled: Whether a package is there; None asks this Python.
    """
    if isInstalled is not None:
        return tuple(package for package in PACKAGES if not isInstalled(package.name))
    return tuple(package for package in PACKAGES if util.find_spec(package.name) is None or _isOld(package))


def consent(missing: Sequence[Package], wheelFolder: Path | None = None) -> Consent:
    """The question to ask before installing."""
    line = _("- {name}, about {megabytes} MB: {reason}")
    lines = [line.format(name=each.name, megabytes=each.megabytes, reason=each.reason) for each in missing]
    total = sum(package.megabytes for package in missing)
    web = _("from the internet (about {total} MB or more)").format(total=total)
    source = _("from the folder {folder}").format(folder=wheelFolder) if wheelFolder else web
    text = _(
        "Segmenting needs {count} Python package(s) that Slicer does not have yet, or has in a version that is too "
        "old:\n\n{lines}\n\nThey are installed {source} into this Slicer. Slicer's own numpy, scipy, SimpleITK and VTK stay as they are. No image is sent "
        "anywhere.\n\nInstall now?"
    )
    return Consent(
        _("Install packages for MambaSegmentation"),
        text.format(count=len(missing), lines="\n".join(lines), source=source),
    )


def constraints() -> str:
    """Lines of a constraints file that keep Slicer's own packages at their versions."""
    # One that is part of Slicer's build without being an installed package is not listed: pip cannot replace it.
    found = [(name, version) for name in SLICERS_OWN for version in _versions(name)]
    return "".join(f"{name}=={version}\n" for name, version in found)


def install(missing: Sequence[Package], *, wheelFolder: Path | None = None) -> None:
    """Install packages; ask with `consent` first.

    Args:
        missing: What to install.
        wheelFolder: Folder with wheel files, for a computer without internet; None downloads.

    Raises:
        EnvironmentProblemError: If something could not be installed; the message says what to do.
    """
    if wheelFolder is not None and not wheelFolder.is_dir():
        message = _("The folder of wheels {wheelFolder} does not exist.").format(wheelFolder=wheelFolder)
        raise EnvironmentProblemError(message)
    with tempfile.TemporaryDirectory(prefix="mambaseg-") as folder:
        path = Path(folder) / "constraints.txt"
        path.write_text(constraints(), encoding="utf-8")
        rest = [package for package in missing if package.name != "torch" or wheelFolder is not None]
        if len(rest) < len(missing):
            _installTorch()
        if rest:
            _installRest([package.requirement for package in rest], path, wheelFolder)
    invalidate_caches()
    left = missingPackages()
    if left:
        names = ", ".join(package.name for package in left)
        message = _(
            "Still missing after the installation: {names}. Restart Slicer and try again; the log says more."
        ).format(names=names)
        raise EnvironmentProblemError(message)


def _versions(name: str) -> tuple[str, ...]:
    try:
        return (metadata.version(name),)
    except metadata.PackageNotFoundError:
        return ()


def _isOld(package: Package) -> bool:
    """Whether a package is older than needed; what is part of Slicer is taken as it is."""
    found = () if package.name in SLICERS_OWN else _versions(package.name)
    return any(_numbers(version) < _numbers(package.requirement) for version in found)


def _numbers(version: str) -> tuple[int, ...]:
    """Major and minor number of e.g. "2.4.1+cu121" or "torch>=2.6"."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _installTorch() -> None:
    if _isOld(PACKAGES[0]):
        message = _(
            "PyTorch {version} is installed, but {requirement} is needed. Open the PyTorch Utils module, uninstall "
            "PyTorch there, restart Slicer and press Apply again."
        )
        (version,) = _versions("torch")
        raise EnvironmentProblemError(message.format(version=version, requirement=PACKAGES[0].requirement))
    try:
        import PyTorchUtils
    except ModuleNotFoundError:
        message = _(
            "PyTorch is installed through Slicer's PyTorch extension, which is missing. Install it from the "
            "Extensions Manager, restart Slicer and press Apply again."
        )
        raise EnvironmentProblemError(message) from None
    requirement = PACKAGES[0].requirement.removeprefix("torch")
    logic = PyTorchUtils.PyTorchUtilsLogic()
    try:
        # Asked already, with everything else, in one dialog.
        torch = logic.installTorch(askConfirmation=False, torchVersionRequirement=requirement)
    except Exception as error:
        raise _notInstalled([PACKAGES[0].requirement], error) from error
    if torch is None:
        message = _(
            "PyTorch could not be installed. Open the PyTorch Utils module to see why and to choose another version."
        )
        raise EnvironmentProblemError(message)


def _installRest(requirements: list[str], constraintsFile: Path, wheelFolder: Path | None) -> None:
    try:
        packaging = None if wheelFolder else _slicerPackaging()
        if packaging is not None:
            from packaging.requirements import Requirement

            packaging.pip_ensure(
                [Requirement(text) for text in requirements],
                constraints=constraintsFile,
                prompt_install=False,
                requester="MambaSegmentation",
                skip_in_testing=False,
            )
            return
        import slicer

        offline = ["--no-index", "--find-links", str(wheelFolder)] if wheelFolder else []
        slicer.util.pip_install(
            [*requirements, "--constraint", str(constraintsFile), "--only-binary", ":all:", *offline]
        )
    except Exception as error:
        raise _notInstalled(requirements, error) from error


def _notInstalled(requirements: Sequence[str], error: Exception) -> EnvironmentProblemError:
    message = _(
        "{names} could not be installed: {error}. Without internet, choose a folder of wheels (made "
        "elsewhere with `pip download`) in the Advanced section."
    )
    return EnvironmentProblemError(message.format(names=", ".join(requirements), error=error))


def _slicerPackaging() -> Any:
    """`slicer.packaging`; None before Slicer 5.12."""
    try:
        from slicer import packaging
    except ImportError:
        return None
    return packaging
