"""Class probabilities of a volume of any size, tile by tile, handed on in slabs along Z as soon as they are complete.

What is averaged are probabilities, not logits: over overlapping tiles (weighted by a Gaussian), over folds and over
mirrored versions alike. Their mean is the prediction of the ensemble as a mixture, so its entropy is the ensemble's
uncertainty, and that entropy less the members' mean entropy is their disagreement, never negative. A mean of logits
would give the most confident member the last word and depend on the scale of each member's logits. (nnU-Net averages
logits over tiles, mirrors and folds; with a single member and a single tile the labels are the same.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, product
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from MambaSegLib.blank_tiles import BlankTile, Row, count_computed, row_of
from MambaSegLib.devices import measured_convolutions, place
from MambaSegLib.errors import EnvironmentProblemError, InputError
from MambaSegLib.geometry import Array
from MambaSegLib.memory_ladder import MemoryLadder, Placement
from MambaSegLib.plan import IntTriple
from MambaSegLib.readout import Readout

if TYPE_CHECKING:
    from MambaSegLib.networks.contract import SegmentationNetwork

TileCallback = Callable[[int, int], None]
"""Called with the finished and all tiles that are computed; ends the work by raising."""


@dataclass(frozen=True)
class Slab:
    """Finished slices. The tensors are overwritten when the next slab is asked for.

    Attributes:
        start: Index of the first slice along Z.
        probabilities: (n, K, Y, X) float32: mean probability of each output.
        disagreement: (n, Y, X) float32, 0 to 1, or None; see `predict_probabilities`.
    """

    start: int
    probabilities: Tensor
    disagreement: Tensor | None = None


def tile_starts(size: int, patch: int, overlap: float) -> tuple[int, ...]:
    """First voxels of the tiles along one axis: as few as overlap by at least `overlap`, evenly spread.

    Source:
        nnU-Net v2, `compute_steps_for_sliding_window`, whose `tile_step_size` is 1 - overlap.
    """
    if size <= patch:
        return (0,)
    # 1e-9: 0.1 * 10 voxels that come out as 0.9999 must not cost a tile.
    tiles = ceil((size - patch) / (patch * (1 - overlap)) - 1e-9) + 1
    # dict: where steps are shorter than a voxel, two tiles can round to one place.
    return tuple(dict.fromkeys(round((size - patch) * k / (tiles - 1)) for k in range(tiles)))


@lru_cache(maxsize=1)
def importance_map(patch_size: IntTriple) -> Tensor:
    """Weight of each voxel of a tile: a Gaussian around its center, sigma 1/8 of the tile, 1 at most, never 0.

    The tensor is kept for the next call and must not be changed.

    The corners' 4e-11 is well inside float32, so that voxels only a corner covers keep their probabilities.
    """
    axes = []
    for n in patch_size:
        offset = torch.arange(n, dtype=torch.float64) - (n - 1) / 2
        axes.append(torch.exp(-0.5 * (offset / (n / 8)) ** 2))
    z, y, x = axes
    weights = z[:, None, None] * y[:, None] * x
    return (weights / weights.max()).float()


def mirrorings(axes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """All 2^n sets of axes to mirror along, the empty one first."""
    return tuple(chosen for count in range(len(axes) + 1) for chosen in combinations(sorted(axes), count))


def count_tiles(shape: Sequence[int], patch_size: IntTriple, overlap: float) -> int:
    """Tiles of a volume."""
    return int(np.prod([len(tile_starts(n, p, overlap)) for n, p in zip(shape, patch_size, strict=True)]))


def tiles_to_compute(image: Array, patch_size: IntTriple, overlap: float) -> int:
    """Tiles of a preprocessed image (C, Z, Y, X) that a network has to see; blank ones count once."""
    padded = np.pad(image, [(0, 0), *_padding(image.shape[1:], patch_size)])
    return count_computed(_rows(torch.from_numpy(padded), patch_size, overlap))


def accumulator_bytes(ensemble: Ensemble, shape: Sequence[int]) -> int:
    """Memory of the sums over overlapping tiles: outputs, weight and entropy of one patch depth."""
    plane = [max(n, p) for n, p in zip(shape[1:], ensemble.patch_size[1:], strict=True)]
    return 4 * (ensemble.readout.outputs + 2) * ensemble.patch_size[0] * plane[0] * plane[1]


@dataclass(frozen=True)
class Ensemble:
    """The members whose probabilities are averaged.

    Attributes:
        networks: One per fold, in evaluation mode.
        readout: What the outputs stand for.
        patch_size: Tile size.
        mirror_axes: Array axes (0 Z, 1 Y, 2 X) to mirror along, in all combinations; () for none.
    """

    networks: tuple[SegmentationNetwork, ...]
    readout: Readout
    patch_size: IntTriple
    mirror_axes: tuple[int, ...] = ()

    @torch.inference_mode()
    def tile_probabilities(self, tiles: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor | None]:
        """Mean probabilities (B, K, Z, Y, X) of a batch of tiles and the members' mean entropy (B, Z, Y, X).

        Raises:
            EnvironmentProblemError: If a network's output is not a number somewhere.
        """
        total: Tensor | None = None
        entropy_sum: Tensor | None = None
        variants = mirrorings(self.mirror_axes)
        for fold, network in enumerate(self.networks):
            for axes in variants:
                turned = [axis + 2 for axis in axes]
                logits = self._logits(network, tiles.flip(turned) if turned else tiles, fold)
                found = self.readout.probabilities(logits)
                found = found.flip(turned) if turned else found
                if with_entropy:
                    own = self.readout.uncertainty(found)
                    entropy_sum = own if entropy_sum is None else entropy_sum.add_(own)
                total = found if total is None else total.add_(found)
        members = len(self.networks) * len(variants)
        if total is None or members == 1:
            assert total is not None, "an ensemble has at least one network"
            return total, entropy_sum
        return total.div_(members), None if entropy_sum is None else entropy_sum.div_(members)

    def _logits(self, network: SegmentationNetwork, tiles: Tensor, fold: int) -> Tensor:
        with _autocast(tiles.device), measured_convolutions():
            logits: Tensor = network(tiles)[0]
        expected = (len(tiles), self.readout.outputs, *self.patch_size)
        if tuple(logits.shape) != expected:
            msg = f"network {fold + 1} returned logits of shape {tuple(logits.shape)} instead of {expected}"
            raise InputError(msg)
        logits = logits.float()
        # One not finite value makes the sum so; no mask of the tile's size is needed.
        if not bool(torch.isfinite(logits.sum())):
            msg = (
                f"network {fold + 1} of {len(self.networks)} computed values that are not finite numbers (NaN or infinity) "
                f"on {tiles.device}, so there is no result. Try another scan backend or device; if it stays, the weights "
                "are damaged."
            )
            raise EnvironmentProblemError(msg)
        return logits


def predict_probabilities(
    ensemble: Ensemble,
    image: Array,
    ladder: MemoryLadder,
    *,
    overlap: float = 0.5,
    disagreement: bool = False,
    on_tile: TileCallback = lambda done, total: None,
) -> Iterator[Slab]:
    """Segment a preprocessed image.

    Only the slices that tiles still to come can change are held: (patch depth x K x Y x X) floats, not the volume.

    Args:
        ensemble: Networks and how they are combined.
        image: (C, Z, Y, X) float32. Axes shorter than the patch are padded with 0 on both sides, as in training.
        ladder: Where the work is done, and what gives way when memory runs out.
        overlap: Fraction of a tile that its neighbor covers again, 0 to below 1.
        disagreement: Also yield how much members (folds, mirrored versions, overlapping tiles) differ: the entropy of
            their mean less the mean of their entropies (mutual information), as a fraction of the largest entropy.
        on_tile: Called before the first and after every batch of tiles. Tiles that need not be computed, because they
            are as blank as one before, do not count.

    Yields:
        Slabs from Z = 0 on, without gaps, each overwritten by the next.

    Raises:
        EnvironmentProblemError: If memory does not suffice for one tile, or a network's output is not finite.
        InputError: If `overlap` is out of range.
    """
    if not 0 <= overlap < 1:
        msg = f"the overlap of tiles must be 0 or more and below 1, found {overlap}"
        raise InputError(msg)
    shape: IntTriple = image.shape[1:]
    padding = _padding(shape, ensemble.patch_size)
    padded = torch.from_numpy(np.pad(image, [(0, 0), *padding]) if any(map(any, padding)) else image)
    rows = _rows(padded, ensemble.patch_size, overlap)
    open_slices = ladder.on_accumulator(lambda device: _OpenSlices(ensemble, padded.shape[2:], disagreement, device))
    total, done = count_computed(rows), 0
    blank = BlankTile()
    on_tile(done, total)
    for row, following in zip(rows, [*(row.start for row in rows[1:]), padded.shape[1]], strict=True):
        for tiles, computed in _row_of_tiles(ensemble, padded, row, ladder, blank, disagreement):
            open_slices.to(ladder.placement.accumulator)
            open_slices.add(tiles)
            if computed:
                done += len(tiles.corners)
                on_tile(done, total)
        finished = following - row.start
        yield _unpadded(open_slices.finish(finished), row.start, padding, shape)
        open_slices.advance(finished)


class _OpenSlices:
    """Weighted sums of the slices that tiles can still change: one patch depth."""

    def __init__(self, ensemble: Ensemble, plane: Sequence[int], with_entropy: bool, device: torch.device) -> None:
        depth = ensemble.patch_size[0]
        self.patch, self.readout = ensemble.patch_size, ensemble.readout
        self.importance = importance_map(self.patch).to(device)
        self.sums = torch.zeros((depth, ensemble.readout.outputs, *plane), device=device)
        self.weights = torch.zeros((depth, *plane), device=device)
        self.entropies = torch.zeros((depth, *plane), device=device) if with_entropy else None

    def to(self, device: torch.device) -> None:
        """Move to another device; nothing happens if they are there."""
        if self.sums.device != device:
            self.importance, self.sums = self.importance.to(device), self.sums.to(device)
            self.weights = self.weights.to(device)
            self.entropies = None if self.entropies is None else self.entropies.to(device)

    def add(self, tiles: WeightedTiles) -> None:
        """Add tiles to the open slices; takes no further memory on their device."""
        for k, (y, x) in enumerate(tiles.corners):
            part = (slice(None), slice(y, y + self.patch[1]), slice(x, x + self.patch[2]))
            self.sums.transpose(0, 1)[(slice(None), *part)] += tiles.probabilities[k]
            self.weights[part] += self.importance
            if self.entropies is not None and tiles.entropies is not None:
                self.entropies[part] += tiles.entropies[k]

    def finish(self, count: int) -> tuple[Tensor, Tensor | None]:
        """Turn the first slices' sums into means, in place."""
        weights = self.weights[:count]
        probabilities = self.sums[:count].div_(weights[:, None])
        if self.entropies is None:
            return probabilities, None
        members = self.entropies[:count].div_(weights)
        # Rounding can leave a difference of two equal entropies at -1e-7.
        return probabilities, (self.readout.uncertainty(probabilities) - members).clamp_(min=0)

    def advance(self, count: int) -> None:
        """Drop the first slices and open as many new ones behind the others."""
        for array in (self.sums, self.weights, self.entropies):
            if array is not None:
                # In steps of `count`, so that a copy never reads what it has written.
                for start in range(0, len(array) - count, count):
                    stop = min(start + count, len(array) - count)
                    array[start:stop] = array[start + count : stop + count]
                array[-count:] = 0


@dataclass(frozen=True)
class WeightedTiles:
    """A batch of tiles' results times the importance map, where the sums are.

    Attributes:
        corners: First (y, x) of each tile.
        probabilities: (B, K, *patch).
        entropies: (B, *patch) or None.
    """

    corners: Sequence[tuple[int, int]]
    probabilities: Tensor
    entropies: Tensor | None


class _Uploaded:
    """Slices of an image on the device that reads them: overlapping tiles would send the same voxels several times."""

    def __init__(self, slices: Tensor) -> None:
        self._here = self._there = slices
        self._device = slices.device

    def on(self, device: torch.device) -> Tensor:
        # What was asked for is compared, not where it is: "cuda" and "cuda:0" are the same place, but not equal.
        if device != self._device:
            self._there = self._here  # frees what another device held
            self._there, self._device = self._here.to(device), device
        return self._there


def _rows(image: Tensor, patch_size: IntTriple, overlap: float) -> list[Row]:
    """All tiles. They are looked at in main memory: a question to a GPU waits for all it has to do."""
    rows, columns, files = (tile_starts(n, p, overlap) for n, p in zip(image.shape[1:], patch_size, strict=True))
    depth, *size = patch_size
    corners = list(product(columns, files))
    return [row_of(image[:, z : z + depth], corners, (size[0], size[1]), z) for z in rows]


def _row_of_tiles(
    ensemble: Ensemble,
    image: Tensor,
    row: Row,
    ladder: MemoryLadder,
    blank: BlankTile,
    with_entropy: bool,
) -> Iterator[tuple[WeightedTiles, bool]]:
    """Batches of tiles at one Z, and whether they were computed; where memory is short, the ladder steps down.

    Blank tiles come first, so that the others fill whole batches.
    """
    depth, height, width = ensemble.patch_size
    importance = importance_map(ensemble.patch_size)
    slices = _Uploaded(image[:, row.start : row.start + depth])

    @torch.inference_mode()
    def compute(placement: Placement, batch: Sequence[tuple[int, int]]) -> WeightedTiles:
        there = slices.on(placement.device)
        tiles = torch.stack([there[:, :, y : y + height, x : x + width] for y, x in batch])
        for network in ensemble.networks:
            place(network, placement.device)
        probabilities, entropies = ensemble.tile_probabilities(tiles, with_entropy)
        weights = importance.to(placement.device)
        probabilities = probabilities.mul_(weights).to(placement.accumulator)
        entropies = None if entropies is None else entropies.mul_(weights).to(placement.accumulator)
        return WeightedTiles(batch, probabilities, entropies)

    def computed(left: Sequence[tuple[int, int]]) -> WeightedTiles:
        return ladder.run(lambda placement: compute(placement, left[: placement.tile_batch]))

    for corner, values in row.blank.items():
        known = blank.result_for(values, corner, ladder.placement.accumulator)
        result = known or computed([corner])
        if known is None:
            blank.remember(values, result)
        yield result, known is None
    left = row.others
    while left:
        result = computed(left)
        yield result, True
        left = left[len(result.corners) :]


def _autocast(device: torch.device) -> torch.autocast | nullcontext[None]:
    """bfloat16 where tensor cores make it several times faster; float32 elsewhere, where it would be slower."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return nullcontext()


def _padding(shape: IntTriple, patch_size: IntTriple) -> list[tuple[int, int]]:
    missing = [max(p - n, 0) for n, p in zip(shape, patch_size, strict=True)]
    return [(m // 2, m - m // 2) for m in missing]


def _unpadded(
    finished: tuple[Tensor, Tensor | None], start: int, padding: Sequence[tuple[int, int]], shape: IntTriple
) -> Slab:
    """Slab without what lies in the padding. Z is padded only where there is one row of tiles."""
    probabilities, disagreement = finished
    depth = min(len(probabilities), shape[0])
    z, y, x = (slice(before, before + n) for (before, _), n in zip(padding, (depth, *shape[1:]), strict=True))
    return Slab(start, probabilities[z, :, y, x], None if disagreement is None else disagreement[z, y, x])
