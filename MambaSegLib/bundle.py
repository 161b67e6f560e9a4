"""A trained model on disk: a folder or .zip with `bundle.json`, `fold_*.safetensors` and `MODEL_CARD.md`.

Data only: the manifest is JSON read into checked records, the weights are safetensors whose SHA-256 is verified before
they are parsed, and the network is built from the closed table in `networks`. Nothing in a bundle can run code.
"""

from __future__ import annotations

import dataclasses
import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MambaSegLib.atomic import new_file, new_folder
from MambaSegLib.bundle_files import CARD_FILE, MANIFEST_FILE, BundleFiles, max_bytes, open_bundle_files
from MambaSegLib.errors import BundleError, EnvironmentProblemError
from MambaSegLib.manifest import SCHEMA_VERSION, BundleManifest, FoldFile, Metric, Provenance, WeightType
from MambaSegLib.manifest_check import check_manifest, check_schema_version, fold_file_name
from MambaSegLib.model_card import model_card
from MambaSegLib.model_folders import BUNDLED_MODELS, default_models_folder, find_model_folder, model_names
from MambaSegLib.networks import resolve_plan
from MambaSegLib.schema import format_json, from_json, parse_json, to_json

if TYPE_CHECKING:
    from torch import Tensor

    from MambaSegLib.networks.contract import SegmentationNetwork

__all__ = [
    "SCHEMA_VERSION",
    "Bundle",
    "BundleManifest",
    "FoldFile",
    "Metric",
    "Provenance",
    "WeightType",
    "load_bundle",
    "pack_bundle",
    "save_bundle",
]

_HALF_MAX = 65504.0


class Bundle:
    """A trained model: its manifest at hand, its weights on demand.

    Attributes:
        manifest: What `bundle.json` says, checked.
        path: The folder or .zip it lives in.
        sha256: SHA-256 of `bundle.json`. As that holds the hash of every weight file, it identifies the model.
    """

    def __init__(self, files: BundleFiles) -> None:
        """Read and check the manifest.

        Raises:
            BundleError: If it is damaged, of a newer version, makes no sense, or names weights that are not there.
        """
        content = files.read(MANIFEST_FILE)
        data = parse_json(content, MANIFEST_FILE)
        check_schema_version(data)
        self.manifest: BundleManifest = from_json(BundleManifest, data, MANIFEST_FILE)
        check_manifest(self.manifest)
        self.path: Path = files.path
        self.sha256: str = hashlib.sha256(content).hexdigest()
        self._files = files
        self._check_weight_files()

    @property
    def name(self) -> str:
        """`network.dataset`."""
        return self.manifest.name

    @property
    def fold_indices(self) -> tuple[int, ...]:
        """Folds that have weights."""
        return tuple(fold.index for fold in self.manifest.folds)

    @property
    def files(self) -> BundleFiles:
        """The files of the bundle."""
        return self._files

    def load_weights(self, fold: int) -> dict[str, Tensor]:
        """Read the weights of one fold.

        Args:
            fold: One of `fold_indices`.

        Returns:
            Parameter name -> tensor on the CPU; floating-point ones are float32 however they were stored.

        Raises:
            BundleError: If the file's hash is not the one in the manifest, or it is no safetensors file of finite
                numbers.
        """
        entry = self._fold(fold)
        content = self.verified_bytes(entry)
        weights = _parse_weights(content, entry.file)
        return {name: _as_loaded(tensor, name, entry) for name, tensor in weights.items()}

    def load_network(self, fold: int) -> SegmentationNetwork:
        """Build the network and give it the weights of one fold.

        Raises:
            BundleError: As `load_weights`; if weights and network do not belong together.
            InputError: If the plan asks for what the network's builder refuses.
        """
        weights = self.load_weights(fold)
        from MambaSegLib.bundle_network import network_with_weights

        return network_with_weights(self.manifest.plan.network, weights, self.name)

    def verified_bytes(self, entry: FoldFile) -> bytes:
        """Content of a weight file; the very bytes that were hashed, so that no swap in between goes unseen.

        Raises:
            BundleError: If the hash is not the one in the manifest.
        """
        content = self._files.read(entry.file)
        found = hashlib.sha256(content).hexdigest()
        if found != entry.sha256:
            message = (
                f"{entry.file} of {self.name} is not the file its model was published with (SHA-256 {found[:12]}..., "
                f"expected {entry.sha256[:12]}...). Download the model again."
            )
            raise BundleError(message)
        return content

    def verify(self) -> None:
        """Check the hash of every weight file.

        Raises:
            BundleError: At the first that differs.
        """
        for entry in self.manifest.folds:
            self.verified_bytes(entry)

    def _fold(self, index: int) -> FoldFile:
        for entry in self.manifest.folds:
            if entry.index == index:
                return entry
        known = ", ".join(str(fold) for fold in self.fold_indices)
        message = f"{self.name} has no fold {index}; it has {known}."
        raise BundleError(message)

    def _check_weight_files(self) -> None:
        if not self.manifest.folds:
            message = f"{MANIFEST_FILE}: folds: is empty; a model needs weights."
            raise BundleError(message)
        for entry in self.manifest.folds:
            found = self._files.size(entry.file)
            if found != entry.bytes:
                message = (
                    f"{entry.file} of {self.name} has {found} bytes, expected {entry.bytes}. Download the model again."
                )
                raise BundleError(message)


def load_bundle(name_or_path: str | Path, *, models_dir: Path | None = None) -> Bundle:
    """Open a trained model; its weights are read later.

    Args:
        name_or_path: Name of a bundled or installed model, or path of a bundle's folder or .zip.
        models_dir: Folder of installed models; None takes the user's own.

    Raises:
        BundleError: If there is no such model (the message lists the ones there are) or it cannot be trusted.
    """
    # A name wins over a folder of that name in the working directory: the same command means the same model anywhere.
    folder = find_model_folder(str(name_or_path), models_dir)
    if folder is None and not _exists(Path(name_or_path)):
        raise _unknown_model(str(name_or_path), models_dir)
    return Bundle(open_bundle_files(folder or Path(name_or_path)))


def save_bundle(
    manifest: BundleManifest,
    weights: Mapping[int, Mapping[str, Tensor]],
    folder: str | Path,
    *,
    half: bool = False,
    attachments: Sequence[str | Path] = (),
    force: bool = False,
) -> Bundle:
    """Write a trained model; it appears whole or not at all.

    Args:
        manifest: All but `folds`, which are filled in here from the weights.
        weights: Fold index -> state dict of its network.
        folder: Folder of the bundle (not its parent). A path that ends in .zip makes an archive.
        half: Store float32 weights as float16: half the size, relative rounding 5e-4 of each weight.
        attachments: Files to add: LICENSE*, and .png or .jpg figures (they go to `figures/`).
        force: Replace a bundle that is already there.

    Returns:
        The bundle as read back.

    Raises:
        BundleError: If license, intended use, limits or metrics are missing or the manifest makes no sense; if a weight
            is not finite; if the target exists and `force` is not given.
    """
    target = Path(folder)
    if target.exists() and not force:
        message = f"{target} exists already. Remove it, choose another place, or ask to overwrite it."
        raise BundleError(message)
    dtype: WeightType = "float16" if half else "float32"
    blobs = {index: _format_weights(state, half) for index, state in sorted(weights.items())}
    folds = tuple(_fold_file(index, blob, dtype) for index, blob in blobs.items())
    # Every option is written out, so that stored weights never depend on the defaults of a later version.
    plan = dataclasses.replace(manifest.plan, network=resolve_plan(manifest.plan.network))
    complete = dataclasses.replace(manifest, schema_version=SCHEMA_VERSION, plan=plan, folds=folds)
    contents = _described(complete, blobs) | _attached(attachments)
    if target.suffix.lower() == ".zip":
        _write_zip(contents, target)
    else:
        _write_folder(contents, target)
    return Bundle(open_bundle_files(target))


def pack_bundle(bundle: Bundle, path: str | Path) -> None:
    """Write a bundle as one .zip, to share it.

    Raises:
        BundleError: If a weight file is damaged.
    """
    bundle.verify()
    _write_zip({name: bundle.files.read(name) for name in bundle.files.names()}, Path(path))


def _exists(path: Path) -> bool:
    try:
        return path != Path() and path.exists()  # an empty name is no path to the working directory
    except (OSError, ValueError):  # too long, or with a null byte
        return False


def _unknown_model(name: str, models_dir: Path | None) -> BundleError:
    folder = models_dir or default_models_folder()
    known = sorted({*model_names(BUNDLED_MODELS), *model_names(folder)})
    listing = ", ".join(known) if known else "none yet"
    return BundleError(
        f'There is no model "{name if len(name) <= 200 else name[:200] + "..."}". Models here: {listing}. '
        "Give one of these names, or the path of a model's folder or .zip file."
    )


def _described(manifest: BundleManifest, blobs: Mapping[int, bytes]) -> dict[str, bytes]:
    text = format_json(to_json(manifest))
    # Reading it back finds values the records let through, such as a list of text where numbers belong.
    check_manifest(from_json(BundleManifest, parse_json(text, MANIFEST_FILE), MANIFEST_FILE))
    if not manifest.folds:
        message = "A model needs the weights of at least one fold."
        raise BundleError(message)
    return {
        MANIFEST_FILE: text.encode(),
        CARD_FILE: model_card(manifest).encode(),
        **{fold_file_name(index): blob for index, blob in blobs.items()},
    }


def _attached(attachments: Sequence[str | Path]) -> dict[str, bytes]:
    contents = {}
    for attachment in map(Path, attachments):
        name = attachment.name if attachment.name.startswith("LICENSE") else f"figures/{attachment.name}"
        limit = max_bytes(name)
        if limit is None or attachment.stat().st_size > limit:
            message = f"{attachment} cannot go into a model: only LICENSE files and .png or .jpg figures can."
            raise BundleError(message)
        contents[name] = attachment.read_bytes()
    return contents


def _write_folder(contents: Mapping[str, bytes], target: Path) -> None:
    with new_folder(target) as work:
        for name, content in contents.items():
            (work / name).parent.mkdir(exist_ok=True)
            (work / name).write_bytes(content)


def _write_zip(contents: Mapping[str, bytes], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with new_file(target) as work, zipfile.ZipFile(work, "w") as archive:
        for name, content in contents.items():
            # A fixed date: the same model gives the same archive. Weights hardly compress, so they are stored.
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_STORED if name.endswith(".safetensors") else zipfile.ZIP_DEFLATED
            archive.writestr(info, content)


def _fold_file(index: int, blob: bytes, dtype: WeightType) -> FoldFile:
    return FoldFile(index, fold_file_name(index), hashlib.sha256(blob).hexdigest(), len(blob), dtype)


def _format_weights(state: Mapping[str, Tensor], half: bool) -> bytes:
    safetensors = _safetensors()
    return bytes(safetensors.save({name: _as_stored(tensor, name, half) for name, tensor in state.items()}))


def _as_stored(tensor: Tensor, name: str, half: bool) -> Tensor:
    import torch

    value = tensor.detach().cpu()
    if value.is_floating_point():
        value = value.float()
        if not bool(torch.isfinite(value).all()):
            message = f"The weight {name} is not finite. Training has diverged; export an earlier checkpoint."
            raise BundleError(message)
        if half and value.numel() and float(value.abs().max()) > _HALF_MAX:
            message = f"The weight {name} does not fit half precision. Export with full precision."
            raise BundleError(message)
        value = value.half() if half else value
    return value.contiguous().clone()  # safetensors refuses tensors that share memory


def _parse_weights(content: bytes, name: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError

    try:
        weights: dict[str, Tensor] = _safetensors().load(content)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        message = f"{name} is not a safetensors file that can be read: {error}. Download the model again."
        raise BundleError(message) from None
    return weights


def _as_loaded(tensor: Tensor, name: str, entry: FoldFile) -> Tensor:
    import torch

    if not tensor.is_floating_point():
        return tensor
    value = tensor.float()
    if not bool(torch.isfinite(value).all()):
        message = f"{entry.file}: the weight {name} is not finite. The model cannot be used."
        raise BundleError(message)
    return value


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        message = f"Reading model weights needs PyTorch and safetensors ({error}). Install them: pip install torch safetensors"
        raise EnvironmentProblemError(message) from None
    return safetensors.torch
