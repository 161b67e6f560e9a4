"""`mambaseg batch`: a folder of volumes in, a folder of segmentations out; resumes where it was stopped."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MambaSegLib.bundle import Bundle, load_bundle
from MambaSegLib.commands.cases import Case, find_cases, parse_patterns
from MambaSegLib.commands.failures import explained
from MambaSegLib.commands.outcomes import OUTCOMES_FILE, Outcome, OutcomeTable, Status
from MambaSegLib.commands.parsing import add_model, add_prediction, add_reading, add_region, add_reporting
from MambaSegLib.commands.reporting import Reporter, duration
from MambaSegLib.commands.session import Outputs, check_outputs, make_predictor, read_inputs, region, write_outputs
from MambaSegLib.errors import CancelledError, EnvironmentProblemError, InputError
from MambaSegLib.model_card import DISCLAIMER
from MambaSegLib.progress import Progress
from MambaSegLib.quality import thoroughness

if TYPE_CHECKING:
    from MambaSegLib.predictor import Predictor

_MIN_FREE_BYTES = 50 * 1024**2
_EPILOG = (
    """examples:
  mambaseg batch images/ -o segmentations/
  mambaseg batch brats/ -o out/ --model mamba_unet_bidirectional.braintumour \\
      --pattern "FLAIR={case}/{case}_flair.nii.gz" --pattern "T1={case}/{case}_t1.nii.gz"

Without --pattern, case_0000.nii.gz, case_0001.nii.gz, ... are the channels of one case. Every case gets a row in
OUTDIR/outcomes.csv as soon as it ends. Run the same command again to go on: cases whose model, images and settings are
unchanged are skipped. One case that fails does not stop the others; the exit code is then 2 (bad input) or 3
(environment). """
    + DISCLAIMER
)


@dataclass(frozen=True)
class _Job:
    """What stays the same over all cases."""

    arguments: argparse.Namespace
    reporter: Reporter
    bundle: Bundle
    table: OutcomeTable
    cases: tuple[Case, ...]


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "batch",
        help="segment a folder of volumes",
        description="Segment a folder of volumes.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="INDIR", help="folder of images, or of DICOM folders")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUTDIR", help="made where it is missing")
    add_model(parser)
    add_region(parser)
    parser.add_argument(
        "--pattern",
        action="append",
        default=[],
        metavar="NAME=PATTERN",
        help="where a channel's images are, with {case} for the case's name; once per channel",
    )
    parser.add_argument(
        "--format", default=".seg.nrrd", choices=(".seg.nrrd", ".nii.gz", ".nrrd", ".mha"), help="of the segmentations"
    )
    parser.add_argument("--uncertainty", action="store_true", help="also write CASE.uncertainty.nii.gz")
    parser.add_argument(
        "--statistics", action="store_true", help="also write CASE.statistics.csv with volumes and intensities"
    )
    parser.add_argument("--force", action="store_true", help="segment everything again, replacing what is there")
    add_prediction(parser)
    add_reading(parser)
    add_reporting(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, reporter: Reporter) -> int:
    """Segment every case of a folder."""
    bundle = load_bundle(arguments.model, models_dir=arguments.models_dir)
    channels = [channel.name for channel in bundle.manifest.plan.channels]
    if os.path.realpath(arguments.output) == os.path.realpath(arguments.folder):
        message = "The output folder is the input folder. Choose another, so that results are not taken for images."
        raise InputError(message)
    cases = find_cases(arguments.folder, channels, parse_patterns(arguments.pattern), arguments.output)
    if arguments.output.exists() and not arguments.output.is_dir():
        message = f"The output {arguments.output} is a file; choose a folder."
        raise InputError(message)
    arguments.output.mkdir(parents=True, exist_ok=True)
    _check_folder(arguments, cases)
    plan = bundle.manifest.plan
    measured = [label.name for label in plan.predicted_labels] + [region.name for region in plan.compound_regions]
    table = OutcomeTable(arguments.output, measured)
    codes: list[int] = []
    counts = _run_cases(_Job(arguments, reporter, bundle, table, cases), codes)
    _report_end(reporter, counts, table)
    return max(codes, default=0)


def _run_cases(job: _Job, codes: list[int]) -> Counter[Status]:
    counts: Counter[Status] = Counter()
    predictor: Predictor | None = None
    for number, case in enumerate(job.cases, start=1):
        outputs, key = _outputs(job.arguments, case), _key(job, case)
        if not job.arguments.force and key and job.table.is_done(case.name, key, outputs.labels):
            outcome = Outcome(case.name, "skipped", "", 0.0, outputs.labels.name, key, {})
        else:
            # Made when the first case needs it: resuming a finished batch loads no weights.
            predictor = predictor or make_predictor(job.bundle, job.arguments)
            outcome = _attempt(job, predictor, case, number, outputs, key, codes)
            job.table.add(outcome)
        counts[outcome.status] += 1
        _report_case(job, number, outcome, outputs)
    return counts


def _attempt(
    job: _Job, predictor: Predictor, case: Case, number: int, outputs: Outputs, key: str, codes: list[int]
) -> Outcome:
    """Segment one case; what goes wrong with it is its outcome, what concerns all cases is raised."""
    _check_disk(job.arguments.output)
    start = time.perf_counter()
    try:
        message, volumes = _segment(job, predictor, case, number, outputs)
        status: Status = "done"
    except Exception as error:
        failure = explained(error)
        if isinstance(failure, CancelledError):
            raise
        message, volumes, status = str(failure), {}, "failed"
        codes.append(failure.exit_code)
    seconds = time.perf_counter() - start
    return Outcome(case.name, status, message, seconds, outputs.labels.name, key, volumes)


def _segment(
    job: _Job, predictor: Predictor, case: Case, number: int, outputs: Outputs
) -> tuple[str, dict[str, float]]:
    if case.problem:
        raise InputError(case.problem)
    check_outputs(outputs, case.images, force=True)
    place = {"case": case.name, "case_number": number, "cases": len(job.cases)}

    def tell(progress: Progress) -> None:
        job.reporter.progress(progress, **place)

    tell(Progress("Reading", 0, 1))
    volume = read_inputs(case.images, job.arguments, job.reporter)
    roi = region(job.arguments.roi, volume.geometry)
    prediction = predictor.predict(volume, tell, roi=roi, uncertainty=outputs.uncertainty is not None)
    statistics = write_outputs(prediction, volume, outputs, job.bundle.manifest.plan.compound_regions)
    return " ".join(prediction.notices), {row.name: row.volume_ml for row in statistics}


def _outputs(arguments: argparse.Namespace, case: Case) -> Outputs:
    folder = arguments.output
    return Outputs(
        folder / f"{case.name}{arguments.format}",
        folder / f"{case.name}.uncertainty.nii.gz" if arguments.uncertainty else None,
        folder / f"{case.name}.statistics.csv" if arguments.statistics else None,
    )


def _check_folder(arguments: argparse.Namespace, cases: Sequence[Case]) -> None:
    """Refuse to replace files of another origin; in a folder with a table, outputs are a batch's own."""
    if arguments.force or (arguments.output / OUTCOMES_FILE).exists():
        return
    for case in cases:
        for path in _outputs(arguments, case).given():
            if path.exists():
                message = f"{path} exists already. Choose another output folder, or use --force to replace it."
                raise InputError(message)


def _key(job: _Job, case: Case) -> str:
    """Hash of everything a case's outputs depend on; "" for a case that cannot be read."""
    try:
        images = "" if case.problem else case.sha256()
    except (OSError, InputError):  # reading it says what is wrong
        images = ""
    if not images:
        return ""
    names = ("folds", "frame", "series", "replace_nonfinite", "resample_channels", "resample_sheared")
    settings = {name: getattr(job.arguments, name) for name in (*names, "uncertainty", "statistics")}
    # What the quality stands for, not its name: the same settings make the same files.
    settings |= asdict(thoroughness(job.arguments.quality, job.arguments.overlap, job.arguments.mirroring))
    if job.arguments.roi is not None:
        settings["roi"] = job.arguments.roi  # only then, so that batches begun without this option go on
    text = json.dumps([job.bundle.sha256, images, settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _check_disk(folder: Path) -> None:
    if shutil.disk_usage(folder).free < _MIN_FREE_BYTES:
        message = f"The disk of {folder} is nearly full. Free some space and run the same command again to go on."
        raise EnvironmentProblemError(message)


def _report_case(job: _Job, number: int, outcome: Outcome, outputs: Outputs) -> None:
    words = {"done": duration(outcome.seconds), "skipped": "done before", "failed": "failed"}
    text = f"[{number}/{len(job.cases)}] {outcome.case}: {words[outcome.status]}"
    if outcome.message:
        text += f". {outcome.message}"
    details = asdict(outcome) | {"output": str(outputs.labels) if outcome.status != "failed" else None}
    job.reporter.result(text, **details)


def _report_end(reporter: Reporter, counts: Counter[Status], table: OutcomeTable) -> None:
    parts: Sequence[Status] = ("done", "skipped", "failed")
    numbers = {status: counts[status] for status in parts}
    text = f"{', '.join(f'{number} {status}' for status, number in numbers.items())}. Table: {table.path}\n{DISCLAIMER}"
    reporter.result(text, cases=sum(numbers.values()), outcomes=str(table.path), **numbers)
