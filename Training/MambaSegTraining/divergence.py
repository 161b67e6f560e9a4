"""What to do when the loss is no longer a number: name the layer, go back to the last good weights, go on gently."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from MambaSegLib.errors import MambaSegError

RATE_FACTOR = 0.5
FULL_PRECISION_FROM = 2


class DivergedError(MambaSegError, ArithmeticError):
    """Loss, gradient or weights are no longer numbers."""


def rate_factor(recoveries: int) -> float:
    """What the learning rate is multiplied with after so many recoveries: it is halved each time."""
    return RATE_FACTOR**recoveries


def precision_after(amp: str, recoveries: int) -> str:
    """Autocast type after so many recoveries.

    The first only lowers the learning rate. If that did not help, the second goes to float32 for the rest, which is
    slower and takes more memory.
    """
    return "off" if recoveries >= FULL_PRECISION_FROM else amp


def keep_copy(checkpoint: Path, copy: Path) -> None:
    """Keep this state of a checkpoint under another name; whole or not at all, without writing it twice if possible."""
    work = copy.with_name(f".tmp-{copy.name}")
    work.unlink(missing_ok=True)
    try:
        os.link(checkpoint, work)  # the checkpoint is never changed, only replaced
    except OSError:
        shutil.copyfile(checkpoint, work)
    work.replace(copy)


def check_weights(network: nn.Module, step: int) -> None:
    """Refuse weights that are not all finite.

    Raises:
        DivergedError: Naming the first parameter that is not.
    """
    for name, weights in network.named_parameters():
        if not torch.isfinite(weights).all():
            msg = f"The weights {name} are no longer numbers after step {step}."
            raise DivergedError(msg)


@torch.no_grad()
def describe_divergence(network: nn.Module, image: Tensor, what: str, step: int) -> str:
    """Run the network once more, without autocast, to name the first layer whose output is not finite."""
    with _watched(network) as culprits:
        network(image)
    where = f"the first layer with such values is {culprits[0]}" if culprits else "all layers compute finite values"
    return f"{what} at step {step}; {where} (run without autocast)."


@contextmanager
def _watched(network: nn.Module) -> Iterator[list[str]]:
    """Collect the names of modules whose output is not finite, in the order in which they finish."""
    culprits: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            tensors = output if isinstance(output, tuple) else (output,)
            if any(isinstance(tensor, Tensor) and not torch.isfinite(tensor).all() for tensor in tensors):
                culprits.append(name)

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in network.named_modules()]
    try:
        yield culprits
    finally:
        for handle in handles:
            handle.remove()
