"""What LLVM makes of the vector kernels on processors that are not at hand: whole vectors, no library calls, no spilled sums."""

import ctypes
import inspect
import re

import numpy as np
import pytest

pytest.importorskip("numba")

from llvmlite import binding, ir

from MambaSegLib.cpu import pixelwise, products, token_kernels
from MambaSegLib.scan import numba_backward, numba_conv, numba_forward, vector_ir

KERNELS = {
    "normalize_row": pixelwise.normalize_row,
    "add_row": pixelwise.add_row,
    "winograd_input": pixelwise.winograd_input,
    "winograd_output": pixelwise.winograd_output,
    "normalize_tokens": token_kernels.normalize_tokens,
    "gelu_rows": token_kernels.gelu_rows,
    "prepare": numba_forward.prepare_softplus,
    "advance": numba_forward.advance_fading,
    "finish": numba_forward.finish_gated,
    "convolve": numba_conv.convolve_four_silu,
}


class Target:
    """One kind of processor: its vector multiply-adds, and what a vector saved on the stack looks like."""

    def __init__(self, triple, processor, multiply_add, spill):
        self.triple, self.processor, self.multiply_add, self.spill = triple, processor, multiply_add, spill


TARGETS = {
    "AVX-512": Target("x86_64-pc-linux-gnu", "skylake-avx512", r"vfn?m(add|sub)\d+ps\s.*zmm", r"zmm\d+, -?\d*\(%rsp\)"),
    "AVX2": Target("x86_64-pc-windows-msvc", "haswell", r"vfn?m(add|sub)\d+ps\s.*ymm", r"ymm\d+, -?\d*\(%rsp\)"),
    "NEON on macOS": Target("arm64-apple-macosx", "apple-m1", r"fml[as](\.4s|\s+v\d+\.4s)", r"st[rp]\s+q\d+.*\[sp"),
    "NEON on Linux": Target(
        "aarch64-unknown-linux-gnu", "neoverse-n1", r"fml[as](\.4s|\s+v\d+\.4s)", r"st[rp]\s+q\d+.*\[sp"
    ),
}


def emit(kernel):
    """A module with one function that runs the kernel on its arguments."""
    count = len(inspect.signature(kernel.build).parameters) - 1
    module = ir.Module("kernel")
    integers = [vector_ir.I64] * count
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), integers), "run")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    kernel.build(vector_ir.Vectors(builder), *function.args)
    builder.ret_void()
    return str(module)


def assembly(text, target):
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    machine = binding.Target.from_triple(target.triple).create_target_machine(cpu=target.processor, opt=3)
    module = binding.parse_assembly(re.sub(r'target triple = ".*"', f'target triple = "{target.triple}"', text))
    module.triple = target.triple
    options = binding.create_pipeline_tuning_options(speed_level=3)
    binding.create_pass_builder(machine, options).getModulePassManager().run(
        module, binding.create_pass_builder(machine, options)
    )
    return machine.emit_assembly(module)


@pytest.fixture(params=TARGETS)
def target(request, monkeypatch):
    monkeypatch.setattr(vector_ir, "has_avx512", lambda: request.param == "AVX-512")
    return TARGETS[request.param]


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_is_vector_code_without_calls(name, target):
    code = assembly(emit(KERNELS[name]), target)
    assert re.search(target.multiply_add, code), "no vector multiply-add"
    assert not re.search(r"^\s+(callq?|bl)\s", code, re.MULTILINE), "calls a function"


def test_the_product_keeps_its_sums_in_registers(target):
    wide = target is TARGETS["AVX-512"]
    code = assembly(emit(products.product_kernel(*(products.WIDE if wide else products.NARROW))), target)
    rows, vectors = products.WIDE if wide else products.NARROW
    registers = {"zmm": 1, "ymm": 2}.get("zmm" if wide else "ymm" if "x86" in target.triple else "", 4)
    # Four steps unrolled and one for the rest, each a multiply-add per register of sums.
    assert len(re.findall(target.multiply_add, code)) >= 5 * rows * vectors * registers
    assert not re.search(target.spill, code), "sums are kept in memory"


def run_here(kernel, *numbers):
    """Run a kernel on this processor."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(), features=binding.get_host_cpu_features().flatten(), opt=3
    )
    engine = binding.create_mcjit_compiler(binding.parse_assembly(emit(kernel)), machine)
    engine.finalize_object()
    ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * len(numbers))(engine.get_function_address("run"))(*numbers)


FUNCTIONS = {
    "exp2": np.exp2,
    "softplus2": lambda x: np.logaddexp2(0, x / np.log(2)),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
}


@pytest.mark.parametrize("avx512", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_accurate_and_keep_infinities_and_nans_with_and_without_avx512(name, avx512, monkeypatch):
    if avx512 and not vector_ir.has_avx512():
        pytest.skip("this processor has no AVX-512")
    monkeypatch.setattr(vector_ir, "has_avx512", lambda: avx512)

    @vector_ir.vector_kernel
    def apply(v, steps, source, target):
        with v.loop(steps) as step:
            v.store(getattr(v, name)(v.load(v.tile_row(source, step))), v.tile_row(target, step))

    special = [np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-30, -1e-30, 200.0, -200.0]
    x = np.concatenate((special, np.linspace(-125, 125, 1990), np.linspace(-1, 1, 2000))).astype(np.float32)
    found = np.zeros_like(x)
    run_here(apply, len(x) // vector_ir.LANES, x.ctypes.data, found.ctypes.data)
    with np.errstate(all="ignore"):
        expected = FUNCTIONS[name](x.astype(np.float64)).astype(np.float32)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(found[~finite], expected[~finite])
    x, found, expected = x[finite], found[finite], expected[finite]
    # Rounding x log2(e) costs 6e-8 per unit of its size; near the smallest numbers, values and factors end in 0.
    assert (np.abs(found - expected) <= 3e-7 * np.clip(np.abs(x), 1, 1000) * np.abs(expected) + 2.0**-120).all()


def test_the_backward_kernels_are_vector_code(target):
    found = [value for value in vars(numba_backward).values() if hasattr(value, "build")]
    assert found
    for kernel in found:
        code = assembly(emit(kernel), target)
        assert not re.search(r"^\s+(callq?|bl)\s", code, re.MULTILINE), "calls a function"
