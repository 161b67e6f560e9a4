"""Which patch of which case the network sees when: pure functions of a seed and a position in the stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from MambaSegLib.plan import IntTriple
from MambaSegLib.volume import Array
from MambaSegTraining.store import LABELLED, StoredCase

ORDER, CUT = 1, 2
"""What a generator is for, so that no two uses share one: seeds that differ in trailing zeros only are equal."""


@dataclass(frozen=True)
class Patch:
    """A piece of a case.

    Attributes:
        image: (C, Z, Y, X) float32; 0 outside the case.
        labels: (Z, Y, X) classes; 0 outside the case, as in nnU-Net.
    """

    image: Array
    labels: Array


def random_generator(seed: Sequence[int], *position: int) -> np.random.Generator:
    """A generator of its own for one place in the training, whatever was drawn before."""
    return np.random.default_rng([*seed, *position])


def case_order(seed: Sequence[int], cases: int, start: int, count: int) -> list[int]:
    """Indices of the cases that patches `start` to `start` + `count` are taken from.

    The stream runs through all cases in a new random order again and again, so that each is seen equally often.
    (nnU-Net draws every case at random, which in small data sets leaves some out for long.)
    """
    drawn = []
    for position in range(start, start + count):
        order = random_generator(seed, ORDER, position // cases).permutation(cases)
        drawn.append(int(order[position % cases]))
    return drawn


def is_foreground_patch(index: int, batch_size: int, share: float) -> bool:
    """Whether patch `index` of a batch is centered on a structure: the last ones are, rounded as nnU-Net does."""
    return index >= round(batch_size * (1 - share))


def cut_patch(
    case: StoredCase,
    size: IntTriple,
    on_foreground: bool,
    generator: np.random.Generator,
    wider: IntTriple | None = None,
) -> Patch:
    """Cut a random patch.

    Args:
        case: The case.
        size: Voxels of the patch; larger than the case is fine.
        on_foreground: Center it on a voxel of a structure, each structure of the case equally likely. Other patches of a
            case in which not all is labelled are centered on any voxel that is, or few would hold one.
        generator: Source of the randomness.
        wider: Cut this size around the patch instead: what a rotation may turn into it.
    """
    wider = wider or size
    start = _random_start(case, size, on_foreground, generator)
    # Rounded as the augmentation rounds when it takes the middle of what was cut.
    return cut(
        case, [begin - (want // 2 - have // 2) for begin, want, have in zip(start, wider, size, strict=True)], wider
    )


def cut_center(case: StoredCase, size: IntTriple) -> Patch:
    """Cut the patch around the center of a case."""
    return cut(case, [(have - want) // 2 for have, want in zip(case.labels.shape, size, strict=True)], size)


def cut(case: StoredCase, start: list[int], size: IntTriple) -> Patch:
    """Cut the patch that starts at a voxel, which may lie outside; what lies outside the case is 0."""
    image = np.zeros((len(case.image), *size), dtype=np.float32)
    labels = np.zeros(size, dtype=case.labels.dtype)
    source, target = [], []
    for begin, want, have in zip(start, size, case.labels.shape, strict=True):
        lower, upper = max(begin, 0), min(begin + want, have)
        if lower >= upper:
            return Patch(image, labels)
        source.append(slice(lower, upper))
        target.append(slice(lower - begin, upper - begin))
    image[:, target[0], target[1], target[2]] = case.image[:, source[0], source[1], source[2]]
    labels[target[0], target[1], target[2]] = case.labels[source[0], source[1], source[2]]
    return Patch(image, labels)


def _random_start(case: StoredCase, size: IntTriple, on_foreground: bool, generator: np.random.Generator) -> list[int]:
    lowest, highest = _start_range(case.labels.shape, size)
    structures = [key for key in sorted(case.points) if key != LABELLED]
    keys = structures if on_foreground and structures else [key for key in case.points if key == LABELLED]
    if not keys:
        return [int(generator.integers(low, high + 1)) for low, high in zip(lowest, highest, strict=True)]
    points = case.points[keys[generator.integers(len(keys))]]
    center = points[generator.integers(len(points))]
    wanted = [int(voxel) - want // 2 for voxel, want in zip(center, size, strict=True)]
    return [min(max(start, low), high) for start, low, high in zip(wanted, lowest, highest, strict=True)]


def _start_range(shape: tuple[int, ...], size: IntTriple) -> tuple[list[int], list[int]]:
    """Lowest and highest start: inside the case, or with the case in the middle of a larger patch."""
    spare = [have - want for have, want in zip(shape, size, strict=True)]
    return [min(0, room // 2) for room in spare], [room if room > 0 else room // 2 for room in spare]
