"""Own GPU kernels in Triton: not part of this version."""

from __future__ import annotations

from typing import Any, NoReturn

from MambaSegLib.errors import BackendUnavailableError

REASON = "this version has no Triton kernels yet"


def why_unavailable(device: str, needs_gradient: bool) -> str | None:
    """Return the reason, always."""
    del device, needs_gradient
    return REASON


def selective_scan(*_: Any) -> NoReturn:
    """Raise BackendUnavailableError."""
    raise BackendUnavailableError(REASON)


def causal_conv1d(*_: Any) -> NoReturn:
    """Raise BackendUnavailableError."""
    raise BackendUnavailableError(REASON)
