"""What `segment` and `batch` share: reading inputs, making a predictor, writing outputs."""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from MambaSegLib import remembered
from MambaSegLib.bundle import Bundle
from MambaSegLib.commands.reporting import Reporter
from MambaSegLib.errors import InputError
from MambaSegLib.geometry import Box, Geometry, box_from_world
from MambaSegLib.label_writing import check_output_path
from MambaSegLib.limits import set_threads
from MambaSegLib.plan import Region
from MambaSegLib.volume import Volume

if TYPE_CHECKING:
    from MambaSegLib.label_statistics import LabelStatistics
    from MambaSegLib.predictor import Prediction, Predictor

Inputs = Mapping[str, Path] | Sequence[Path]
"""Image per channel name, or images in the order the model takes them."""

_NAMED = re.compile(r"([^=/\\]{1,100})=(.+)", re.DOTALL)
_IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")


@dataclass(frozen=True)
class Outputs:
    """Files a prediction is written to.

    Attributes:
        labels: The segmentation.
        uncertainty: Uncertainty per voxel; None if not wanted.
        statistics: Table of volumes and intensities; None if not wanted.
    """

    labels: Path
    uncertainty: Path | None = None
    statistics: Path | None = None

    def given(self) -> tuple[Path, ...]:
        """The files that are wanted."""
        return tuple(path for path in (self.labels, self.uncertainty, self.statistics) if path is not None)


def parse_inputs(words: Sequence[str]) -> Inputs:
    """Read "path" or "NAME=path" words.

    Raises:
        InputError: If some are named and others not, a name is given twice, or a file does not exist.
    """
    named: dict[str, Path] = {}
    plain: list[Path] = []
    for word in words:
        match = None if Path(word).exists() else _NAMED.fullmatch(word)
        if match is None:
            plain.append(Path(word))
        elif match[1] in named:
            message = f"The channel {match[1]} is given twice."
            raise InputError(message)
        else:
            named[match[1]] = Path(match[2])
    if named and plain:
        message = f"Name all images or none: {', '.join(named)} have names, {plain[0]} has not."
        raise InputError(message)
    if "" in words:  # as from a shell's variable that is not set; it would be the folder the command runs in
        message = "The name of an input is empty."
        raise InputError(message)
    for path in named.values() if named else plain:
        if not path.exists():
            message = f"The input {path} does not exist."
            raise InputError(message)
    return named or plain


def input_paths(inputs: Inputs) -> tuple[Path, ...]:
    """The files or folders, without names."""
    return tuple(inputs.values()) if isinstance(inputs, Mapping) else tuple(inputs)


def check_outputs(outputs: Outputs, inputs: Inputs, *, force: bool) -> None:
    """Refuse outputs that cannot be written, before any work is done for them.

    Raises:
        InputError: If a suffix or folder is wrong, two outputs are one file, an output is an input, or a file exists
            and may not be replaced.
    """
    check_output_path(outputs.labels)
    if outputs.uncertainty is not None:
        check_output_path(outputs.uncertainty)
        if outputs.uncertainty.name.lower().endswith(".seg.nrrd"):
            message = f"{outputs.uncertainty}: uncertainty is an image; use {', '.join(_IMAGE_SUFFIXES)}."
            raise InputError(message)
    if outputs.statistics is not None:
        _check_statistics_path(outputs.statistics)
    places = [os.path.realpath(path) for path in outputs.given()]  # Path.resolve fails at a link to itself
    if len(set(places)) != len(places):
        message = "Two outputs have the same name. Give each its own."
        raise InputError(message)
    for path in outputs.given():
        # Not by name: disks of Windows and macOS take T1.nii and t1.nii for one file.
        if path.exists() and any(path.samefile(source) for source in input_paths(inputs)):
            message = f"{path} is an input; it is not overwritten. Choose another name for the output."
            raise InputError(message)
        if os.path.lexists(path) and not force:  # also a link to nothing
            message = f"{path} exists already. Choose another name, or use --force to replace it."
            raise InputError(message)
        _check_writable(path.parent)


def read_inputs(inputs: Inputs, arguments: argparse.Namespace, reporter: Reporter) -> Volume:
    """Read the images of one case as the channels of one volume."""
    from MambaSegLib.volume_io import read_channels

    return read_channels(
        inputs,
        resample_to_first=arguments.resample_channels,
        frame=arguments.frame,
        series=arguments.series,
        replace_nonfinite=arguments.replace_nonfinite,
        resample_sheared=arguments.resample_sheared,
        on_notice=lambda notice: reporter.log("warning", notice),
    )


def region(bounds_ras_mm: Sequence[float] | None, geometry: Geometry) -> Box | None:
    """Voxels of a region given as x0 x1 y0 y1 z0 z1 in RAS mm, the coordinates 3D Slicer shows.

    Raises:
        InputError: If a lower bound lies above its upper one, or the region lies outside the image.
    """
    if bounds_ras_mm is None:
        return None
    x0, x1, y0, y1, z0, z1 = bounds_ras_mm
    if not (x0 < x1 and y0 < y1 and z0 < z1 and np.isfinite(bounds_ras_mm).all()):
        message = (
            f"--roi: each first bound must be below the second, found {x0:g} {x1:g}, {y0:g} {y1:g}, {z0:g} {z1:g}."
        )
        raise InputError(message)
    try:
        # R -> L and A -> P turn the sign, so lower and upper change places.
        return box_from_world(geometry, (-x1, -y1, z0), (-x0, -y0, z1))
    except InputError:
        raise InputError(_outside(geometry)) from None


def make_predictor(bundle: Bundle, arguments: argparse.Namespace) -> Predictor:
    """Load the weights, with the options of the command line."""
    from MambaSegLib.predictor import Predictor

    set_threads(arguments.threads)
    return Predictor(
        bundle,
        device=arguments.device,
        scan=arguments.scan,
        folds=arguments.folds,
        quality=arguments.quality,
        mirroring=arguments.mirroring,
        overlap=arguments.overlap,
        engine=arguments.engine,
        speeds=remembered.cache_folder() / "tile_seconds.json",
    )


def write_outputs(
    prediction: Prediction, volume: Volume, outputs: Outputs, regions: Sequence[Region]
) -> tuple[LabelStatistics, ...]:
    """Write the files a prediction is wanted in, the segmentation last: where it is, the others are complete.

    Returns:
        Volume and intensities per label and region.
    """
    from MambaSegLib.label_statistics import label_statistics, write_statistics
    from MambaSegLib.volume_io import write_volume

    statistics = label_statistics(prediction.labels, volume, regions)
    if outputs.uncertainty is not None and prediction.uncertainty is not None:
        write_volume(prediction.uncertainty, volume.geometry, outputs.uncertainty)
    if outputs.statistics is not None:
        write_statistics(statistics, outputs.statistics)
    prediction.labels.write(outputs.labels)
    return statistics


def _outside(geometry: Geometry) -> str:
    corners = geometry.to_world(np.array(list(product(*((-0.5, n - 0.5) for n in geometry.shape))))) * (-1, -1, 1)
    ranges = zip("xyz", corners.min(axis=0), corners.max(axis=0), strict=True)
    covered = ", ".join(f"{axis} {low:.1f} to {high:.1f}" for axis, low, high in ranges)
    return (
        f"The region lies outside the image, which covers {covered} mm (RAS). Take its bounds from an ROI in 3D Slicer."
    )


def _check_statistics_path(path: Path) -> None:
    if path.suffix.lower() not in (".csv", ".json"):
        message = f"{path}: statistics are written as .csv or .json."
        raise InputError(message)
    if not path.parent.is_dir() or path.is_dir():
        message = f"{path} cannot be written: its folder does not exist, or it is a folder itself."
        raise InputError(message)


def _check_writable(folder: Path) -> None:
    """Try it: permission bits say little on network drives and Windows."""
    try:
        handle, name = tempfile.mkstemp(prefix=".tmp-", dir=folder)
    except PermissionError:
        message = f"The folder {folder} may not be written to. Choose another."
        raise InputError(message) from None
    os.close(handle)
    Path(name).unlink()
