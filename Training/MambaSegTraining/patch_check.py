"""A quick check on patches of the validation cases, the same after every epoch so that the values can be compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from MambaSegLib.readout import Readout
from MambaSegTraining.batches import Batch

Gather = Callable[[Tensor | None], Sequence[Tensor | None]]

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": torch.float32}


@torch.no_grad()
def patch_dice(
    network: nn.Module,
    batches: Sequence[Batch],
    readout: Readout,
    device: str,
    amp: str,
    gather: Gather = lambda counts: (counts,),
) -> tuple[float, ...]:
    """Dice per structure of the labelled voxels of all batches pooled: quick, and close to but not the Dice per case.

    Args:
        network: What predicts.
        batches: The patches.
        readout: What the network's outputs stand for.
        device: Where to compute.
        amp: Autocast type, see `Recipe.amp`.
        gather: Returns the counts of all processes that share the batches.

    Returns:
        One value per structure; nan where neither prediction nor labels have it.
    """
    network.eval()
    counts: Tensor | None = None
    for batch in batches:
        probabilities = readout.probabilities(predict_patch(network, batch.image.to(device), amp))
        found = _overlaps(readout.found(probabilities).cpu(), batch.labels, readout)
        counts = found if counts is None else counts + found
    found_anywhere = [part for part in gather(counts) if part is not None]
    if not found_anywhere:
        return ()
    overlap, predicted, true = torch.stack(found_anywhere).sum(0)
    return tuple((2 * overlap / (predicted + true)).tolist())


def predict_patch(network: nn.Module, image: Tensor, amp: str) -> Tensor:
    """Logits (B, K, Z, Y, X) of the finest output."""
    with torch.autocast(image.device.type, AUTOCAST[amp], enabled=amp != "off"):
        logits: Tensor = network(image)[0]
    return logits.float()


def _overlaps(found: Tensor, labels: Tensor, readout: Readout) -> Tensor:
    """Labelled voxels in both, in the prediction (B, S, Z, Y, X), in the labels: (3, S)."""
    true = readout.targets(labels)[:, readout.first_structure :]
    if readout.ignored is not None:
        found = found & (labels != readout.ignored)[:, None]
    return torch.stack([mask.sum((0, 2, 3, 4)).double() for mask in (found & true, found, true)])
