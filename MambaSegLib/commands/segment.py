"""`mambaseg segment`: one volume in, one segmentation out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MambaSegLib.bundle import Bundle, load_bundle
from MambaSegLib.commands.parsing import add_model, add_prediction, add_reading, add_region, add_reporting
from MambaSegLib.commands.reporting import Reporter, duration
from MambaSegLib.commands.session import (
    Outputs,
    check_outputs,
    make_predictor,
    parse_inputs,
    read_inputs,
    region,
    write_outputs,
)
from MambaSegLib.model_card import DISCLAIMER
from MambaSegLib.progress import Progress
from MambaSegLib.volume import Volume

if TYPE_CHECKING:
    from MambaSegLib.label_statistics import LabelStatistics
    from MambaSegLib.predictor import Prediction

_EPILOG = (
    """examples:
  mambaseg segment t1.nii.gz -o t1.seg.nrrd
  mambaseg segment FLAIR=a.nii.gz T1=b.nii.gz -o tumor.nii.gz --model mamba_unet_bidirectional.braintumour
  mambaseg segment dicom_folder/ -o liver.seg.nrrd --roi -120 80 -60 100 -200 50 --statistics volumes.csv

An output that exists is left alone (exit code 2) unless --force is given; it is then replaced only once the new one is
complete. """
    + DISCLAIMER
)


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "segment",
        help="segment one volume",
        description="Segment one volume.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="NIfTI, NRRD or MHA file or DICOM folder; several are channels: NAME=FILE, or in the model's order",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help=".seg.nrrd (names, colors inside), .nii.gz, .nrrd or .mha"
    )
    add_model(parser)
    add_region(parser)
    parser.add_argument("--uncertainty", type=Path, metavar="FILE", help="also write the uncertainty per voxel, 0 to 1")
    parser.add_argument(
        "--statistics", type=Path, metavar="FILE", help="also write volumes and intensities: .csv, .json"
    )
    parser.add_argument("--force", action="store_true", help="replace outputs that exist")
    add_prediction(parser)
    add_reading(parser)
    add_reporting(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, reporter: Reporter) -> int:
    """Segment one volume."""
    inputs = parse_inputs(arguments.inputs)
    outputs = Outputs(arguments.output, arguments.uncertainty, arguments.statistics)
    check_outputs(outputs, inputs, force=arguments.force)
    bundle = load_bundle(arguments.model, models_dir=arguments.models_dir)
    reporter.progress(Progress("Reading", 0, 1))
    volume = read_inputs(inputs, arguments, reporter)
    roi = region(arguments.roi, volume.geometry)
    reporter.progress(Progress("Loading the model", 0, 1))
    predictor = make_predictor(bundle, arguments)
    warn = partial(reporter.log, "warning")
    prediction = predictor.predict(
        volume, reporter.progress, roi=roi, uncertainty=outputs.uncertainty is not None, on_notice=warn
    )
    for notice in prediction.notices:  # those that were told already are not told again
        warn(notice)
    reporter.progress(Progress("Writing", 0, 1, 0.0))
    statistics = write_outputs(prediction, _named(volume, bundle), outputs, bundle.manifest.plan.compound_regions)
    reporter.progress(Progress("Writing", 1, 1, 0.0))
    details = result_details(bundle, predictor.folds, prediction, outputs, statistics)
    reporter.result(_summary(bundle, prediction, outputs, statistics), **details)
    return 0


def _named(volume: Volume, bundle: Bundle) -> Volume:
    """The volume with its channels named, by the model where the command line did not; their number is checked."""
    names = tuple(channel.name for channel in bundle.manifest.plan.channels)
    return volume if volume.channels else replace(volume, channels=names)


def result_details(
    bundle: Bundle,
    folds: Sequence[int],
    prediction: Prediction,
    outputs: Outputs,
    statistics: Sequence[LabelStatistics],
) -> dict[str, object]:
    """What a result event says; see `reporting`."""
    return {
        "output": str(outputs.labels),
        "uncertainty": str(outputs.uncertainty) if outputs.uncertainty else None,
        "statistics": str(outputs.statistics) if outputs.statistics else None,
        "model": bundle.name,
        "model_version": bundle.manifest.version,
        "model_sha256": bundle.sha256,
        "folds": list(folds),
        "device": prediction.device,
        "backend": prediction.backend,
        "seconds": {phase: round(seconds, 3) for phase, seconds in asdict(prediction.seconds).items()},
        "notices": list(prediction.notices),
        "labels": [_measured(row) for row in statistics if isinstance(row.value, int)],
        "regions": [_measured(row) for row in statistics if not isinstance(row.value, int)],
    }


def _measured(row: LabelStatistics) -> dict[str, object]:
    return {"value": row.value, "name": row.name, "voxels": row.voxels, "volume_ml": round(row.volume_ml, 6)}


def _summary(bundle: Bundle, prediction: Prediction, outputs: Outputs, statistics: Sequence[LabelStatistics]) -> str:
    width = max(len(row.name) for row in statistics)
    rows = [f"  {row.name:<{width}}  {row.volume_ml:10.3f} ml" for row in statistics]
    return "\n".join(
        [
            f"{bundle.name} {bundle.manifest.version}: {outputs.labels}",
            *rows,
            f"{duration(prediction.seconds.total)} on {prediction.device}, scan backend {prediction.backend}. {DISCLAIMER}",
        ]
    )
