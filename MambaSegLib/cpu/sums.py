"""Adding and averaging feature maps, (Z, Y, X, C) in memory."""

from __future__ import annotations

from MambaSegLib.cpu.convolution import Source
from MambaSegLib.cpu.pixelwise import add_row
from MambaSegLib.scan.paths import Array
from MambaSegLib.scan.vector_ir import LANES, address_of, compiled, keep


@compiled
def add_rows(first: Source, second: Source, slope: Array, width: int, start: int, stop: int) -> None:
    """Overwrite rows `start` to before `stop` of the first map by activation(first + second), each scaled and shifted."""
    channels = first.channels
    for row in range(start, stop):
        offset = 4 * row * width * channels
        a, b = first.address + offset, second.address + offset
        add_row(
            (
                width, channels // LANES, a, address_of(first.scale), address_of(first.shift),
                b, address_of(second.scale), address_of(second.shift), address_of(slope), a,
            )
        )  # fmt: skip
    keep((slope,))


@compiled
def average_rows(source: Array, out: Array, stride: Array, start: int, stop: int) -> None:
    """Write planes `start` to before `stop` of the averages over boxes of `stride` voxels."""
    _, ny, nx, channels = out.shape
    share = 1.0 / (stride[0] * stride[1] * stride[2])
    for z in range(start, stop):
        for y in range(ny):
            for x in range(nx):
                out[z, y, x] = 0.0
                for i in range(stride[0]):
                    for j in range(stride[1]):
                        for k in range(stride[2]):
                            for c in range(channels):
                                out[z, y, x, c] += source[z * stride[0] + i, y * stride[1] + j, x * stride[2] + k, c]
                for c in range(channels):
                    out[z, y, x, c] *= share
