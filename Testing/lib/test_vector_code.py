"""What LLVM makes of the vector kernels on processors that are not at hand: whole vectors, no library calls, no spilled sums."""

import inspect
import re

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


def test_the_backward_kernels_are_vector_code(target):
    found = [value for value in vars(numba_backward).values() if hasattr(value, "build")]
    assert found
    for kernel in found:
        code = assembly(emit(kernel), target)
        assert not re.search(r"^\s+(callq?|bl)\s", code, re.MULTILINE), "calls a function"
