"""Networks as CUDA graphs: one launch instead of a thousand, where launching takes longer than computing.

A small network's kernels are done before Python has launched the next one. A graph records the launches of one prediction and
repeats them on new input. Large tiles gain nothing, and lose nothing but the memory that a graph holds on to.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

MOST_VOXELS = 1_000_000
"""Of a batch of tiles; above it a GPU computes longer than Python launches."""
CALLS_BEFORE = 3
"""Predictions without a graph before one is recorded: these compile kernels and choose convolutions."""

Key = tuple[nn.Module, torch.Size, torch.dtype, torch.device]


@dataclass(frozen=True)
class _Recorded:
    """A graph with its input and output, and where the weights were that it reads."""

    graph: torch.cuda.CUDAGraph
    image: Tensor
    logits: Tensor
    addresses: tuple[int, ...]


@dataclass
class GraphRunner:
    """Runs networks' predictions; from a graph where that can be faster, else as they are.

    Results are the same: a graph repeats the same kernels.
    """

    _calls: Counter[Key] = field(default_factory=Counter)
    _recorded: dict[Key, _Recorded | None] = field(default_factory=dict)

    def __call__(self, network: nn.Module, image: Tensor) -> Tensor:
        """Logits at full resolution (B, K, Z, Y, X), overwritten by the next call with this network and shape."""
        key: Key = (network, image.shape, image.dtype, image.device)
        if image.device.type != "cuda" or image[:, 0].numel() > MOST_VOXELS or torch.is_grad_enabled():
            return _plain(network, image)
        self._calls[key] += 1
        if self._calls[key] <= CALLS_BEFORE:
            return _plain(network, image)
        found = self._recorded.get(key)
        if key not in self._recorded or (found is not None and found.addresses != _addresses(network)):
            found = self._recorded[key] = _record(network, image)
        if found is None:
            return _plain(network, image)
        found.image.copy_(image)
        found.graph.replay()
        return found.logits


def _plain(network: nn.Module, image: Tensor) -> Tensor:
    logits: Tensor = network(image)[0]
    return logits


def _addresses(network: nn.Module) -> tuple[int, ...]:
    """Weights that moved leave a graph reading memory that is no longer theirs."""
    return tuple(tensor.data_ptr() for tensor in (*network.parameters(), *network.buffers()))


def _record(network: nn.Module, image: Tensor) -> _Recorded | None:
    """Record one prediction; None if that is not possible, say for lack of memory."""
    try:
        torch.cuda.synchronize(image.device)
        torch.cuda.empty_cache()
        graph, static = torch.cuda.CUDAGraph(), image.clone()
        half = torch.get_autocast_dtype("cuda")
        # Autocast's copies of weights must be made inside, or the graph would read them after they are gone.
        with (
            torch.autocast("cuda", half, torch.is_autocast_enabled("cuda"), cache_enabled=False),
            torch.cuda.graph(graph),
        ):
            logits = _plain(network, static)
    except RuntimeError as error:  # out of memory is one, too
        log.info("no CUDA graph of this network: %s", str(error).splitlines()[0])
        torch.cuda.synchronize(image.device)
        return None
    return _Recorded(graph, static, logits, _addresses(network))
