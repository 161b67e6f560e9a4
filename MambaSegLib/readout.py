"""How a network's outputs are read: the one place that knows whether classes exclude each other or regions overlap.

Classes of voxels are indices: 0 background, k the k-th label of the plan, and in training data one more for voxels that
nobody labelled.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from math import log
from operator import or_
from typing import TYPE_CHECKING

from MambaSegLib.plan import Plan

if TYPE_CHECKING:
    from torch import Tensor

THRESHOLD = 0.5
"""A region is where its probability is above this, as in nnU-Net."""


@dataclass(frozen=True)
class Readout:
    """What the outputs stand for.

    Attributes:
        members: Per output, the classes of the voxels it is to find.
        painted: Per output, the class voxels get where it is found.
        exclusive: True: outputs are classes, one of which every voxel has; their probabilities add up to 1 (softmax), and
            output 0 is background. False: each output is a region with a probability of its own (sigmoid), painted over
            those before it.
        ignored: Class of voxels that nobody labelled; None where there are none.
    """

    members: tuple[tuple[int, ...], ...]
    painted: tuple[int, ...]
    exclusive: bool = True
    ignored: int | None = None

    @property
    def outputs(self) -> int:
        """Channels of the network's output."""
        return len(self.members)

    @property
    def structures(self) -> tuple[tuple[int, ...], ...]:
        """Classes of each structure: of each output that is not background."""
        return self.members[self.first_structure :]

    @property
    def first_structure(self) -> int:
        """Index of the first output that is not background."""
        return 1 if self.exclusive else 0

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probability of each output, (B, K, ...), from logits of that shape."""
        return logits.softmax(1) if self.exclusive else logits.sigmoid()

    def classes(self, probabilities: Tensor) -> Tensor:
        """Class of each voxel: the most probable one, of equally probable ones the first; or what the last region painted.

        Output by output over whole planes: `argmax` over a strided axis takes several times longer on a CPU.

        Args:
            probabilities: (B, K, ...).

        Returns:
            (B, ...) int16.
        """
        import torch

        best = probabilities[:, 0].clone() if self.exclusive else None
        winner = torch.zeros_like(probabilities[:, 0], dtype=torch.int16)
        for output in range(self.first_structure, self.outputs):
            one = probabilities[:, output]
            winner.masked_fill_(one > (THRESHOLD if best is None else best), self.painted[output])
            if best is not None:
                torch.maximum(best, one, out=best)
        return winner

    def found(self, probabilities: Tensor) -> Tensor:
        """Whether each structure is at each voxel, (B, S, ...) bool; regions may overlap here."""
        import torch

        if not self.exclusive:
            return probabilities > THRESHOLD
        classes = self.classes(probabilities)
        return torch.stack([classes == painted for painted in self.painted[1:]], dim=1)

    def targets(self, classes: Tensor) -> Tensor:
        """What each output is to be, (B, K, ...) bool; all are False where nobody labelled.

        Args:
            classes: (B, ...), integers.
        """
        import torch

        return torch.stack([reduce(or_, [classes == member for member in members]) for members in self.members], dim=1)

    def uncertainty(self, probabilities: Tensor) -> Tensor:
        """Entropy (B, ...) as a fraction of its largest value: 0 sure, 1 clueless.

        Of exclusive classes that value is log K. Regions are taken as independent: the sum of their entropies, as a
        fraction of K log 2.
        """
        import torch

        total = torch.zeros_like(probabilities[:, 0])
        for one in probabilities.unbind(dim=1):  # output by output: the terms of all would double the memory
            total += torch.special.entr(one)
            if not self.exclusive:
                total += torch.special.entr(1 - one)
        return total.div_(log(self.outputs) if self.exclusive else self.outputs * log(2))


def exclusive_classes(count: int, ignored: int | None = None) -> Readout:
    """Outputs that are the classes 0 to `count` - 1."""
    return Readout(tuple((k,) for k in range(count)), tuple(range(count)), ignored=ignored)


def readout_of(plan: Plan) -> Readout:
    """How the outputs of a plan's network are read."""
    ignored = None if plan.ignore_value is None else len(plan.labels) + 1
    if not plan.regions:
        return exclusive_classes(len(plan.labels) + 1, ignored)
    class_of = {label.value: index for index, label in enumerate(plan.labels, start=1)}
    return Readout(
        members=tuple(tuple(class_of[value] for value in region.labels) for region in plan.regions),
        painted=tuple(class_of[region.value] for region in plan.regions),
        exclusive=False,
        ignored=ignored,
    )
