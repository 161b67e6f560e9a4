"""Kernels that go over the voxels of a row: normalize, activate, add, transform for Winograd's convolution, and sum up.

Rows hold voxels with their channels beside each other; channel counts are multiples of 16 unless said otherwise.
"""

from __future__ import annotations

from MambaSegLib.scan.vector_ir import LANES, Value, Vectors, vector_kernel

POINTS = 6
"""Products per channel pair and tap row that Winograd's F(4, 3) needs for four outputs, instead of twelve."""
OUTPUTS = 4
"""Neighboring outputs made at a time."""


def _activated(v: Vectors, x: Value, slope: Value) -> Value:
    """LeakyReLU for slopes from 0 to 1; the identity for slope 1."""
    return v.maximum(x, v.mul(x, slope))


@vector_kernel
def normalize_row(
    v: Vectors,
    voxels: Value,
    vectors: Value,
    source: Value,
    source_stride: Value,
    target: Value,
    target_stride: Value,
    scale: Value,
    shift: Value,
    slope: Value,
) -> None:
    """Write activation(source * scale + shift) for every channel of every voxel; `slope` is an address."""
    builder = v.builder
    slope_vector = v.broadcast(slope)
    with v.loop(vectors) as block:
        offset = builder.mul(block, v.index(LANES))
        scale_vector, shift_vector = v.load(v.at(scale, offset)), v.load(v.at(shift, offset))
        from_, to = v.at(source, offset), v.at(target, offset)
        with v.loop(voxels) as voxel:
            x = v.fma(v.load(v.at(from_, builder.mul(voxel, source_stride))), scale_vector, shift_vector)
            v.store(_activated(v, x, slope_vector), v.at(to, builder.mul(voxel, target_stride)))


@vector_kernel
def copy_row(
    v: Vectors, voxels: Value, vectors: Value, source: Value, source_stride: Value, target: Value, target_stride: Value
) -> None:
    """Write source as it is."""
    builder = v.builder
    with v.loop(voxels) as voxel:
        from_, to = v.at(source, builder.mul(voxel, source_stride)), v.at(target, builder.mul(voxel, target_stride))
        with v.loop(vectors) as block:
            offset = builder.mul(block, v.index(LANES))
            v.store(v.load(v.at(from_, offset)), v.at(to, offset))


@vector_kernel
def add_row(
    v: Vectors,
    voxels: Value,
    vectors: Value,
    first: Value,
    first_scale: Value,
    first_shift: Value,
    second: Value,
    second_scale: Value,
    second_shift: Value,
    slope: Value,
    out: Value,
) -> None:
    """Write activation(first * scale + shift + second * scale + shift); all three rows are contiguous."""
    builder = v.builder
    slope_vector, stride = v.broadcast(slope), builder.mul(vectors, v.index(LANES))
    with v.loop(vectors) as block:
        offset = builder.mul(block, v.index(LANES))
        scales = [v.load(v.at(at, offset)) for at in (first_scale, second_scale)]
        shift = v.add(v.load(v.at(first_shift, offset)), v.load(v.at(second_shift, offset)))
        starts = [v.at(at, offset) for at in (first, second, out)]
        with v.loop(voxels) as voxel:
            a, b, to = (v.at(at, builder.mul(voxel, stride)) for at in starts)
            total = v.fma(v.load(a), scales[0], v.fma(v.load(b), scales[1], shift))
            v.store(_activated(v, total, slope_vector), to)


@vector_kernel
def winograd_input(v: Vectors, tiles: Value, vectors: Value, line: Value, out: Value, point_stride: Value) -> None:
    """Transform a padded line of voxels: per tile of four outputs, six inputs become six values, one per point.

    Point p of tile t is written at out + p * point_stride + t * channels. The matrix is B^T of F(4, 3) at the points
    0, 1, -1, 2, -2 and infinity (Lavin & Gray, arXiv 1509.09308).
    """
    builder = v.builder
    channels = builder.mul(vectors, v.index(LANES))
    two, four, five = (v.constant(value) for value in (2.0, 4.0, 5.0))
    with v.loop(tiles) as tile:
        first = v.at(line, builder.mul(builder.mul(tile, v.index(OUTPUTS)), channels))
        with v.loop(vectors) as block:
            offset = builder.mul(block, v.index(LANES))
            at = v.at(first, offset)
            d = [v.load(v.at(at, builder.mul(channels, v.index(k)))) for k in range(POINTS)]
            even, odd = v.sub(d[4], v.mul(four, d[2])), v.sub(d[3], v.mul(four, d[1]))
            even2, odd2 = v.sub(d[4], d[2]), v.mul(two, v.sub(d[3], d[1]))
            values = (
                v.add(v.mul(four, d[0]), v.sub(d[4], v.mul(five, d[2]))),
                v.add(even, odd),
                v.sub(even, odd),
                v.add(even2, odd2),
                v.sub(even2, odd2),
                v.add(v.mul(four, d[1]), v.sub(d[5], v.mul(five, d[3]))),
            )
            to = v.at(out, builder.add(offset, builder.mul(tile, channels)))
            for point, value in enumerate(values):
                v.store(value, v.at(to, builder.mul(point_stride, v.index(point))))


class _Sums:
    """Sums of values and of squares, less the row's first value: that keeps them exact where values lie far from zero."""

    def __init__(self, v: Vectors, origin: Value) -> None:
        self._v, self._origin = v, origin
        self._sum, self._squares = v.variable(v.constant(0.0)), v.variable(v.constant(0.0))

    def add(self, value: Value) -> None:
        difference = self._v.sub(value, self._origin)
        self._sum.set(self._v.add(self._sum.get(), difference))
        self._squares.set(self._v.fma(difference, difference, self._squares.get()))

    def store(self, address: Value) -> None:
        for number, value in enumerate((self._origin, self._sum.get(), self._squares.get())):
            self._v.store(value, self._v.at(address, number * LANES))


@vector_kernel
def winograd_output(
    v: Vectors,
    voxels: Value,
    products: Value,
    product_stride: Value,
    point_stride: Value,
    bias: Value,
    out: Value,
    out_stride: Value,
    sums: Value,
) -> None:
    """Turn a row's products into outputs of 16 channels, add the bias, and write three vectors of sums for `merge_row`."""
    builder = v.builder
    bias_vector = v.load(bias)

    def outputs(tile: Value) -> list[Value]:
        at = v.at(products, builder.mul(tile, product_stride))
        m = [v.load(v.at(at, builder.mul(point_stride, v.index(k)))) for k in range(POINTS)]
        plus, minus = v.add(m[1], m[2]), v.sub(m[1], m[2])
        plus2, minus2 = v.add(m[3], m[4]), v.sub(m[3], m[4])
        found = (
            v.add(v.add(m[0], plus), plus2),
            v.fma(v.constant(2.0), minus2, minus),
            v.fma(v.constant(4.0), plus2, plus),
            v.add(v.fma(v.constant(8.0), minus2, minus), m[5]),
        )
        return [v.add(value, bias_vector) for value in found]

    whole = builder.udiv(voxels, v.index(OUTPUTS))
    total = _Sums(v, outputs(v.index(0))[0])
    with v.loop(whole) as tile:
        start = builder.mul(tile, v.index(OUTPUTS))
        for k, value in enumerate(outputs(tile)):
            v.store(value, v.at(out, builder.mul(builder.add(start, v.index(k)), out_stride)))
            total.add(value)
    done = builder.mul(whole, v.index(OUTPUTS))
    rest = builder.sub(voxels, done)
    with builder.if_then(builder.icmp_signed(">", rest, v.index(0))):
        for k, value in enumerate(outputs(whole)[: OUTPUTS - 1]):
            with builder.if_then(builder.icmp_signed(">", rest, v.index(k))):
                v.store(value, v.at(out, builder.mul(builder.add(done, v.index(k)), out_stride)))
                total.add(value)
    total.store(sums)


@vector_kernel
def plain_output(
    v: Vectors,
    voxels: Value,
    products: Value,
    product_stride: Value,
    bias: Value,
    out: Value,
    out_stride: Value,
    sums: Value,
) -> None:
    """As `winograd_output` for products that are outputs already."""
    builder = v.builder
    bias_vector = v.load(bias)
    total = _Sums(v, v.add(v.load(products), bias_vector))
    with v.loop(voxels) as voxel:
        value = v.add(v.load(v.at(products, builder.mul(voxel, product_stride))), bias_vector)
        v.store(value, v.at(out, builder.mul(voxel, out_stride)))
        total.add(value)
    total.store(sums)
