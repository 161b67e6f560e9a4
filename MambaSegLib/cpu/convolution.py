"""One strip of a 3D convolution: normalize and activate what is read, multiply, add the bias, sum up what is written.

Feature maps are (Z, Y, X, C) in memory. A strip keeps the planes its window needs in a ring, transformed once each, so
that nothing but the result goes through memory. Windows three voxels wide with stride 1 along X use Winograd's F(4, 3) along
X: half the products, rounding as in a plain sum.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from MambaSegLib.cpu.pixelwise import (
    OUTPUTS,
    POINTS,
    copy_row,
    normalize_row,
    plain_output,
    winograd_input,
    winograd_output,
)
from MambaSegLib.cpu.products import PANEL, PANEL_VECTORS, ROWS, multiply_rows
from MambaSegLib.scan.paths import Array
from MambaSegLib.scan.vector_ir import LANES, address_of, compiled, keep

MOMENTS = 3
"""Number, mean and sum of squared deviations."""


class Source(NamedTuple):
    """A feature map that is read as activation(value * scale + shift).

    Attributes:
        address: Of a contiguous (Z, Y, X, C) float32 map; 0 for none.
        channels: C.
        plain: Whether values are read as they are.
        scale: (C,).
        shift: (C,).
        slope: (1,): of LeakyReLU; 1 for no activation.
    """

    address: int
    channels: int
    plain: bool
    scale: Array
    shift: Array
    slope: Array


class Window(NamedTuple):
    """A convolution's parameters.

    Attributes:
        sizes: int64 (input Z Y X, output Z Y X, kernel Z Y X, stride Z Y X, padding Z Y X).
        winograd: Whether rows are transformed.
        depth: Neighboring values per tap row that one product sums over.
        panels: (panels, points, kernel Z * kernel Y, depth, PANEL) weights; one point without Winograd.
        bias: (output channels,), a multiple of 16.
        group: Output planes per pass over the weights.
    """

    sizes: Array
    winograd: bool
    depth: int
    panels: Array
    bias: Array
    group: int


class Strip(NamedTuple):
    """What one task computes: output planes, rows and panels of channels, each from first to before end."""

    z0: int
    z1: int
    y0: int
    y1: int
    panel0: int
    panel1: int


@compiled
def read_row(source: Source, voxel: int, voxels: int, target: int, target_stride: int) -> None:
    """Copy `voxels` voxels from the given one on to an address, normalized and activated."""
    channels = source.channels
    from_ = source.address + 4 * voxel * channels
    scale, shift, slope = address_of(source.scale), address_of(source.shift), address_of(source.slope)
    if source.plain:
        copy_row((voxels, channels // LANES, from_, channels, target, target_stride))
    else:
        normalize_row((voxels, channels // LANES, from_, channels, target, target_stride, scale, shift, slope))


@compiled
def merge_row(moments: Array, sums: Array, first_channel: int, voxels: int) -> None:
    """Add one row's sums (three vectors of 16) to moments (channels, 3), as Chan, Golub and LeVeque do."""
    for lane in range(LANES):
        channel = first_channel + lane
        count, mean, squares = moments[channel, 0], moments[channel, 1], moments[channel, 2]
        step = np.float64(sums[1, lane]) / voxels
        row_squares = np.float64(sums[2, lane]) - step * np.float64(sums[1, lane])
        difference = np.float64(sums[0, lane]) + step - mean
        total = count + voxels
        moments[channel, 0] = total
        moments[channel, 1] = mean + difference * voxels / total
        moments[channel, 2] = squares + row_squares + difference * difference * count * voxels / total


@compiled
def _fill_plane(
    window: Window, first: Source, second: Source, image: Array, strip: Strip, z: int, plane: Array, line: Array
) -> None:
    """Bring the rows of input plane `z` that a strip needs into the ring, zeros where there are none.

    `plane` is (points, rows, tiles or voxels, channels); `line` is a padded row of voxels that starts and ends with zeros.
    """
    nz, ny, nx = window.sizes[0], window.sizes[1], window.sizes[2]
    channels = plane.shape[3]
    left = window.sizes[14]
    stride_y, pad_y = window.sizes[10], window.sizes[13]
    _, rows, places, _ = plane.shape
    for row in range(rows):
        y = strip.y0 * stride_y + row - pad_y
        if z < 0 or z >= nz or y < 0 or y >= ny:
            plane[:, row] = 0.0
            continue
        target = address_of(line) if window.winograd else address_of(plane[0, row])
        target += 4 * left * channels
        voxel = (z * ny + y) * nx
        usable = min(nx, line.shape[0] - left) if window.winograd else min(nx, places - left)
        if first.address == 0:  # the image, whose few channels are not padded
            for x in range(usable):
                plane[0, row, left + x] = image[z, y, x]
            continue
        read_row(first, voxel, usable, target, channels)
        if second.address != 0:
            read_row(second, voxel, usable, target + 4 * first.channels, channels)
        if window.winograd:
            point_stride = rows * places * channels
            winograd_input((places, channels // LANES, address_of(line), address_of(plane[0, row]), point_stride))


@compiled
def _finish_rows(
    window: Window, strip: Strip, products: Array, z: int, panel: int, out: int, moments: Array, sums: Array
) -> None:
    """Turn one plane's products (points, products, PANEL) of a panel into output rows."""
    ny, nx, channels = window.sizes[4], window.sizes[5], window.bias.shape[0]
    per_row = (nx + OUTPUTS - 1) // OUTPUTS if window.winograd else nx
    point_stride = products.shape[1] * PANEL
    for y in range(strip.y0, strip.y1):
        for j in range(PANEL_VECTORS):
            channel = panel * PANEL + j * LANES
            if channel >= channels:
                break
            at = address_of(products) + 4 * ((y - strip.y0) * per_row * PANEL + j * LANES)
            to = out + 4 * (((z * ny + y) * nx) * channels + channel)
            bias = address_of(window.bias) + 4 * channel
            if window.winograd:
                winograd_output((nx, at, PANEL, point_stride, bias, to, channels, address_of(sums)))
            else:
                plain_output((nx, at, PANEL, bias, to, channels, address_of(sums)))
            merge_row(moments, sums, channel, nx)


@compiled
def convolve_strip(
    window: Window, first: Source, second: Source, image: Array, out: int, moments: Array, strip: Strip
) -> None:
    """Compute one strip.

    Args:
        window: The convolution.
        first: Its input; with address 0, `image` is.
        second: More channels of the input, as if both were concatenated; address 0 for none.
        image: (Z, Y, X, C) with any number of channels, read as it is; only without `first`.
        out: Address of the (Z, Y, X, C) output.
        moments: (output channels, 3) of zeros; on return the number, mean and squared deviations of what was written.
        strip: Which part.
    """
    sizes = window.sizes
    nx, channels = sizes[5], (first.channels + second.channels if first.address != 0 else image.shape[3])
    kernel_z, kernel_y, stride_z, stride_x = sizes[6], sizes[7], sizes[9], sizes[11]
    rows_in, rows_out = (strip.y1 - strip.y0 - 1) * sizes[10] + kernel_y, strip.y1 - strip.y0
    points = POINTS if window.winograd else 1
    places = (nx + OUTPUTS - 1) // OUTPUTS if window.winograd else (nx - 1) * stride_x + sizes[8]
    group = min(window.group, strip.z1 - strip.z0)
    ring_size = (group - 1) * stride_z + kernel_z
    # Products are made `ROWS` at a time: the last ones may read and write past the end, into this room.
    spare = ROWS * max(stride_x, 1)
    plane_size = points * rows_in * places * channels
    memory = np.zeros(ring_size * plane_size + spare * channels, np.float32)
    ring = memory[: ring_size * plane_size].reshape((ring_size, points, rows_in, places, channels))
    line = np.zeros((places * OUTPUTS + 2 if window.winograd else 1, channels), np.float32)
    per_row = places if window.winograd else nx
    products = np.empty((group, points, rows_out * per_row + ROWS, PANEL), np.float32)
    segments = kernel_z * kernel_y
    offsets, sums = np.empty((group, segments), np.int64), np.empty((3, LANES), np.float32)
    weight_stride = segments * window.depth * PANEL
    filled = strip.z0 * stride_z
    for z in range(strip.z0, strip.z1, group):
        planes = min(group, strip.z1 - z)
        while filled < (z + planes - 1) * stride_z + kernel_z:
            _fill_plane(window, first, second, image, strip, filled - sizes[12], ring[filled % ring_size], line)
            filled += 1
        for k in range(planes):
            for segment in range(segments):
                plane = ((z + k) * stride_z + segment // kernel_y) % ring_size
                offsets[k, segment] = plane * plane_size + (segment % kernel_y) * places * channels
        for panel in range(strip.panel0, strip.panel1):
            for point in range(points):
                weights = address_of(window.panels) + 4 * (panel * points + point) * weight_stride
                for k in range(planes):
                    if window.winograd:
                        _multiply(
                            segments, address_of(offsets[k]), window.depth,
                            address_of(memory) + 4 * point * rows_in * places * channels, channels,
                            rows_out * places, weights, address_of(products[k, point]),
                        )  # fmt: skip
                        continue
                    for row in range(rows_out):
                        _multiply(
                            segments, address_of(offsets[k]), window.depth,
                            address_of(memory) + 4 * row * sizes[10] * places * channels, stride_x * channels,
                            nx, weights, address_of(products[k, 0, row * nx]),
                        )  # fmt: skip
            for k in range(planes):
                _finish_rows(window, strip, products[k], z + k, panel, out, moments, sums)
    keep((memory, ring, line))
    keep((products, sums))
    keep((offsets,))


@compiled
def _multiply(
    segments: int, offsets: int, depth: int, rows: int, row_stride: int, count: int, panel: int, out: int
) -> None:
    for start in range(0, count, ROWS):
        multiply_rows(
            (segments, offsets, depth, rows + 4 * start * row_stride, row_stride, panel, out + 4 * start * PANEL, PANEL)
        )
