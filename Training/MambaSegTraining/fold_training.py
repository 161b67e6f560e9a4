"""Training of one fold: the loop from the first batch to the final weights."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from MambaSegLib.errors import InputError, MambaSegError
from MambaSegLib.networks import create_network, set_scan_backend
from MambaSegLib.plan import Plan
from MambaSegLib.progress import Progress, ProgressCallback
from MambaSegLib.scan import resolve_backend
from MambaSegLib.schema import to_json
from MambaSegTraining.batches import Batch, PatchBatches, stream_batches
from MambaSegTraining.files import load_checkpoint, read_json, save_checkpoint, save_weights, write_json
from MambaSegTraining.losses import deep_supervision_loss
from MambaSegTraining.preprocess import check_store
from MambaSegTraining.provenance import Environments, describe_environment
from MambaSegTraining.recipe import Recipe
from MambaSegTraining.run_folder import CHECKPOINT_FILE, RECIPE_FILE, WEIGHTS_FILE, RunFolder
from MambaSegTraining.schedule import learning_rate
from MambaSegTraining.splits import Fold
from MambaSegTraining.training_log import EpochRecord, TrainingLog
from MambaSegTraining.training_state import TrainingState

BEST_FILE = "best.safetensors"
ENVIRONMENT_FILE = "environment.json"
CHECKPOINT_EVERY_S = 300.0
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": torch.float32}

log = logging.getLogger(__name__)


class DivergedError(MambaSegError, ArithmeticError):
    """The loss is no longer a number; the last checkpoint is from before that."""


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

    @property
    def seed(self) -> int:
        """Seed of this fold: the folds start from different weights and see different patches."""
        return self.recipe.seed + self.fold


def train_fold(job: FoldJob, on_progress: ProgressCallback = lambda progress: None) -> bool:
    """Train one fold.

    Writes into its folder: recipe.json, log.jsonl and log.csv (a line per epoch), checkpoint.pt, best.safetensors
    (highest smoothed patch Dice), and at the end weights.safetensors.

    Args:
        job: What to train.
        on_progress: Called after every step.

    Returns:
        True if the training reached its end, False if it stopped early; it can be continued then.

    Raises:
        InputError: If the run lacks a step before, or there is a checkpoint already and `resume` is not set.
        DivergedError: If the loss is not finite.
    """
    with deterministic_algorithms(job.recipe.deterministic):
        return _train_fold(job, on_progress)


def _train_fold(job: FoldJob, on_progress: ProgressCallback) -> bool:
    folder = job.run.fold(job.fold)
    plan, fold = job.run.read_plan(), job.run.read_fold(job.fold)
    check_store(job.run, (*fold.train, *fold.val))
    identity = _identity(job, fold)
    state = _begin(job, plan)
    if _resumes(job):
        _check_recipe(job)
        state.restore(load_checkpoint(folder / CHECKPOINT_FILE, job.device), identity)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RECIPE_FILE, job.recipe)
    _note_environment(job)

    recipe, per_epoch = job.recipe, job.recipe.iterations_per_epoch
    epochs = TrainingLog(folder, [label.name for label in plan.labels], state.iteration // per_epoch)
    clock = _Clock(job.max_minutes, state.iteration, recipe.iterations)
    patches = PatchBatches(job.run.store, fold.train, plan, recipe, job.seed)
    checks = _validation_batches(job, plan, fold)
    for batch in clock.waiting_for(stream_batches(patches, range(state.iteration, recipe.iterations), job.workers)):
        _train_step(state, batch, job)
        on_progress(clock.progress(state.iteration))
        if state.iteration % per_epoch == 0:
            record = _finish_epoch(state, job, checks, clock)
            epochs.add(record)
            _report(record, recipe.epochs, clock)
            if record.mean_patch_dice is not None and state.note_dice(record.mean_patch_dice):
                save_weights(folder / BEST_FILE, state.weights())
        stop = job.should_stop() or clock.is_over()
        if stop or state.iteration % per_epoch == 0 or clock.checkpoint_is_due():
            save_checkpoint(folder / CHECKPOINT_FILE, state.content(identity))
            clock.checkpoint_done()
        if stop and state.iteration < recipe.iterations:
            return False
    save_weights(folder / WEIGHTS_FILE, state.weights())
    return True


def _begin(job: FoldJob, plan: Plan) -> TrainingState:
    torch.manual_seed(job.seed)
    network = create_network(plan.network)
    set_scan_backend(network, job.scan)
    return TrainingState(network, job.recipe, job.device)


def _train_step(state: TrainingState, batch: Batch, job: FoldJob) -> None:
    recipe, device = job.recipe, torch.device(job.device)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(recipe, state.iteration)
    image = batch.image.to(device, non_blocking=True)
    labels = batch.labels.to(device, non_blocking=True)
    state.network.train()
    state.optimizer.zero_grad(set_to_none=True)
    with torch.autocast(device.type, AUTOCAST[recipe.amp], enabled=recipe.amp != "off"):
        outputs = state.network(image)
    loss = deep_supervision_loss(outputs, labels, recipe.batch_dice)
    if not math.isfinite(loss_value := loss.item()):
        raise _diverged(state, image, loss_value)
    scaled: Tensor = state.scaler.scale(loss)
    scaled.backward()  # type: ignore[no-untyped-call]
    state.scaler.unscale_(state.optimizer)
    norm = nn.utils.clip_grad_norm_(state.network.parameters(), recipe.clip_norm)
    if not state.scaler.is_enabled() and not torch.isfinite(norm):
        raise _diverged(state, image, norm.item())
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.average is not None:
        state.average.update_parameters(state.network)
    state.iteration += 1
    state.loss_sum += loss_value
    state.norm_sum += float(norm) if torch.isfinite(norm) else 0.0  # a scaler lets single steps overflow


def _finish_epoch(state: TrainingState, job: FoldJob, checks: list[Batch], clock: _Clock) -> EpochRecord:
    recipe = job.recipe
    epoch, steps = state.iteration // recipe.iterations_per_epoch - 1, recipe.iterations_per_epoch
    is_due = (epoch + 1) % recipe.validation_every == 0 or epoch + 1 == recipe.epochs
    dice = patch_dice(state.evaluated_network, checks, job.device, recipe.amp) if is_due else ()
    seconds, wait_share = clock.finish_epoch()
    defined = [value for value in dice if not math.isnan(value)]
    record = EpochRecord(
        epoch=epoch,
        iteration=state.iteration,
        learning_rate=learning_rate(recipe, state.iteration - 1),
        train_loss=state.loss_sum / steps,
        patch_dice=tuple(0.0 if math.isnan(value) else value for value in dice),
        mean_patch_dice=sum(defined) / len(defined) if defined else None,
        gradient_norm=state.norm_sum / steps,
        seconds=seconds,
        wait_share=wait_share,
    )
    state.loss_sum = state.norm_sum = 0.0
    return record


@torch.no_grad()
def patch_dice(network: nn.Module, batches: list[Batch], device: str, amp: str) -> tuple[float, ...]:
    """Dice per structure of the voxels of all batches pooled: quick, and close to but not the Dice per case.

    Returns:
        One value per structure; nan where neither prediction nor labels have it.
    """
    network.eval()
    counts: Tensor | None = None
    for batch in batches:
        with torch.autocast(torch.device(device).type, AUTOCAST[amp], enabled=amp != "off"):
            logits = network(batch.image.to(device))[0]
        found = _overlaps(logits.argmax(1).cpu(), batch.labels, logits.shape[1])
        counts = found if counts is None else counts + found
    if counts is None:
        return ()
    overlap, predicted, true = counts
    return tuple((2 * overlap / (predicted + true)).tolist())


def _overlaps(prediction: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Voxels in both, in the prediction, in the labels: (3, K - 1)."""
    structures = [(prediction == value, labels == value) for value in range(1, classes)]
    return torch.tensor([[float((p & g).sum()), float(p.sum()), float(g.sum())] for p, g in structures]).T


def _validation_batches(job: FoldJob, plan: Plan, fold: Fold) -> list[Batch]:
    """The same patches after every epoch, so that the values can be compared."""
    patches = PatchBatches(job.run.store, fold.val, plan, job.recipe, job.seed, validation=True)
    return [patches[number] for number in range(job.recipe.validation_batches)]


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
    changed = [name for name in Recipe.__dataclass_fields__ if getattr(before, name) != getattr(job.recipe, name)]
    if changed:
        listed = ", ".join(
            f"{name} ({getattr(before, name)} then, {getattr(job.recipe, name)} now)" for name in changed
        )
        msg = f"Fold {job.fold} was begun with another recipe: {listed}. Restore it to continue, or delete the fold's folder."
        raise InputError(msg)


def _identity(job: FoldJob, fold: Fold) -> str:
    """Hash of what the training depends on, the recipe left out: `_check_recipe` says more about it."""
    parts = [job.run.plan_file.read_text(encoding="utf-8"), to_json(fold), job.seed]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    """Let PyTorch use deterministic algorithms only, for a while."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(wanted)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@torch.no_grad()
def _diverged(state: TrainingState, image: Tensor, value: float) -> DivergedError:
    """Run the network once more to name the first layer whose output is not finite."""
    culprits: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            tensors = output if isinstance(output, tuple) else (output,)
            if any(isinstance(tensor, Tensor) and not torch.isfinite(tensor).all() for tensor in tensors):
                culprits.append(name)

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in state.network.named_modules()]
    state.network(image)
    for handle in handles:
        handle.remove()
    where = f"the first layer with such values is {culprits[0]}" if culprits else "all layers compute finite values"
    msg = (
        f"Loss or gradient is {value} at step {state.iteration}; {where} (run without autocast). The last checkpoint is "
        "from before; lower recipe.learning_rate or set recipe.amp to off and start anew."
    )
    return DivergedError(msg)


class _Clock:
    """Times of a run: what is left, how long was waited for batches, when to save."""

    def __init__(self, max_minutes: float | None, first_step: int, steps: int) -> None:
        self._start = self._epoch_start = self._last_checkpoint = time.monotonic()
        self._end = self._start + max_minutes * 60 if max_minutes is not None else math.inf
        self._first_step, self._steps = first_step, steps
        self._waited = 0.0

    def waiting_for(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Pass batches on and count the time until each comes."""
        while True:
            start = time.monotonic()
            batch = next(batches, None)
            self._waited += time.monotonic() - start
            if batch is None:
                return
            yield batch

    def progress(self, step: int) -> Progress:
        per_step = (time.monotonic() - self._start) / (step - self._first_step)
        return Progress("Training", step, self._steps, per_step * (self._steps - step))

    def finish_epoch(self) -> tuple[float, float]:
        """Seconds since the last call, and the share of them spent waiting."""
        now = time.monotonic()
        seconds, waited = now - self._epoch_start, self._waited
        self._epoch_start, self._waited = now, 0.0
        return seconds, waited / seconds

    def is_over(self) -> bool:
        return time.monotonic() >= self._end

    def checkpoint_is_due(self) -> bool:
        return time.monotonic() - self._last_checkpoint >= CHECKPOINT_EVERY_S

    def checkpoint_done(self) -> None:
        self._last_checkpoint = time.monotonic()


def _report(record: EpochRecord, epochs: int, clock: _Clock) -> None:
    left = clock.progress(record.iteration).seconds_left or 0.0
    dice = " ".join(f"{value:.3f}" for value in record.patch_dice) or "-"
    log.info(
        "epoch %d/%d  loss %.4f  patch Dice %s  rate %.2e  %.0f s (%.0f %% waiting)  left %s",
        record.epoch + 1, epochs, record.train_loss, dice, record.learning_rate, record.seconds,
        100 * record.wait_share, _duration(left),
    )  # fmt: skip


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"
