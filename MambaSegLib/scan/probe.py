"""Do kernels compute the right thing on this device? Asked once, with a tiny problem, before anyone relies on them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from MambaSegLib.scan.arguments import Convolution, Scan
from MambaSegLib.scan.order import NATURAL_ORDER

PROBE_TOLERANCE = 1e-4
"""A right kernel in float32 differs from what it is compared with by about 1e-6."""

RunScan = Callable[[Scan], tuple[Tensor, Tensor]]
Convolve = Callable[[Convolution], Tensor]


def probe_failure(run_scan: RunScan, convolve: Convolve, device: str, with_gradient: bool = False) -> str | None:
    """Compare a tiny convolution and scan with the specification; as `disagreement`."""
    from MambaSegLib.scan import pytorch_backend

    specification = pytorch_backend.selective_scan_sequential, pytorch_backend.causal_conv1d
    return disagreement(
        "a tiny scan",
        device,
        lambda: _results(run_scan, convolve, device, with_gradient),
        lambda: _results(*specification, device, with_gradient),
    )


def disagreement(
    what: str, device: str, found: Callable[[], list[Tensor]], wanted: Callable[[], list[Tensor]]
) -> str | None:
    """What is wrong with kernels that compute what was found on a device instead of what was wanted; None if nothing is.

    A build for another GPU, a missing compiler or a broken driver show only when something runs.

    Raises:
        torch.OutOfMemoryError: If the device has no memory for it now.
    """
    try:
        with torch.inference_mode(False):
            differences = [(a - b).abs().max() for a, b in zip(found(), wanted(), strict=True)]
            largest = float(torch.stack(differences).max())  # which a NaN is, unlike for Python's max
    except torch.OutOfMemoryError:  # says nothing about the kernels: the answer would be kept when memory is free again
        raise
    except Exception as error:  # noqa: BLE001 - a broken build raises whatever it likes; the person gets its words
        return f"{what} failed on {device} ({type(error).__name__}: {error})"
    return None if largest < PROBE_TOLERANCE else f"{what} on {device} is off by {largest:.2g}"


def _results(run_scan: RunScan, convolve: Convolve, device: str, with_gradient: bool) -> list[Tensor]:
    """Outputs, and on request the gradients of the rows and the taps."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, 4, 9), (1, 4, 9), (1, 2, 9), (1, 2, 9), (4, 4))
    # Whatever PyTorch makes tensors of by default, these are float32.
    drawn = [torch.randn(*shape, generator=generator, dtype=torch.float32, device="cpu") for shape in shapes]
    tensors = [t.to(device).requires_grad_(with_gradient) for t in drawn]
    x, delta, B, C, taps = tensors
    decays = -torch.ones(4, 2, dtype=torch.float32, device=device)
    walk = (1, 1, 9), NATURAL_ORDER
    kind = x.device.type
    # Autocast would round the specification's convolution.
    with torch.autocast(kind, enabled=False), torch.set_grad_enabled(with_gradient):
        u = convolve(Convolution(x, taps, None, True, *walk))
        output, _ = run_scan(Scan(u, delta, decays, B, C, None, None, None, True, *walk))
    if not with_gradient:
        return [u, output]
    torch.autograd.backward(output.sum())
    return [u.detach(), output.detach(), *(t.grad for t in tensors if t.grad is not None)]
