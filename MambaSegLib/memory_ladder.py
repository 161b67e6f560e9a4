"""What gives way when memory runs out, in this order: tile batch, accumulator to main memory, device to CPU.

The patch size never changes: a network sees as much context as it was trained with, whatever the memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from MambaSegLib.errors import EnvironmentProblemError, MambaSegError

log = logging.getLogger(__name__)

Result = TypeVar("Result")

CPU = torch.device("cpu")

FULL_GPU_VOXELS = 2_000_000
"""Voxels in one batch that fill a large GPU; the planned patches of the paper have as many, small structures far fewer."""
MOST_TILES = 16
FREE_SHARE = 0.5
"""Share of a GPU's free memory the sums may take; networks and tiles need the rest."""
DEVICE_SIGNS = ("out of memory", "ALLOC_FAILED")
HOST_SIGNS = ("allocate memory", "not enough memory")
"""How PyTorch says that main memory ran out, on Linux and on Windows; NumPy raises `MemoryError`."""


@dataclass(frozen=True)
class Placement:
    """Where a prediction is computed.

    Attributes:
        device: Of the networks.
        accumulator: Of the sums over overlapping tiles.
        tile_batch: Tiles at a time.
    """

    device: torch.device
    accumulator: torch.device
    tile_batch: int = 1

    def step_down(self) -> tuple[Placement, str] | None:
        """The next placement that needs less memory, and what to tell the user; None if there is none."""
        if self.tile_batch > 1:
            batch = self.tile_batch // 2
            return replace(self, tile_batch=batch), f"tiles are now computed {batch} at a time"
        if self.accumulator != CPU:
            return replace(self, accumulator=CPU), "sums are now kept in main memory"
        if self.device != CPU:
            return replace(self, device=CPU), "the rest is computed on the CPU, which takes many times longer"
        return None


def first_placement(device: torch.device, tile_batch: int, accumulator_bytes: int) -> Placement:
    """Where to start: sums on the device if they take less than half of its free memory, else in main memory.

    On Apple's GPU always in main memory, which it shares.
    """
    on_device = device.type == "cpu"
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        on_device = accumulator_bytes < FREE_SHARE * free
        if not on_device:
            log.info("sums of %.1f GB are kept in main memory", accumulator_bytes / 1e9)
    return Placement(device, device if on_device else CPU, tile_batch)


def tiles_at_a_time(device: torch.device, patch_voxels: int) -> int:
    """Tiles worth computing together: several small ones on a GPU. The ladder takes fewer where memory does not suffice."""
    if device.type != "cuda":
        return 1
    return max(1, min(MOST_TILES, FULL_GPU_VOXELS // patch_voxels))


def lacks_memory(error: BaseException) -> bool:
    """Whether PyTorch says that a device's memory ran out: Apple's GPU, cuBLAS and cuDNN do so in an error of any kind."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    told = isinstance(error, RuntimeError) and not isinstance(error, MambaSegError)
    return told and any(sign in str(error) for sign in DEVICE_SIGNS)


def memory_ran_out(error: BaseException) -> bool:
    """Whether NumPy or PyTorch says that any memory ran out, that of a device or of the computer."""
    if isinstance(error, MemoryError) or lacks_memory(error):
        return True
    told = isinstance(error, RuntimeError) and not isinstance(error, MambaSegError)
    return told and any(sign in str(error) for sign in HOST_SIGNS)


@contextmanager
def explain_lack_of_memory() -> Iterator[None]:
    """Turn what NumPy and PyTorch raise without memory into an error a person can act on.

    Raises:
        EnvironmentProblemError: Instead of an error that says so, see `memory_ran_out`.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not memory_ran_out(error):
            raise
        msg = f"{no_memory_left(error)} Close other programs, or segment a region of interest."
        raise EnvironmentProblemError(msg) from error


def no_memory_left(error: BaseException) -> str:
    """The first sentence of a message about an error for which `memory_ran_out`."""
    reason = (str(error) or "no details given").splitlines()[0]
    return f"Memory ran out ({reason})."


class MemoryLadder:
    """Runs work at a placement and steps down where it `lacks_memory`, on no other error.

    Attributes:
        placement: Where work runs now. It never steps up again: memory that was short once stays so.
        notices: One sentence per step taken.
    """

    def __init__(self, placement: Placement) -> None:
        """Start at the top."""
        self.placement = placement
        self.notices: list[str] = []

    def run(self, work: Callable[[Placement], Result]) -> Result:
        """Do `work`, again on lower steps if need be.

        Args:
            work: Must leave nothing changed where it fails.

        Raises:
            EnvironmentProblemError: If memory is short on the last step, too.
        """
        while True:
            try:
                return work(self.placement)
            except RuntimeError as error:
                if not lacks_memory(error):
                    raise
                reason = str(error).splitlines()[0]
            # Outside the handler, which holds the failed call's tensors.
            self._step_down(reason)

    def on_accumulator(self, make: Callable[[torch.device], Result]) -> Result:
        """Make something on the accumulator's device, or in main memory where it does not fit there."""
        try:
            return make(self.placement.accumulator)
        except RuntimeError as error:
            if not lacks_memory(error):
                raise
            if self.placement.accumulator == CPU:
                raise EnvironmentProblemError(_out_of_memory(self.placement, str(error))) from error
        self._take(replace(self.placement, accumulator=CPU), "sums are kept in main memory")
        return make(CPU)

    def _step_down(self, reason: str) -> None:
        step = self.placement.step_down()
        if step is None:
            raise EnvironmentProblemError(_out_of_memory(self.placement, reason))
        self._take(*step)

    def _take(self, placement: Placement, what: str) -> None:
        notice = f"Memory of {self.placement.device} ran out: {what}."
        log.warning(notice)
        self.notices.append(notice)
        if self.placement.device.type == "cuda":
            torch.cuda.empty_cache()
        elif self.placement.device.type == "mps":
            torch.mps.empty_cache()
        self.placement = placement


def _out_of_memory(placement: Placement, reason: str) -> str:
    return (
        f"Not enough memory on {placement.device} for a single tile ({reason}). Close other programs, segment a region "
        "of interest, or choose a smaller model."
    )
