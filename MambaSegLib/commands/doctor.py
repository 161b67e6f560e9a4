"""`mambaseg doctor`: what this computer has, whether each scan backend computes rightly, and what a volume will need."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from MambaSegLib import __version__
from MambaSegLib.bundle import load_bundle
from MambaSegLib.commands.backend_check import BackendCheck, check_backends
from MambaSegLib.commands.estimate import Estimate, estimate
from MambaSegLib.commands.parsing import DEFAULT_MODEL, add_model, add_prediction, add_reading, add_reporting
from MambaSegLib.commands.reporting import Reporter, duration
from MambaSegLib.commands.scan_tuning import Tuned, tune_scans
from MambaSegLib.commands.session import make_predictor, parse_inputs, read_inputs
from MambaSegLib.devices import unavailable_devices
from MambaSegLib.limits import set_threads
from MambaSegLib.machine import Machine, look_around

_ENVIRONMENT = 3


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "doctor",
        help="show what this computer has, test the scan backends, estimate time and memory",
        description="Show what this computer has, test every scan backend against a slow reference and time it; with "
        "--input, estimate the time and memory of a volume. Exit code 3 if segmenting cannot work here.",
    )
    add_model(parser)
    parser.add_argument("--input", nargs="+", metavar="INPUT", help="estimate time and memory for this volume")
    parser.add_argument("--quick", action="store_true", help="leave out the test and timing of the scan backends")
    parser.add_argument(
        "--tune",
        action="store_true",
        help="on an NVIDIA GPU, measure how the model's scans are divided fastest, for some minutes; later runs use what is found",
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    add_prediction(parser)
    add_reading(parser)
    add_reporting(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, reporter: Reporter) -> int:
    """Examine this computer."""
    machine = look_around()
    if machine.devices:
        set_threads(arguments.threads)
    checks = tuple(check for device in _devices(machine) for check in check_backends(device, test=not arguments.quick))
    tuned = _tune(arguments, reporter) if arguments.tune else ()
    need = _estimate(arguments, reporter) if arguments.input else None
    report = _as_json(machine, checks, need) | {"tuned": [asdict(found) for found in tuned]}
    lines = [*_about(machine), *_about_backends(checks), *_about_tuning(tuned), *_about_need(need, arguments.model)]
    reporter.result(json.dumps(report, indent=2) if arguments.json else "\n".join(lines), **report)
    usable = any(check.available if arguments.quick else check.passed for check in checks)
    wrong = any(check.available and check.error is not None and not check.passed for check in checks)
    return _ENVIRONMENT if machine.missing or not usable or wrong else 0


def _devices(machine: Machine) -> tuple[str, ...]:
    """One device of each type."""
    return tuple(dict.fromkeys(device.partition(":")[0].partition(" ")[0] for device in machine.devices))


def _tune(arguments: argparse.Namespace, reporter: Reporter) -> tuple[Tuned, ...]:
    bundle = load_bundle(arguments.model, models_dir=arguments.models_dir)
    return tune_scans(make_predictor(bundle, arguments), reporter)


def _estimate(arguments: argparse.Namespace, reporter: Reporter) -> Estimate:
    bundle = load_bundle(arguments.model, models_dir=arguments.models_dir)
    volume = read_inputs(parse_inputs(arguments.input), arguments, reporter)
    return estimate(make_predictor(bundle, arguments), volume)


def _about(machine: Machine) -> Iterator[str]:
    yield f"MambaSegmentation {__version__}"
    yield f"Python     {machine.python}"
    yield f"System     {machine.system}"
    features = f", {' '.join(machine.vector_features)}" if machine.vector_features else ""
    yield f"Processor  {machine.processor}, {machine.cores} threads{features}"
    free = f", {machine.memory_free_bytes / 2**30:.1f} GiB free" if machine.memory_free_bytes else ""
    yield f"Memory     {machine.memory_total_bytes / 2**30:.1f} GiB{free}"
    yield f"Devices    {', '.join(machine.devices) or 'none, PyTorch is missing'}"
    yield ""
    for name, version in machine.packages.items():
        yield f"{name:<14} {version or f'MISSING: pip install {name}'}"
    for name, version in machine.accelerators.items():
        yield f"{name:<14} {version or 'not installed (optional, for NVIDIA GPUs)'}"
    yield ""


def _about_backends(checks: Sequence[BackendCheck]) -> Iterator[str]:
    yield "Scan backends, fastest first"
    for check in checks:
        place = f"{check.name} on {check.device}"
        if not check.available:
            yield f"  {place:<20} not available: {check.reason}"
            continue
        if check.error is None:
            yield f"  {place:<20} available, not tested"
            continue
        verdict = "right" if check.passed else "WRONG, do not use"
        speed = f", {check.tokens_per_s / 1e6:.2f} million voxels/s" if check.tokens_per_s else ""
        yield f"  {place:<20} {verdict} (largest error {check.error:.1e}){speed}"


def _about_tuning(tuned: Sequence[Tuned]) -> Iterator[str]:
    if tuned:
        yield "\nScans divided as measured on this GPU, from now on"
    for found in tuned:
        yield f"  {found.scan}: {found.gain:.2f} times as fast as by rule ({found.tried} divisions tried)"


def _about_need(need: Estimate | None, model: str) -> Iterator[str]:
    if need is None:
        yield f"\nTime and memory of a volume: mambaseg doctor --model {DEFAULT_MODEL} --input FILE"
        return
    size = " x ".join(str(n) for n in need.working_shape)
    yield f"\nThis volume with {model}"
    yield f"  {need.tiles} tiles at the model's spacing ({size} voxels), {need.seconds_per_tile:.2f} s each"
    yield f"  about {duration(need.seconds)}, and {need.memory_bytes / 2**30:.1f} GiB of memory"


def _as_json(machine: Machine, checks: Sequence[BackendCheck], need: Estimate | None) -> dict[str, object]:
    return {
        "version": __version__,
        "machine": asdict(machine) | {"missing": machine.missing},
        "unavailable_devices": {} if machine.missing else unavailable_devices(),
        "backends": [asdict(check) for check in checks],
        "estimate": asdict(need) if need else None,
    }
