"""Which device computes: the one asked for if it is there, or the fastest that is known to work."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING

from MambaSegLib.errors import EnvironmentProblemError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import nn

log = logging.getLogger(__name__)


def resolve_device(name: str = "auto") -> torch.device:
    """Find a device.

    Args:
        name: "auto", "cpu", "cuda", "cuda:1", "mps". "auto" takes CUDA, else MPS if it computes what a network needs
            as the CPU does, else the CPU.

    Raises:
        EnvironmentProblemError: If the device asked for is not there.
        InputError: If there is no device of that name.
    """
    import torch

    if name == "auto":
        return _fastest()
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        msg = f"there is no device {name!r}; choose auto, cpu, cuda (or cuda:0, cuda:1, ...) or mps"
        raise InputError(msg)
    if device.type == "cuda":
        _check_cuda(device)
    if device.type == "mps" and not torch.backends.mps.is_available():
        msg = "the device mps (Apple's GPU) is not there: it needs a Mac with Apple silicon. Choose auto or cpu."
        raise EnvironmentProblemError(msg)
    return device


def unavailable_devices() -> dict[str, str]:
    """Kinds of devices that are not there, each with its reason."""
    return {name: problem for name in ("cuda", "mps") if (problem := _problem(name))}


def _problem(name: str) -> str:
    try:
        resolve_device(name)
    except EnvironmentProblemError as error:
        return str(error)
    return ""


def device_name(device: torch.device) -> str:
    """What to call a device: "cpu", "mps", "cuda:0 (NVIDIA H100)"."""
    import torch

    if device.type != "cuda":
        return device.type
    index = device.index or 0
    return f"cuda:{index} ({torch.cuda.get_device_name(index)})"


def place(network: nn.Module, device: torch.device) -> None:
    """Bring a network to a device, in the layout its convolutions compute in there: channels last on NVIDIA's GPUs.

    With channels last, tokens of Mamba layers are views of feature maps, and slices of a volume are a batch of images.
    """
    import torch

    network.to(device)
    if device.type != "cuda":
        return
    for parameter in network.parameters():
        if parameter.dim() == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)


_measuring = Lock()
_found: list[bool] = []  # once per work under way, what `measured_convolutions` found before the first of them


@contextmanager
def measured_convolutions() -> Iterator[None]:
    """For work on maps of always the same sizes: cuDNN measures its algorithms for each convolution instead of guessing.

    The setting is the whole process's, which may be another program's, so it ends with the work, or with the last one of
    several threads. Which algorithm wins, and with it the rounding, may differ from run to run: where PyTorch is asked for
    deterministic algorithms, nothing changes.
    """
    import torch

    with _measuring:
        _found.append(_found[0] if _found else torch.backends.cudnn.benchmark)
        deterministic = torch.are_deterministic_algorithms_enabled() or torch.backends.cudnn.deterministic
        torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark or not deterministic
    try:
        yield
    finally:
        with _measuring:
            before = _found.pop()
            if not _found:
                torch.backends.cudnn.benchmark = before


def _check_cuda(device: torch.device) -> None:
    import torch

    if not torch.cuda.is_available():
        reason = (
            "this PyTorch was built without CUDA" if torch.version.cuda is None else "no NVIDIA GPU or driver found"
        )
        msg = f"the device {device} is not there: {reason}. Choose auto or cpu."
        raise EnvironmentProblemError(msg)
    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        msg = f"the device {device} is not there: this computer has {count}, numbered from 0"
        raise EnvironmentProblemError(msg)


def _fastest() -> torch.device:
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available() and _mps_agrees():
        return torch.device("mps")
    return torch.device("cpu")


@lru_cache(maxsize=1)
def _mps_agrees() -> bool:
    """Whether Apple's GPU does 3D convolutions, transposed ones and normalization, and as the CPU does.

    Older versions of PyTorch refuse transposed 3D convolutions there, and wrong results have been reported.
    """
    import torch
    from torch import nn

    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(
        nn.Conv3d(2, 4, 3, padding=1, stride=2), nn.InstanceNorm3d(4, affine=True), nn.ConvTranspose3d(4, 3, 2, 2)
    )
    image = torch.rand((1, 2, 8, 8, 8), generator=generator)
    with torch.no_grad():
        expected = network(image)
        try:
            found = network.to("mps")(image.to("mps")).cpu()
        except (RuntimeError, NotImplementedError) as error:
            log.info("Apple's GPU is not used: %s", error)
            return False
    agrees = bool(torch.allclose(found, expected, atol=1e-3))
    if not agrees:
        log.warning("Apple's GPU is not used: it computes convolutions differently from the CPU")
    return agrees
