"""Options several subcommands share, and the parser that reports usage errors like any other."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from MambaSegLib.errors import InputError
from MambaSegLib.quality import QUALITIES

DEFAULT_MODEL = "mamba_unet_multidirectional.hippocampus"


class UsageError(InputError):
    """A command line that cannot be understood."""


class Parser(argparse.ArgumentParser):
    """Raises instead of ending the process, so that usage errors reach the reporter, events included."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        text = f"{message}. See `{self.prog} --help`."
        raise UsageError(text)


def add_reporting(parser: argparse.ArgumentParser) -> None:
    """Add --events and --verbose."""
    parser.add_argument("--events", action="store_true", help="write one JSON object a line to standard output")
    parser.add_argument("--verbose", action="store_true", help="also say what goes on along the way")


def add_models_dir(parser: argparse.ArgumentParser) -> None:
    """Add --models-dir."""
    parser.add_argument(
        "--models-dir", type=Path, metavar="DIR", help="folder of installed models (default: this user's own)"
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add --model and --models-dir."""
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        metavar="NAME|PATH",
        help="bundled or installed model, or path of a model's folder or .zip (default: %(default)s)",
    )
    add_models_dir(parser)


def add_region(parser: argparse.ArgumentParser) -> None:
    """Add --roi."""
    parser.add_argument(
        "--roi",
        type=float,
        nargs=6,
        metavar=("X0", "X1", "Y0", "Y1", "Z0", "Z1"),
        help="segment this region only; mm in RAS (x to the right, y to the front, z up), as 3D Slicer shows them",
    )


def add_prediction(parser: argparse.ArgumentParser, *, tuning: bool = True) -> None:
    """Add the options of a prediction; `tuning`: also those that only a command in this process heeds."""
    group = parser.add_argument_group("how to compute")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: the fastest there is)")
    group.add_argument(
        "--scan",
        default="auto",
        choices=("auto", "triton", "mamba_ssm", "numba", "pytorch"),
        help="scan backend; a named one that cannot run here is an error (default: the fastest there is)",
    )
    group.add_argument(
        "--folds", type=fold_list, default=None, metavar="all|0,1", help="folds to average (default: all)"
    )
    group.add_argument(
        "--quality",
        default="standard",
        choices=QUALITIES,
        help="fast: tiles overlap by a quarter instead of half; best: mirrored images are averaged, too, where the model "
        "was trained for it (default: %(default)s)",
    )
    group.add_argument(
        "--mirroring",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="average over mirrored images, too: slower, a bit better (default: as --quality says)",
    )
    if tuning:
        _add_tuning(group)


def _add_tuning(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--overlap",
        type=overlap,
        metavar="FRACTION",
        help="of neighboring tiles, 0 to 0.9 (default: as --quality says)",
    )
    group.add_argument(
        "--engine",
        default="auto",
        choices=("auto", "fused", "pytorch"),
        help="how a CPU computes a network's layers; same result to rounding (default: what is faster here)",
    )
    group.add_argument(
        "--threads", type=positive, metavar="N", help="processor threads to use (default: all this process may use)"
    )


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Add the options of reading images."""
    group = parser.add_argument_group("how to read")
    group.add_argument("--frame", type=int, metavar="N", help="which 3D image of a 4D one, from 0")
    group.add_argument("--series", metavar="ID", help="which DICOM series: number in the listing, description or UID")
    group.add_argument(
        "--replace-nonfinite", type=float, metavar="VALUE", help="what NaN and infinite voxels become (else refused)"
    )
    group.add_argument(
        "--resample-channels", action="store_true", help="bring channels on other grids onto the first one's"
    )
    group.add_argument(
        "--resample-sheared", action="store_true", help="straighten a sheared grid (tilted CT gantry) by resampling"
    )


def fold_list(text: str) -> tuple[int, ...] | None:
    """Read "all" or fold numbers with commas."""
    if text == "all":
        return None
    try:
        folds = tuple(int(part) for part in text.split(","))
    except ValueError:
        message = f'"{text}" is neither "all" nor fold numbers such as 0,1,4'
        raise argparse.ArgumentTypeError(message) from None
    if min(folds) < 0 or len(set(folds)) != len(folds):
        message = f'"{text}": folds are 0 or more, each named once'
        raise argparse.ArgumentTypeError(message)
    return folds


def overlap(text: str) -> float:
    """A fraction from 0 to 0.9."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 0.9:
        message = f'"{text}" is not a fraction from 0 to 0.9'
        raise argparse.ArgumentTypeError(message)
    return value


def positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdigit() or int(text) < 1:
        message = f'"{text}" is not a whole number from 1'
        raise argparse.ArgumentTypeError(message)
    return int(text)
