"""Several processes that train one network together, each on its slice of every batch; `torchrun` starts them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from MambaSegLib.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together. Every method but the properties must be called by all of them.

    Attributes:
        rank: Number of this process.
        count: How many there are; with 1, nothing is exchanged.
        device: Where this process computes.
    """

    rank: int = 0
    count: int = 1
    device: str = "cpu"

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and tells about them."""
        return self.rank == 0

    def slice_of(self, batch_size: int) -> range:
        """Places in a batch that this process computes.

        Raises:
            InputError: If the slices would not be equally large: their mean would not be that of the batch.
        """
        if batch_size % self.count:
            msg = (
                f"recipe.batch_size is {batch_size}, which {self.count} processes cannot share equally: it counts the "
                f"patches of a step in all processes together. Make it a multiple of {self.count}."
            )
            raise InputError(msg)
        size = batch_size // self.count
        return range(self.rank * size, (self.rank + 1) * size)

    def gathered(self, value: T) -> list[T]:
        """The values of all processes, by rank."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def mean(self, value: float) -> float:
        """Mean of a number over the processes; nan if any is."""
        return value if self.count == 1 else float(self._sum(value)) / self.count

    def any(self, flag: bool) -> bool:
        """Whether it is true in any process."""
        return flag if self.count == 1 else float(self._sum(float(flag))) > 0

    def wait(self) -> None:
        """Go on when all processes have come here."""
        self.any(False)

    def total(self, value: Tensor) -> Tensor:
        """Sum of a tensor over the processes, through which gradients flow back to all of them."""
        if self.count == 1:
            return value
        summed: Tensor = _Total.apply(value)  # type: ignore[no-untyped-call]
        return summed

    def distribute(self, network: nn.Module) -> nn.Module:
        """What to call instead of the network so that the gradients of all processes are averaged."""
        if self.count == 1:
            return network
        # The coarsest output of deep supervision has no share in the loss, so its head gets no gradient.
        return nn.parallel.DistributedDataParallel(network, broadcast_buffers=False, find_unused_parameters=True)

    def separate_randomness(self, seed: int, step: int) -> None:
        """Let dropout draw differently in each process; the first draws as if it were alone."""
        if not self.is_first:
            torch.manual_seed(hash((seed, self.rank, step)) % 2**63)

    def _sum(self, value: float) -> Tensor:
        tensor = torch.tensor(value, device=self.device, dtype=torch.float64)
        dist.all_reduce(tensor)
        return tensor


class _Total(torch.autograd.Function):
    """Sum over the processes; the gradient of each part is the sum of the gradients of the wholes."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone()
        dist.all_reduce(gradient)
        return gradient


@contextmanager
def joined_ranks(device: str) -> Iterator[Ranks]:
    """Join the processes that `torchrun` started, if it did; NCCL connects GPUs, Gloo anything else.

    Raises:
        InputError: If torchrun started more processes than there are GPUs.
    """
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        yield Ranks(device=device)
        return
    is_cuda = torch.device(device).type == "cuda"
    if is_cuda:
        device = f"cuda:{_own_gpu(torch.cuda.device_count())}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if is_cuda else "gloo")
    yield Ranks(dist.get_rank(), dist.get_world_size(), device)
    # Not after an error: with NCCL it waits for the others, which may be waiting for this one, and nobody would tell the error.
    dist.destroy_process_group()


def _own_gpu(count: int) -> int:
    own = dist.get_node_local_rank()
    if own >= count:
        msg = (
            f"torchrun started more processes on this computer than the {count} GPU(s) it has; lower --nproc_per_node."
        )
        raise InputError(msg)
    return own
