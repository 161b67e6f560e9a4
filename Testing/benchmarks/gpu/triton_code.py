"""Compile the Triton kernels for several GPUs, without one, and show what they need: registers, spills, instructions.

    python Testing/benchmarks/gpu/triton_code.py                      # all stages for sm_75, sm_80, sm_90
    python Testing/benchmarks/gpu/triton_code.py --stages s1 --architectures 90 --output results/code

Every stage of a 48 x 192 x 192 patch is compiled as `triton_tuning.rule` divides it. A spill means a register too many: the
program then waits for memory in its innermost loop. "instr/exp2" is the instructions of that loop per exponential in it, from
the machine code; a state update has one, in `chunk_gradients` 2 - 1 / kept_every. A multiprocessor issues 128 per cycle and
thread, of which 16 may be exponentials: below 8 they are the limit.
"""

from __future__ import annotations

import argparse
import collections
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from MambaSegLib.networks import norm_kernels, norm_launch
from MambaSegLib.scan import (
    triton_backward,
    triton_convolution,
    triton_forward,
    triton_norms,
    triton_norms_launch,
    triton_tuning,
)
from MambaSegLib.scan.triton_steps import COUNTS
from MambaSegLib.scan.triton_tuning import ScanConfig

STAGES = {
    "s1": (1_769_472, 64, 32),
    "s1n16": (1_769_472, 64, 16),
    "s2": (442_368, 128, 64),
    "s3": (55_296, 256, 128),
    "s4": (6_912, 512, 256),
    "s5": (864, 640, 256),
    "s6": (108, 640, 256),
}
"""Tokens, channels, states."""
STEPS = ("_group", "_batch", "_row")
MAP_SIZES = ("rows", "voxels", "channels")
HALF_ROWS = {"u", "delta", "z", "dout", "out", "du", "ddelta", "dz", "x", "dx", "headed", "mixed", "dresults"}
HALF_ROWS |= {"residual", "dresidual"}
"""What is bfloat16 in a network (float16 on GPUs before sm_80); the rest is float32."""


@dataclass(frozen=True)
class Code:
    """One kernel's machine code for one kind of GPU."""

    stage: str
    kernel: str
    architecture: int
    config: str
    registers: int
    spilled_bytes: int
    shared_bytes: int
    instructions_per_exponential: float | None


def kernels(stage: str) -> list[tuple[Any, dict[str, Any], ScanConfig, int]]:
    """Every kernel with its constants, and the updates one thread makes in one round of its innermost loop."""
    length, channels, states = STAGES[stage]
    wide = triton_tuning.power_of_2(states)
    found: list[tuple[Any, dict[str, Any], ScanConfig, int]] = []
    for kind, functions in (
        ("forward", (triton_forward.chunk_ends, triton_forward.chunk_outputs)),
        ("backward", (triton_backward.chunk_leaving, triton_backward.chunk_gradients)),
    ):
        config = triton_tuning.rule(kind, channels, states, length, 1)  # type: ignore[arg-type]
        common = {"D": channels, "N": states, "SOFTPLUS": True, "CHUNK": config.chunk}
        common |= {"BLOCK_N": wide}
        if config.chunk >= length:  # nothing comes from, or goes to, another chunk
            common |= {"starts": None, "leaving": None}
            functions = functions[1:]
        for function in functions:
            boundary = function in (triton_forward.chunk_ends, triton_backward.chunk_leaving)
            block = config.boundary_channels if boundary else config.block_channels
            steps = config.kept_every if function is triton_backward.chunk_gradients else config.unroll
            own = {"KEPT" if function is triton_backward.chunk_gradients else "UNROLL": steps}
            per_thread = steps * block * wide // (32 * config.warps)
            found.append((function, common | own | {"BLOCK_D": block}, config, per_thread))
    narrow = ScanConfig(32, 32, 32, 4)
    found.append(
        (triton_forward.carry, {"D": channels, "N": states, "BACKWARD": False, "AT_ONCE": 32, "BLOCK_D": 32}, narrow, 0)
    )
    joined = {"N": states, "BLOCK_T": max(1, 1024 // wide), "BLOCK_N": wide, "BLOCK_D": 0}
    found.append((triton_backward.join_parts, joined, narrow, 0))
    taps = {"D": channels, "K": 4, "SILU": True, "BLOCK_T": triton_tuning.CONVOLUTION_BLOCK[0], "BLOCK_D": 64}
    found += [(f, taps, narrow, 0) for f in (triton_convolution.convolve, triton_convolution.convolve_gradients)]
    rows = triton_norms_launch.block(channels // 2) | {"EACH": 2, "BLOCK_D": channels // 2}
    norms = (triton_norms.add_norm, triton_norms.sum_paths)
    norm_gradients = (triton_norms.add_norm_gradients, triton_norms.sum_paths_gradients)
    found += [(f, rows, narrow, 0) for f in (*norms, *norm_gradients)]
    return found + map_norms(channels // 2, length)


def map_norms(channels: int, voxels: int) -> list[tuple[Any, dict[str, Any], ScanConfig, int]]:
    """Kernels of the instance normalization of a stage's map, in both layouts; those for short rows on what they take."""
    pieces = [norm_kernels.moments, norm_kernels.normalize, norm_kernels.gradient_sums, norm_kernels.gradients]
    whole = [norm_kernels.normalize_whole, norm_kernels.gradients_whole]
    found = []
    for form in (torch.contiguous_format, torch.channels_last_3d):
        for functions, size in ((pieces, max(voxels, 16_384)), (whole, min(voxels, 864))):
            layout = norm_launch.Layout(torch.empty((1, channels, size, 1, 1), device="meta").to(memory_format=form))
            constants = layout.constants | {"ACTIVATE": True, "BLOCK_D": layout.constants["ROWS"]}
            config = ScanConfig(constants["ROWS"], constants["ROWS"], constants["VOXELS"], constants["num_warps"])
            found += [(function, constants, config, 0) for function in functions]
    joined = {**norm_launch.JOIN, "BLOCK_D": norm_launch.JOIN["SLOTS"]}
    config = ScanConfig(4, 4, joined["PARTS"], joined["num_warps"])
    return found + [(f, joined, config, 0) for f in (norm_kernels.join_moments, norm_kernels.join_sums)]


def signature(function: Any, constants: dict[str, Any], architecture: int) -> dict[str, str]:
    """Types of a kernel's arguments as in a network on this GPU."""
    half = "*bf16" if architecture >= 80 else "*fp16"
    types = {}
    for name in function.arg_names:
        if name in constants:
            types[name] = "constexpr"
        elif name == "paths":
            types[name] = "*i32"
        elif name in HALF_ROWS:
            types[name] = half
        elif name in COUNTS or name in norm_kernels.VARYING or name in MAP_SIZES:
            types[name] = "i32"
        elif name.endswith(STEPS):
            types[name] = "i32"  # as Triton's launcher passes a step that fits
        elif name in ("eps", "slope"):
            types[name] = "fp32"
        else:
            types[name] = "*fp32"
    return types


def compile_for(function: Any, constants: dict[str, Any], warps: int, architecture: int) -> Any:
    """Triton's compiled kernel; needs no GPU."""
    constants = {name: value for name, value in constants.items() if name in function.arg_names}
    at = {(function.arg_names.index(name),): value for name, value in constants.items()}
    types = signature(function, constants, architecture)
    # What the launcher finds out itself on a GPU: addresses and steps divide by 16.
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, t) in enumerate(types.items())
        if t.startswith("*") or name.endswith(STEPS) or name in MAP_SIZES
    }
    source = ASTSource(fn=function, signature=types, constexprs=at, attrs=aligned)
    return triton.compile(
        source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": warps, "enable_fp_fusion": True}
    )


def cuobjdump(option: str, cubin: Path) -> str:
    """Triton's own tool reads its machine code."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([str(tool), option, str(cubin)], check=True, capture_output=True, text=True).stdout


def loops(code: str) -> list[collections.Counter[str]]:
    """Instructions between each backward branch and its target, innermost first."""
    instructions = [(int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(.*?);", code)]
    found = []
    for at, text in instructions:
        target = re.search(r"0x([0-9a-f]+)", text)
        if "BRA" in text and target and int(target[1], 16) < at:
            first = int(target[1], 16)
            names = (re.sub(r"^@!?U?P\d+\s+", "", t.strip()).split()[0] for a, t in instructions if first <= a <= at)
            found.append((at - first, collections.Counter(names)))
    return [counts for _, counts in sorted(found, key=lambda pair: pair[0])]


def examine(
    stage: str, architecture: int, function: Any, constants: dict[str, Any], config: ScanConfig, updates: int
) -> Code:
    """Compile one kernel and read its machine code."""
    compiled = compile_for(function, constants, config.warps, architecture)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage, code = cuobjdump("--dump-resource-usage", cubin), cuobjdump("--dump-sass", cubin)
    registers = int(re.search(r"REG:(\d+)", usage)[1])  # type: ignore[index]
    stack = int(re.search(r"STACK:(\d+)", usage)[1])  # type: ignore[index]
    ratio = None
    if updates:
        # The innermost loop with that many exponentials is the one over time steps; the last such loop goes backward.
        main = [c for c in loops(code) if sum(n for name, n in c.items() if name.startswith("MUFU.EX2")) >= updates]
        counts = main[-1 if "gradients" in function.__name__ else 0] if main else {}
        ratio = (
            sum(counts.values()) / sum(n for name, n in counts.items() if name.startswith("MUFU.EX2")) if main else None
        )
    return Code(
        stage, function.__name__, architecture, f"{constants['BLOCK_D']} channels, chunk {config.chunk}, {config.warps} warps",
        registers, stack, compiled.metadata.shared, ratio,
    )  # fmt: skip


def markdown(codes: list[Code]) -> str:
    """A table for a person."""
    lines = [
        "| stage | kernel | sm | division | registers | spilled B | shared B | instr/exp2 |",
        "|---|---|--:|---|--:|--:|--:|--:|",
    ]
    for c in codes:
        ratio = "" if c.instructions_per_exponential is None else f"{c.instructions_per_exponential:.1f}"
        lines.append(
            f"| {c.stage} | {c.kernel} | {c.architecture} | {c.config} | {c.registers} | {c.spilled_bytes} "
            f"| {c.shared_bytes} | {ratio} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Compile, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--architectures", nargs="+", type=int, default=[75, 80, 90])
    parser.add_argument("--kernels", nargs="+", help="these only, by name")
    parser.add_argument("--output", type=Path, help="also write OUTPUT.md and OUTPUT.json")
    options = parser.parse_args()
    codes = []
    for stage in options.stages:
        for architecture in options.architectures:
            for entry in kernels(stage):
                if options.kernels and entry[0].__name__ not in options.kernels:
                    continue
                codes.append(examine(stage, architecture, *entry))
                print(markdown(codes[-1:]).splitlines()[-1], flush=True)
    print(f"\n{markdown(codes)}\n\ntriton {triton.__version__}")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.with_suffix(".md").write_text(markdown(codes) + "\n", encoding="utf-8")
        options.output.with_suffix(".json").write_text(
            json.dumps([asdict(c) for c in codes], indent=1), encoding="utf-8"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
