"""How much memory a training step of a Mamba U-Net takes, and the patch that fits a budget.

What autograd keeps is counted tensor by tensor, as the layers of `MambaSegLib.networks` compute, and tested against
PyTorch's saved-tensor hooks. Weights, gradients and optimizer are exact. What comes and goes in the backward pass
(`transient`) is an upper estimate, and buffers that cuDNN and the driver take are a constant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from MambaSegLib.errors import InputError
from MambaSegLib.networks import create_network, resolve_plan
from MambaSegLib.networks.mamba_options import MambaOptions, resolve_mamba_options
from MambaSegLib.plan import IntTriple, NetworkPlan, Plan, StagePlan
from MambaSegLib.schema import format_json, from_json, parse_json, to_json
from MambaSegTraining.architecture import Pooling, plan_pooling

FULL, HALF = 4, 2
EXPAND = 2
TILE = 64
"""Positions between two kept states of the scan, while they are few."""
STATE_SHARE, FREE_STATE_BYTES = 0.15, 32 << 20
"""Kept states never take more than this share of the scan's input once they are above the free bytes."""
CUDA_CHUNK = 2048
"""Positions between two kept states in mamba_ssm's kernel."""
DRIVER_BYTES = 0.8e9

Scan = Literal["indexed", "mamba_ssm"]
"""How the scan reads its tensors: by index where they are ("numba", "triton"), or from copies in scan order
("mamba_ssm"; this one is counted from its source and has not been compared with a GPU's own count)."""


@dataclass(frozen=True)
class StepSettings:
    """How a training step is carried out.

    Attributes:
        batch_size: Patches.
        half: Convolutions in bfloat16 or float16; Mamba layers, loss and weights are float32 anyhow.
        recompute: Mamba layers keep their input only, and are computed again in the backward pass.
        scan: See `Scan`.
        optimizer_values: Values the optimizer keeps per weight: 2 for Adam and its kin, 1 for SGD with momentum.
        deep_supervision: Whether the coarser outputs enter the loss.
    """

    batch_size: int = 2
    half: bool = True
    recompute: bool = False
    scan: Scan = "indexed"
    optimizer_values: int = 2
    deep_supervision: bool = True


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes at the highest point of a training step.

    Attributes:
        convolutions: Kept for the backward pass by encoder, decoder and heads.
        mamba: Kept by the Mamba layers.
        states: States kept by the selective scan.
        loss: Kept by the loss.
        weights: Weights, their gradients and the optimizer.
        transient: Gradients of activations, and with recomputation the largest Mamba layer once.
        fixed: Driver and library.
    """

    convolutions: int
    mamba: int
    states: int
    loss: int
    weights: int
    transient: int
    fixed: int

    @property
    def kept(self) -> int:
        """What autograd keeps between forward and backward pass, states of the scan left out."""
        return self.convolutions + self.mamba + self.loss

    @property
    def total(self) -> int:
        """All of it."""
        return self.kept + self.states + self.weights + self.transient + self.fixed

    def describe(self) -> str:
        """One line for a person."""
        parts = {
            "convolutions": self.convolutions, "Mamba layers": self.mamba + self.states, "loss": self.loss,
            "weights": self.weights, "backward pass": self.transient, "driver": self.fixed,
        }  # fmt: skip
        listed = ", ".join(f"{name} {value / 1e9:.2f}" for name, value in parts.items())
        return f"{self.total / 1e9:.2f} GB: {listed}"


def estimate_step(plan: NetworkPlan, settings: StepSettings | None = None) -> MemoryEstimate:
    """Memory of a training step.

    Raises:
        InputError: If the network is none of the Mamba U-Nets.
    """
    if not plan.name.startswith("mamba_unet_"):
        msg = f"There is no memory model of {plan.name}; it knows the Mamba U-Nets."
        raise InputError(msg)
    settings = settings or StepSettings()
    plan, options = resolve_mamba_options(plan)
    batch, voxels = settings.batch_size, _voxels(plan)
    convolutions = _convolution_values(plan, voxels) * batch * (HALF if settings.half else FULL)
    layers = [
        _MambaCost(stage.features, batch * count, options, settings)
        for index, (stage, count) in enumerate(zip(plan.stages, voxels, strict=True))
        if index in (options.mamba_stages or range(len(plan.stages)))
    ]
    weight_count = _weight_count(replace(plan, patch_size=_smallest_patch(plan.stages)))
    once = max((layer.one_direction + layer.one_state for layer in layers), default=0)
    return MemoryEstimate(
        convolutions=convolutions,
        mamba=sum(layer.kept for layer in layers),
        states=sum(layer.kept_states for layer in layers),
        loss=_loss_bytes(plan, voxels, settings) * batch,
        weights=weight_count * (FULL * (2 + settings.optimizer_values) + (HALF if settings.half else 0)),
        transient=_transient(plan, voxels, settings, layers) + (once if settings.recompute else 0),
        fixed=int(DRIVER_BYTES),
    )


def fit_to_budget(
    plan: Plan,
    gigabytes: float,
    settings: StepSettings | None = None,
    *,
    median_shape: Sequence[float] | None = None,
) -> Plan:
    """Shorten the patch by nnU-Net's rule until a training step fits.

    The axis that covers most of the images is shortened by what its strides divide, and strides and kernels are chosen
    anew for the smaller patch; a stage too many is left out.

    Args:
        plan: The plan.
        gigabytes: GPU memory, in 10^9 bytes.
        settings: How a step is carried out.
        median_shape: Median voxels of the training images at the plan's spacing; without it the plan's own patch.

    Returns:
        The plan itself if it fits.

    Raises:
        InputError: If not even the smallest patch fits.
    """
    shape = median_shape or plan.patch_size
    while (needed := estimate_step(plan.network, settings).total) > gigabytes * 1e9:
        smaller = _smaller_patch(plan, shape)
        if smaller is None:
            msg = (
                f"No patch of this network fits {gigabytes:g} GB: {plan.patch_size} takes {needed / 1e9:.1f} GB. "
                "Recompute the Mamba layers, take fewer features, a smaller batch, or more memory."
            )
            raise InputError(msg)
        plan = replace(plan, network=_with_pooling(plan.network, smaller))
    return plan


class _MambaCost:
    """Bytes of one `MambaLayer3d`."""

    def __init__(self, channels: int, tokens: int, options: MambaOptions, settings: StepSettings) -> None:
        states, paths = min(channels, options.d_state_max), options.paths()
        directions = sum(len(path.orders) for path in paths)
        both = sum(len(path.orders) > 1 for path in paths)
        unit = FULL * tokens * channels
        statistics = FULL * tokens * 2
        self.one_direction = _direction_bytes(channels, tokens, states, options, settings)
        self.one_state = _state_bytes(tokens, channels * EXPAND, states, settings)
        kept_directions = 0 if settings.recompute else directions
        # The tokens in float32, the normalized ones where there is an outer norm, and each path's sum before its norm.
        outer = unit + statistics if options.outer_norm else 0
        self.kept = unit + outer + both * (unit + statistics) + kept_directions * self.one_direction
        self.kept_states = kept_directions * self.one_state


def _direction_bytes(channels: int, tokens: int, states: int, options: MambaOptions, settings: StepSettings) -> int:
    """What one scan direction keeps besides its input, in the order `MambaLayer` computes."""
    inner, unit = EXPAND * channels, FULL * tokens
    projected = math.ceil(channels / 16) + 2 * states
    kept = channels  # the normalized tokens, for the input projection
    if settings.scan == "indexed":
        kept += 2 * inner  # x and z, two halves of one tensor
        kept += inner  # after the convolution
        kept += inner  # time steps
        kept += inner  # the scan's output, for the output projection
    else:
        kept += inner  # x, copied for the convolution
        kept += 2 * inner  # after the convolution: in memory order and in scan order
        kept += 2 * inner  # time steps and gate in scan order
        kept += 2 * inner  # output before the gate in scan order, and after it in memory order
        kept += 2 * states  # B and C in scan order
    kept += projected  # time steps of low rank, B and C
    kept += 2 * channels  # before and after the second norm
    if options.head == "mlp":
        kept += 2 * channels  # before and after its activation
    return unit * (kept + 4)  # mean and deviation of two norms


def _state_bytes(tokens: int, inner: int, states: int, settings: StepSettings) -> int:
    if settings.scan == "mamba_ssm":
        return FULL * 2 * states * inner * math.ceil(tokens / CUDA_CHUNK)
    every_tile = FULL * tokens * inner * states // TILE
    return min(every_tile, max(FREE_STATE_BYTES, int(STATE_SHARE * FULL * tokens * inner)))


def _convolution_values(plan: NetworkPlan, voxels: Sequence[int]) -> int:
    """Values per patch kept by stem, encoder and decoder.

    A block keeps the inputs of two norms (outputs of the convolutions) and two activated feature maps; each is also the
    input of the next convolution, which shares it.
    """
    placed = resolve_mamba_options(plan)[1].mamba_stages or range(len(plan.stages))
    values = voxels[0] * (plan.in_channels + 2 * plan.stages[0].features)
    previous = plan.stages[0].features
    for index, (stage, count) in enumerate(zip(plan.stages, voxels, strict=True)):
        values += 4 * stage.features * count * stage.blocks
        if previous != stage.features:
            values += stage.features * count  # input of the shortcut's norm
            values += previous * count if stage.stride != (1, 1, 1) else 0  # its averaged input
        values += stage.features * count if index in placed else 0  # the Mamba layer's output
        previous = stage.features
    for stage, count in zip(plan.stages[:-1], voxels[:-1], strict=True):
        # Upsampled and skipped features side by side, the shortcut's norm, and the blocks.
        values += stage.features * count * (2 + 1 + 4 * stage.decoder_blocks)
    return values


def _loss_bytes(plan: NetworkPlan, voxels: Sequence[int], settings: StepSettings) -> int:
    """Probabilities, their logarithms and one-hot labels in float32, and labels in int64, per output that counts."""
    levels = len(plan.stages) - 1 if settings.deep_supervision and plan.deep_supervision else 1
    counted = voxels[: max(1, levels - 1)]
    return sum(counted) * (3 * plan.out_channels * FULL + 8)


def _transient(plan: NetworkPlan, voxels: Sequence[int], settings: StepSettings, layers: Sequence[_MambaCost]) -> int:
    """Gradients alive at once: three of the widest feature map and two of the logits, or those of one scan direction."""
    width = HALF if settings.half else FULL
    widest = max(2 * stage.features * count for stage, count in zip(plan.stages, voxels, strict=True))
    logits = plan.out_channels * voxels[0] * FULL
    in_decoder = settings.batch_size * (3 * widest * width + 2 * logits)
    return max(in_decoder, max((layer.one_direction for layer in layers), default=0))


def _voxels(plan: NetworkPlan) -> list[int]:
    """Voxels per patch at each stage."""
    size, result = list(plan.patch_size), []
    for stage in plan.stages:
        size = [length // stride for length, stride in zip(size, stage.stride, strict=True)]
        result.append(math.prod(size))
    return result


def _smallest_patch(stages: Sequence[StagePlan]) -> IntTriple:
    z, y, x = (math.prod(stage.stride[axis] for stage in stages) for axis in range(3))
    return z, y, x


def _weight_count(plan: NetworkPlan) -> int:
    """Weights of a network; cached, because a search over patches asks for the same network many times."""
    return _count_from_text(format_json(to_json(plan)))


@lru_cache(maxsize=64)
def _count_from_text(plan: str) -> int:
    import torch

    with torch.device("meta"):
        network = create_network(from_json(NetworkPlan, parse_json(plan, "plan")))
    return sum(parameter.numel() for parameter in network.parameters())


def _smaller_patch(plan: Plan, median_shape: Sequence[float]) -> Pooling | None:
    """The next smaller patch with its strides; None if there is none."""
    patch, stages = list(plan.patch_size), len(plan.network.stages)
    divisors = _smallest_patch(plan.network.stages)
    candidates = [axis for axis in range(3) if patch[axis] > divisors[axis]]
    if not candidates:
        return None
    axis = max(candidates, key=lambda axis: patch[axis] / median_shape[axis])
    patch[axis] -= divisors[axis]
    strides = plan_pooling(plan.spacing_mm, patch, stages).strides
    divisor = math.prod(stride[axis] for stride in strides)
    patch[axis] = max(1, patch[axis] // divisor) * divisor  # the shorter axis may be pooled less often
    pooling = plan_pooling(plan.spacing_mm, patch, stages)
    return pooling if math.prod(pooling.patch_size) < math.prod(plan.patch_size) else None


def _with_pooling(plan: NetworkPlan, pooling: Pooling) -> NetworkPlan:
    rows = zip(plan.stages, pooling.strides, pooling.kernels, strict=False)
    stages = tuple(replace(stage, stride=stride, kernel=kernel) for stage, stride, kernel in rows)
    return resolve_plan(replace(plan, patch_size=pooling.patch_size, stages=stages))
