"""Everything of a training that changes while it runs, and how it is saved and restored."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from MambaSegLib.devices import place
from MambaSegLib.errors import InputError
from MambaSegTraining.ranks import Ranks
from MambaSegTraining.recipe import Recipe

SGD_MOMENTUM = 0.99
SMOOTHING = 0.9


class TrainingState:
    """Network, optimizer and counters of one fold.

    Attributes:
        network: The network in training.
        parallel: What to call for training: the network, or its twin that averages gradients over processes.
        optimizer: Its optimizer.
        average: The running average of the weights; None without `ema_decay`.
        scaler: Gradient scaler; does nothing unless the recipe asks for fp16.
        iteration: Steps done.
        loss_sum: Of the steps of the present epoch.
        norm_sum: Gradient norms of the steps of the present epoch.
        smoothed_dice: Patch Dice of the validation cases, averaged over epochs with weight 0.9 on the past; -1 at first.
        best_dice: Highest `smoothed_dice` so far.
        recoveries: How often it went back to good weights, see `divergence`.
    """

    def __init__(self, network: nn.Module, recipe: Recipe, device: str, ranks: Ranks | None = None) -> None:
        """Start at step 0 with the network as it is; `ranks` train it together."""
        self.network = network
        self._device = torch.device(device)
        place(network, self._device)
        self.optimizer = _create_optimizer(network, recipe)
        self.average = AveragedModel(network, multi_avg_fn=_Ema(recipe.ema_decay)) if recipe.ema_decay else None
        self.scaler = torch.amp.GradScaler(self._device.type, enabled=recipe.amp == "fp16")
        self.parallel = (ranks or Ranks()).distribute(self.network)
        self.iteration = 0
        self.loss_sum = 0.0
        self.norm_sum = 0.0
        self.smoothed_dice = -1.0
        self.best_dice = -1.0
        self.recoveries = 0

    @property
    def evaluated_network(self) -> nn.Module:
        """The network that is validated and exported: the average where there is one."""
        if self.average is None:
            return self.network
        module: nn.Module = self.average.module
        return module

    def weights(self) -> dict[str, Tensor]:
        """State dictionary of `evaluated_network`."""
        return dict(self.evaluated_network.state_dict())

    def set_rate(self, learning_rate: float, momentum: float | None) -> None:
        """Set the learning rate of the next step, and its momentum (beta 1) unless that is None."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
            if momentum is not None and "betas" in group:
                group["betas"] = (momentum, group["betas"][1])
            elif momentum is not None:
                group["momentum"] = momentum

    def note_dice(self, dice: float) -> bool:
        """Take in a new validation value; True if the smoothed one is the best so far."""
        first = self.smoothed_dice < 0
        self.smoothed_dice = dice if first else SMOOTHING * self.smoothed_dice + (1 - SMOOTHING) * dice
        if self.smoothed_dice <= self.best_dice:
            return False
        self.best_dice = self.smoothed_dice
        return True

    def content(self, identity: str) -> dict[str, Any]:
        """What a checkpoint holds.

        Args:
            identity: What the training depends on (plan, folds, seed) as one hash; `restore` compares it.
        """
        return {
            "identity": identity,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average else {},
            "scaler": self.scaler.state_dict(),
            "random_cpu": torch.get_rng_state(),
            "random_cuda": [torch.cuda.get_rng_state(self._device)] if self._device.type == "cuda" else [],
            "counters": {name: getattr(self, name) for name in _COUNTERS},
        }

    def restore(self, content: dict[str, Any], identity: str) -> None:
        """Continue from a checkpoint.

        Raises:
            InputError: If it belongs to another plan, fold or seed.
        """
        if content["identity"] != identity:
            msg = (
                "The checkpoint was made with another plan, other folds or another seed. "
                "Restore them to continue it, or delete the fold's folder to start anew."
            )
            raise InputError(msg)
        self.network.load_state_dict(content["network"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.scaler.load_state_dict(content["scaler"])
        if self.average:
            self.average.load_state_dict(content["average"])
        torch.set_rng_state(content["random_cpu"].cpu())
        if self._device.type == "cuda" and content["random_cuda"]:
            states = content["random_cuda"]  # older checkpoints have one per GPU
            torch.cuda.set_rng_state(states[min(self._device.index or 0, len(states) - 1)].cpu(), self._device)
        for name in _COUNTERS:
            setattr(self, name, content["counters"].get(name, 0))  # older checkpoints lack the later ones


_COUNTERS = ("iteration", "loss_sum", "norm_sum", "smoothed_dice", "best_dice", "recoveries")


class _Ema:
    """Exponential average with a warm-up: early on the decay is (1 + n) / (10 + n), so the start is soon forgotten."""

    def __init__(self, decay: float) -> None:
        self._decay = decay

    @torch.no_grad()
    def __call__(self, averaged: Any, current: Any, count: Tensor | int) -> None:
        decay = min(self._decay, (1 + int(count)) / (10 + int(count)))
        for average, weight in zip(averaged, current, strict=True):
            average.lerp_(weight.detach().to(average.device), 1 - decay)


def _create_optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    weights, rate, decay = network.parameters(), recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "radam":
        return torch.optim.RAdam(weights, lr=rate, weight_decay=decay)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(weights, lr=rate, weight_decay=decay)
    return torch.optim.SGD(weights, lr=rate, weight_decay=decay, momentum=SGD_MOMENTUM, nesterov=True)
