"""How much memory a training step of a Mamba U-Net takes, and the patch that fits a budget.

What autograd keeps is counted tensor by tensor, as the layers of `MambaSegLib.networks` compute (Mamba layers in
`mamba_memory`), and tested against PyTorch's saved-tensor hooks. Weights, gradients and optimizer are exact. What comes and
goes in the backward pass (`transient`) is an upper estimate, and buffers that cuDNN and the driver take are a constant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from MambaSegLib.errors import InputError
from MambaSegLib.networks import create_network, resolve_plan
from MambaSegLib.networks.mamba_options import resolve_mamba_options
from MambaSegLib.plan import IntTriple, NetworkPlan, Plan, StagePlan
from MambaSegLib.schema import format_json, from_json, parse_json, to_json
from MambaSegTraining.architecture import Pooling, plan_pooling
from MambaSegTraining.mamba_memory import FULL, HALF, Scan, mamba_cost

DRIVER_BYTES = 0.8e9
UNUSED_SHARE = 0.05
"""Of what is allocated: what lies unused between the allocator's blocks, a guess on the safe side."""


@dataclass(frozen=True)
class StepSettings:
    """How a training step is carried out.

    Attributes:
        batch_size: Patches.
        half: Convolutions in bfloat16 or float16; loss and weights are float32 anyhow.
        mamba_half: What lies between the projections of a Mamba layer in bfloat16, too; it never is in float16.
        recompute: Mamba layers keep their input only, and are computed again in the backward pass.
        scan: See `Scan`.
        optimizer_values: Values the optimizer keeps per weight: 2 for Adam and its kin, 1 for SGD with momentum.
        deep_supervision: Whether the coarser outputs enter the loss.
    """

    batch_size: int = 2
    half: bool = True
    mamba_half: bool = True
    recompute: bool = False
    scan: Scan = "side_by_side"
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
        transient: Gradients of activations, room of the scan's kernels, and what Mamba layers compute again.
        fixed: Driver, library, and what the allocator cannot use.
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
    width = batch * (HALF if settings.half else FULL)
    encoder, decoder = _encoder_values(plan, voxels) * width, _decoder_values(plan, voxels) * width
    layers = [
        mamba_cost(
            stage.features,
            batch * count,
            options,
            settings.scan,
            recompute=settings.recompute,
            half=settings.mamba_half,
        )
        for index, (stage, count) in enumerate(zip(plan.stages, voxels, strict=True))
        if index in (options.mamba_stages or range(len(plan.stages)))
    ]
    loss = _loss_bytes(plan, voxels, settings) * batch
    # Mamba layers are in the encoder: when their gradients are due, the decoder's activations are no more.
    in_encoder = max((layer.backward for layer in layers), default=0) - decoder - loss
    weight_count = _weight_count(replace(plan, patch_size=_smallest_patch(plan.stages)))
    estimate = MemoryEstimate(
        convolutions=encoder + decoder,
        mamba=sum(layer.kept for layer in layers),
        states=sum(layer.kept_states for layer in layers),
        loss=loss,
        weights=weight_count * (FULL * (2 + settings.optimizer_values) + (HALF if settings.half else 0)),
        transient=max(_in_decoder(plan, voxels, settings), in_encoder),
        fixed=int(DRIVER_BYTES),
    )
    return replace(estimate, fixed=estimate.fixed + int(UNUSED_SHARE * (estimate.total - estimate.fixed)))


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


def _encoder_values(plan: NetworkPlan, voxels: Sequence[int]) -> int:
    """Values per patch kept by stem and encoder.

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
    return values


def _decoder_values(plan: NetworkPlan, voxels: Sequence[int]) -> int:
    """The same of the decoder."""
    values = 0
    for stage, count in zip(plan.stages[:-1], voxels[:-1], strict=True):
        # Upsampled and skipped features side by side, the shortcut's norm, and the blocks.
        values += stage.features * count * (2 + 1 + 4 * stage.decoder_blocks)
    return values


def _loss_bytes(plan: NetworkPlan, voxels: Sequence[int], settings: StepSettings) -> int:
    """Probabilities, their logarithms and one-hot labels in float32, and labels in int64, per output that counts."""
    levels = len(plan.stages) - 1 if settings.deep_supervision and plan.deep_supervision else 1
    counted = voxels[: max(1, levels - 1)]
    return sum(counted) * (3 * plan.out_channels * FULL + 8)


def _in_decoder(plan: NetworkPlan, voxels: Sequence[int], settings: StepSettings) -> int:
    """Gradients alive at once: three of the widest feature map and two of the logits."""
    width = HALF if settings.half else FULL
    widest = max(2 * stage.features * count for stage, count in zip(plan.stages, voxels, strict=True))
    logits = plan.out_channels * voxels[0] * FULL
    return settings.batch_size * (3 * widest * width + 2 * logits)


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
