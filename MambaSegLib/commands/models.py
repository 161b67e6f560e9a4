"""`mambaseg models`: list, show, install, convert and remove trained models."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from MambaSegLib.bundle import load_bundle
from MambaSegLib.commands.parsing import add_models_dir, add_reporting, fold_list
from MambaSegLib.commands.reporting import Reporter
from MambaSegLib.manifest import BundleManifest
from MambaSegLib.model_card import DISCLAIMER, model_card
from MambaSegLib.model_folders import BUNDLED_MODELS, default_models_folder
from MambaSegLib.model_zoo import ListedModel, install_model, list_models, remove_model
from MambaSegLib.progress import Progress
from MambaSegLib.schema import to_json


def add_parser(subparsers: Any) -> None:
    """Add the subcommand and its own."""
    parser = subparsers.add_parser("models", help="list, show, install, convert and remove models", description=__doc__)
    parser.set_defaults(run=run_list, json=False, models_dir=None)
    actions = parser.add_subparsers(title="actions", metavar="ACTION")
    listing = actions.add_parser("list", help="list models and where they are (the default)")
    listing.add_argument("--json", action="store_true", help="as JSON")
    listing.set_defaults(run=run_list)
    show = actions.add_parser("show", help="show what a model is, how good it is and how it may be used")
    show.add_argument("name", metavar="NAME|PATH")
    show.add_argument("--json", action="store_true", help="its bundle.json")
    show.set_defaults(run=run_show)
    install = actions.add_parser("install", help="check a model and add it; nothing is left behind if it is refused")
    install.add_argument("source", metavar="SOURCE", help="folder, .zip, or https:// address of a .zip")
    install.add_argument("--sha256", metavar="HEX", help="expected SHA-256 of the .zip; required for http://")
    install.add_argument("--force", action="store_true", help="replace an installed model of the same name")
    add_reporting(install)
    install.set_defaults(run=run_install)
    _add_convert(actions)
    remove = actions.add_parser("remove", help="delete an installed model")
    remove.add_argument("name", metavar="NAME")
    remove.set_defaults(run=run_remove)
    for action in (listing, show, install, remove):
        add_models_dir(action)


def _add_convert(actions: Any) -> None:
    convert = actions.add_parser(
        "convert",
        help="make a model of one that nnU-Net v2 trained",
        description="Make a model of one that nnU-Net v2 trained (3d_fullres or 3d_lowres). What could not be computed exactly as "
        "nnU-Net plans it is refused, and nothing in the files is run.",
    )
    convert.add_argument(
        "source", type=Path, metavar="INPUT", help="nnU-Net's folder with plans.json and fold_0, or an exported .zip"
    )
    convert.add_argument("-o", "--output", type=Path, required=True, metavar="BUNDLE", help="folder or .zip to write")
    convert.add_argument("--license", default="", metavar="TEXT", help="license of the weights, e.g. CC-BY-4.0")
    convert.add_argument(
        "--orientation",
        default="",
        metavar="IMAGE|LPS",
        help="how the training images were stored: one of them, or where their axes x, y, z point (LPS: most DICOM, RAS: most "
        "NIfTI); needed unless nnU-Net's reader turned them",
    )
    convert.add_argument("--configuration", default="", metavar="NAME", help="which, if there are several")
    convert.add_argument("--folds", type=fold_list, metavar="all|0,1", help="which (default: all)")
    convert.add_argument("--name", default="", help="of the model (default: nnunet.DATASET)")
    convert.add_argument("--force", action="store_true", help="replace a model that is there")
    add_reporting(convert)
    convert.set_defaults(run=run_convert)


def run_list(arguments: argparse.Namespace, reporter: Reporter) -> int:
    """Print the models and the folders they are in."""
    folder = arguments.models_dir or default_models_folder()
    listed = list_models(folder)
    if arguments.json:
        entries = [_as_json(model) for model in listed]
        print(json.dumps({"models_dir": str(folder), "models": entries}, indent=2, ensure_ascii=False))
        return 0
    for model in listed:
        print(_line(model))
    if not listed:
        print("There are no models yet. Add one: mambaseg models install FILE.zip")
    print(f"\nBundled models:   {BUNDLED_MODELS}\nInstalled models: {folder}")
    return 0


def run_show(arguments: argparse.Namespace, reporter: Reporter) -> int:
    """Print a model's card or manifest."""
    bundle = load_bundle(arguments.name, models_dir=arguments.models_dir)
    if arguments.json:
        print(json.dumps(to_json(bundle.manifest), indent=2, ensure_ascii=False))
        return 0
    card = model_card(bundle.manifest)
    print(card.partition("---\n\n")[2].rstrip())
    print(f"\nFolder: {bundle.path}")
    return 0


def run_install(arguments: argparse.Namespace, reporter: Reporter) -> int:
    """Install a model."""

    def tell(done: int, total: int | None) -> None:
        reporter.progress(Progress("Downloading", done, total or done))

    model = install_model(
        arguments.source,
        models_dir=arguments.models_dir,
        sha256=arguments.sha256,
        force=arguments.force,
        on_progress=tell,
    )
    reporter.result(f"Installed {model.name} in {model.path}\n{DISCLAIMER}", name=model.name, path=str(model.path))
    return 0


def run_convert(arguments: argparse.Namespace, reporter: Reporter) -> int:
    """Convert a model of nnU-Net."""
    from MambaSegLib.nnunet.convert import Choices, convert_nnunet

    choices = Choices(
        orientation=_orientation(arguments.orientation),
        weights_license=arguments.license,
        configuration=arguments.configuration,
        folds=arguments.folds or (),
        name=arguments.name,
    )
    bundle = convert_nnunet(
        arguments.source, arguments.output, choices, force=arguments.force, on_progress=reporter.progress
    )
    if not arguments.license:
        reporter.log("warning", "The license of the weights is not stated. Ask those who trained the model.")
    text = f"Converted {bundle.name} to {bundle.path}; its quality was not measured here.\n{DISCLAIMER}"
    reporter.result(text, name=bundle.name, path=str(bundle.path), folds=list(bundle.fold_indices))
    return 0


def _orientation(text: str) -> str:
    """Directions of the axes (x, y, z), from letters or from an image."""
    if len(text) == 3 or not text:
        return text.upper()
    from MambaSegLib.volume_io import read_volume

    return read_volume(text).geometry.orientation[::-1]


def run_remove(arguments: argparse.Namespace, reporter: Reporter) -> int:
    """Remove a model."""
    remove_model(arguments.name, models_dir=arguments.models_dir)
    print(f"Removed {arguments.name}")
    return 0


def _line(model: ListedModel) -> str:
    if model.manifest is None:
        return f"{model.name}  ({model.origin}, cannot be used: {model.problem})"
    return f"{model.name}  {model.manifest.version} ({model.origin})\n    {_summary(model.manifest)}"


def _summary(manifest: BundleManifest) -> str:
    channels = ", ".join(f"{channel.name} {channel.modality}".strip() for channel in manifest.plan.channels)
    plan = manifest.plan
    segments = ", ".join(label.name for label in plan.predicted_labels)
    regions = f" Regions: {', '.join(region.name for region in plan.regions)}." if plan.regions else ""
    return (
        f"{manifest.description}\n    Input: {channels}. Segments: {segments}.{regions} "
        f"Weights: {manifest.provenance.weights_license}"
    )


def _as_json(model: ListedModel) -> dict[str, object]:
    entry: dict[str, object] = {
        "name": model.name,
        "origin": model.origin,
        "path": str(Path(model.path)),
        "problem": model.problem,
    }
    if model.manifest is not None:
        entry["manifest"] = to_json(model.manifest)
    return entry
