"""Mamba U-Nets for 3D medical image segmentation: arrays in, arrays out.

Importing this package needs NumPy only; PyTorch, SimpleITK and numba load in the functions that use them, so that a
3D Slicer without PyTorch can still open the module and list its models.

Examples:
    >>> from MambaSegLib import Predictor, load_bundle, read_volume
    >>> predictor = Predictor(load_bundle("mamba_unet_multidirectional.hippocampus"))  # doctest: +SKIP
    >>> predictor.predict(read_volume("t1.nii.gz")).labels.write("t1.seg.nrrd")  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from MambaSegLib.bundle import Bundle, load_bundle, save_bundle
    from MambaSegLib.errors import (
        BackendUnavailableError,
        BundleError,
        CancelledError,
        EnvironmentProblemError,
        InputError,
        MambaSegError,
    )
    from MambaSegLib.model_zoo import install_model, list_models, remove_model
    from MambaSegLib.predictor import Prediction, Predictor
    from MambaSegLib.progress import Progress
    from MambaSegLib.volume import Box, Geometry, Labels, Volume
    from MambaSegLib.volume_io import read_channels, read_labels, read_volume, write_labels

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailableError",
    "Box",
    "Bundle",
    "BundleError",
    "CancelledError",
    "EnvironmentProblemError",
    "Geometry",
    "InputError",
    "Labels",
    "MambaSegError",
    "Prediction",
    "Predictor",
    "Progress",
    "Volume",
    "install_model",
    "list_models",
    "load_bundle",
    "read_channels",
    "read_labels",
    "read_volume",
    "remove_model",
    "save_bundle",
    "write_labels",
]

_HOMES = {
    "bundle": ("Bundle", "load_bundle", "save_bundle"),
    "errors": (
        "BackendUnavailableError",
        "BundleError",
        "CancelledError",
        "EnvironmentProblemError",
        "InputError",
        "MambaSegError",
    ),
    "model_zoo": ("install_model", "list_models", "remove_model"),
    "predictor": ("Prediction", "Predictor"),
    "progress": ("Progress",),
    "volume": ("Box", "Geometry", "Labels", "Volume"),
    "volume_io": ("read_channels", "read_labels", "read_volume", "write_labels"),
}


_PACKAGES = ("networks", "scan")


def __getattr__(name: str) -> object:
    """Import the module of a public name when the name is first used."""
    if name in _PACKAGES:
        return import_module(f"{__name__}.{name}")
    for module, names in _HOMES.items():
        if name in names:
            value: object = getattr(import_module(f"{__name__}.{module}"), name)
            globals()[name] = value
            return value
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
