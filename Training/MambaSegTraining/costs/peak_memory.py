"""The most memory something takes at once."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import torch


class PeakMemory:
    """Counts from when it is made: on a GPU what PyTorch allocates, on the processor what the process grows by."""

    def __init__(self, device: str) -> None:
        """Start counting on "cpu", "cuda", "cuda:1", ..."""
        self._device = torch.device(device)
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
        else:
            with suppress(OSError):  # Linux: sets the peak back to what is in use; elsewhere the peak so far has to do
                Path("/proc/self/clear_refs").write_text("5")
            self._before = _process_peak() or 0

    def added(self) -> int | None:
        """Bytes at the highest point so far, less those in use at the start; None where the system does not tell."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device)) - self._before
        peak = _process_peak()
        return None if peak is None else peak - self._before


def _process_peak() -> int | None:
    status = Path("/proc/self/status")
    if status.is_file():
        # Not getrusage: on Linux a process starts with the peak of the one that started it.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None
