"""Whether bfloat16 is worth training in on this computer: right on its CPU, computed by its GPU.

PyTorch 2.13 on CPUs with AVX-512 bf16 returns uninitialized memory as the weight gradient of a 3 x 3 x 3 convolution whose
input has exactly two slices, for most batch sizes and numbers of threads. Such a training need not diverge, it may only learn
badly, so nobody would notice.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from MambaSegLib.errors import EnvironmentProblemError

ROUNDING = 0.05
"""Relative deviation that bfloat16 cannot reach by rounding: it keeps 8 bits, and sums are taken in float32."""

log = logging.getLogger(__name__)


def check_bfloat16(network: nn.Module, device: torch.device, image_shape: Sequence[int]) -> None:
    """Before a training in bfloat16: refuse a CPU that computes it wrong, warn of a GPU that only emulates it.

    Args:
        network: On the device.
        device: Where it will be trained.
        image_shape: (B, C, Z, Y, X) of the images it will be trained with.

    Raises:
        EnvironmentProblemError: See `require_right_gradients`.
    """
    if device.type == "cpu":
        require_right_gradients(network, image_shape)
    elif device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        log.warning(
            '%s has no bfloat16: PyTorch emulates it, slowly. Set amp = "fp16" in [recipe], or "off".',
            torch.cuda.get_device_name(device),
        )


def require_right_gradients(network: nn.Module, image_shape: Sequence[int]) -> None:
    """Compare the weight gradients of a network's convolutions in bfloat16 with those in float32, on the CPU.

    Args:
        network: On the CPU.
        image_shape: (B, C, Z, Y, X) of the images it will be trained with.

    Raises:
        EnvironmentProblemError: Naming the convolutions that are wrong, and what to do.
    """
    wrong = [
        f"{type(layer).__name__} {tuple(layer.kernel_size)} on {tuple(shape[2:])} voxels"
        for layer, shape in _convolutions(network, image_shape)
        if not _is_right(layer, shape)
    ]
    if wrong:
        msg = (
            f"PyTorch {torch.__version__} computes wrong gradients in bfloat16 on this processor: {'; '.join(wrong)}. "
            'Set amp = "off" in [recipe], or choose a patch size or strides that leave another number of slices there.'
        )
        raise EnvironmentProblemError(msg)


Convolution = nn.Conv3d | nn.ConvTranspose3d


def _convolutions(network: nn.Module, image_shape: Sequence[int]) -> list[tuple[Convolution, torch.Size]]:
    """One convolution of each kind and input shape the network computes."""
    found: dict[tuple[object, ...], tuple[Convolution, torch.Size]] = {}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(layer, (nn.Conv3d, nn.ConvTranspose3d)):
            shape = inputs[0].shape
            kind = (type(layer), tuple(layer.weight.shape), layer.stride, layer.padding, layer.groups, shape)
            found.setdefault(kind, (layer, shape))

    handles = [layer.register_forward_pre_hook(note) for layer in network.modules()]
    was_training = network.training
    try:
        network.eval()  # dropout would use up random numbers that the training is to have
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            network(torch.zeros(*image_shape))
    finally:
        network.train(was_training)
        for handle in handles:
            handle.remove()
    return list(found.values())


def _is_right(layer: Convolution, shape: torch.Size) -> bool:
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    exact = _weight_gradient(layer, image, bf16=False)
    return bool((_weight_gradient(layer, image, bf16=True) - exact).norm() <= ROUNDING * exact.norm())


def _weight_gradient(layer: Convolution, image: Tensor, bf16: bool) -> Tensor:
    twin = copy.deepcopy(layer).requires_grad_(True)
    twin.zero_grad()
    with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = twin(image.clone().requires_grad_(True))  # as inside a network: without it, the fault does not show
    output.float().backward(torch.randn(output.shape, generator=torch.Generator().manual_seed(1)))
    assert twin.weight.grad is not None
    return twin.weight.grad
