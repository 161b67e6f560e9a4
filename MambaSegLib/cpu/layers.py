"""Convolutions with their packed weights, divided among threads; feature maps that remember their normalization."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from MambaSegLib.cpu.convolution import MOMENTS, Source, Strip, Window, convolve_strip
from MambaSegLib.cpu.pixelwise import OUTPUTS, POINTS
from MambaSegLib.cpu.products import packed_panels
from MambaSegLib.cpu.sums import add_rows, average_rows
from MambaSegLib.cpu.upsampling import Enlargement, upsample_rows
from MambaSegLib.scan.parallel import Task, run_tasks
from MambaSegLib.scan.paths import Array
from MambaSegLib.scan.vector_ir import LANES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from MambaSegLib.plan import IntTriple

RING_BYTES = 1 << 20
"""Transformed input planes of one task: about a second-level cache."""
ROWS_PER_PASS = 192
"""Products per pass over the weights: enough that reading weights costs little beside using them."""
PRODUCTS_PER_THREAD = 1 << 26
"""Multiplications that are worth another thread: about ten times what starting one takes."""
_NO_IMAGE = np.zeros((1, 1, 1, 1), np.float32)
# Lavin & Gray, arXiv 1509.09308, for the points 0, 1, -1, 2, -2 and infinity; `winograd_input` has the other matrix.
_WINOGRAD_WEIGHTS = np.array(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ]
)


def padded(channels: int) -> int:
    """Channels rounded up to whole vectors; the additional ones hold zeros."""
    return -(-channels // LANES) * LANES


class Workspace:
    """Memory for feature maps, used again and again: fresh memory costs more time than computing what goes into it.

    Attributes:
        lock: To be held by whoever computes with it.
    """

    def __init__(self) -> None:
        """Start with nothing."""
        self.lock = Lock()
        self._free: list[Array] = []
        self._taken: dict[int, Array] = {}

    def take(self, sizes: IntTriple, channels: int) -> Array:
        """A (Z, Y, X, channels rounded up) float32 map with any content."""
        shape = (*sizes, padded(channels))
        count = int(np.prod(shape))
        large_enough = [index for index, one in enumerate(self._free) if one.size >= count]
        if large_enough:
            block = self._free.pop(min(large_enough, key=lambda index: self._free[index].size))
        else:
            block = np.empty(count, np.float32)
        self._taken[block.ctypes.data] = block
        return block[:count].reshape(shape)

    def give(self, array: Array) -> None:
        """Return a map that nobody reads any more."""
        self._free.append(self._taken.pop(array.ctypes.data))

    def reclaim(self) -> None:
        """Take back all maps, after work that ended early."""
        self._free.extend(self._taken.values())
        self._taken.clear()


@dataclass(frozen=True)
class FeatureMap:
    """What a layer left behind, and how it is to be read: activation(array * scale + shift).

    Attributes:
        array: (Z, Y, X, channels rounded up to 16) float32.
        channels: Channels in use.
        scale: Per channel; None if the array is read as it is.
        shift: Per channel.
        slope: Of LeakyReLU; 1 for no activation.
    """

    array: Array
    channels: int
    scale: Array | None = None
    shift: Array | None = None
    slope: float = 1.0

    def source(self) -> Source:
        """The same for kernels."""
        count = self.array.shape[3]
        scale = np.ones(count, np.float32) if self.scale is None else self.scale
        shift = np.zeros(count, np.float32) if self.shift is None else self.shift
        return Source(self.array.ctypes.data, count, self.plain, scale, shift, np.array([self.slope], np.float32))

    @property
    def plain(self) -> bool:
        """Whether values are read as they are."""
        return self.scale is None and self.slope == 1.0

    @property
    def sizes(self) -> IntTriple:
        """(Z, Y, X)."""
        z, y, x, _ = self.array.shape
        return z, y, x


_NOTHING = Source(0, 0, True, np.zeros(1, np.float32), np.zeros(1, np.float32), np.ones(1, np.float32))


@dataclass(frozen=True)
class Norm:
    """Instance normalization's parameters, (channels rounded up,), zero where there is no channel."""

    weight: Array
    bias: Array
    eps: float

    @classmethod
    def of(cls, module: nn.InstanceNorm3d) -> Norm:
        """Read a module's."""
        weight, bias = (padded_vector(t.detach().numpy()) for t in (module.weight, module.bias))
        return cls(weight, bias, module.eps)

    def apply(self, raw: FeatureMap, moments: Array, slope: float = 1.0) -> FeatureMap:
        """The map, to be read as its normalization; `moments` are (channels, 3)."""
        count, mean, squares = (np.maximum(moments[:, k], 0) if k != 1 else moments[:, k] for k in range(MOMENTS))
        scale = self.weight / np.sqrt(squares / count + self.eps)
        shift = self.bias - mean * scale
        return replace(raw, scale=scale.astype(np.float32), shift=shift.astype(np.float32), slope=slope)


def padded_vector(values: Array) -> Array:
    """A float32 copy with zeros up to a whole number of vectors."""
    result = np.zeros(padded(len(values)), np.float32)
    result[: len(values)] = values
    return result


class Convolution:
    """`nn.Conv3d` without groups and dilation on one image's feature maps."""

    def __init__(self, module: nn.Conv3d, inputs: Sequence[int]) -> None:
        """Pack the weights.

        Args:
            module: The convolution.
            inputs: Channels of each of its one or two inputs, which are read as if concatenated; none for an image,
                whose channels are not padded.
        """
        self.channels = module.out_channels
        kernel, stride, padding = (tuple(map(int, t)) for t in (module.kernel_size, module.stride, module.padding))
        self._kernel, self._stride, self._padding = kernel, stride, padding
        weights = module.weight.detach().double().numpy()
        if inputs:
            weights = _with_padded_inputs(weights, inputs)
        self._winograd = kernel[2] == 3 and stride[1:] == (1, 1) and padding[2] == 1 and bool(inputs)
        self._depth, self._panels = _packed(weights, self._winograd)
        bias = np.zeros(self.channels) if module.bias is None else module.bias.detach().numpy()
        self._bias = padded_vector(bias)

    def output_sizes(self, sizes: IntTriple) -> IntTriple:
        """(Z, Y, X) of the output."""
        triples = zip(sizes, self._kernel, self._stride, self._padding, strict=True)
        z, y, x = ((n + 2 * p - k) // s + 1 for n, k, s, p in triples)
        return z, y, x

    def run(
        self, inputs: Sequence[FeatureMap], workspace: Workspace, threads: int, image: Array | None = None
    ) -> tuple[FeatureMap, Array]:
        """Convolve maps, or an `image` (Z, Y, X, C) if the convolution was packed for one.

        Returns:
            The output before normalization, and its moments (channels, 3).
        """
        sizes: IntTriple = inputs[0].sizes if image is None else image.shape[:3]
        result = workspace.take(self.output_sizes(sizes), self.channels)
        window = self._window(sizes, result)
        strips = self._strips(window, threads)
        moments = np.zeros((len(strips), result.shape[3], MOMENTS))
        sources = [one.source() for one in inputs] + [_NOTHING] * (2 - len(inputs))
        pixels = _NO_IMAGE if image is None else image
        tasks: list[Task] = [
            partial(convolve_strip, window, sources[0], sources[1], pixels, result.ctypes.data, part, strip)
            for part, strip in zip(moments, strips, strict=True)
        ]
        run_tasks(tasks, threads)
        return FeatureMap(result, self.channels), _merged(moments)

    def _window(self, sizes: IntTriple, result: Array) -> Window:
        numbers = (*sizes, *result.shape[:3], *self._kernel, *self._stride, *self._padding)
        per_plane = result.shape[1] * (ceil(result.shape[2] / OUTPUTS) if self._winograd else result.shape[2])
        group = min(result.shape[0], max(1, ROWS_PER_PASS // per_plane))
        return Window(np.array(numbers, np.int64), self._winograd, self._depth, self._panels, self._bias, group)

    def _strips(self, window: Window, threads: int) -> list[Strip]:
        """Strips along Y that fit the cache; where they are fewer than threads, smaller ones, and channels are divided, too."""
        depth, height, width = (int(n) for n in window.sizes[3:6])
        per_tap = window.depth if self._winograd else window.depth // self._kernel[2]
        per_row = 4 * per_tap * (POINTS * ceil(width / OUTPUTS) if self._winograd else width * self._stride[2])
        planes = (window.group - 1) * self._stride[0] + self._kernel[0]
        fewest = 2 * self._kernel[1]
        rows = max(fewest, RING_BYTES // (per_row * planes * self._stride[1]))
        count = ceil(height / rows)
        products = depth * height * width * window.panels.size // (OUTPUTS if self._winograd else 1)
        if count >= threads:
            count = ceil(count / threads) * threads
        else:
            count = max(count, min(threads, products // PRODUCTS_PER_THREAD, height // fewest))
        edges = np.linspace(0, height, min(count, height) + 1).round().astype(int)
        panels = window.panels.shape[0]
        shares = min(panels, max(1, threads // (len(edges) - 1)))
        cuts = np.linspace(0, panels, shares + 1).round().astype(int)
        return [
            Strip(0, depth, int(y0), int(y1), int(p0), int(p1))
            for y0, y1 in itertools.pairwise(edges)
            for p0, p1 in itertools.pairwise(cuts)
        ]


def _with_padded_inputs(weights: Array, inputs: Sequence[int]) -> Array:
    """Weights (out, in, ...) with zeros for the channels that round each input up."""
    parts, start = [], 0
    for count in inputs:
        missing = padded(count) - count
        part = weights[:, start : start + count]
        parts.append(np.pad(part, [(0, 0), (0, missing)] + [(0, 0)] * (weights.ndim - 2)))
        start += count
    return np.concatenate(parts, axis=1)


def _packed(weights: Array, winograd: bool) -> tuple[int, Array]:
    """Depth of a product, and panels; see `Window`."""
    out, channels, kernel_z, kernel_y, kernel_x = weights.shape
    if winograd:
        by_point = np.einsum("pk,oczyk->pzyco", _WINOGRAD_WEIGHTS, weights)
        return channels, packed_panels(by_point.reshape(POINTS, kernel_z * kernel_y, channels, out))
    depth = kernel_x * channels
    return depth, packed_panels(weights.transpose(2, 3, 4, 1, 0).reshape(1, kernel_z * kernel_y, depth, out))


def _merged(parts: Array) -> Array:
    """Moments of all strips together, (channels, 3). Strips of other channels count nothing."""
    count, mean, squares = parts[..., 0], parts[..., 1], parts[..., 2]
    total = count.sum(0)
    total_mean = (count * mean).sum(0) / np.maximum(total, 1)
    total_squares = squares.sum(0) + (count * (mean - total_mean) ** 2).sum(0)
    return np.stack((np.maximum(total, 1), total_mean, total_squares), axis=-1)


def pooled(source: FeatureMap, stride: IntTriple, workspace: Workspace, threads: int) -> FeatureMap:
    """Average pooling of a map that is read as it is, window and stride alike; what is left over at the end is left out."""
    z, y, x = (n // s for n, s in zip(source.sizes, stride, strict=True))
    out = workspace.take((z, y, x), source.channels)
    steps = np.array(stride, np.int64)
    run_tasks(
        [partial(average_rows, source.array, out, steps, start, stop) for start, stop in even_parts(z, threads)],
        threads,
    )
    return FeatureMap(out, source.channels)


def add(first: FeatureMap, second: FeatureMap, slope: float, threads: int) -> FeatureMap:
    """Write activation(first + second) over the first map's array; neither may have an activation pending."""
    assert first.slope == second.slope == 1.0, "sums are activated once, after adding"
    slopes = np.array([slope], np.float32)
    a, b = first.source(), second.source()
    parts = even_parts(first.array.shape[0] * first.array.shape[1], threads)
    run_tasks([partial(add_rows, a, b, slopes, first.array.shape[2], start, stop) for start, stop in parts], threads)
    return FeatureMap(first.array, first.channels)


def even_parts(count: int, threads: int) -> list[tuple[int, int]]:
    """Divide 0 ... `count` - 1 into neighboring runs, a few per thread."""
    edges = np.linspace(0, count, min(count, 4 * threads if threads > 1 else 1) + 1).round().astype(int)
    return [(int(start), int(stop)) for start, stop in itertools.pairwise(edges)]


class Upsampling:
    """`nn.ConvTranspose3d` whose kernel is its stride: every voxel becomes a box of voxels."""

    def __init__(self, module: nn.ConvTranspose3d) -> None:
        """Pack the weights."""
        self.channels = module.out_channels
        self._stride = tuple(map(int, module.stride))
        weights = module.weight.detach().double().numpy()  # (in, out, Z, Y, X)
        weights = np.pad(weights, [(0, padded(n) - n) for n in weights.shape[:2]] + [(0, 0)] * 3)
        inputs, out, *box = weights.shape
        by_row = weights.transpose(2, 3, 0, 4, 1).reshape(box[0] * box[1], inputs, box[2] * out)
        bias = padded_vector(np.zeros(self.channels) if module.bias is None else module.bias.detach().numpy())
        self._enlargement = Enlargement(
            np.array(box, np.int64), packed_panels(by_row), np.tile(bias, box[2]).astype(np.float32)
        )

    def run(self, source: FeatureMap, workspace: Workspace, threads: int) -> FeatureMap:
        """Enlarge a map."""
        z, y, x = (n * s for n, s in zip(source.sizes, self._stride, strict=True))
        out = workspace.take((z, y, x), self.channels)
        parts = even_parts(source.sizes[0] * source.sizes[1], threads)
        tasks: list[Task] = [
            partial(upsample_rows, self._enlargement, source.source(), *source.sizes[1:], out, *part) for part in parts
        ]
        run_tasks(tasks, threads)
        return FeatureMap(out, self.channels)
