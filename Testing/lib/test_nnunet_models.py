"""Models trained with nnU-Net become bundles that compute the same; what could not be the same, or is hostile, is refused."""

from __future__ import annotations

import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunet_model import FACTS, NnunetModel, zipped

from MambaSegLib.__main__ import main
from MambaSegLib.bundle import Bundle, load_bundle
from MambaSegLib.errors import BundleError, EnvironmentProblemError, InputError
from MambaSegLib.geometry import Geometry
from MambaSegLib.label_writing import write_volume
from MambaSegLib.model_card import model_card
from MambaSegLib.model_zoo import install_model
from MambaSegLib.nnunet.convert import Choices, convert_nnunet
from MambaSegLib.nnunet.weights import SAFE_PYTORCH
from MambaSegLib.predictor import Predictor
from MambaSegLib.preprocessing import preprocess
from MambaSegLib.volume import Volume

pytestmark = pytest.mark.skipif(
    torch.__version__ < SAFE_PYTORCH, reason="checkpoints are read with PyTorch from 2.10 only"
)


def settings(plans: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = plans["configurations"]["3d_fullres"]
    return found


def converted(tmp_path: Path, model: NnunetModel | None = None, **choices: Any) -> Bundle:
    folder = (model or NnunetModel()).write(tmp_path / "results")
    return convert_nnunet(folder, tmp_path / "bundle", Choices(**choices))


def refusal(tmp_path: Path, model: NnunetModel, **choices: Any) -> str:
    with pytest.raises(InputError) as caught:
        converted(tmp_path, model, **choices)
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
    return str(caught.value)


@pytest.mark.parametrize("kind", ["PlainConvUNet", "ResidualEncoderUNet"])
@pytest.mark.parametrize("old", [False, True])
def test_a_converted_network_computes_what_nnunets_does(tmp_path: Path, kind: str, old: bool) -> None:
    model = NnunetModel(kind, old, folds=("0", "3"))
    bundle = converted(tmp_path, model)
    image = torch.randn(1, 1, 4, 8, 12)
    for fold in (0, 3):
        with torch.no_grad():
            found, expected = bundle.load_network(fold).eval()(image)[0], model.networks[str(fold)](image)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("transpose", [(0, 1, 2), (1, 0, 2), (2, 0, 1), (1, 2, 0)])
def test_a_volume_gets_the_labels_nnunet_would_give_it_whatever_axes_it_swaps(
    tmp_path: Path, transpose: tuple[int, int, int], rng: np.random.Generator
) -> None:
    def swap(plans: dict[str, Any]) -> None:
        plans["transpose_forward"] = list(transpose)

    model = NnunetModel(plans=swap)
    bundle = converted(tmp_path, model)
    # A volume whose axes nnU-Net's reader brings to RAS, (Z, Y, X) here: as large as a patch once they are swapped.
    shape, spacing = np.empty(3, int), np.empty(3)
    shape[list(transpose)], spacing[list(transpose)] = (4, 8, 12), (3.0, 1.0, 0.5)
    ras = rng.normal(size=shape).astype(np.float32)
    geometry = Geometry(tuple(shape), tuple(spacing), (0.0, 0.0, 0.0), ((0, 0, -1), (0, -1, 0), (1, 0, 0)))
    assert geometry.orientation == "SAR"
    stored = geometry.reoriented(turn := geometry.reorientation_to("LPS"))
    volume = Volume(turn.apply(ras)[None], stored)
    # nnU-Net's way, step by step.
    data = ras.transpose(transpose)
    data = (data - data.mean()) / data.std()
    with torch.no_grad():
        logits = model.networks["0"](torch.from_numpy(data)[None, None])[0]
    expected = logits.argmax(0).numpy().transpose(np.argsort(transpose))
    np.testing.assert_allclose(preprocess(volume, bundle.manifest.plan).array[0], data, atol=1e-5)
    labels = Predictor(bundle, device="cpu", engine="pytorch").predict(volume).labels.array
    np.testing.assert_array_equal(labels, turn.apply(expected))
    assert len(np.unique(labels)) == 3


def test_a_zip_gives_the_same_model_as_its_folder(tmp_path: Path) -> None:
    first = converted(tmp_path)
    archive = zipped(tmp_path / "results", tmp_path / "exported.zip")
    second = convert_nnunet(archive, tmp_path / "bundle.zip", Choices())
    assert second.manifest.plan == first.manifest.plan
    assert second.manifest.folds == first.manifest.folds  # with their hashes


def test_a_converted_model_is_installed_and_says_where_it_is_from(tmp_path: Path) -> None:
    bundle = converted(tmp_path, NnunetModel(folds=("0", "1")), weights_license="CC-BY-4.0")
    manifest = install_model(bundle.path, models_dir=tmp_path / "models").manifest
    assert manifest is not None
    assert (manifest.name, manifest.provenance.weights_license) == ("nnunet.two_things", "CC-BY-4.0")
    assert manifest.plan.mirror_axes == (0, 1, 2)
    assert manifest.plan.thick_slices == "repeated"
    assert manifest.plan.orientation == "SAR"  # nibabel's RAS, slowest axis first
    provenance = manifest.provenance
    assert (provenance.training_cases, provenance.epochs, provenance.dataset_license) == (10, 1000, "CC0 [31m")
    card = model_card(manifest)
    assert "nnU-Net v2: nnUNetTrainer, nnUNetPlans, 3d_fullres" in card
    assert "fold_1/checkpoint_final.pth with SHA-256" in card
    assert "Not measured here" in card
    assert "0.000" not in card


def test_the_range_of_training_images_comes_from_the_fingerprint(tmp_path: Path) -> None:
    def swap(plans: dict[str, Any]) -> None:
        plans["transpose_forward"] = [1, 0, 2]

    fingerprint = converted(tmp_path, NnunetModel(plans=swap)).manifest.plan.fingerprint
    assert fingerprint is not None
    assert (fingerprint.spacing_min_mm, fingerprint.spacing_max_mm) == ((1, 3, 0.5), (1, 4, 0.5))
    # An eighth of the volume was left by cropping: twice as long along each axis.
    assert fingerprint.extent_min_mm == pytest.approx((40, 60, 60))
    assert fingerprint.extent_max_mm == pytest.approx((80, 80, 80))
    assert fingerprint.intensities == ()  # the channel is no CT


def test_ct_channels_regions_and_unlabelled_voxels_are_taken_over(tmp_path: Path) -> None:
    def ct(plans: dict[str, Any]) -> None:
        settings(plans)["normalization_schemes"] = ["CTNormalization"]
        plans["foreground_intensity_properties_by_modality"] = plans.pop("foreground_intensity_properties_per_channel")

    def regions(dataset: dict[str, Any]) -> None:
        dataset["modality"] = {"0": "CT"}
        del dataset["channel_names"]
        dataset["labels"] = {"background": 0, "all": [1, 2, 3], "core": [2, 3], "spot": 3, "ignore": 4}
        dataset["regions_class_order"] = [1, 2, 3]

    plan = converted(tmp_path, NnunetModel(plans=ct, dataset=regions)).manifest.plan
    assert [(region.name, region.value) for region in plan.regions] == [("all", 1), ("core", 2), ("spot", 3)]
    assert (plan.ignore_value, plan.network.out_channels) == (4, 3)
    how = plan.channels[0].normalization
    assert (how.scheme, how.lower, how.upper, how.mean, how.std) == ("ct", -100, 200, 50, 20)
    assert plan.fingerprint is not None
    assert plan.fingerprint.intensities[0].median == 45


def test_a_model_trained_on_all_cases_becomes_fold_0_and_inherited_settings_count(tmp_path: Path) -> None:
    bundle = converted(tmp_path, NnunetModel(folds=("all",), configuration="3d_lowres"))
    assert bundle.fold_indices == (0,)
    assert bundle.manifest.plan.spacing_mm == (6.0, 2.0, 1.0)
    assert bundle.name == "nnunet.two_things_3d_lowres"
    assert bundle.manifest.provenance.training_cases == 10


@pytest.mark.parametrize(("axes", "expected"), [(None, ()), ([2, 0], (0, 2))])
def test_mirroring_is_offered_along_the_axes_of_the_checkpoint(
    tmp_path: Path, axes: list[int] | None, expected: tuple[int, ...]
) -> None:
    model = NnunetModel(checkpoint=lambda content: content.update(inference_allowed_mirroring_axes=axes))
    assert converted(tmp_path, model).manifest.plan.mirror_axes == expected


def test_of_several_configurations_3d_fullres_is_taken_or_the_one_that_is_named(tmp_path: Path) -> None:
    for configuration in ("3d_fullres", "3d_lowres", "2d"):
        NnunetModel(configuration=configuration).write(tmp_path / "results" / configuration)
    names = {}
    for wanted in ("", "3d_lowres"):
        archive = zipped(tmp_path / "results", tmp_path / "all.zip")
        names[wanted] = convert_nnunet(archive, tmp_path / wanted / "b", Choices(configuration=wanted)).name
    assert names == {"": "nnunet.two_things", "3d_lowres": "nnunet.two_things_3d_lowres"}
    with pytest.raises(InputError, match=r"several trained models: .*__2d, .*Choose one with --configuration"):
        convert_nnunet(archive, tmp_path / "c", Choices(configuration="3d_cascade_fullres"))
    with pytest.raises(InputError, match="2D or a cascade"):
        convert_nnunet(archive, tmp_path / "c", Choices(configuration="2d"))


def architecture(**changed: object) -> Callable[[dict[str, Any]], None]:
    return lambda plans: settings(plans)["architecture"]["arch_kwargs"].update(changed)


def configuration(**changed: object) -> Callable[[dict[str, Any]], None]:
    return lambda plans: settings(plans).update(changed)


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "batch normalization": (architecture(norm_op="torch.nn.modules.batchnorm.BatchNorm3d"), "norm_op is .*BatchNorm3d"),
    "ReLU": (architecture(nonlin="torch.nn.ReLU"), "nonlin is .*ReLU"),
    "another slope": (architecture(nonlin_kwargs={"negative_slope": 0.2}), "nonlin_kwargs"),
    "norm without weights": (architecture(norm_op_kwargs={"eps": 1e-5}), "norm_op_kwargs"),
    "no bias": (architecture(conv_bias=False), "conv_bias is False"),
    "dropout": (architecture(dropout_op="torch.nn.Dropout3d"), "dropout_op"),
    "squeeze and excitation": (architecture(squeeze_excitation=True), "squeeze_excitation is True"),
    "a strided first stage": (architecture(strides=[[1, 2, 2], [1, 1, 1], [2, 2, 2]]), "first stride"),
    "a patch that does not fit": (configuration(patch_size=[4, 8, 13]), "patch_size"),
    "an even kernel": (architecture(kernel_sizes=[[1, 2, 2], *[[3, 3, 3]] * 2]), "expected odd sizes"),
    "a network that takes all memory": (architecture(features_per_stage=[4, 8, 10**6]), "expected 1 to 4096"),
    "a network of one's own": (
        lambda plans: settings(plans)["architecture"].update(network_class_name="mine.PlainConvUNet"),
        "network_class_name is 'mine.PlainConvUNet'",
    ),
    "another network": (
        lambda plans: settings(plans)["architecture"].update(network_class_name="a.PrimusM"),
        "PrimusM is not known",
    ),
    "colors": (configuration(normalization_schemes=["RGBTo01Normalization"]), "RGBTo01Normalization"),
    "another resampling": (configuration(resampling_fn_data="resample_torch_fornnunet"), "resampling_fn_data is"),
    "another order": (
        configuration(resampling_fn_data_kwargs={"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}),
        "resampling_fn_data_kwargs",
    ),
    "another preprocessor": (configuration(preprocessor_name="MyPreprocessor"), "MyPreprocessor"),
    "microscopy": (lambda plans: plans.update(image_reader_writer="Tiff3DIO"), "Tiff3DIO"),
    "axes that are none": (lambda plans: plans.update(transpose_forward=[0, 1, 1]), "transpose_forward"),
    "an heir of its own": (configuration(inherits_from="3d_fullres"), "inherits from itself"),
    "no plans": (lambda plans: plans.clear(), "nnU-Net's None does not read"),
    "heirs without end": (
        lambda plans: plans["configurations"].update(
            {f"3d_{i}": {"inherits_from": f"3d_{i + 1}"} for i in range(5000)},
            **{"3d_fullres": {"inherits_from": "3d_0"}},
        ),
        "not as nnU-Net writes it .*recursion",
    ),
    "a spacing in the plane": (configuration(spacing=[1, 1]), "not as nnU-Net writes it .*expected 3, got 2"),
    "words for numbers": (configuration(spacing=["a", 1, 1]), "not as nnU-Net writes it .*could not convert"),
    "a stride of zero": (architecture(strides=[[1, 1, 1], [0, 2, 2], [2, 2, 2]]), "not as nnU-Net writes it .*by zero"),
    "a patch without end": (configuration(patch_size=[float("inf"), 8, 12]), "not as nnU-Net writes it .*infinity"),
    "two channels": (
        configuration(normalization_schemes=["NoNormalization"] * 2),
        "2 .*, but dataset.json names 1: MRI",
    ),
    "a CT without numbers": (
        lambda plans: (
            settings(plans).update(normalization_schemes=["CTNormalization"]),
            plans.update(foreground_intensity_properties_per_channel={"0": {**FACTS, "std": None}}),
        ),
        "not as nnU-Net writes it .*NoneType",
    ),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_plans_that_cannot_be_followed_exactly_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        converted(tmp_path, NnunetModel(plans=change), orientation="RAS")
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_weights_of_another_network_than_the_plans_are_refused(tmp_path: Path) -> None:
    def normalized_by_batch(content: dict[str, Any]) -> None:
        content["network_weights"]["encoder.stages.0.0.convs.0.norm.running_mean"] = torch.zeros(4)

    assert "batch normalization" in refusal(tmp_path, NnunetModel(checkpoint=normalized_by_batch))


@pytest.mark.parametrize(
    "change",
    [
        lambda weight: weight.to("meta"),
        lambda weight: weight.to(torch.int64),
        lambda weight: weight.to(torch.complex64),
        lambda weight: weight.to_sparse(),
        lambda weight: torch.zeros(1).expand(weight.shape),
    ],
    ids=["without content", "whole numbers", "complex numbers", "sparse", "one number, shown often"],
)
def test_weights_that_are_no_plain_numbers_are_refused(
    tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    def changed(content: dict[str, Any]) -> None:
        weights = content["network_weights"]
        weights.update({name: change(weight) for name, weight in weights.items()})

    assert "no plain tensor of floating-point numbers" in refusal(tmp_path, NnunetModel(checkpoint=changed))


def test_folds_that_were_trained_differently_are_not_put_together(tmp_path: Path) -> None:
    axes = iter([(0, 1), (0, 1, 2)])
    model = NnunetModel(
        folds=("0", "1"), checkpoint=lambda content: content.update(inference_allowed_mirroring_axes=next(axes))
    )
    assert "one by one with --folds" in refusal(tmp_path, model)
    folder = next((tmp_path / "results").glob("*/*"))
    assert convert_nnunet(folder, tmp_path / "b", Choices(folds=(1,))).fold_indices == (1,)
    with pytest.raises(InputError, match="no fold 4; it has 0, 1"):
        convert_nnunet(folder, tmp_path / "c", Choices(folds=(4,)))


def test_how_training_images_were_stored_must_be_said_where_nnunet_does_not_record_it(tmp_path: Path) -> None:
    model = NnunetModel(plans=lambda plans: plans.update(image_reader_writer="SimpleITKIO"))
    assert "--orientation" in refusal(tmp_path, model)
    folder = next((tmp_path / "results").glob("*/*"))
    plan = convert_nnunet(folder, tmp_path / "bundle", Choices(orientation="LPS")).manifest.plan
    assert plan.orientation == "SPL"
    with pytest.raises(InputError, match="no orientation"):
        convert_nnunet(folder, tmp_path / "c", Choices(orientation="LPP"))


def test_an_orientation_that_contradicts_the_reader_is_refused(tmp_path: Path) -> None:
    assert "turned all images to RAS, not LPS" in refusal(tmp_path, NnunetModel(), orientation="LPS")


class Harmful:
    """Runs a command when unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch '{self.mark}'",)


@pytest.mark.parametrize("key", ["logging", "network_weights", "trainer_name"])
def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(tmp_path: Path, key: str) -> None:
    mark = tmp_path / "results" / "was here"
    model = NnunetModel(checkpoint=lambda content: content.update({key: Harmful(mark)}))
    assert "system, which is no number and could run code" in refusal(tmp_path, model)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Harmful(mark)))  # noqa: S301 (the weapon is loaded)
    assert mark.exists()


def test_a_plain_pickle_in_the_place_of_a_checkpoint_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    folder = NnunetModel().write(tmp_path / "results")
    (folder / "fold_0" / "checkpoint_final.pth").write_bytes(pickle.dumps(Harmful(tmp_path / "was here")))
    with pytest.raises(BundleError, match=r"could run code|damaged"):
        convert_nnunet(folder, tmp_path / "bundle", Choices())
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


@pytest.mark.parametrize("module", [b"numpy.core.multiarray\n", b"numpy._core.multiarray\n"])
def test_a_checkpoint_is_read_whether_it_was_saved_with_numpy_1_or_2(tmp_path: Path, module: bytes) -> None:
    folder = NnunetModel().write(tmp_path / "results")
    file = folder / "fold_0" / "checkpoint_final.pth"
    with zipfile.ZipFile(file) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, re.sub(rb"numpy\._?core\.multiarray\n", module, data))
    assert any(b"core.multiarray\n" in data for data in content.values())
    assert convert_nnunet(folder, tmp_path / "bundle", Choices()).fold_indices == (0,)


def packed(file: Path) -> None:
    """Compress what a checkpoint holds; PyTorch unpacks it as it reads."""
    with zipfile.ZipFile(file) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def test_a_checkpoint_that_unpacks_to_a_multiple_of_its_size_is_refused_and_a_compressed_one_is_read(
    tmp_path: Path,
) -> None:
    for name, extra in (("harmless", 0), ("bomb", 10**6)):
        model = NnunetModel(checkpoint=lambda content, extra=extra: content.update(extra=torch.zeros(extra)))
        folder = model.write(tmp_path / name)
        packed(folder / "fold_0" / "checkpoint_final.pth")
        if not extra:
            assert convert_nnunet(folder, tmp_path / "bundle", Choices()).fold_indices == (0,)
            continue
        with pytest.raises(BundleError, match="more than 10 times its size"):
            convert_nnunet(folder, tmp_path / "other", Choices())


def test_a_pytorch_whose_reader_can_be_tricked_opens_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = NnunetModel().write(tmp_path / "results")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a checkpoint was opened"))
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.9.1+cu128"))
    with pytest.raises(EnvironmentProblemError, match=r"PyTorch 2.10 or newer only: in 2.9.1\+cu128"):
        convert_nnunet(folder, tmp_path / "bundle", Choices())


@pytest.mark.parametrize("position", [0.1, 0.6, 0.99])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, position: float) -> None:
    folder = NnunetModel().write(tmp_path / "results")
    file = folder / "fold_0" / "checkpoint_final.pth"
    content = file.read_bytes()
    file.write_bytes(content[: int(position * len(content))])
    with pytest.raises(BundleError, match="damaged"):
        convert_nnunet(folder, tmp_path / "bundle", Choices())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("network_weights"), "no checkpoint of nnU-Net v2"),
        (lambda content: content.pop("init_args"), "no checkpoint of nnU-Net v2"),
        (lambda content: content.update(network_weights=[1]), "no checkpoint of nnU-Net v2"),
        (lambda content: content["network_weights"].update({"decoder.seg_layers.0.bias": 3}), "decoder.heads.0.bias"),
        (lambda content: content.update(inference_allowed_mirroring_axes=(0, 7)), "mirror_axes"),
        (lambda content: content.update(current_epoch=float("inf")), "no checkpoint of nnU-Net v2"),
        (lambda content: content["network_weights"].update({"a\x1b[31m": torch.zeros(1)}), r"'a\x1b[31m'"),
    ],
)
def test_a_checkpoint_that_is_none_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    assert message in refusal(tmp_path, NnunetModel(checkpoint=change))


def test_an_archive_that_climbs_out_is_refused(tmp_path: Path) -> None:
    NnunetModel().write(tmp_path / "results")
    archive = zipped(tmp_path / "results", tmp_path / "m.zip")
    with zipfile.ZipFile(archive, "a") as target:
        target.writestr("../../evil.json", b"{}")
    with pytest.raises(BundleError, match="unsafe path"):
        convert_nnunet(archive, tmp_path / "bundle", Choices())


def test_what_is_no_trained_model_is_told_apart(tmp_path: Path) -> None:
    folder = NnunetModel().write(tmp_path / "results")
    (folder / "fold_0" / "checkpoint_final.pth").rename(folder / "fold_0" / "checkpoint_best.pth")
    (tmp_path / "part" / "fold_0").mkdir(parents=True)
    (tmp_path / "part" / "fold_0" / "checkpoint_final.pth").write_bytes(b"")
    (tmp_path / "first" / "fold_0").mkdir(parents=True)
    (tmp_path / "first" / "plans.pkl").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    for place, message in (
        (folder, "its training is not finished"),
        (tmp_path / "part", "no plans.json beside its fold"),
        (tmp_path / "first", "nnU-Net's first version"),
        (tmp_path / "empty", "holds no trained model of nnU-Net v2"),
        (tmp_path / "nowhere", "does not exist"),
    ):
        with pytest.raises(InputError, match=message):
            convert_nnunet(place, tmp_path / "bundle", Choices())


def test_the_command_converts_with_an_image_for_the_orientation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = NnunetModel(plans=lambda plans: plans.update(image_reader_writer="SimpleITKIO"))
    folder = model.write(tmp_path / "results")
    geometry = Geometry((2, 3, 4), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), ((0, 0, 1), (0, -1, 0), (1, 0, 0)))
    write_volume(np.zeros(geometry.shape, np.float32), geometry, tmp_path / "image.nii.gz")
    words = ["models", "convert", str(folder), "-o", str(tmp_path / "bundle")]
    assert main(words) == 2
    assert "--orientation" in capsys.readouterr().err
    assert main([*words, "--orientation", str(tmp_path / "image.nii.gz"), "--name", "nnunet.mine"]) == 0
    printed = capsys.readouterr()
    assert f"Converted nnunet.mine to {tmp_path / 'bundle'}" in printed.out
    assert "license of the weights is not stated" in printed.err
    assert "crossval_results_folds_0/postprocessing.pkl is a pickle and was not opened" in printed.err
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.manifest.plan.orientation == "SAL"
    assert bundle.manifest.provenance.weights_license == "not stated"
    assert main([*words, "--orientation", "las"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*words, "--orientation", "las", "--force", "--license", "MIT", "--events"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[-1] == {
        "event": "result",
        "name": "nnunet.two_things",
        "path": str(tmp_path / "bundle"),
        "folds": [0],
    }
    assert {event["event"] for event in events} == {"progress", "log", "result"}


@pytest.mark.parametrize("packed", [False, True])
def test_whoever_installs_a_model_of_nnunet_is_told_to_convert_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], packed: bool
) -> None:
    folder = NnunetModel().write(tmp_path / "results")
    archive = zipped(tmp_path / "results", tmp_path / "m.zip")
    for place in (archive,) if packed else (folder, folder.parent):
        assert main(["models", "install", str(place), "--models-dir", str(tmp_path / "models")]) == 2
        assert f"mambaseg models convert {place.name} -o BUNDLE" in capsys.readouterr().err
    assert not (tmp_path / "models").exists()
