"""Bundles come back as they were written; damaged and hostile ones are refused before anything in them is used."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

from MambaSegLib.bundle import Bundle, load_bundle, pack_bundle, save_bundle
from MambaSegLib.errors import BundleError, InputError
from MambaSegLib.manifest import BundleManifest
from MambaSegLib.networks import create_network

MakeBundle = Callable[..., Bundle]


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change bundle.json as a hostile author would."""
    file = folder / "bundle.json"
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def replace_weights(folder: Path, content: bytes) -> None:
    """Put other bytes into fold 0, with a manifest that vouches for them."""
    (folder / "fold_0.safetensors").write_bytes(content)

    def vouch(data: dict[str, Any]) -> None:
        data["folds"][0].update(sha256=sha256(content).hexdigest(), bytes=len(content))

    edit(folder, vouch)


def refusal(folder: Path) -> str:
    with pytest.raises(BundleError) as caught:
        load_bundle(folder).load_weights(0)
    return str(caught.value)


@pytest.mark.parametrize("place", ["model", "model.zip"])
def test_weights_come_back_as_they_were(tmp_path: Path, make_bundle: MakeBundle, place: str) -> None:
    made = make_bundle(tmp_path / place)
    torch.manual_seed(1)
    expected = create_network(made.manifest.plan.network).state_dict()
    found = load_bundle(tmp_path / place).load_weights(1)
    assert sorted(found) == sorted(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_half_precision_is_stored_small_and_loaded_as_float32(tmp_path: Path, make_bundle: MakeBundle) -> None:
    full, half = make_bundle(tmp_path / "full"), make_bundle(tmp_path / "half", half=True)
    weights = half.load_weights(0)
    for name, exact in full.load_weights(0).items():
        assert weights[name].dtype == exact.dtype == torch.float32
        torch.testing.assert_close(weights[name], exact, rtol=2**-11, atol=2**-25)  # rounding of binary16
    assert half.manifest.folds[0].dtype == "float16"
    assert half.manifest.folds[0].bytes < 0.75 * full.manifest.folds[0].bytes


def test_whole_numbers_in_a_state_keep_their_type(tmp_path: Path, tiny_manifest: BundleManifest) -> None:
    state = {"count": torch.tensor(2**40), "weight": torch.ones(2, 2).double()}
    loaded = save_bundle(tiny_manifest, {0: state}, tmp_path / "model", half=True).load_weights(0)
    assert loaded["count"] == 2**40
    assert loaded["weight"].dtype == torch.float32


def test_weights_that_share_memory_or_are_views_can_be_saved(tmp_path: Path, tiny_manifest: BundleManifest) -> None:
    base = torch.arange(6.0).reshape(2, 3)
    state = {"one": base, "same": base, "turned": base.T}
    loaded = save_bundle(tiny_manifest, {0: state}, tmp_path / "model").load_weights(0)
    assert torch.equal(loaded["turned"], base.T)


def test_the_same_model_gives_the_same_archive(tmp_path: Path, make_bundle: MakeBundle) -> None:
    for name in ("a.zip", "b.zip"):
        make_bundle(tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_a_folder_packed_to_a_zip_is_the_same_model(tmp_path: Path, tiny_bundle: Bundle) -> None:
    pack_bundle(tiny_bundle, tmp_path / "packed.zip")
    packed = load_bundle(tmp_path / "packed.zip")
    assert packed.sha256 == tiny_bundle.sha256
    packed.verify()


def test_every_option_is_written_out_so_that_later_defaults_change_nothing(tiny_bundle: Bundle) -> None:
    options = tiny_bundle.manifest.plan.network.options
    assert options["d_state_max"] == 4
    assert options["scan_orders"] == ("HWD:forward",)
    assert "preset" not in options


def test_figures_and_licenses_travel_with_the_model(tmp_path: Path, tiny_manifest: BundleManifest) -> None:
    (tmp_path / "LICENSE-weights.txt").write_text("free")
    (tmp_path / "curve.png").write_bytes(b"\x89PNG")
    attachments = [tmp_path / "LICENSE-weights.txt", tmp_path / "curve.png"]
    state = {0: {"a": torch.ones(1)}}
    bundle = save_bundle(tiny_manifest, state, tmp_path / "m.zip", attachments=attachments)
    assert {"LICENSE-weights.txt", "figures/curve.png"} <= set(bundle.files.names())
    with pytest.raises(BundleError, match="cannot go into a model"):
        save_bundle(tiny_manifest, state, tmp_path / "n.zip", attachments=[Path(__file__)])
    assert not (tmp_path / "n.zip").exists()


def test_the_card_states_use_limits_license_metric_and_that_it_is_no_medical_device(tiny_bundle: Bundle) -> None:
    card = tiny_bundle.files.read("MODEL_CARD.md").decode()
    assert card.startswith('---\nlicense: "Apache-2.0"\n')
    for text in (
        "Not a medical device. Not for clinical use.",
        "## Intended use\n\nTesting.",
        "## Limits\n\nKnows nothing.",
        "Training data: Phantoms, CC0-1.0",
        "| DSC | mean | 0.500 (0.100) |",
        "* **DSC**: Overlap of two masks; both empty: excluded.",
    ):
        assert text in card


@pytest.mark.parametrize("field", ["intended_use", "limits", "description"])
def test_a_model_without_its_card_is_not_saved(tmp_path: Path, tiny_manifest: BundleManifest, field: str) -> None:
    with pytest.raises(BundleError, match=f"{field}: is empty"):
        save_bundle(replace(tiny_manifest, **{field: " "}), {0: {"a": torch.ones(1)}}, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("field", ["dataset", "dataset_license", "weights_license"])
def test_a_model_without_license_or_data_is_not_saved(
    tmp_path: Path, tiny_manifest: BundleManifest, field: str
) -> None:
    provenance = replace(tiny_manifest.provenance, **{field: ""})  # type: ignore[arg-type]
    with pytest.raises(BundleError, match=f"provenance.{field}: is empty"):
        save_bundle(replace(tiny_manifest, provenance=provenance), {0: {"a": torch.ones(1)}}, tmp_path / "model")


def test_a_model_without_metrics_or_weights_is_not_saved(tmp_path: Path, tiny_manifest: BundleManifest) -> None:
    with pytest.raises(BundleError, match="metrics: is empty"):
        save_bundle(replace(tiny_manifest, metrics=()), {0: {"a": torch.ones(1)}}, tmp_path / "model")
    with pytest.raises(BundleError, match="at least one fold"):
        save_bundle(tiny_manifest, {}, tmp_path / "model")


def test_weights_that_are_not_finite_or_too_large_for_half_are_not_saved(
    tmp_path: Path, tiny_manifest: BundleManifest
) -> None:
    with pytest.raises(BundleError, match="a is not finite"):
        save_bundle(tiny_manifest, {0: {"a": torch.tensor([float("nan")])}}, tmp_path / "model")
    with pytest.raises(BundleError, match="does not fit half precision"):
        save_bundle(tiny_manifest, {0: {"a": torch.tensor([7e4])}}, tmp_path / "model", half=True)


def test_a_model_is_replaced_only_on_request_and_kept_when_saving_fails(tmp_path: Path, tiny_bundle: Bundle) -> None:
    before = (tiny_bundle.path / "bundle.json").read_bytes()
    with pytest.raises(BundleError, match="exists already"):
        save_bundle(tiny_bundle.manifest, {0: {"a": torch.ones(1)}}, tiny_bundle.path)
    with pytest.raises(BundleError, match="not finite"):
        save_bundle(tiny_bundle.manifest, {0: {"a": torch.tensor(float("inf"))}}, tiny_bundle.path, force=True)
    assert (tiny_bundle.path / "bundle.json").read_bytes() == before
    save_bundle(tiny_bundle.manifest, {0: {"a": torch.ones(1)}}, tiny_bundle.path, force=True)
    assert load_bundle(tiny_bundle.path).fold_indices == (0,)
    assert [entry.name for entry in tiny_bundle.path.parent.iterdir()] == [tiny_bundle.path.name]


def test_an_unknown_name_lists_the_models_there_are(tmp_path: Path, make_bundle: MakeBundle) -> None:
    made = make_bundle(tmp_path / "mamba_unet_unidirectional.tiny")
    with pytest.raises(BundleError, match=r'no model "nowhere".*mamba_unet_unidirectional\.tiny'):
        load_bundle("nowhere", models_dir=tmp_path)
    assert load_bundle("mamba_unet_unidirectional.tiny", models_dir=tmp_path).sha256 == made.sha256


@pytest.mark.parametrize("name", ["../mamba_unet_unidirectional.tiny", "a/b", "..", "", "\0", "con.tiny", "x" * 300])
def test_a_name_never_leaves_the_models_folder(tmp_path: Path, make_bundle: MakeBundle, name: str) -> None:
    make_bundle(tmp_path / "mamba_unet_unidirectional.tiny")
    (tmp_path / "models").mkdir()
    with pytest.raises(BundleError):
        load_bundle(name, models_dir=tmp_path / "models")


def test_a_missing_fold_names_the_ones_there_are(tiny_bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="has no fold 3; it has 0, 1"):
        tiny_bundle.load_weights(3)


def test_a_changed_weight_file_is_refused_before_it_is_parsed(tiny_bundle: Bundle) -> None:
    file = tiny_bundle.path / "fold_0.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert "is not the file its model was published with" in refusal(tiny_bundle.path)
    tiny_bundle.load_weights(1)
    with pytest.raises(BundleError, match="fold_0"):
        tiny_bundle.verify()


def test_a_cut_weight_file_is_refused_when_the_model_is_opened(tiny_bundle: Bundle) -> None:
    file = tiny_bundle.path / "fold_1.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    assert "bytes, expected" in refusal(tiny_bundle.path)


def safetensors_file(header: bytes, size: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if size is None else size) + header


HOSTILE_WEIGHTS = {
    "empty header": b"\0" * 8,
    "not even a length": b"abc",
    "huge header": safetensors_file(b"{}", 2**62),
    "header beyond the file": safetensors_file(b'{"a":1}', 10**6),
    "offsets beyond the file": safetensors_file(b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'),
    "overflowing shape": safetensors_file(
        b'{"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,0]}}'
    ),
    "pickle": pickle.dumps({"a": [1.0]}),
}


@pytest.mark.parametrize("content", HOSTILE_WEIGHTS.values(), ids=HOSTILE_WEIGHTS.keys())
def test_weights_that_are_no_safetensors_are_refused(tiny_bundle: Bundle, content: bytes) -> None:
    replace_weights(tiny_bundle.path, content)
    assert "is not a safetensors file" in refusal(tiny_bundle.path)


def test_stored_weights_that_are_not_finite_are_refused(tiny_bundle: Bundle) -> None:
    import safetensors.torch

    replace_weights(tiny_bundle.path, safetensors.torch.save({"a": torch.tensor([float("inf")])}))
    assert "a is not finite" in refusal(tiny_bundle.path)


def set_at(*keys: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: Any) -> None:
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = value

    return change


ROOT = Path(__file__).resolve().parents[2]
NETWORK = ("plan", "network")
FINGERPRINT = {f"{what}_{end}_mm": [1.0, 1.0, 1.0] for what in ("spacing", "extent") for end in ("min", "max")}
HOSTILE_MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "newer": (set_at("schema_version", value=99), "made with a newer MambaSegmentation. Update"),
    "no version": (lambda data: data.pop("schema_version"), "this is not a MambaSegmentation model"),
    "version true": (set_at("schema_version", value=True), "expected a whole number"),
    "unknown key": (set_at("run_me", value="rm"), "run_me: unknown key"),
    "name climbs": (set_at("name", value="../../x.y"), "is not a model name"),
    "unknown network": (set_at(*NETWORK, "name", value="os.system"), 'there is no network "os.system"'),
    "option of a wrong type": (set_at(*NETWORK, "options", value={"head": {"a": 1}}), "plan.network.options.head"),
    "endless features": (set_at(*NETWORK, "stages", 0, "features", value=10**9), "features: expected 1 to"),
    "endless patch": (set_at(*NETWORK, "patch_size", value=[10**6] * 3), "patch_size: expected"),
    "even kernel": (set_at(*NETWORK, "stages", 0, "kernel", value=[2, 3, 3]), "kernel: expected odd"),
    "stride zero": (set_at(*NETWORK, "stages", 1, "stride", value=[0, 1, 1]), "stride: expected 1 to"),
    "negative blocks": (set_at(*NETWORK, "stages", 1, "blocks", value=-1), "blocks: expected 1 to"),
    "channels disagree": (set_at(*NETWORK, "in_channels", value=2), "in_channels: is 2, but 1 channels"),
    "classes disagree": (set_at(*NETWORK, "out_channels", value=7), "out_channels: is 7, but 2 structures"),
    "orientation": (set_at("plan", "orientation", value="SSL"), 'found "SSL"'),
    "spacing": (set_at("plan", "spacing_mm", value=[0, 1, 1]), "plan.spacing_mm"),
    "mirror axis": (set_at("plan", "mirror_axes", value=[3]), "plan.mirror_axes"),
    "keep largest": (set_at("plan", "keep_largest", value=[9]), "plan.keep_largest"),
    "label twice": (set_at("plan", "labels", 1, "value", value=1), "plan.labels: must be listed by increasing value"),
    "label zero": (set_at("plan", "labels", 0, "value", value=0), "plan.labels"),
    "label name twice": (set_at("plan", "labels", 1, "name", value="Anterior"), "names must be different"),
    "color": (set_at("plan", "labels", 0, "color", value=[0, 0, 256]), "from 0 to 255"),
    "fold elsewhere": (set_at("folds", 0, "file", value="../fold_0.safetensors"), "folds[0].file"),
    "fold twice": (set_at("folds", 1, "index", value=0), "each once"),
    "no folds": (set_at("folds", value=[]), "a model needs weights"),
    "hash": (set_at("folds", 0, "sha256", value="0"), "64 lower-case hexadecimal digits"),
    "no metrics": (set_at("metrics", value=[]), "metrics: is empty"),
    "no license": (set_at("provenance", "weights_license", value=""), "weights_license: is empty"),
    "volumes of other labels": (
        set_at("plan", "fingerprint", value=FINGERPRINT | {"volumes": [{"smallest_ml": 1.0, "largest_ml": 2.0}]}),
        "plan.fingerprint.volumes: expected none or one per label (2)",
    ),
    "volumes the wrong way": (
        set_at("plan", "fingerprint", value=FINGERPRINT | {"volumes": [{"smallest_ml": 2.0, "largest_ml": 1.0}] * 2}),
        "smallest_ml <= largest_ml",
    ),
    "ct without range": (
        set_at("plan", "channels", 0, "normalization", value={"scheme": "ct"}),
        "needs lower < upper",
    ),
}


@pytest.mark.parametrize(("change", "expected"), HOSTILE_MANIFESTS.values(), ids=HOSTILE_MANIFESTS.keys())
def test_a_manifest_that_makes_no_sense_is_refused_with_its_place(
    tiny_bundle: Bundle, change: Callable[[dict[str, Any]], None], expected: str
) -> None:
    edit(tiny_bundle.path, change)
    message = refusal(tiny_bundle.path)
    assert message.startswith("bundle.json")
    assert expected in message


def test_an_option_its_network_does_not_know_is_refused_when_the_network_is_built(tiny_bundle: Bundle) -> None:
    edit(tiny_bundle.path, set_at(*NETWORK, "options", value={"d_state_max": "big"}))
    with pytest.raises(InputError, match="d_state_max"):
        load_bundle(tiny_bundle.path).load_network(0)


@pytest.mark.parametrize(
    ("keys", "value"),
    [(("options", "scan_orders"), [1, 2]), (("options", "mamba_stages"), [99]), (("stages",), [])],
)
def test_a_network_that_cannot_be_built_is_refused(tiny_bundle: Bundle, keys: tuple[str, ...], value: Any) -> None:
    edit(tiny_bundle.path, set_at(*NETWORK, *keys, value=value))
    with pytest.raises(InputError):
        load_bundle(tiny_bundle.path).load_network(0)


def test_a_network_is_loaded_with_its_weights(tiny_bundle: Bundle) -> None:
    network = tiny_bundle.load_network(1)
    torch.manual_seed(1)
    expected = create_network(tiny_bundle.manifest.plan.network)
    assert {name: value.shape for name, value in network.state_dict().items()} == {
        name: value.shape for name, value in expected.state_dict().items()
    }
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), expected.parameters(), strict=True))
    assert not any(value.is_meta for value in (*network.parameters(), *network.buffers()))


def test_loading_a_network_needs_no_compiler_of_pytorch(tiny_bundle: Bundle) -> None:
    """Loading it takes longer than loading PyTorch itself."""
    code = (
        "import sys; from MambaSegLib import load_bundle; load_bundle(sys.argv[1]).load_network(0)\n"
        "print([name for name in ('torch._dynamo', 'sympy', 'triton') if name in sys.modules])"
    )
    words = [sys.executable, "-c", code, str(tiny_bundle.path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_loading_a_network_draws_no_random_number_of_the_callers(tiny_bundle: Bundle) -> None:
    before = torch.get_rng_state()
    tiny_bundle.load_network(0)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_of_another_network_are_refused_before_the_network_takes_memory(tiny_bundle: Bundle) -> None:
    edit(tiny_bundle.path, set_at(*NETWORK, "stages", 1, "features", value=4096))
    with pytest.raises(BundleError, match="do not belong to the network"):
        load_bundle(tiny_bundle.path).load_network(0)


@pytest.mark.parametrize("name", ["fold_0.pth", "fold_0.safetensors.bak", "setup.py", "fold_00.safetensors", "x.json"])
def test_a_folder_with_a_file_that_has_no_place_in_a_model_is_refused(tiny_bundle: Bundle, name: str) -> None:
    (tiny_bundle.path / name).write_bytes(pickle.dumps(0))
    assert "has no place in a model" in refusal(tiny_bundle.path)


def test_what_file_managers_leave_behind_is_passed_over(tiny_bundle: Bundle) -> None:
    (tiny_bundle.path / ".DS_Store").write_bytes(b"x")
    load_bundle(tiny_bundle.path).load_weights(0)


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps no pipes in folders")
def test_a_pipe_in_a_folder_is_refused_without_waiting_for_a_writer(tiny_bundle: Bundle) -> None:
    (tiny_bundle.path / "bundle.json").unlink()
    os.mkfifo(tiny_bundle.path / "bundle.json")
    assert "is no ordinary file" in refusal(tiny_bundle.path)


def test_a_link_in_a_folder_is_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tiny_bundle.path / "LICENSE").symlink_to(tmp_path / "secret")
    assert "is a link" in refusal(tiny_bundle.path)


def test_a_manifest_beyond_its_size_is_refused_unread(tiny_bundle: Bundle) -> None:
    with (tiny_bundle.path / "bundle.json").open("ab") as stream:
        stream.write(b" " * (5 * 1024**2))
    assert "bytes; at most" in refusal(tiny_bundle.path)


def test_a_path_without_a_model_says_so(tmp_path: Path, tiny_bundle: Bundle) -> None:
    (tmp_path / "text.zip").write_text("no archive")
    (tmp_path / "empty").mkdir()
    assert "is not a .zip archive" in refusal(tmp_path / "text.zip")
    assert "holds no bundle.json" in refusal(tmp_path / "empty")
    (tmp_path / "empty" / "a link").symlink_to("elsewhere")  # that it is no model comes first
    assert "holds no bundle.json" in refusal(tmp_path / "empty")
    shutil.rmtree(tiny_bundle.path)
    assert "There is no model" in refusal(tiny_bundle.path)


def test_weights_that_are_drawn_until_they_fit_end_whatever_memory_held():
    from MambaSegLib.bundle_network import _AtMost

    tensor = torch.full((50,), 1e9)
    with _AtMost(1000, "a model"):
        torch.nn.init.trunc_normal_(tensor, std=0.02)
    assert not tensor.any()
