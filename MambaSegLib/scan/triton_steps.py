"""What the Triton kernels of the scan share: the compile decorator, the walk through a volume, one time step.

Letters are those of the Mamba paper (Gu and Dao 2023, Sec. 3.2): u input, delta time step, A decay rates, B and C how states
are written and read, h states, N states per channel, D channels. In the kernels t counts positions of the scan, and a "row"
is the token in memory that t stands for. Exponentials are powers of 2: delta2 = delta / ln 2, so exp(delta A) = 2**(delta2 A)
and A is used as it is.

The functions here run inside kernels; their arguments are Triton scalars and blocks.
"""

from __future__ import annotations

import inspect
from collections.abc import Container
from typing import Any

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
LINEAR_FROM = tl.constexpr(20.0)
"""Above it softplus(x) is x in float32; PyTorch uses the same threshold."""

PATH_NUMBERS = 6
"""int32 numbers per scan order: lengths of the middle and the fast axis, row steps of the slow, middle and fast axis, and
the row of position 0. Backward orders have negative steps: see `triton_launch.path_table`."""


COUNTS = frozenset(
    (
        "batch",
        "length",
        "chunks",
        "first_chunk",
        "chunks_here",
        "first",
        "here",
        "blocks",
        "rows",
        "groups",
        "path_count",
    )
)
"""Arguments that differ from image to image: Triton would compile anew where one becomes 1 or a multiple of 16."""


def jit(function: Any, varying: Container[str]) -> Any:
    """`triton.jit`, typed, which Triton's own is not, and without a new compilation for every value of `varying` arguments."""
    names = [name for name in inspect.signature(function).parameters if name in varying]
    return triton.jit(function, do_not_specialize=names)


def kernel(function: Any) -> Any:
    """`jit` for kernels whose `COUNTS` vary."""
    return jit(function, COUNTS)


@kernel
def read_path(path):
    """A scan order's numbers, in registers."""
    return (
        tl.load(path), tl.load(path + 1), tl.load(path + 2), tl.load(path + 3), tl.load(path + 4), tl.load(path + 5)
    )  # fmt: skip


@kernel
def place(path, t):
    """Row of position t, and its indices along the middle and the fast axis: what `next_place` goes on from."""
    middle, fast, slow_step, middle_step, fast_step, first = path
    q2 = t % fast
    q1 = (t // fast) % middle
    q0 = t // fast // middle
    return first + q0 * slow_step + q1 * middle_step + q2 * fast_step, q1, q2


@kernel
def next_place(path, spot):
    """From what `place` gives for t to what it gives for t + 1, without its divisions."""
    middle, fast, slow_step, middle_step, fast_step, _ = path
    row, q1, q2 = spot
    end2 = (q2 + 1 == fast).to(tl.int32)
    end1 = ((q1 + end2) == middle).to(tl.int32)
    row = row + fast_step + end2 * (middle_step - fast * fast_step) + end1 * (slow_step - middle * middle_step)
    return row, (q1 + end2) * (1 - end1), (q2 + 1) * (1 - end2)


@kernel
def previous_place(path, spot):
    """Undo `next_place`."""
    middle, fast, slow_step, middle_step, fast_step, _ = path
    row, q1, q2 = spot
    start2 = (q2 == 0).to(tl.int32)
    start1 = ((q1 - start2) < 0).to(tl.int32)
    row = row - fast_step - start2 * (middle_step - fast * fast_step) - start1 * (slow_step - middle * middle_step)
    return row, q1 - start2 + start1 * middle, q2 - 1 + start2 * fast


@kernel
def sigmoid(x):
    """1 / (1 + exp(-x)), exact in its small values, too."""
    return 1.0 / (1.0 + tl.exp2(-x * LOG2_E))


@kernel
def time_step(x, inside, SOFTPLUS: tl.constexpr):
    """Delta / ln 2 from delta before softplus; 0 where not `inside`: such a step leaves the states as they are.

    log(1 + e) as log(w) e / (w - 1) with w = 1 + e rounded: for small e the rounding of w cancels (Kahan).
    """
    delta2 = x * LOG2_E
    if SOFTPLUS:
        e = tl.exp2(tl.minimum(delta2, LINEAR_FROM * LOG2_E))
        w = 1.0 + e
        small = w == 1.0
        log2_w = tl.log2(w) * e / tl.where(small, 1.0, w - 1.0)
        # `minimum` loses NaN, this comparison does not.
        delta2 = tl.where(x <= LINEAR_FROM, tl.where(small, e * LOG2_E, log2_w), delta2)
    return tl.where(inside, delta2, 0.0)


@kernel
def until(columns, is_column, t, length):
    """Columns that exist, if position t does: 0 <= t < length, in one comparison of numbers without sign.

    Compared as a block: Triton's interpreter takes no scalar as a mask.
    """
    return is_column & ((columns * 0 + t).to(tl.uint32) < length.to(tl.uint32))


@kernel
def load_row(base, row, step, columns, inside):
    """A row's columns in float32, 0 where not `inside`; the offset is 64 bits wide."""
    return tl.load(base + row.to(tl.int64) * step + columns, mask=inside, other=0.0).to(tl.float32)


@kernel
def store_row(base, row, step, columns, values, inside):
    """Write a row's columns, rounded to the tensor's type."""
    tl.store(base + row.to(tl.int64) * step + columns, values.to(base.dtype.element_ty), mask=inside)


@kernel
def state_block(n, d, D: tl.constexpr):
    """Offsets of a block of states in an (N, D) tensor, such that a thread gets one channel's states in its registers.

    Triton gives a thread neighboring values where it knows that their address is a multiple of 16 bytes, and the states of
    a channel to several threads then, which must exchange them at every step. Grids have two axes, so this adds 0; but
    Triton does not know.
    """
    return n[:, None] * D + d[None, :] + tl.program_id(2)


@kernel
def group_base(tensor, group_step, batch_step, group, entry):
    """Where a direction's and batch entry's rows begin."""
    return tensor + group.to(tl.int64) * group_step + entry.to(tl.int64) * batch_step
