"""How a fold is trained: optimizer, schedule, length, batch, precision, seed. Read from the `[recipe]` of a TOML file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from MambaSegLib.errors import InputError

HARMLESS = ("recompute", "picture_every")
"""Settings that may change on the way: the weights do not depend on them."""


@dataclass(frozen=True)
class Recipe:
    """Settings of one training. The defaults are the paper's (Lumetti et al., ISBI 2025, and nnU-Net where it is silent).

    Attributes:
        optimizer: "radam" and "adamw" as in PyTorch; "sgd" with Nesterov momentum 0.99, nnU-Net's own.
        learning_rate: Peak learning rate.
        minimum_learning_rate: Where "cosine" ends.
        schedule: "linear" to 0; "cosine" (periodic when `cosine_period` is shorter than the training);
            "onecycle" (up from a 25th of the peak, then down to 0, both along a cosine); "poly" (power 0.9, nnU-Net).
        schedule_step: Whether the learning rate changes at every iteration or once an epoch.
        cosine_period: Half a period of "cosine" in epochs; 0: the whole training.
        warmup_fraction: Share of the training that "onecycle" rises for.
        cycle_momentum: With "onecycle", lower the optimizer's momentum (beta 1 of "radam" and "adamw") from 0.95 to 0.85 while
            the learning rate rises, and raise it again while that falls: PyTorch's OneCycleLR does so unless told not to.
        weight_decay: As the optimizer defines it.
        clip_norm: Gradients are scaled down to this norm.
        epochs: Length of the training.
        iterations_per_epoch: Optimizer steps between two lines of the log.
        batch_size: Patches per step.
        foreground_oversampling: Share of the patches of a batch, counted from its end and rounded as nnU-Net rounds,
            that are centered near a voxel of a structure.
        augmentation: "nnunet": its default set; "none".
        batch_dice: Take the soft Dice over the batch as one image instead of per patch.
        amp: Autocast type of convolutions: "bf16", "fp16" (with a gradient scaler, GPU only) or "off". The selective
            scan stays in float32.
        recompute: Let Mamba layers keep only their input and compute the rest again for the gradient: less memory, more
            time, the same weights.
        ema_decay: Weights are averaged over the steps with this decay and the average is what is validated and
            exported; 0: no average.
        recoveries: How often a training whose loss is no longer a number goes back to the end of its last epoch and on
            with half the learning rate, from the second time in float32; then it stops.
        validation_every: Epochs between two quick checks on patches of the validation cases.
        validation_batches: Batches of such a check.
        picture_every: Epochs between two pictures of predictions on such patches; 0: none.
        seed: Root of every random number. The same seed, data and software draw the same batches.
        deterministic: Use deterministic algorithms only, so that two runs on one computer agree to the bit; refused where a
            network or scan has none on a GPU, see `determinism`.
    """

    optimizer: Literal["radam", "adamw", "sgd"] = "radam"
    learning_rate: float = 3e-4
    minimum_learning_rate: float = 0.0
    schedule: Literal["linear", "cosine", "onecycle", "poly"] = "linear"
    schedule_step: Literal["iteration", "epoch"] = "iteration"
    cosine_period: int = 0
    warmup_fraction: float = 0.1
    cycle_momentum: bool = False
    weight_decay: float = 3e-5
    clip_norm: float = 12.0
    epochs: int = 300
    iterations_per_epoch: int = 250
    batch_size: int = 2
    foreground_oversampling: float = 1 / 3
    augmentation: Literal["nnunet", "none"] = "nnunet"
    batch_dice: bool = False
    amp: Literal["bf16", "fp16", "off"] = "bf16"
    recompute: bool = False
    ema_decay: float = 0.0
    recoveries: int = 3
    validation_every: int = 1
    validation_batches: int = 50
    picture_every: int = 10
    seed: int = 12345
    deterministic: bool = False

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant.

        Raises:
            InputError: Naming the setting, what it is and what it may be.
        """
        for name in ("epochs", "iterations_per_epoch", "batch_size", "validation_every", "validation_batches"):
            _refuse(getattr(self, name) < 1, name, getattr(self, name), "1 or more")
        for name in ("learning_rate", "clip_norm"):
            _refuse(getattr(self, name) <= 0, name, getattr(self, name), "above 0")
        for name in ("weight_decay", "minimum_learning_rate", "cosine_period", "recoveries", "picture_every", "seed"):
            _refuse(getattr(self, name) < 0, name, getattr(self, name), "0 or more")
        for name in ("foreground_oversampling", "warmup_fraction"):
            _refuse(not 0 <= getattr(self, name) <= 1, name, getattr(self, name), "from 0 to 1")
        momentum_without_cycle = self.cycle_momentum and self.schedule != "onecycle"
        _refuse(momentum_without_cycle, "cycle_momentum", "true", f"false with the schedule {self.schedule}")
        _refuse(not 0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "0 (off) or below 1, such as 0.999")

    def changes_from(self, before: Recipe) -> dict[str, tuple[object, object]]:
        """Settings that differ and that the weights depend on: name to (before, now)."""
        pairs = {name: (getattr(before, name), getattr(self, name)) for name in self.__dataclass_fields__}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1] and name not in HARMLESS}

    @property
    def iterations(self) -> int:
        """Optimizer steps of the whole training."""
        return self.epochs * self.iterations_per_epoch


def _refuse(condition: bool, name: str, value: object, allowed: str) -> None:
    if condition:
        msg = f"recipe.{name} is {value}; it must be {allowed}."
        raise InputError(msg)
