"""`mambaseg view`: an image and its segmentation in the browser, in Slicer's own views.

The viewer itself is another package, MambaSegView, because it needs Slicer's packages; this file only reads the command
line and starts it.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
from pathlib import Path
from typing import Any

from MambaSegLib.bundle import load_bundle
from MambaSegLib.commands.parsing import add_model, add_prediction, add_reading, add_reporting
from MambaSegLib.commands.reporting import Reporter
from MambaSegLib.commands.session import Inputs, input_paths, parse_inputs, read_inputs, region
from MambaSegLib.errors import EnvironmentProblemError, InputError
from MambaSegLib.model_card import DISCLAIMER

NEEDED = {"MambaSegView": "mambasegmentation", "slicer": "slicer-core", "trame_slicer": "trame-slicer"}
"""Module -> package that brings it."""

_EPILOG = (
    """examples:
  mambaseg view t1.nii.gz
  mambaseg view t1.nii.gz t1.seg.nrrd
  mambaseg view FLAIR=a.nii.gz T1=b.nii.gz --model mamba_unet_bidirectional.braintumour
  mambaseg view t1.nii.gz --roi -45 -9 -47 1 -35 10

The viewer listens on this computer only. It needs the packages of the extra "view", best in an environment of its own; in a checkout:
pip install ".[torch,view]". """
    + DISCLAIMER
)


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "view",
        help="look at an image and segment it in the browser",
        description="Look at an image and its segmentation in the browser, segment, and save.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT [SEGMENTATION]",
        help="image (NIfTI, NRRD, MHA or DICOM folder; several channels as NAME=FILE), then a segmentation to show",
    )
    parser.add_argument(
        "-o", "--output", type=Path, help="file the page suggests to save to (default: beside the image, as .seg.nrrd)"
    )
    add_model(parser)
    parser.add_argument(
        "--roi",
        type=float,
        nargs=6,
        metavar=("X0", "X1", "Y0", "Y1", "Z0", "Z1"),
        help="start with this region, mm in RAS; it can be moved in the views",
    )
    group = parser.add_argument_group("where to listen")
    group.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default: %(default)s, this computer only)"
    )
    group.add_argument("--port", type=port, default=0, help="port to listen at (default: a free one)")
    group.add_argument("--no-browser", action="store_true", help="only print the address of the page")
    add_prediction(parser, tuning=False)
    add_reading(parser)
    add_reporting(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, reporter: Reporter) -> int:
    """Serve the viewer until it is interrupted."""
    check_packages()
    inputs, segmentation = split_words(arguments.inputs)
    volume = read_inputs(inputs, arguments, reporter)
    region(arguments.roi, volume.geometry)  # refused now rather than when the button is pressed
    load_bundle(arguments.model, models_dir=arguments.models_dir)
    settings = importlib.import_module("MambaSegView.settings").Settings(
        volume=volume,
        output=arguments.output or suggested_output(input_paths(inputs)[0]),
        segmentation=segmentation,
        model=arguments.model,
        models_folder=arguments.models_dir,
        region_ras_mm=tuple(arguments.roi) if arguments.roi else None,
        device=arguments.device,
        scan=arguments.scan,
        folds=arguments.folds or (),
        quality=arguments.quality,
        mirroring=arguments.mirroring,
        host=arguments.host,
        port=arguments.port,
        open_browser=not arguments.no_browser,
    )
    try:
        importlib.import_module("MambaSegView.serve").serve(settings)
    except OSError as error:
        message = f"The viewer cannot listen at {arguments.host}:{arguments.port}: {error}. Choose another --port."
        raise EnvironmentProblemError(message) from error
    return 0


def check_packages() -> None:
    """Raise EnvironmentProblemError, which says how to install them, if packages of the viewer are missing."""
    missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        message = (
            f"The viewer needs packages that are not installed: {', '.join(missing)}. Make an environment for it and "
            'install its extra there, in a checkout of MambaSegmentation: pip install ".[torch,view]". All other '
            "commands work without them."
        )
        raise EnvironmentProblemError(message)


def split_words(words: list[str]) -> tuple[Inputs, Path | None]:
    """Tell the image, or its channels, from the segmentation.

    Raises:
        InputError: If there are more files than one image and one segmentation, or one does not exist.
    """
    named = [word for word in words if "=" in word and not Path(word).exists()]
    plain = [word for word in words if word not in named]
    images = named or plain[:1]
    rest = plain if named else plain[1:]
    if len(rest) > 1:
        message = (
            f"One image and one segmentation can be shown, not also {', '.join(rest[1:])}. "
            "Channels of one image are given as NAME=FILE."
        )
        raise InputError(message)
    segmentation = Path(rest[0]) if rest else None
    if segmentation is not None and not segmentation.is_file():
        message = f"The segmentation {segmentation} does not exist."
        raise InputError(message)
    return parse_inputs(images), segmentation


def suggested_output(image: Path) -> Path:
    """Beside the image, with its name and .seg.nrrd."""
    name = image.name
    for suffix in (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd"):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
            break
    return image.absolute().parent / f"{name}.seg.nrrd"


def port(text: str) -> int:
    """A port number, 0 to 65535."""
    if not text.isdigit() or int(text) > 65535:
        message = f'"{text}" is not a port from 0 to 65535'
        raise argparse.ArgumentTypeError(message)
    return int(text)
