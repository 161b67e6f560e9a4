"""Batches as a function of their number, made ahead of time in a process of their own."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from MambaSegLib.errors import EnvironmentProblemError
from MambaSegLib.plan import Plan
from MambaSegTraining.augmentation import augment, nnunet_augmentation, plan_geometric
from MambaSegTraining.interrupts import ignoring
from MambaSegTraining.patches import CUT, case_order, cut_patch, is_foreground_patch, random_generator
from MambaSegTraining.recipe import Recipe
from MambaSegTraining.store import open_case

TRAINING_STREAM, VALIDATION_STREAM = 0, 1


@dataclass(frozen=True)
class Batch:
    """What one step of the network takes.

    Attributes:
        image: (B, C, Z, Y, X) float32.
        labels: (B, Z, Y, X) classes, small integers.
    """

    image: Tensor
    labels: Tensor


class PatchBatches(Dataset[Batch]):
    """Batch number i of a fold: the same for the same seed, however the training was cut into runs."""

    def __init__(
        self,
        store: Path,
        names: Sequence[str],
        plan: Plan,
        recipe: Recipe,
        seed: int,
        validation: bool = False,
        places: range | None = None,
    ) -> None:
        """Name the source of the batches; a case is open only while a patch is cut from it.

        Each holds files open, and systems allow few: often 1024, which is less than some data sets have.

        Args:
            store: Folder of the preprocessed cases.
            names: Cases to draw from.
            plan: Gives the patch size and the mirror axes.
            recipe: Gives batch size, oversampling and augmentation.
            seed: Root of the randomness.
            validation: Take patches as they are, in an order of their own.
            places: Make these patches of each batch only; None: all.
        """
        self._store, self._names, self._plan, self._recipe = store, tuple(names), plan, recipe
        self._seed = (seed, VALIDATION_STREAM if validation else TRAINING_STREAM)
        self._places = range(recipe.batch_size) if places is None else places
        self._augmented = recipe.augmentation == "nnunet" and not validation
        self._transform: Any = None

    def __getitem__(self, number: int) -> Batch:
        """Make batch `number`."""
        if self._augmented and self._transform is None:
            self._transform = nnunet_augmentation(self._plan)
        size = self._recipe.batch_size
        order = case_order(self._seed, len(self._names), number * size, size)
        patches = [self._patch(self._names[order[place]], number, place) for place in self._places]
        return Batch(torch.stack([image for image, _ in patches]), torch.stack([labels for _, labels in patches]))

    def _patch(self, name: str, number: int, index: int) -> tuple[Tensor, Tensor]:
        case = open_case(self._store, name)
        generator = random_generator(self._seed, CUT, number, index)
        forced = is_foreground_patch(index, self._recipe.batch_size, self._recipe.foreground_oversampling)
        size = self._plan.patch_size
        if self._transform is None:
            patch = cut_patch(case, size, forced, generator)
            return torch.from_numpy(patch.image), torch.from_numpy(patch.labels.astype("int16"))
        patch = cut_patch(case, size, forced, generator, plan_geometric(size).initial_size)
        masked = tuple(channel.normalization.masked for channel in self._plan.channels)
        return augment(self._transform, patch, masked, generator)


def stream_batches(batches: PatchBatches, numbers: range, workers: int = 1, prefetch: int = 8) -> Iterator[Batch]:
    """Yield the batches with these numbers, in order.

    Args:
        batches: Where they come from.
        numbers: Which.
        workers: Processes that make them ahead of time, with one thread each; 0 makes them here. The batches do not
            depend on it.
        prefetch: Batches that each process keeps ready.

    Raises:
        EnvironmentProblemError: If the system ends a process, as it does when memory runs out.
    """
    if workers == 0:
        yield from (batches[number] for number in numbers)
        return
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        prefetch_factor=prefetch,
        multiprocessing_context="spawn",  # a fork would copy the threads' locks of OpenMP and Numba
        generator=torch.Generator(),  # or it would draw from the one that dropout uses
    )
    try:
        with ignoring(signal.SIGINT):
            made = iter(loader)
        yield from made
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        msg = (
            f"A process that makes batches was ended by the system ({str(error).splitlines()[0]}), most likely because memory "
            "or shared memory (/dev/shm) ran out. Go on with --resume and fewer --workers; 0 needs no shared memory."
        )
        raise EnvironmentProblemError(msg) from error
