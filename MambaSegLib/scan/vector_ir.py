"""Sixteen-lane float32 arithmetic as LLVM vector instructions, for numba kernels that need no compiler on the user's computer.

LLVM turns `<16 x float>` into one AVX-512, two AVX or four SSE/NEON registers, so one source serves every processor.
Numba's own loop vectorizer reaches between a sixth and a half of this speed on the scan: it keeps the states in memory.

numba's disk cache watches the file of the function called from Python only; `compiled` makes it watch all files with kernels.
"""

from __future__ import annotations

import logging
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np
from llvmlite import binding as llvm
from llvmlite import ir
from numba.core import cgutils as untyped_cgutils
from numba.core import types as untyped_types
from numba.extending import intrinsic

LANES = 16
LOG2E = 1.0 / math.log(2.0)
LN2 = math.log(2.0)

cgutils: Any = untyped_cgutils
types: Any = untyped_types

F32 = ir.FloatType()
I32 = ir.IntType(32)
I64 = ir.IntType(64)
_VECTOR = ir.VectorType(F32, LANES)
_INTEGERS = ir.VectorType(I32, LANES)
_CONTRACT = ("contract",)
# Minimax fit of 2**r on [-1/2, 1/2] by linear programming, highest power first: 1e-7 relative, and exact at r = 0, so
# that a decay close to 1 stays close to 1 over thousands of steps. (The Taylor polynomial of this degree is off by 3e-6.)
_EXP2_COEFFICIENTS = (1.326472731e-3, 9.671512991e-3, 5.550733581e-2, 2.402224243e-1, 6.931470037e-1, 1.0)

_log = logging.getLogger(__name__)

Function = TypeVar("Function", bound=Callable[..., Any])
Value = Any
"""An LLVM value; llvmlite has no types that mypy could read."""


def compiled(function: Function) -> Function:
    """Compile with numba: no interpreter lock while it runs, division by zero as in IEEE, kept on disk for the next start."""
    compile_: Any = numba.njit
    try:
        result: Function = compile_(function, cache=True, nogil=True, error_model="numpy")
    except RuntimeError:  # neither the package's folder nor the user's cache can be written: compile at every start
        uncached: Function = compile_(function, nogil=True, error_model="numpy")
        return uncached
    _watch_kernel_sources(result)
    _do_without_disk(result)
    return result


def _do_without_disk(function: Any) -> None:
    """A full disk or a damaged file costs the time to compile, not the work."""
    cache: Any = getattr(function, "_cache", None)

    def tried(step: Callable[..., Any]) -> Callable[..., Any]:
        def attempt(*arguments: Any) -> Any:
            try:
                return step(*arguments)
            except Exception as problem:  # noqa: BLE001 - what a damaged file makes of pickle is anything
                _log.info("compiled code of %s is not kept on disk: %s", function.__name__, problem)
                return None

        return attempt

    for name in ("load_overload", "save_overload"):
        if hasattr(cache, name):
            setattr(cache, name, tried(getattr(cache, name)))


def _watch_kernel_sources(function: Any) -> None:
    """Keep code on disk apart by what `kernel_sources` says, not by the date of the function's own file alone.

    numba has no public way to ask for it; a version of numba that keeps these names elsewhere goes by the date. The name of
    the data differs, too: numba writes its index first, and who is killed before the data is written must not leave an index
    of today with the code of yesterday.
    """
    file: Any = getattr(getattr(function, "_cache", None), "_cache_file", None)
    pattern = getattr(file, "_data_name_pattern", None)
    if isinstance(pattern, str) and hasattr(file, "_source_stamp"):
        sources = kernel_sources()
        file._source_stamp = sources
        file._data_name_pattern = pattern.replace("{number", sources[:12] + ".{number")


@lru_cache(maxsize=1)
def kernel_sources() -> str:
    """Digest of every file whose code may end up in a kernel: after an update of any, all are compiled anew."""
    digest = sha256()
    for file in sorted(Path(__file__).resolve().parents[1].glob("*/*.py")):
        text = file.read_bytes()
        if b"@compiled" in text or b"@vector_kernel" in text:
            digest.update(text)
    return digest.hexdigest()


@compiled
def address_of(array: Any) -> int:
    """Address of an array's first element, signed: numba turns unsigned + signed integers into floating point."""
    return np.int64(array.ctypes.data)  # type: ignore[return-value]


@compiled
def keep(arrays: Any) -> None:
    """Last use of arrays that a function knows by address only: numba frees an array after its last use by name."""


def vector_kernel(build: Callable[..., None]) -> Any:
    """Make a function callable from `compiled` code out of one that emits instructions.

    `build(vectors, *values)` receives 64-bit integers: addresses, element strides and counts. The kernel is called
    with one tuple of them: `kernel((steps, address, ...))`.
    """

    @intrinsic
    def kernel(typing_context: Any, arguments: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            build(Vectors(builder), *cgutils.unpack_tuple(builder, values[0]))
            return context.get_dummy_value()

        if not all(isinstance(kind, types.Integer) and kind.signed for kind in arguments):
            return None  # numba then reports the call it cannot type
        return types.void(types.UniTuple(types.int64, len(arguments))), emit

    named: Any = kernel
    named.build = build  # for tests that look at the instructions
    return named


def has_avx512() -> bool:
    """Whether numba compiles for AVX-512; its cache on disk keeps the code of different processors apart."""
    config: Any = numba.config
    if config.CPU_NAME or config.CPU_FEATURES or not config.ENABLE_AVX:
        return False  # somebody, or numba for a virtual machine, chose another target: what every one has will do
    return bool(llvm.get_host_cpu_features().get("avx512f", False))


class Variable:
    """A value that changes from one step of a loop to the next; LLVM keeps it in a register."""

    def __init__(self, builder: Any, start: Value) -> None:
        """Reserve it, and start it at `start` wherever the code is emitted now."""
        self._builder = builder
        self._slot = cgutils.alloca_once(builder, start.type)
        self.set(start)

    def get(self) -> Value:
        """Its value now."""
        return self._builder.load(self._slot)

    def set(self, value: Value) -> None:
        """Replace its value."""
        self._builder.store(value, self._slot)


class Vectors:
    """Emits instructions on vectors of `LANES` float32 values; addresses are integers, offsets count float32 elements."""

    def __init__(self, builder: Any) -> None:
        """Emit where `builder` stands."""
        self.builder = builder

    # -- constants, addresses, memory ---------------------------------------------------------------------------------

    def constant(self, value: float) -> Value:
        """The same number in every lane."""
        single = struct.unpack("f", struct.pack("f", value))[0]
        return ir.Constant(_VECTOR, [single] * LANES)

    def _integers(self, value: int) -> Value:
        return ir.Constant(_INTEGERS, [value] * LANES)

    def index(self, value: int) -> Value:
        """A count or offset known when the kernel is built."""
        return ir.Constant(I64, value)

    def at(self, address: Value, offset: Value | int) -> Value:
        """Address `offset` elements further on."""
        if isinstance(offset, int):
            offset = self.index(offset)
        return self.builder.add(address, self.builder.shl(offset, self.index(2)))

    def row(self, address: Value, rows: Value, step: Value, stride: Value) -> Value:
        """Address of the row that the scan visits at `step`: `rows` is the address of int64 row numbers."""
        pointer = self.builder.inttoptr(self.builder.add(rows, self.builder.shl(step, self.index(3))), I64.as_pointer())
        return self.at(address, self.builder.mul(self.builder.load(pointer), stride))

    def tile_row(self, address: Value, step: Value, width: int = LANES) -> Value:
        """Address of row `step` of a contiguous tile buffer."""
        return self.at(address, self.builder.mul(step, self.index(width)))

    def load(self, address: Value, lanes: int = LANES) -> Value:
        """Read neighboring values; no alignment beyond one float is assumed."""
        value = self.builder.load(self.builder.inttoptr(address, ir.VectorType(F32, lanes).as_pointer()))
        value.align = 4
        return value

    def store(self, value: Value, address: Value) -> None:
        """Write a vector of any width."""
        self.builder.store(value, self.builder.inttoptr(address, value.type.as_pointer())).align = 4

    def load_scalar(self, address: Value) -> Value:
        """Read one value."""
        return self.builder.load(self.builder.inttoptr(address, F32.as_pointer()))

    def store_scalar(self, value: Value, address: Value) -> None:
        """Write one value."""
        self.builder.store(value, self.builder.inttoptr(address, F32.as_pointer()))

    def broadcast(self, address: Value) -> Value:
        """Read one value into every lane."""
        return self.spread(self.load_scalar(address))

    def spread(self, value: Value) -> Value:
        """One value in every lane."""
        undefined = ir.Constant(_VECTOR, ir.Undefined)
        first = self.builder.insert_element(undefined, value, ir.Constant(I32, 0))
        return self.builder.shuffle_vector(first, undefined, self._integers(0))

    def shuffle(self, first: Value, second: Value, lanes: Sequence[int]) -> Value:
        """Pick lanes by number; those of `second` count on from `LANES`."""
        mask = ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes))
        return self.builder.shuffle_vector(first, second, mask)

    # -- control flow -------------------------------------------------------------------------------------------------

    @contextmanager
    def loop(self, count: Value) -> Iterator[Value]:
        """Repeat the body for 0, 1, ... `count` - 1."""
        with cgutils.for_range(self.builder, count, intp=I64) as state:
            yield state.index

    @contextmanager
    def reverse_loop(self, count: Value) -> Iterator[Value]:
        """Repeat the body for `count` - 1, ..., 1, 0."""
        last = self.builder.sub(count, self.index(1))
        with cgutils.for_range(self.builder, count, intp=I64) as state:
            yield self.builder.sub(last, state.index)

    def variable(self, start: Value) -> Variable:
        """A loop-carried value."""
        return Variable(self.builder, start)

    # -- arithmetic ---------------------------------------------------------------------------------------------------

    def add(self, a: Value, b: Value) -> Value:
        """A + b."""
        return self.builder.fadd(a, b, flags=_CONTRACT)

    def sub(self, a: Value, b: Value) -> Value:
        """A - b."""
        return self.builder.fsub(a, b, flags=_CONTRACT)

    def mul(self, a: Value, b: Value) -> Value:
        """A * b."""
        return self.builder.fmul(a, b, flags=_CONTRACT)

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """A * b + c, fused where the processor can."""
        return self.add(self.mul(a, b), c)

    def divide(self, a: Value, b: Value) -> Value:
        """A / b."""
        return self.builder.fdiv(a, b)

    def root(self, a: Value) -> Value:
        """Square root."""
        return self._call("llvm.sqrt.v16f32", [a])

    def negative(self, a: Value) -> Value:
        """-a."""
        return self.builder.fsub(self.constant(-0.0), a)

    def maximum(self, a: Value, b: Value) -> Value:
        """The larger of a and b; b where a is not a number."""
        return self.builder.select(self.builder.fcmp_ordered(">", a, b, flags=("nsz",)), a, b)

    def minimum(self, a: Value, b: Value) -> Value:
        """The smaller of a and b; b where a is not a number."""
        return self.builder.select(self.builder.fcmp_ordered("<", a, b, flags=("nsz",)), a, b)

    def _polynomial(self, rest: Value) -> Value:
        power = self.constant(_EXP2_COEFFICIENTS[0])
        for coefficient in _EXP2_COEFFICIENTS[1:]:
            power = self.fma(power, rest, self.constant(coefficient))
        return power

    def _exp2_avx512(self, x: Value) -> Value:
        """With the instruction that multiplies by 2**n, no range check is needed: 10 operations instead of 12 or 13."""
        whole = self._call("llvm.nearbyint.v16f32", [x])
        power = self._polynomial(self.sub(x, whole))
        all_lanes, current_rounding = ir.Constant(ir.IntType(16), -1), ir.Constant(I32, 4)
        arguments = [power, whole, self.constant(0.0), all_lanes, current_rounding]
        return self._call("llvm.x86.avx512.mask.scalef.ps.512", arguments)

    def _call(self, name: str, arguments: list[Value]) -> Value:
        kind = ir.FunctionType(_VECTOR, [argument.type for argument in arguments])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), arguments)

    def exp2(self, x: Value, below_128: bool = False) -> Value:
        """2**x to 1.5e-7 relative: at most 2**-126 below x = -126, infinity from x = 128 on.

        With `below_128`, the caller knows that x stays below 128, and saves an operation; larger x would wrap around.
        """
        if has_avx512():
            return self._exp2_avx512(x)
        builder = self.builder
        x = self.maximum(self.constant(-126.0), x)  # in this order, a NaN stays one
        if not below_128:
            x = self.minimum(self.constant(128.0), x)
        # Adding 1.5 * 2**23 rounds to an integer and leaves that integer in the low bits of the sum.
        magic = self.constant(12582912.0)
        shifted = builder.fadd(x, magic)
        rest = builder.fsub(x, builder.fsub(shifted, magic))
        power = self._polynomial(rest)
        exponent = builder.shl(builder.bitcast(shifted, _INTEGERS), self._integers(23))
        return builder.bitcast(builder.add(builder.bitcast(power, _INTEGERS), exponent), _VECTOR)

    def log2_1p(self, e: Value) -> Value:
        """log2(1 + e) for 0 <= e <= 1, accurate relative to its own size for small e too."""
        builder = self.builder
        one = self.constant(1.0)
        total = builder.fadd(e, one)
        bits = builder.bitcast(total, _INTEGERS)
        # 0x3f3504f3 is sqrt(1/2): mantissas from sqrt(1/2) to sqrt(2) keep the series short.
        exponent = builder.ashr(builder.sub(bits, self._integers(0x3F3504F3)), self._integers(23))
        mantissa = builder.bitcast(builder.sub(bits, builder.shl(exponent, self._integers(23))), _VECTOR)
        lost = builder.fsub(e, builder.fsub(total, one))  # what rounding 1 + e threw away
        scale = builder.bitcast(builder.shl(builder.sub(self._integers(127), exponent), self._integers(23)), _VECTOR)
        f = builder.fadd(builder.fsub(mantissa, one), builder.fmul(lost, scale))
        s = builder.fdiv(f, builder.fadd(f, self.constant(2.0)))  # log(1 + f) = 2 atanh(f / (2 + f))
        square = self.mul(s, s)
        series = self.constant(0.22222222)
        for coefficient in (0.28571430, 0.4, 0.66666667, 2.0):
            series = self.fma(series, square, self.constant(coefficient))
        whole = builder.sitofp(exponent, _VECTOR)
        return self.fma(self.mul(series, s), self.constant(LOG2E), whole)

    def softplus2(self, x: Value) -> Value:
        """log2(1 + exp(x)) = softplus(x) / ln 2; the decay exp(softplus(x) A) is then 2**(softplus2(x) A)."""
        scaled = self.mul(x, self.constant(LOG2E))
        magnitude = self.maximum(scaled, self.negative(scaled))
        small = self.log2_1p(self.exp2(self.negative(magnitude), below_128=True))
        return self.add(self.maximum(self.constant(0.0), scaled), small)

    def sigmoid(self, x: Value) -> Value:
        """1 / (1 + exp(-x))."""
        one = self.constant(1.0)
        return self.divide(one, self.add(self.exp2(self.mul(x, self.constant(-LOG2E))), one))

    def silu(self, x: Value) -> Value:
        """X / (1 + exp(-x))."""
        return self.divide(x, self.add(self.exp2(self.mul(x, self.constant(-LOG2E))), self.constant(1.0)))

    def sum_pairs(self, first: Value, second: Value, width: int) -> Value:
        """Halve two vectors, each made of groups of `width` lanes, into one with groups of `width` / 2 (one tree level)."""
        starts = [half * LANES + group * width for half in (0, 1) for group in range(LANES // width)]
        low = [start + lane for start in starts for lane in range(width // 2)]
        high = [lane + width // 2 for lane in low]
        return self.add(self.shuffle(first, second, low), self.shuffle(first, second, high))
