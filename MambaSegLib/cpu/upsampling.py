"""Transposed convolution whose kernel is its stride: one matrix product per row, written where it belongs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from MambaSegLib.cpu.convolution import Source, read_row
from MambaSegLib.cpu.pixelwise import plain_output
from MambaSegLib.cpu.products import PANEL, PANEL_VECTORS, ROWS, multiply_rows
from MambaSegLib.scan.paths import Array
from MambaSegLib.scan.vector_ir import LANES, address_of, compiled, keep


class Enlargement(NamedTuple):
    """A transposed convolution's parameters.

    Attributes:
        box: int64 (Z, Y, X): how many voxels one becomes.
        panels: (panels, box Z * box Y, input channels, PANEL): columns run over box X, then output channels.
        bias: (box X * output channels,).
    """

    box: Array
    panels: Array
    bias: Array


@compiled
def upsample_rows(
    enlargement: Enlargement, source: Source, ny: int, nx: int, out: Array, start: int, stop: int
) -> None:
    """Enlarge rows `start` to before `stop`, counted over Z and Y, of a map with `ny` rows of `nx` voxels per plane."""
    channels = source.channels
    box, columns = enlargement.box, enlargement.bias.shape[0]
    line = np.zeros((nx + ROWS, channels), np.float32)  # room to read whole groups of rows
    products, sums = np.empty((nx + ROWS, PANEL), np.float32), np.empty((3, LANES), np.float32)
    offsets = np.zeros(1, np.int64)
    out_row = out.shape[2] * out.shape[3]
    for row in range(start, stop):
        z, y = row // ny, row % ny
        read_row(source, row * nx, nx, address_of(line), channels)
        for part in range(box[0] * box[1]):
            target = address_of(out) + 4 * out_row * (
                (z * box[0] + part // box[1]) * out.shape[1] + y * box[1] + part % box[1]
            )
            for panel in range(enlargement.panels.shape[0]):
                weights = address_of(enlargement.panels[panel, part])
                for first in range(0, nx, ROWS):
                    multiply_rows(
                        (
                            1, address_of(offsets), channels, address_of(line[first]), channels, weights,
                            address_of(products[first]), PANEL,
                        )
                    )  # fmt: skip
                for j in range(PANEL_VECTORS):
                    column = panel * PANEL + j * LANES
                    if column < columns:
                        plain_output(
                            (
                                nx, address_of(products) + 4 * j * LANES, PANEL, address_of(enlargement.bias) + 4 * column,
                                target + 4 * column, columns, address_of(sums),
                            )
                        )  # fmt: skip
    keep((line, products))
    keep((sums,))
    keep((offsets,))
