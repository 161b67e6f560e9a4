"""The command `mambaseg-train`: from a data set to a validated bundle, one step after the other."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from MambaSegLib.commands.failures import explained, interruptible
from MambaSegLib.errors import EnvironmentProblemError, MambaSegError
from MambaSegTraining.commands.bars import case_bar, step_bar
from MambaSegTraining.commands.device import device_of
from MambaSegTraining.run_folder import RunFolder
from MambaSegTraining.settings import completed, read_settings

if TYPE_CHECKING:
    from MambaSegTraining.ranks import Ranks


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one step; returns the exit code: 0 done, 2 bad input or usage, 3 environment, 130 stopped early.

    Ctrl-C, a closed terminal and a request to terminate end any step in order, see `interruptible`; `train` has its own way.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        with interruptible():
            result: int = options.run(options)
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001 (the one place where everything is caught)
        failure = _explained(error)
        print(f"mambaseg-train: {failure}", file=sys.stderr)
        return failure.exit_code
    return result


def _explained(error: Exception) -> MambaSegError:
    """As `explained`; and where memory runs out, what to do about that in training."""
    if isinstance(error, (MemoryError, RuntimeError)) and not isinstance(error, MambaSegError):
        from MambaSegLib.memory_ladder import memory_ran_out, no_memory_left

        if memory_ran_out(error):
            return EnvironmentProblemError(
                f"{no_memory_left(error)} Training: set recompute = true in [recipe] and go on with --resume, or plan anew with "
                "a smaller network.memory_gb or recipe.batch_size. Otherwise end other programs, and ask for fewer --workers."
            )
    return explained(error)


def _parser() -> argparse.ArgumentParser:
    from MambaSegTraining.commands.check import add_check
    from MambaSegTraining.commands.cost import add_cost
    from MambaSegTraining.commands.cross_validate import add_cross_validate
    from MambaSegTraining.commands.plan import add_plan
    from MambaSegTraining.commands.report import add_report

    parser = argparse.ArgumentParser(prog="mambaseg-train", description=__doc__)
    steps = parser.add_subparsers(required=True, metavar="STEP")

    def step(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = steps.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        return added

    convert = step("convert", run_convert, "Bring a public data set, as downloaded, into nnU-Net v2's raw layout.")
    convert.add_argument("kind", choices=("acdc", "braintumour", "msd", "synapse"), help="which data set")
    convert.add_argument("source", type=Path, help="folder or archive of the download")
    convert.add_argument("dataset", type=Path, help="folder to write")
    convert.add_argument(
        "--regions", action="store_true", help="learn whole tumor, tumor core and enhancing tumor (braintumour)"
    )
    convert.add_argument("--link", action="store_true", help="hard-link files that need no change")

    add_plan(step)
    preprocess = step("preprocess", run_preprocess, "Preprocess all cases; continues where it was interrupted.")
    _add_run_dir(preprocess)
    preprocess.add_argument("--workers", type=int, help="processes (default: one per core)")

    train = step("train", run_train, "Train one fold.")
    _add_run_dir(train)
    train.add_argument("--fold", type=int, required=True, help="number of the fold, from 0")
    train.add_argument("--config", type=Path, help="take the recipe of this TOML file instead of the run's")
    train.add_argument("--resume", action="store_true", help="continue from the fold's checkpoint, if there is one")
    train.add_argument("--max-minutes", type=float, help="save a checkpoint and stop after this time (exit code 130)")
    train.add_argument("--workers", type=int, default=1, help="processes that make batches (default: %(default)s)")
    train.add_argument("--tensorboard", action="store_true", help="write curves for TensorBoard into the fold's folder")
    _add_device(train)

    validate = step("validate", run_validate, "Predict the validation cases of folds, measure them, write tables.")
    _add_run_dir(validate)
    validate.add_argument("--fold", type=int, action="append", help="fold (again for more); default: all trained ones")
    validate.add_argument("--weights", choices=("final", "best"), default="final", help="which weights (%(default)s)")
    validate.add_argument("--mirroring", action="store_true", help="predict mirrored images, too, and take the mean")
    validate.add_argument(
        "-o", "--output", type=Path,
        help="write there instead: the run's own result, which report and export take, stays as it is",
    )  # fmt: skip
    validate.add_argument("--again", action="store_true", help="measure all cases anew, also those already measured")
    _add_device(validate)

    export = step("export", run_export, "Put the trained folds, plan, metrics and provenance into a bundle.")
    _add_run_dir(export)
    export.add_argument("output", type=Path, help="folder or .zip of the bundle")
    export.add_argument("--config", type=Path, help="take name, use, limits and licenses from this TOML file")
    export.add_argument("--half", action="store_true", help="store weights in half precision")
    export.add_argument("--force", action="store_true", help="replace a bundle that is already there")
    add_check(step)
    add_cost(step)
    add_cross_validate(step)
    add_report(step)
    return parser


def _add_run_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, help="folder of the run")


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="threads for computing on the CPU (default: PyTorch's choice)")
    parser.add_argument("--scan", default="auto", help="backend of the selective scan (default: %(default)s)")


def run_convert(options: argparse.Namespace) -> int:
    """Step `convert`."""
    from MambaSegTraining.converters import convert

    done = convert(options.kind, options.source, options.dataset, link=options.link, regions=options.regions)
    for notice in done.notices:
        print(notice)
    found = "was there already" if done.was_there else "written"
    print(
        f"{done.training_cases} cases of {done.subjects} subjects, {done.test_cases} test cases: {options.dataset} {found}"
    )
    return 0


def run_preprocess(options: argparse.Namespace) -> int:
    """Step `preprocess`."""
    from MambaSegTraining.fingerprint import dataset_of, default_workers
    from MambaSegTraining.preprocess import preprocess_cases

    run = RunFolder(options.run_dir)
    dataset = dataset_of(run)
    workers = default_workers() if options.workers is None else options.workers
    with case_bar("Preprocessing", len(dataset.cases)) as advance:
        made = preprocess_cases(dataset.cases, run.read_plan(), run.store, workers, advance)
    print(f"{made} case(s) preprocessed, {len(dataset.cases) - made} were up to date: {run.store}")
    return 0


def run_train(options: argparse.Namespace) -> int:
    """Step `train`, alone or as one of the processes that `torchrun` started."""
    from MambaSegTraining.ranks import joined_ranks

    with joined_ranks(device_of(options)) as ranks:
        return _train(options, ranks)


def _train(options: argparse.Namespace, ranks: Ranks) -> int:
    from MambaSegTraining.fold_training import FoldJob, train_fold

    run = RunFolder(options.run_dir)
    recipe = (read_settings(options.config) if options.config else run.read_settings()).recipe
    stopped = _stop_on_signals(patient=ranks.count > 1)
    if not ranks.is_first:
        logging.getLogger().setLevel(logging.ERROR)
    job = FoldJob(
        run=run,
        fold=options.fold,
        recipe=recipe,
        device=ranks.device,
        scan=options.scan,
        resume=options.resume,
        max_minutes=options.max_minutes,
        workers=options.workers,
        should_stop=lambda: bool(stopped),
        tensorboard=options.tensorboard,
        ranks=ranks,
    )
    with step_bar(f"Fold {options.fold}", recipe.iterations, shown=ranks.is_first) as note:
        finished = train_fold(job, note)
    if ranks.is_first:
        print(
            f"Fold {options.fold} is trained: {run.require_weights(options.fold)}"
            if finished
            else f"Stopped; continue with: mambaseg-train train {run.path} --fold {options.fold} --resume"
        )
    return 0 if finished else 130


def run_validate(options: argparse.Namespace) -> int:
    """Step `validate`."""
    from MambaSegTraining.validation import summarize, validate_fold

    run = RunFolder(options.run_dir, options.output)
    device = device_of(options)
    for fold in options.fold or run.trained_folds():
        with case_bar(f"Validating fold {fold}", len(run.read_fold(fold).val)) as advance:
            validate_fold(
                run, fold, device=device, scan=options.scan, weights=options.weights,
                mirroring=options.mirroring, again=options.again, on_case=advance,
            )  # fmt: skip
    print(summarize(run))
    return 0


def run_export(options: argparse.Namespace) -> int:
    """Step `export`."""
    from MambaSegTraining.export import export_bundle

    run = RunFolder(options.run_dir)
    settings = planned = run.read_settings()
    if options.config:
        settings = completed(read_settings(options.config), planned.dataset.name, planned.dataset.license)
    bundle = export_bundle(run, settings, options.output, half=options.half, force=options.force)
    print(f"{bundle.name} {bundle.manifest.version}: {bundle.path}")
    return 0


def _stop_on_signals(patient: bool) -> list[int]:
    """Make the first Ctrl-C or termination request end the training after the present step, with a checkpoint.

    A second Ctrl-C ends it at once, unless `patient`: torchrun passes on the signal that its processes got already. What
    this process was started to ignore stays ignored, as in `interruptible`.
    """
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        received.append(number)
        if not patient and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, note)
    return received


if __name__ == "__main__":
    sys.exit(main())
