"""The options --device and --threads, as steps share them."""

from __future__ import annotations

import argparse

from MambaSegLib.devices import resolve_device


def device_of(options: argparse.Namespace) -> str:
    """Set the threads and name the device to compute on, which becomes the present one of CUDA.

    Raises:
        InputError: If there is no device of that name.
        EnvironmentProblemError: If it is not there.
    """
    import torch

    if options.threads:
        import SimpleITK

        torch.set_num_threads(options.threads)  # Numba's kernels ask PyTorch
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(options.threads)  # type: ignore[no-untyped-call]
    if options.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    device = resolve_device(options.device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # or whatever asks for no device would take memory of the first one
    return str(device)
