"""Kernels over the rows of a tile of tokens: layer normalization, GELU, residual sums.

A row holds a token's channels, rounded up to 16; the additional ones are zero and stay so.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from MambaSegLib.scan.vector_ir import F32, LANES, LOG2E, Value, Vectors, vector_kernel

# Abramowitz & Stegun, Handbook of Mathematical Functions, 7.1.26: |error of erf| <= 1.5e-7, highest power first.
_ERF = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
_ERF_P = 0.3275911


def _total(v: Vectors, value: Value) -> Value:
    """Sum of all lanes, in every lane."""
    kind = ir.FunctionType(F32, [F32, value.type])
    module: Any = v.builder.module
    name = "llvm.vector.reduce.fadd.v16f32"
    function = module.globals.get(name) or ir.Function(module, kind, name)
    single = v.builder.call(function, [ir.Constant(F32, 0.0), value], fastmath=("reassoc",))
    return v.spread(single)


@vector_kernel
def normalize_tokens(
    v: Vectors,
    steps: Value,
    vectors: Value,
    rows: Value,
    x: Value,
    x_stride: Value,
    constants: Value,
    weight: Value,
    bias: Value,
    used: Value,
    out: Value,
    out_stride: Value,
) -> None:
    """LayerNorm of the listed rows of x into the rows 0, 1, ... of out.

    `constants` is the address of 1 / channels and of epsilon; `used` that of 1 for every channel and 0 for every other.
    """
    builder = v.builder
    share, epsilon = v.broadcast(constants), v.broadcast(v.at(constants, 1))
    with v.loop(steps) as step:
        from_, to = v.row(x, rows, step, x_stride), v.at(out, builder.mul(step, out_stride))
        total, squares = v.variable(v.constant(0.0)), v.variable(v.constant(0.0))
        with v.loop(vectors) as block:
            total.set(v.add(total.get(), v.load(v.at(from_, builder.mul(block, v.index(LANES))))))
        mean = v.mul(_total(v, total.get()), share)
        with v.loop(vectors) as block:
            offset = builder.mul(block, v.index(LANES))
            difference = v.mul(v.sub(v.load(v.at(from_, offset)), mean), v.load(v.at(used, offset)))
            squares.set(v.fma(difference, difference, squares.get()))
        variance = v.mul(_total(v, squares.get()), share)
        scale = v.divide(v.constant(1.0), v.root(v.add(variance, epsilon)))
        with v.loop(vectors) as block:
            offset = builder.mul(block, v.index(LANES))
            hat = v.mul(v.sub(v.load(v.at(from_, offset)), mean), scale)
            v.store(v.fma(hat, v.load(v.at(weight, offset)), v.load(v.at(bias, offset))), v.at(to, offset))


def _residual_kernel(accumulate: bool) -> Any:
    @vector_kernel
    def residual(
        v: Vectors,
        steps: Value,
        vectors: Value,
        first: Value,
        first_stride: Value,
        second: Value,
        second_stride: Value,
        bias: Value,
        rows: Value,
        out: Value,
        out_stride: Value,
    ) -> None:
        """Write (or add) first + second + bias to the listed rows of out."""
        builder = v.builder
        with v.loop(steps) as step:
            a, b = v.at(first, builder.mul(step, first_stride)), v.at(second, builder.mul(step, second_stride))
            to = v.row(out, rows, step, out_stride)
            with v.loop(vectors) as block:
                offset = builder.mul(block, v.index(LANES))
                total = v.add(v.add(v.load(v.at(a, offset)), v.load(v.at(b, offset))), v.load(v.at(bias, offset)))
                if accumulate:
                    total = v.add(v.load(v.at(to, offset)), total)
                v.store(total, v.at(to, offset))

    return residual


write_residual = _residual_kernel(accumulate=False)
add_residual = _residual_kernel(accumulate=True)


@vector_kernel
def gelu_rows(v: Vectors, steps: Value, vectors: Value, x: Value, stride: Value, bias: Value) -> None:
    """X + bias through GELU, x Phi(x) with the exact error function, in place."""
    builder = v.builder
    one, half = v.constant(1.0), v.constant(0.5)
    with v.loop(vectors) as block:
        offset = builder.mul(block, v.index(LANES))
        bias_vector = v.load(v.at(bias, offset))
        with v.loop(steps) as step:
            at = v.at(x, builder.add(offset, builder.mul(step, stride)))
            value = v.add(v.load(at), bias_vector)
            scaled = v.mul(v.maximum(value, v.negative(value)), v.constant(0.5**0.5))
            t = v.divide(one, v.fma(v.constant(_ERF_P), scaled, one))
            series = v.constant(_ERF[0])
            for coefficient in _ERF[1:]:
                series = v.fma(series, t, v.constant(coefficient))
            decay = v.exp2(v.mul(v.mul(scaled, scaled), v.constant(-LOG2E)), below_128=True)
            tail = v.mul(half, v.mul(v.mul(series, t), decay))  # Phi(-|x|)
            positive = builder.fcmp_ordered(">", value, v.constant(0.0))
            v.store(v.mul(value, builder.select(positive, v.sub(one, tail), tail)), at)
