"""The multiplication at the heart of everything: a few rows times a panel of columns, sums in registers throughout.

Rows are read where they lie, in several segments each, so that one kernel serves matrix products and convolutions: a
convolution's segments are the taps of its window.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from MambaSegLib.scan.paths import Array
from MambaSegLib.scan.vector_ir import I64, LANES, Value, Vectors, has_avx512, vector_kernel

WIDE, NARROW = (12, 2), (6, 1)
"""Rows and vectors of columns per call: as many sums as registers hold, with room for the factors. AVX-512 has 32 registers
of one vector each; AVX2 has 16 of half a vector, NEON 32 of a quarter."""
ROWS, PANEL_VECTORS = WIDE if has_avx512() else NARROW
PANEL = PANEL_VECTORS * LANES
_UNROLL = 4


def product_kernel(rows_at_once: int, vectors: int) -> Any:
    """The kernel for so many rows and vectors of columns at a time."""

    @vector_kernel
    def multiply_rows(
        v: Vectors,
        segments: Value,
        offsets: Value,
        depth: Value,
        rows: Value,
        row_stride: Value,
        panel: Value,
        out: Value,
        out_stride: Value,
    ) -> None:
        """Write out[r, :] = sum over segments s and k < depth of rows[r * row_stride + offsets[s] + k] * panel[s, k, :].

        `rows_at_once` rows are read and written. `offsets` is the address of int64 element offsets, `panel` of neighboring
        (segments, depth, columns) values.
        """
        builder = v.builder
        sums = [[v.variable(v.constant(0.0)) for _ in range(vectors)] for _ in range(rows_at_once)]
        row_offsets = [builder.mul(row_stride, v.index(r)) for r in range(rows_at_once)]
        factors = v.variable(panel)

        def add(at: list[Value], steps: int) -> None:
            for k in range(steps):
                right = [v.load(v.at(factors.get(), (k * vectors + j) * LANES)) for j in range(vectors)]
                for r in range(rows_at_once):
                    left = v.broadcast(v.at(at[r], k))
                    for j in range(vectors):
                        sums[r][j].set(v.fma(left, right[j], sums[r][j].get()))
            factors.set(v.at(factors.get(), steps * vectors * LANES))

        whole = builder.udiv(depth, v.index(_UNROLL))
        done = builder.mul(whole, v.index(_UNROLL))
        with v.loop(segments) as segment:
            place = builder.inttoptr(builder.add(offsets, builder.shl(segment, v.index(3))), I64.as_pointer())
            start = v.at(rows, builder.load(place))
            with v.loop(whole) as four:
                here = v.at(start, builder.mul(four, v.index(_UNROLL)))
                add([v.at(here, offset) for offset in row_offsets], _UNROLL)
            with v.loop(builder.sub(depth, done)) as single:
                here = v.at(start, builder.add(done, single))
                add([v.at(here, offset) for offset in row_offsets], 1)
        for r in range(rows_at_once):
            target = v.at(out, builder.mul(out_stride, v.index(r)))
            for j in range(vectors):
                v.store(sums[r][j].get(), v.at(target, j * LANES))

    return multiply_rows


multiply_rows = product_kernel(ROWS, PANEL_VECTORS)


def packed_panels(matrix: Array) -> Array:
    """Columns of (..., depth, columns) in panels: (panels, ..., depth, PANEL), filled up with zero columns."""
    columns = matrix.shape[-1]
    panels = -(-columns // PANEL)
    padded = np.zeros((*matrix.shape[:-1], panels * PANEL), np.float32)
    padded[..., :columns] = matrix
    split = padded.reshape(*matrix.shape[:-1], panels, PANEL)
    return np.ascontiguousarray(np.moveaxis(split, -2, 0))
