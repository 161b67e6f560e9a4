"""A quick check on patches of the validation cases, the same after every epoch so that the values can be compared."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from MambaSegTraining.batches import Batch

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": torch.float32}


@torch.no_grad()
def patch_dice(network: nn.Module, batches: Sequence[Batch], device: str, amp: str) -> tuple[float, ...]:
    """Dice per structure of the voxels of all batches pooled: quick, and close to but not the Dice per case.

    Returns:
        One value per structure; nan where neither prediction nor labels have it.
    """
    network.eval()
    counts: Tensor | None = None
    for batch in batches:
        logits = predict_patch(network, batch.image.to(device), amp)
        found = _overlaps(logits.argmax(1).cpu(), batch.labels, logits.shape[1])
        counts = found if counts is None else counts + found
    if counts is None:
        return ()
    overlap, predicted, true = counts
    return tuple((2 * overlap / (predicted + true)).tolist())


def predict_patch(network: nn.Module, image: Tensor, amp: str) -> Tensor:
    """Logits (B, K, Z, Y, X) of the finest output."""
    with torch.autocast(image.device.type, AUTOCAST[amp], enabled=amp != "off"):
        logits: Tensor = network(image)[0]
    return logits


def _overlaps(prediction: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Voxels in both, in the prediction, in the labels: (3, K - 1)."""
    structures = [(prediction == value, labels == value) for value in range(1, classes)]
    return torch.tensor([[float((p & g).sum()), float(p.sum()), float(g.sum())] for p, g in structures]).T
