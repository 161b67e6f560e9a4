"""The paper's Mamba layer for prediction on a CPU: every scan in one pass over the feature map, read in any order by index."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import nn

from MambaSegLib.cpu.layers import FeatureMap, Workspace, add, even_parts, padded, padded_vector
from MambaSegLib.cpu.mamba_strip import STEPS, LayerNorm, LayerWeights, join_ways, run_chunk
from MambaSegLib.cpu.products import packed_panels
from MambaSegLib.networks.mamba import MambaLayer, MambaLayer3d, MambaPath
from MambaSegLib.scan.numba_tiles import GROUP
from MambaSegLib.scan.parallel import Task, run_tasks
from MambaSegLib.scan.paths import path_numbers
from MambaSegLib.scan.vector_ir import LANES

if TYPE_CHECKING:
    from torch import Tensor

    from MambaSegLib.scan.order import ScanOrder
    from MambaSegLib.scan.paths import Array

WARM_UP = 16384
"""Tokens run before a chunk to find its states; about what a fresh network's slowest states remember."""
SHORTEST_CHUNK = 4 * WARM_UP
"""Tokens below which a scan is not divided among threads."""
LANES_AT_ONCE = 2
"""Scans that run at the same time, each adding to a feature map of its own."""

_Scan = tuple[LayerWeights, "ScanOrder"]


class FusedMambaLayer:
    """`MambaLayer3d` on one image's feature map."""

    def __init__(self, module: MambaLayer3d) -> None:
        """Pack the weights; later changes of the module's are not seen."""
        paths = [cast("MambaPath", path) for path in module.paths]
        self._paths: list[list[_Scan]] = [
            [
                (packed_weights(cast("MambaLayer", layer), module.norm), order)
                for layer, order in zip(path.layers, path.orders, strict=True)
            ]
            for path in paths
        ]
        self._norms = [packed_norm(path.norm) if len(path.orders) > 1 else None for path in paths]

    def run(self, x: FeatureMap, workspace: Workspace, threads: int) -> FeatureMap:
        """The layer's output; the input is left to the caller and must be read as it is."""
        assert x.plain, "tokens are read as they are"
        single = [scans[0] for scans in self._paths if len(scans) == 1]
        totals = _Totals(x, workspace, threads)
        if single:
            totals.add_scans(single)
        for scans, norm in zip(self._paths, self._norms, strict=True):
            if norm is not None:
                totals.add_ways(scans, norm)
        return totals.mean(len(self._paths))


class _Totals:
    """Sums of scans over a feature map, in up to three maps of its size."""

    def __init__(self, x: FeatureMap, workspace: Workspace, threads: int) -> None:
        self._x, self._workspace, self._threads = x, workspace, threads
        self._sums: list[Array] = []

    def add_scans(self, scans: list[_Scan]) -> None:
        """Add one-way scans, a few at a time."""
        lanes = min(LANES_AT_ONCE, len(scans), self._threads)
        self._sums = [self._take() for _ in range(lanes)]
        for first in range(0, len(scans), lanes):
            part = scans[first : first + lanes]
            _run(part, self._x, self._sums[: len(part)], first > 0, self._threads)

    def add_ways(self, scans: list[_Scan], norm: LayerNorm) -> None:
        """Add one path walked both ways: LN of the sum of both."""
        ways = [self._take() for _ in scans]
        for scan, way in (
            [(scans, ways)] if self._threads > 1 else [([s], [w]) for s, w in zip(scans, ways, strict=True)]
        ):
            _run(scan, self._x, way, False, self._threads)
        known = bool(self._sums)
        if not known:
            self._sums = [self._take()]
        a, b, out = (_tokens(one) for one in (*ways, self._sums[0]))
        tasks: list[Task] = [
            partial(join_ways, a, b, norm, out, known, start, stop) for start, stop in even_parts(len(a), self._threads)
        ]
        run_tasks(tasks, self._threads)
        for array in ways:
            self._workspace.give(array)

    def mean(self, count: int) -> FeatureMap:
        first, *others = self._sums
        if count == 1 and not others:
            return FeatureMap(first, self._x.channels)
        width = first.shape[3]
        share, nothing = np.full(width, 1 / count, np.float32), np.zeros(width, np.float32)
        a = FeatureMap(first, self._x.channels, share, nothing)
        b = (
            FeatureMap(others[0], self._x.channels, share, nothing)
            if others
            else FeatureMap(first, self._x.channels, nothing, nothing)
        )
        result = add(a, b, 1.0, self._threads)
        for other in others:
            self._workspace.give(other)
        return result

    def _take(self) -> Array:
        return self._workspace.take(self._x.sizes, self._x.channels)


def _run(scans: list[_Scan], x: FeatureMap, sums: list[Array], accumulate: bool, threads: int) -> None:
    """Run some scans at the same time, each into its own sum; each in chunks where threads are left."""
    tokens = _tokens(x.array)
    length = len(tokens)
    chunks = max(1, min(threads // len(scans), length // SHORTEST_CHUNK))
    size = -(-length // (chunks * STEPS)) * STEPS
    tasks: list[Task] = [
        partial(
            run_chunk, weights, path_numbers(x.sizes, order), tokens, _tokens(out), accumulate,
            start, min(start + size, length), WARM_UP,
        )
        for (weights, order), out in zip(scans, sums, strict=True)
        for start in range(0, length, size)
    ]  # fmt: skip
    run_tasks(tasks, threads)


def _tokens(array: Array) -> Array:
    return array.reshape(-1, array.shape[3])


def packed_norm(module: nn.Module) -> LayerNorm:
    """A LayerNorm's parameters; of an identity, ones that are not used."""
    if not isinstance(module, nn.LayerNorm):
        one = np.ones(1, np.float32)
        return LayerNorm(one, one, one, np.ones(2, np.float32))
    channels = module.weight.numel()
    weight, bias = (padded_vector(t.detach().numpy()) for t in (module.weight, module.bias))
    constants = np.array([1 / channels, module.eps], np.float32)
    return LayerNorm(weight, bias, padded_vector(np.ones(channels)), constants)


def packed_weights(layer: MambaLayer, outer: nn.Module) -> LayerWeights:
    """A layer's parameters as the kernels read them."""
    block = layer.mamba
    inner, states, rank = block.D.numel(), block.d_state, block.dt_rank
    channels, taps = block.out_proj.out_features, block.conv1d.weight.shape[2]
    wide, width = padded(inner), -(-states // GROUP) * GROUP
    x_rows, z_rows = (_padded_matrix(part, wide, channels) for part in _matrix_of(block.in_proj).reshape(2, inner, -1))
    projection = np.zeros((rank + 2 * width, wide))
    dt, b, c = np.split(_matrix_of(block.x_proj), [rank, rank + states])
    for start, part in ((0, dt), (rank, b), (rank + width, c)):
        projection[start : start + len(part), :inner] = part
    rates = (-torch.exp(block.A_log)).detach().numpy()
    # Nothing enters the additional states; with a rate like the others', they are forgotten with the others.
    rates = np.pad(rates, ((0, wide - inner), (0, width - states)), "edge")
    conv = np.zeros((wide, taps), np.float32)
    conv[:inner] = block.conv1d.weight.detach().numpy()[:, 0]
    conv_bias = np.zeros(inner) if block.conv1d.bias is None else block.conv1d.bias.detach().numpy()
    linear = [part for part in layer.head.modules() if isinstance(part, nn.Linear)]
    heads = [_padded_matrix(_matrix_of(part), padded(channels), channels) for part in (linear[0], linear[-1])]
    return LayerWeights(
        outer=packed_norm(outer),
        has_outer=isinstance(outer, nn.LayerNorm),
        norm1=packed_norm(layer.norm1),
        norm2=packed_norm(layer.norm2),
        in_proj=_panels(np.concatenate((x_rows, z_rows))),
        taps=_by_block(conv),
        taps_bias=padded_vector(conv_bias).reshape(-1, LANES),
        x_proj=_panels(projection),
        dt_proj=_panels(_rows_padded(_matrix_of(block.dt_proj), wide)),
        dt_bias=padded_vector(block.dt_proj.bias.detach().numpy()).reshape(-1, LANES),
        rates=_by_block(rates),
        skip=padded_vector(block.D.detach().numpy()).reshape(-1, LANES),
        out_proj=_panels(
            _rows_padded(np.pad(_matrix_of(block.out_proj), ((0, 0), (0, wide - inner))), padded(channels))
        ),
        head1=_panels(heads[0]),
        head1_bias=padded_vector(linear[0].bias.detach().numpy()),
        head2=_panels(heads[1]),
        head2_bias=padded_vector(linear[-1].bias.detach().numpy()),
        is_mlp=len(linear) > 1,
        rank=rank,
    )


def _matrix_of(linear: nn.Linear) -> Array:
    weight: Tensor = linear.weight
    return weight.detach().double().numpy()


def _rows_padded(matrix: Array, rows: int) -> Array:
    return np.pad(matrix, ((0, rows - len(matrix)), (0, 0)))


def _padded_matrix(matrix: Array, rows: int, channels: int) -> Array:
    return np.pad(matrix, ((0, rows - len(matrix)), (0, padded(channels) - matrix.shape[1])))


def _panels(matrix: Array) -> Array:
    """Weights (out, in) of a linear layer as panels (panels, in, PANEL)."""
    return packed_panels(np.ascontiguousarray(matrix.T))


def _by_block(rows: Array) -> Array:
    """(D, K) as (blocks, K, 16)."""
    return np.ascontiguousarray(rows.reshape(-1, LANES, rows.shape[1]).transpose(0, 2, 1))
