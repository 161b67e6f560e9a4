"""PyTorch's threads sleep between two operations instead of spinning.

Where another program wants the same cores, spinning makes both several times slower. OpenMP takes its settings from the
environment alone, once, when its library is loaded, which PyTorch's import does.
"""

from __future__ import annotations

import os
import sys

SETTINGS = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "KMP_BLOCKTIME": "0",  # the same for Intel's and LLVM's OpenMP
}
"""Environment variables and what they are set to."""


def let_idle_threads_sleep() -> None:
    """Set what is not set yet, for this process and those it starts; for a program's own start."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


def import_torch() -> None:
    """Import PyTorch with threads that sleep, and leave the environment as it was found.

    Where PyTorch has been imported before, its threads stay as they are: import this library's user first, or set
    `SETTINGS` in the environment. Variables that are set already are respected.

    Raises:
        ImportError: If there is no PyTorch.
    """
    if sys.modules.get("torch") is not None:
        return
    missing = [name for name in SETTINGS if name not in os.environ]
    let_idle_threads_sleep()
    try:
        import torch

        torch.get_num_threads()  # LLVM's library reads its settings at the first question, not when it is loaded
    finally:
        for name in missing:
            os.environ.pop(name, None)
