"""Tiles of steps x channels: which rows of memory a tile visits, and copies between those rows and small buffers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from MambaSegLib.scan.paths import Array
from MambaSegLib.scan.vector_ir import LANES, Value, Vectors, compiled, vector_kernel

TILE = 64
"""Steps per tile: 64 steps x 16 channels of a buffer are 4 KiB, so a handful stays in the first-level cache."""
GROUP = 4
"""States that one kernel call keeps in registers."""
ROW_BYTES = 4 * LANES
TILE_BYTES = TILE * ROW_BYTES


class Rows(NamedTuple):
    """Where a (batch, tokens, channels) float32 tensor lies: channels are neighbors, everything else is strided.

    Attributes:
        address: Of its first element; 0 for a tensor that is not there.
        batch: Elements from one batch entry to the next.
        row: Elements from one token to the next.
    """

    address: int
    batch: int
    row: int


class Problem(NamedTuple):
    """One scan: what all tasks and passes share.

    Attributes:
        u: Input rows.
        delta: Rows of time steps before bias and softplus.
        z: Rows of gates; address 0: no gate.
        b: Rows of B, N values each.
        c: Rows of C.
        channels: D.
        states: N.
        softplus: Whether delta goes through softplus.
        fading: Whether no decay factor can exceed 1: A is nowhere positive and delta nowhere negative.
        path: See `fill_rows`.
        rates: A as (blocks, N rounded up to groups, 16), zero where there is no channel or state.
        skip: D as (blocks, 16).
        bias: delta_bias as (blocks, 16).
    """

    u: Rows
    delta: Rows
    z: Rows
    b: Rows
    c: Rows
    channels: int
    states: int
    softplus: bool
    fading: bool
    path: Array
    rates: Array
    skip: Array
    bias: Array


class Part(NamedTuple):
    """What one task works on.

    Attributes:
        batch: Batch entry.
        first_block: First block of 16 channels.
        end_block: The block after the last.
        start: First position of the scan, a multiple of `TILE`.
        stop: The position after the last.
    """

    batch: int
    first_block: int
    end_block: int
    start: int
    stop: int


class Group:
    """What `GROUP` states of 16 channels pass from step to step, in registers: states, or carries on the way back."""

    def __init__(self, v: Vectors, decay_rates: Value, values: Value, below_128: bool = False) -> None:
        """Load both from their addresses; for `below_128` see `Vectors.exp2`."""
        self._v, self._below_128 = v, below_128
        self.rates = [v.load(v.at(decay_rates, n * LANES)) for n in range(GROUP)]
        self.values = [v.variable(v.load(v.at(values, n * LANES))) for n in range(GROUP)]

    def decay(self, n: int, delta2: Value) -> Value:
        """exp(delta A) of state n."""
        return self._v.exp2(self._v.mul(delta2, self.rates[n]), self._below_128)

    def advance(self, n: int, decay: Value, inputs: Value, b_row: Value) -> Value:
        """State n after one more step."""
        v = self._v
        state = v.fma(decay, self.values[n].get(), v.mul(inputs, v.broadcast(v.at(b_row, n))))
        self.values[n].set(state)
        return state

    def store(self, address: Value) -> None:
        """Write the values back."""
        for n, value in enumerate(self.values):
            self._v.store(value.get(), self._v.at(address, n * LANES))


class RowLists(NamedTuple):
    """Addresses of the row numbers that a tile's kernels walk through.

    Attributes:
        tokens: Of the token numbers in scan order.
        counting: Of 0, 1, 2, ...: the rows of a buffer.
    """

    tokens: int
    counting: int


@compiled
def fill_rows(path: Array, start: int, steps: int, rows: Array) -> None:
    """Write the token numbers that the scan visits at positions `start`, `start` + 1, ...

    `path` holds three axis lengths and three token strides, slowest axis first, and 1 for a backward scan.
    """
    n1, n2 = path[1], path[2]
    s0, s1, s2 = path[3], path[4], path[5]
    step = 1
    position = start
    if path[6] == 1:
        position = path[0] * n1 * n2 - 1 - start
        step = -1
    c2 = position % n2
    c1 = position // n2 % n1
    c0 = position // (n1 * n2)
    for i in range(steps):
        rows[i] = c0 * s0 + c1 * s1 + c2 * s2
        c2 += step
        if c2 == n2 or c2 < 0:
            c2 = 0 if step == 1 else n2 - 1
            c1 += step
            if c1 == n1 or c1 < 0:
                c1 = 0 if step == 1 else n1 - 1
                c0 += step


@vector_kernel
def copy_rows(
    v: Vectors,
    steps: Value,
    width: Value,
    source_rows: Value,
    source: Value,
    source_stride: Value,
    target_rows: Value,
    target: Value,
    target_stride: Value,
) -> None:
    """Copy `width` values of each row, and not one value more: rows may end where the tensor ends."""
    builder = v.builder
    wide = builder.lshr(width, v.index(4))
    done = builder.shl(wide, v.index(4))
    rest = builder.sub(width, done)
    with v.loop(steps) as step:
        from_ = v.row(source, source_rows, step, source_stride)
        to = v.row(target, target_rows, step, target_stride)
        with v.loop(wide) as sixteen:
            offset = builder.shl(sixteen, v.index(4))
            v.store(v.load(v.at(from_, offset)), v.at(to, offset))
        with v.loop(rest) as single:
            offset = builder.add(done, single)
            v.store_scalar(v.load_scalar(v.at(from_, offset)), v.at(to, offset))


@compiled
def gather(tensor: Rows, batch: int, width: int, steps: int, lists: RowLists, tile: int, tile_width: int) -> None:
    """Copy `width` values of each of a tile's tokens into a buffer with rows of `tile_width`."""
    address = tensor.address + 4 * batch * tensor.batch
    copy_rows((steps, width, lists.tokens, address, tensor.row, lists.counting, tile, tile_width))


@compiled
def scatter(tensor: Rows, batch: int, width: int, steps: int, lists: RowLists, tile: int, tile_width: int) -> None:
    """Copy a buffer's rows to the tile's tokens."""
    address = tensor.address + 4 * batch * tensor.batch
    copy_rows((steps, width, lists.counting, tile, tile_width, lists.tokens, address, tensor.row))


@compiled
def read_block(
    tensor: Rows, batch: int, block: int, lanes: int, steps: int, lists: RowLists, spare: int
) -> tuple[int, int]:
    """Where a kernel reads a block of 16 channels: address and row stride, to use with the rows of `block_list`.

    The last block may have fewer channels; then it is copied to the buffer at `spare`, whose other lanes stay zero.
    """
    address = tensor.address + 4 * (batch * tensor.batch + block * LANES)
    if lanes == LANES or tensor.address == 0:
        return address, tensor.row
    copy_rows((steps, lanes, lists.tokens, address, tensor.row, lists.counting, spare, LANES))
    return spare, LANES


@compiled
def target_block(tensor: Rows, batch: int, block: int, lanes: int, spare: int) -> tuple[int, int]:
    """Where a kernel writes a block: as `read_block`, without a copy; `write_back` must follow."""
    if lanes == LANES:
        return tensor.address + 4 * (batch * tensor.batch + block * LANES), tensor.row
    return spare, LANES


@compiled
def write_back(tensor: Rows, batch: int, block: int, lanes: int, steps: int, lists: RowLists, spare: int) -> None:
    """Bring an incomplete block from its buffer to the rows it belongs to."""
    if lanes < LANES and tensor.address != 0:
        address = tensor.address + 4 * (batch * tensor.batch + block * LANES)
        copy_rows((steps, lanes, lists.counting, spare, LANES, lists.tokens, address, tensor.row))


@compiled
def block_list(lanes: int, lists: RowLists) -> int:
    """The row numbers that go with `read_block` and `target_block`."""
    return lists.tokens if lanes == LANES else lists.counting


@compiled
def row_buffers(steps: int) -> tuple[Array, Array]:
    """Room for the row numbers of `steps` tokens, and 0, 1, 2, ..."""
    return np.zeros(steps, np.int64), np.arange(steps)
