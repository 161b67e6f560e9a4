"""The options --device and --threads, as steps share them."""

from __future__ import annotations

import argparse

from MambaSegLib.errors import InputError
from MambaSegLib.limits import set_threads


def device_of(options: argparse.Namespace) -> str:
    """Set the threads and name the device to compute on.

    Raises:
        InputError: If the device cannot be used here.
    """
    import torch

    set_threads(options.threads)
    if options.threads:
        import SimpleITK

        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(options.threads)  # type: ignore[no-untyped-call]
    if options.device != "auto":
        try:
            torch.empty(1, device=options.device)
        except (RuntimeError, AssertionError) as error:
            msg = f"The device {options.device} cannot be used here: {str(error).splitlines()[0]}"
            raise InputError(msg) from error
        return str(options.device)
    return "cuda" if torch.cuda.is_available() else "cpu"
