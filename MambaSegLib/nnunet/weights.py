"""Checkpoints of nnU-Net v2, read as numbers alone, and the names its weights have here.

nnU-Net itself loads checkpoints as pickles that may run anything. Here PyTorch's restricted reader is used, which builds
tensors and plain values, and beside them only the NumPy numbers that nnU-Net keeps of its training's course. Before PyTorch
2.10 that reader could be made to corrupt memory (CVE-2026-24747).
"""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from MambaSegLib.errors import BundleError, EnvironmentProblemError, InputError
from MambaSegLib.networks import create_network
from MambaSegLib.plan import NetworkPlan

if TYPE_CHECKING:
    from torch import Tensor

SAFE_PYTORCH = "2.10"
"""The first version whose restricted reader can be trusted with files from anywhere."""
_MAX_RATIO = 10
"""PyTorch does not compress checkpoints, but unpacks those that were: weights hardly shrink, a bomb does a thousandfold."""
_ZIP_START = b"PK\3\4"
_TWICE = re.compile(r"(^decoder\.encoder\.)|(\.all_modules\.)")
"""Where nnU-Net's modules list a layer again: the decoder its encoder, each block its convolution and norm."""
_RENAMED = (
    (r"^(module\.|_orig_mod\.)+", ""),
    (r"\bencoder\.stem\.convs\.0\.", "encoder.stem.0."),
    (r"\bencoder\.stages\.(\d+)\.0\.convs\.(\d+)\.", r"encoder.stages.\1.\2.0."),
    (r"\bencoder\.stages\.(\d+)\.blocks\.(\d+)\.", r"encoder.stages.\1.\2."),
    (r"\.conv1\.", ".first.0."),
    (r"\.conv2\.", ".second."),
    (r"\.skip\.", ".shortcut."),
    (r"\bdecoder\.stages\.(\d+)\.convs\.(\d+)\.", r"decoder.stages.\1.\2.0."),
    (r"\bdecoder\.transpconvs\.", "decoder.upsample."),
    (r"\bdecoder\.seg_layers\.", "decoder.heads."),
    (r"\bconv\.(weight|bias)$", r"0.\1"),
    (r"\bnorm\.", "1."),
)
"""In this order, from `PlainConvUNet` and `ResidualEncoderUNet` of dynamic-network-architectures to `networks.unet`."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says.

    Attributes:
        weights: nnU-Net's name -> tensor.
        trainer: Class that trained.
        configuration: Name in the plans.
        mirror_axes: Axes nnU-Net mirrors along when it predicts.
        epochs: Epochs trained; 0 where unknown.
        sha256: Of the file.
    """

    weights: Mapping[str, Tensor]
    trainer: str
    configuration: str
    mirror_axes: tuple[int, ...]
    epochs: int
    sha256: str


def parse_checkpoint(content: bytes, name: str) -> Checkpoint:
    """Read a checkpoint.

    Args:
        content: The whole file.
        name: What to call it in a message.

    Raises:
        BundleError: If it holds anything that could run code, is damaged, or is no checkpoint of nnU-Net v2.
        EnvironmentProblemError: If PyTorch is too old to read it safely.
    """
    _require_safe_pytorch()
    _refuse_bomb(content, name)
    data = _load(content, name)
    try:
        weights = {str(key): value for key, value in data["network_weights"].items()}
        axes = data.get("inference_allowed_mirroring_axes") or ()
        return Checkpoint(
            weights=weights,
            trainer=str(data["trainer_name"]),
            configuration=str(data["init_args"]["configuration"]),
            mirror_axes=tuple(sorted(int(axis) for axis in axes)),
            epochs=int(data.get("current_epoch") or 0),
            sha256=hashlib.sha256(content).hexdigest(),
        )
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        msg = f"{name} is no checkpoint of nnU-Net v2: {error!r}."
        raise BundleError(msg) from None


def renamed(weights: Mapping[str, Tensor], plan: NetworkPlan, name: str) -> dict[str, Tensor]:
    """The weights under the names they have in this package's network.

    Args:
        weights: A checkpoint's.
        plan: The network they are for.
        name: What to call the checkpoint in a message.

    Raises:
        InputError: If they are not exactly those of that network, so that another one was trained.
        BundleError: If one is no tensor of numbers that the file holds.
    """
    import torch

    found = {_own_name(key): value for key, value in weights.items() if not _TWICE.search(key)}
    with torch.device("meta"):
        expected = {key: value.shape for key, value in create_network(plan).state_dict().items()}
    differing = sorted(key for key in found.keys() | expected.keys() if _shape(found.get(key)) != expected.get(key))
    if differing:
        msg = (
            f"The weights in {name} are not those of the network in plans.json ({len(differing)} differ, {differing[0]!r} for "
            "example): its trainer built another network, such as one with batch normalization, which cannot be converted."
        )
        raise InputError(msg)
    for key, value in found.items():
        if not _is_plain(value):
            msg = f"The weight {key} in {name} is no plain tensor of floating-point numbers. It is refused."
            raise BundleError(msg)
    return found


def _own_name(name: str) -> str:
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def _shape(value: object) -> object:
    return getattr(value, "shape", None)


def _is_plain(value: Tensor) -> bool:
    """Whether a weight is of real numbers, all of them read from the file: a view may show one number a million times."""
    import torch

    known = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    if value.dtype not in known or value.layout != torch.strided or value.device.type != "cpu":
        return False
    return value.untyped_storage().nbytes() >= value.numel() * value.element_size()


def _require_safe_pytorch() -> None:
    import torch

    if torch.__version__ < SAFE_PYTORCH:
        msg = (
            f"nnU-Net's checkpoints are read with PyTorch {SAFE_PYTORCH} or newer only: in {torch.__version__}, which is installed here, a "
            "prepared file could run code (CVE-2026-24747). Update PyTorch; the converted model then works with any from 2.6."
        )
        raise EnvironmentProblemError(msg)


def _refuse_bomb(content: bytes, name: str) -> None:
    """Refuse a file that unpacks to far more than its size; PyTorch's form before 1.6 packs nothing."""
    if not content.startswith(_ZIP_START):
        return
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, ValueError, LookupError, NotImplementedError, OSError, struct.error) as error:
        msg = f"{name} is damaged, or no checkpoint of nnU-Net v2: {error}."
        raise BundleError(msg) from None
    if unpacked > _MAX_RATIO * len(content):
        msg = f"{name} unpacks to more than {_MAX_RATIO} times its size. It is refused."
        raise BundleError(msg)


def _load(content: bytes, name: str) -> Any:
    import torch

    damaged = f"{name} is damaged, or no checkpoint of nnU-Net v2"
    try:
        with torch.serialization.safe_globals(_numpy_numbers()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of how the file was pickled
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        forbidden = re.search(r"GLOBAL ([\w.]+)", str(error))
        msg = damaged + "."
        if forbidden:
            msg = f"{name} holds {forbidden[1]}, which is no number and could run code. It is refused."
        raise BundleError(msg) from None
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, EOFError) as error:
        first = str(error).partition("\n")[0]
        msg = f"{damaged}: {first}." if first else f"{damaged}."
        raise BundleError(msg) from None


def _numpy_numbers() -> list[Any]:
    """What a pickled NumPy number is made of, under the names NumPy 1 and 2 have for it."""
    import numpy as np

    make = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8")]
    return [(make, "numpy.core.multiarray.scalar"), (make, "numpy._core.multiarray.scalar"), np.dtype, *kinds]
