"""Training of one fold: the loop from the first batch to the final weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from MambaSegLib.devices import measured_convolutions
from MambaSegLib.errors import InputError
from MambaSegLib.networks import create_network, set_recompute, set_scan_backend
from MambaSegLib.plan import Plan
from MambaSegLib.progress import ProgressCallback
from MambaSegLib.readout import Readout, readout_of
from MambaSegLib.scan import resolve_backend
from MambaSegLib.schema import to_json
from MambaSegTraining.batches import Batch, PatchBatches, stream_batches
from MambaSegTraining.board import Board
from MambaSegTraining.clock import Clock
from MambaSegTraining.determinism import deterministic_algorithms, require_determinism
from MambaSegTraining.divergence import (
    DivergedError,
    check_weights,
    describe_divergence,
    keep_copy,
    precision_after,
    rate_factor,
)
from MambaSegTraining.files import (
    load_checkpoint,
    read_json,
    save_checkpoint,
    save_weights,
    write_json,
)
from MambaSegTraining.json_hash import json_hash
from MambaSegTraining.leakage_record import checked_leakage
from MambaSegTraining.locks import own_folder
from MambaSegTraining.losses import deep_supervision_loss
from MambaSegTraining.patch_check import AUTOCAST, patch_dice, predict_patch
from MambaSegTraining.pictures import can_draw, draw_predictions
from MambaSegTraining.plan_identity import plan_hash
from MambaSegTraining.precision_check import check_bfloat16
from MambaSegTraining.preprocess import check_store
from MambaSegTraining.provenance import Environments, describe_environment
from MambaSegTraining.ranks import Ranks
from MambaSegTraining.recipe import Recipe
from MambaSegTraining.run_folder import CHECKPOINT_FILE, RECIPE_FILE, WEIGHTS_FILE, RunFolder
from MambaSegTraining.schedule import learning_rate, momentum
from MambaSegTraining.splits import Fold
from MambaSegTraining.training_log import EpochRecord, TrainingLog
from MambaSegTraining.training_state import TrainingState

BEST_FILE = "best.safetensors"
ENVIRONMENT_FILE = "environment.json"
LAST_EPOCH_FILE = "last_epoch.pt"
PICTURES = "pictures"
SMALLEST_SCALE = 2.0**-10
"""A gradient scaler begins at 2^16 and halves at every overflow: below this, it is not overflow that makes gradients bad."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FoldJob:
    """What to train, where, and for how long.

    Attributes:
        run: The run's folder, planned and preprocessed.
        fold: Number of the fold.
        recipe: Settings of the training.
        device: "cpu", "cuda", "cuda:1", "mps".
        scan: Backend of the selective scan, see `MambaSegLib.scan`.
        resume: Continue from the checkpoint.
        max_minutes: Save a checkpoint and stop after this time; None: train to the end.
        workers: Processes that make batches.
        should_stop: Asked after every step; True saves a checkpoint and stops.
        tensorboard: Write curves for TensorBoard, too.
        ranks: The processes that train this fold together; each takes a slice of every batch.
    """

    run: RunFolder
    fold: int
    recipe: Recipe
    device: str = "cpu"
    scan: str = "auto"
    resume: bool = False
    max_minutes: float | None = None
    workers: int = 1
    should_stop: Callable[[], bool] = field(default=lambda: False)
    tensorboard: bool = False
    ranks: Ranks = field(default_factory=Ranks)

    @property
    def seed(self) -> int:
        """Seed of this fold: the folds start from different weights and see different patches."""
        return self.recipe.seed + self.fold


def train_fold(job: FoldJob, on_progress: ProgressCallback = lambda progress: None) -> bool:
    """Train one fold.

    Writes into its folder: recipe.json, log.jsonl and log.csv (a line per epoch), checkpoint.pt, best.safetensors
    (highest smoothed patch Dice), last_epoch.pt (the checkpoint to go back to if the loss diverges), and at the end weights.safetensors.

    Args:
        job: What to train.
        on_progress: Called after every step.

    Returns:
        True if the training reached its end, False if it stopped early; it can be continued then.

    Raises:
        InputError: If the run lacks a step before, there is a checkpoint already and `resume` is not set, another process
            trains the fold, or the recipe asks for deterministic algorithms where there are none, see `determinism`.
        DivergedError: If loss, gradient or weights stop being numbers more often than the recipe recovers from.
        EnvironmentProblemError: If this CPU computes wrong gradients in bfloat16, see `precision_check`.
    """
    recipe = job.recipe
    with _own_folder(job), deterministic_algorithms(recipe.deterministic, job.device), measured_convolutions():
        return _train_fold(job, on_progress)


@contextmanager
def _own_folder(job: FoldJob) -> Iterator[None]:
    """Keep other trainings out of the fold's folder; of processes that train together, the first one does."""
    if not job.ranks.is_first:
        yield
        return
    job.run.read_fold(job.fold)  # no folder for a fold that does not exist
    with own_folder(job.run.fold(job.fold), "train", f"Fold {job.fold} is trained"):
        yield


def _train_fold(job: FoldJob, on_progress: ProgressCallback) -> bool:
    folder = job.run.fold(job.fold)
    plan, fold = job.run.read_plan(), job.run.read_fold(job.fold)
    checked_leakage(job.run)
    check_store(job.run, (*fold.train, *fold.val))
    identity = _identity(job, fold)
    places = job.ranks.slice_of(job.recipe.batch_size)
    state = _begin(job, plan)
    if job.recipe.deterministic:
        require_determinism(plan.network.name, state.network, job.device, job.scan)
    if job.recipe.amp == "bf16":
        shape = (len(places), plan.network.in_channels, *plan.patch_size)
        check_bfloat16(state.network, torch.device(job.device), shape)
    if all(job.ranks.gathered(_resumes(job))):
        _check_recipe(job)
        state.restore(_checkpoint(job, folder / CHECKPOINT_FILE, identity), identity)
    job.ranks.separate_randomness(job.seed, state.iteration)
    if job.ranks.is_first:
        _open_folder(job, state, identity)
    patches = PatchBatches(job.run.store, fold.train, plan, job.recipe, job.seed, places=places)
    clock = Clock(job.max_minutes, job.recipe.iterations)
    checks, board = _validation_batches(job, plan, fold), _board(job, plan, state)
    training = _Training(job, state, identity, patches, checks, readout_of(plan), clock, on_progress, board)
    while True:
        try:
            finished = _train_on(training)
            break
        except DivergedError as error:
            _recover(job, state, identity, error)
    if finished and job.ranks.is_first:
        save_weights(folder / WEIGHTS_FILE, state.weights())
        (folder / LAST_EPOCH_FILE).unlink(missing_ok=True)
    if training.board is not None:
        training.board.close()
    job.ranks.wait()
    return finished


def _board(job: FoldJob, plan: Plan, state: TrainingState) -> Board | None:
    if not (job.tensorboard and job.ranks.is_first):
        return None
    return Board(job.run.fold(job.fold), plan.structure_names, state.iteration + 1)


def _open_folder(job: FoldJob, state: TrainingState, identity: str) -> None:
    folder = job.run.fold(job.fold)
    write_json(folder / RECIPE_FILE, job.recipe)
    _note_environment(job)
    if state.iteration == 0:
        save_checkpoint(folder / LAST_EPOCH_FILE, state.content(identity))


@dataclass(frozen=True)
class _Training:
    """What the loop works with."""

    job: FoldJob
    state: TrainingState
    identity: str
    patches: PatchBatches
    checks: list[Batch]
    readout: Readout
    clock: Clock
    on_progress: ProgressCallback
    board: Board | None = None


def _train_on(training: _Training) -> bool:
    """The loop, from where the state is to the end, or until it is stopped; says whether it reached the end.

    Raises:
        DivergedError: If loss, gradient or weights are no longer numbers.
    """
    job, state, clock = training.job, training.state, training.clock
    recipe, per_epoch = job.recipe, job.recipe.iterations_per_epoch
    numbers = range(state.iteration, recipe.iterations)
    for batch in clock.waiting_for(stream_batches(training.patches, numbers, job.workers)):
        train_step(state, batch, job, training.readout)
        clock.step_done()
        training.on_progress(clock.progress(state.iteration))
        if state.iteration % per_epoch == 0:
            check_weights(state.network, state.iteration)
            _finish_epoch(training)
        stop = job.ranks.any(job.should_stop() or clock.is_over())
        if stop or state.iteration % per_epoch == 0 or clock.checkpoint_is_due():
            _save(job, state, training.identity)
            clock.checkpoint_done()
        if stop and state.iteration < recipe.iterations:
            return False
    return True


def _finish_epoch(training: _Training) -> None:
    """Check the network on patches, note it in the log, and keep its weights if they are the best so far."""
    job, state, clock = training.job, training.state, training.clock
    record = _measure_epoch(training)
    is_best = record.mean_patch_dice is not None and state.note_dice(record.mean_patch_dice)
    if job.ranks.is_first:
        folder, labels = job.run.fold(job.fold), job.run.read_plan().structure_names
        TrainingLog(folder, labels, keep_epochs=record.epoch).add(record)
        _report(record, job.recipe.epochs, clock)
        if is_best:
            save_weights(folder / BEST_FILE, state.weights())
        if training.board is not None:
            training.board.add(record)
        if job.recipe.picture_every and (record.epoch + 1) % job.recipe.picture_every == 0 and can_draw():
            _draw(training, record)


@torch.no_grad()
def _draw(training: _Training, record: EpochRecord) -> None:
    """Picture of the predictions on the first patches of the check."""
    job, state, batch, readout = training.job, training.state, training.checks[0], training.readout
    state.evaluated_network.eval()
    amp = precision_after(job.recipe.amp, state.recoveries)
    logits = predict_patch(state.evaluated_network, batch.image.to(job.device), amp)
    predicted = readout.classes(readout.probabilities(logits)).cpu().numpy()
    labels = batch.labels if readout.ignored is None else batch.labels.masked_fill(batch.labels == readout.ignored, 0)
    dice = "" if record.mean_patch_dice is None else f", patch Dice {record.mean_patch_dice:.3f}"
    draw_predictions(
        job.run.fold(job.fold) / PICTURES / f"epoch_{record.epoch + 1:04d}.png",
        f"fold {job.fold}, epoch {record.epoch + 1} of {job.recipe.epochs}{dice}",
        batch.image.numpy(), labels.numpy(), predicted, job.run.read_plan(),
    )  # fmt: skip


def _save(job: FoldJob, state: TrainingState, identity: str) -> None:
    """Save a checkpoint; the one after the last whole epoch, whose weights were checked, is what `_recover` goes back to."""
    if not job.ranks.is_first:
        return
    folder = job.run.fold(job.fold)
    save_checkpoint(folder / CHECKPOINT_FILE, state.content(identity))
    if state.iteration % job.recipe.iterations_per_epoch == 0:
        keep_copy(folder / CHECKPOINT_FILE, folder / LAST_EPOCH_FILE)


def _recover(job: FoldJob, state: TrainingState, identity: str, error: DivergedError) -> None:
    """Go back to the end of the last epoch and go on with half the learning rate, the second time in float32.

    Always an epoch's end: where an interruption left a checkpoint must not change the weights that come out.

    Raises:
        DivergedError: If that was done as often as the recipe allows.
    """
    recipe, path = job.recipe, job.run.fold(job.fold) / LAST_EPOCH_FILE
    recoveries = state.recoveries + 1
    job.ranks.wait()  # the first process may still be writing the file
    if recoveries > recipe.recoveries or not path.is_file():
        msg = (
            f"{error} Going back to the last good weights did not help ({recoveries - 1} of {recipe.recoveries} attempts). "
            "Lower recipe.learning_rate or set recipe.amp to off, delete the fold's folder and start anew."
        )
        raise DivergedError(msg) from error
    state.restore(_checkpoint(job, path, identity), identity)
    state.recoveries = recoveries
    job.ranks.separate_randomness(job.seed + recoveries, state.iteration)
    _save(job, state, identity)
    log.warning(
        "%s Back to step %d; on with %g times the learning rate, autocast %s (recovery %d of %d).",
        error, state.iteration, rate_factor(recoveries), precision_after(recipe.amp, recoveries),
        recoveries, recipe.recoveries,
    )  # fmt: skip


def _begin(job: FoldJob, plan: Plan) -> TrainingState:
    torch.manual_seed(job.seed)
    network = create_network(plan.network)
    set_scan_backend(network, job.scan)
    set_recompute(network, job.recipe.recompute)
    return TrainingState(network, job.recipe, job.device, job.ranks)


def train_step(state: TrainingState, batch: Batch, job: FoldJob, readout: Readout) -> None:
    """One step: forward and backward pass, optimizer, counters; of the job only recipe, device and ranks matter.

    Raises:
        DivergedError: If loss or gradient is no longer a number.
    """
    recipe, device = job.recipe, torch.device(job.device)
    state.set_rate(_learning_rate(job, state, state.iteration), momentum(recipe, state.iteration))
    amp = precision_after(recipe.amp, state.recoveries)
    image = batch.image.to(device, non_blocking=True)
    labels = batch.labels.to(device, non_blocking=True)
    state.network.train()
    state.optimizer.zero_grad(set_to_none=True)
    with torch.autocast(device.type, AUTOCAST[amp], enabled=amp != "off"):
        outputs = state.parallel(image)
    loss = deep_supervision_loss(outputs, labels, readout, recipe.batch_dice, job.ranks.total)
    if not math.isfinite(loss_value := job.ranks.mean(loss.item())):
        raise _diverged(state, job, image, f"The loss is {loss_value}")
    scaled: Tensor = state.scaler.scale(loss)
    scaled.backward()  # type: ignore[no-untyped-call]
    state.scaler.unscale_(state.optimizer)
    norm = nn.utils.clip_grad_norm_(state.network.parameters(), recipe.clip_norm)
    if not state.scaler.is_enabled() and not torch.isfinite(norm):
        raise _diverged(state, job, image, f"The gradient is {norm}")
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.scaler.is_enabled() and state.scaler.get_scale() < SMALLEST_SCALE:
        raise _diverged(state, job, image, "The gradient is no number in fp16, however little it is scaled up")
    if state.average is not None:
        state.average.update_parameters(state.network)
    state.iteration += 1
    state.loss_sum += loss_value
    state.norm_sum += float(norm) if torch.isfinite(norm) else 0.0  # a scaler lets single steps overflow


def _diverged(state: TrainingState, job: FoldJob, image: Tensor, what: str) -> DivergedError:
    """The error to raise, with the words of the process whose slice of the batch shows more."""
    found = job.ranks.gathered(describe_divergence(state.network, image, what, state.iteration))
    return DivergedError(max(found, key=lambda text: "first layer" in text))


def _learning_rate(job: FoldJob, state: TrainingState, iteration: int) -> float:
    return learning_rate(job.recipe, iteration) * rate_factor(state.recoveries)


def _measure_epoch(training: _Training) -> EpochRecord:
    state, job, checks, readout = training.state, training.job, training.checks, training.readout
    recipe = job.recipe
    epoch, steps = state.iteration // recipe.iterations_per_epoch - 1, recipe.iterations_per_epoch
    is_due = (epoch + 1) % recipe.validation_every == 0 or epoch + 1 == recipe.epochs
    amp = precision_after(recipe.amp, state.recoveries)
    gather = job.ranks.gathered
    dice = patch_dice(state.evaluated_network, checks, readout, job.device, amp, gather) if is_due else ()
    seconds, wait_share = training.clock.finish_epoch()
    defined = [value for value in dice if not math.isnan(value)]
    record = EpochRecord(
        epoch=epoch,
        iteration=state.iteration,
        learning_rate=_learning_rate(job, state, state.iteration - 1),
        train_loss=state.loss_sum / steps,
        patch_dice=tuple(None if math.isnan(value) else value for value in dice),
        mean_patch_dice=sum(defined) / len(defined) if defined else None,
        gradient_norm=state.norm_sum / steps,
        seconds=seconds,
        wait_share=wait_share,
        recoveries=state.recoveries,
    )
    state.loss_sum = state.norm_sum = 0.0
    return record


def _validation_batches(job: FoldJob, plan: Plan, fold: Fold) -> list[Batch]:
    """The same patches after every epoch, so that the values can be compared; each process takes some."""
    patches = PatchBatches(job.run.store, fold.val, plan, job.recipe, job.seed, validation=True)
    return [patches[number] for number in range(job.ranks.rank, job.recipe.validation_batches, job.ranks.count)]


def _note_environment(job: FoldJob) -> None:
    path = job.run.fold(job.fold) / ENVIRONMENT_FILE
    earlier = read_json(Environments, path).starts if path.is_file() and job.resume else ()
    backend = resolve_backend(job.scan, job.device, needs_gradient=True)
    write_json(path, Environments((*earlier, describe_environment(job.seed, job.device, backend))))


def _resumes(job: FoldJob) -> bool:
    path = job.run.fold(job.fold) / CHECKPOINT_FILE
    if path.is_file() and not job.resume:
        msg = f"{path} exists: add --resume to continue that training, or delete the folder to start anew."
        raise InputError(msg)
    return path.is_file()


def _check_recipe(job: FoldJob) -> None:
    before = read_json(Recipe, job.run.fold(job.fold) / RECIPE_FILE)
    changed = job.recipe.changes_from(before)
    if changed:
        listed = ", ".join(f"{name} ({then} then, {now} now)" for name, (then, now) in changed.items())
        msg = f"Fold {job.fold} was begun with another recipe: {listed}. Restore it to continue, or delete the fold's folder."
        raise InputError(msg)


def _identity(job: FoldJob, fold: Fold) -> str:
    """Hash of what the training depends on, the recipe left out: `_check_recipe` says more about it."""
    return json_hash([plan_hash(job.run.plan_file), to_json(fold), job.seed])


def _checkpoint(job: FoldJob, path: Path, identity: str) -> dict[str, Any]:
    """A checkpoint; one of an earlier version, which hashed the plan's text with all names and colors, counts as ours."""
    content, fold = load_checkpoint(path), job.run.read_fold(job.fold)
    if content["identity"] == json_hash([job.run.plan_file.read_text(encoding="utf-8"), to_json(fold), job.seed]):
        content["identity"] = identity
    return content


def _report(record: EpochRecord, epochs: int, clock: Clock) -> None:
    left = clock.progress(record.iteration).seconds_left or 0.0
    dice = " ".join("-" if value is None else f"{value:.3f}" for value in record.patch_dice) or "-"
    log.info(
        "epoch %d/%d  loss %.4f  patch Dice %s  rate %.2e  %.0f s (%.0f %% waiting)  left %s",
        record.epoch + 1, epochs, record.train_loss, dice, record.learning_rate, record.seconds,
        100 * record.wait_share, _duration(left),
    )  # fmt: skip


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"
