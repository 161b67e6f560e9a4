"""MONAI's networks, for the ones that are built on them (extra `baselines`)."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

from MambaSegLib.errors import EnvironmentProblemError

if TYPE_CHECKING:
    from collections.abc import Callable


def monai_network(module: str, name: str, wanted_by: str) -> Callable[..., Any]:
    """A class of `monai.networks.nets`.

    Args:
        module: Its module there.
        name: The class.
        wanted_by: The network of the table that needs it, for the message.

    Raises:
        EnvironmentProblemError: If MONAI or einops, which its transformers use, is not installed.
    """
    missing = [package for package in ("monai", "einops") if find_spec(package) is None]
    if missing:
        msg = (
            f"The network {wanted_by} is built on MONAI and einops; missing here: {', '.join(missing)}. "
            "Install them: pip install 'monai>=1.5' einops."
        )
        raise EnvironmentProblemError(msg)
    return cast("Callable[..., Any]", getattr(import_module(f"monai.networks.nets.{module}"), name))
