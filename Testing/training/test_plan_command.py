"""`mambaseg-train plan`: leaking folds are refused or told everywhere, and the patch fits the stated memory."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from MambaSegTraining.__main__ import main
from MambaSegTraining.dataset import Case, Dataset, read_dataset
from MambaSegTraining.export import export_bundle
from MambaSegTraining.fingerprint import CaseFacts, ChannelFacts, DatasetFingerprint, take_fingerprint
from MambaSegTraining.leakage_record import checked_leakage, describe_leakage
from MambaSegTraining.memory_budget import step_settings
from MambaSegTraining.memory_model import estimate_step
from MambaSegTraining.named_plans import named_plan
from MambaSegTraining.planning import make_plan
from MambaSegTraining.report.collect import model_run
from MambaSegTraining.run_folder import RunFolder
from MambaSegTraining.settings import DatasetSettings, NetworkSettings, PlanSettings, Settings
from MambaSegTraining.split_choice import splits_of

from MambaSegLib.bundle import load_bundle
from MambaSegLib.errors import InputError
from MambaSegLib.geometry import Geometry
from MambaSegLib.volume_io import read_volume, write_volume

LEAKING = [{"train": ["s0_a", "s1_a", "s2_a"], "val": ["s0_b", "s1_b", "s2_b"]}]


@pytest.fixture
def leaking(ball_dataset: Path, config_file: Path) -> tuple[Path, Path]:
    """Data set and configuration whose only fold trains on the patients it validates."""
    (ball_dataset / "splits.json").write_text(json.dumps(LEAKING))
    config_file.write_text(config_file.read_text().replace("folds = 3", 'splits_file = "splits.json"'))
    return ball_dataset, config_file


def plan(dataset: Path, run: Path, config: Path, *more: str) -> int:
    return main(["plan", str(dataset), str(run), "--config", str(config), "--workers", "0", *more])


def test_folds_that_leak_are_refused_before_anything_is_written(
    leaking: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, config = leaking
    assert plan(dataset, tmp_path / "run", config) == 2
    message = capsys.readouterr().err
    assert "s0_b is measured and s0_a trained on (same patient)" in message
    assert "--force-leaks" in message
    assert not (tmp_path / "run").exists()


def test_forced_leaks_are_stored_and_told_by_report_and_bundle(
    leaking: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, config = leaking
    run = RunFolder(tmp_path / "run")
    assert plan(dataset, run.path, config, "--force-leaks") == 0
    assert "LEAK in splits.json" in capsys.readouterr().out
    record = checked_leakage(run)
    assert record.forced
    assert record.images_compared
    assert record.splits_sha256 == run.read_splits().sha256
    for words in (["preprocess"], ["train", "--fold", "0", "--device", "cpu"], ["validate", "--device", "cpu"]):
        more = [] if words[0] == "validate" else ["--workers", "0"]
        assert main([words[0], str(run.path), *words[1:], *more]) == 0
    reported = model_run(run)
    assert reported.leakage.startswith("LEAK in splits.json")
    assert record.sha256 in reported.provenance.values()
    bundle = export_bundle(run, run.read_settings(), tmp_path / "bundle")
    assert bundle.manifest.provenance.leakage.startswith("LEAK in splits.json")
    assert record.sha256 in load_bundle(tmp_path / "bundle").manifest.provenance.leakage
    assert "LEAK in splits.json" in (tmp_path / "bundle" / "MODEL_CARD.md").read_text()


def test_a_noisy_copy_of_another_patients_image_is_found_while_planning(
    ball_dataset: Path, config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original = read_volume(ball_dataset / "imagesTr" / "s0_a_0000.nii.gz")
    noisy = (original.array[0] + np.random.default_rng(1).normal(0, 1, original.geometry.shape)).astype(np.float32)
    write_volume(noisy, original.geometry, ball_dataset / "imagesTr" / "s3_a_0000.nii.gz")
    shutil.copy(ball_dataset / "labelsTr" / "s0_a.nii.gz", ball_dataset / "labelsTr" / "s3_a.nii.gz")
    description = json.loads((ball_dataset / "dataset.json").read_text())
    (ball_dataset / "dataset.json").write_text(json.dumps(description | {"numTraining": 7}))
    assert plan(ball_dataset, tmp_path / "run", config_file) == 2
    assert "(near-duplicate image)" in capsys.readouterr().err


def test_folds_edited_after_the_check_are_not_trained_on(planned_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preprocess", str(planned_run), "--workers", "0"]) == 0
    splits = json.loads((planned_run / "splits.json").read_text())
    moved = splits["folds"][0]["val"][0]
    splits["folds"][0]["train"].append(moved)
    (planned_run / "splits.json").write_text(json.dumps(splits))
    capsys.readouterr()
    assert main(["train", str(planned_run), "--fold", "0", "--device", "cpu", "--workers", "0"]) == 2
    assert "was changed after its folds were checked for leaks" in capsys.readouterr().err


def test_a_published_split_is_chosen_by_name_and_its_test_cases_are_held_out(tmp_path: Path) -> None:
    names = [f"case{number:04d}" for number in (*range(1, 11), *range(21, 41))]
    cases = tuple(Case(name, (), tmp_path) for name in names)
    dataset = Dataset(tmp_path, "Synapse", ("CT",), {1: "organ"}, cases)
    splits = splits_of(dataset, Settings(dataset=DatasetSettings(published_split="synapse:transunet")))
    assert len(splits.test) == 12
    assert len({case for fold in splits.folds for case in fold.val}) == 18
    assert "8 organs" in splits.note
    with pytest.raises(InputError, match="give one of them"):
        splits_of(dataset, Settings(dataset=DatasetSettings(published_split="synapse")))


def abdomen(shape: tuple[int, int, int], labels: int) -> tuple[Dataset, DatasetFingerprint]:
    facts = CaseFacts("a", "SPL", (3.0, 0.76, 0.76), shape, shape, (100,) * labels, "0", 0.0)
    dataset = Dataset(Path(), "CT", ("CT",), {k: f"organ {k}" for k in range(1, labels + 1)}, (Case("a", (), Path()),))
    channel = ChannelFacts(85.0, 117.0, -1000.0, -900.0, 80.0, 300.0, 1000.0)
    return dataset, DatasetFingerprint("CT", "", ("CT",), (facts,), (channel,))


@pytest.mark.parametrize(("gigabytes", "recompute"), [(8, False), (8, True), (24, True)])
def test_the_planned_patch_fits_the_stated_memory(gigabytes: float, recompute: bool) -> None:
    dataset, fingerprint = abdomen((147, 512, 512), 13)
    settings = Settings(network=NetworkSettings(memory_gb=gigabytes))
    settings = Settings(network=settings.network, recipe=type(settings.recipe)(recompute=recompute))
    planned = make_plan(dataset, fingerprint, settings)
    used = estimate_step(planned.network, step_settings(settings.recipe)).total / 1e9
    assert 0.5 * gigabytes < used <= gigabytes


def test_recomputation_and_fewer_scan_orders_allow_a_larger_patch() -> None:
    dataset, fingerprint = abdomen((147, 512, 512), 13)

    def voxels(name: str, recompute: bool) -> float:
        recipe = type(Settings().recipe)(recompute=recompute)
        return float(
            np.prod(make_plan(dataset, fingerprint, Settings(network=NetworkSettings(name), recipe=recipe)).patch_size)
        )

    multi, uni = "mamba_unet_multidirectional", "mamba_unet_unidirectional"
    usual = voxels(multi, recompute=False)
    assert usual < voxels(uni, recompute=False)
    assert usual < voxels(multi, recompute=True)


def test_a_named_plan_is_taken_as_released_whatever_the_memory() -> None:
    dataset, fingerprint = abdomen((147, 512, 512), 13)
    named = PlanSettings(named="synapse")
    settings = Settings(plan=named, network=NetworkSettings(options={"preset": "released"}))
    planned, released = make_plan(dataset, fingerprint, settings), named_plan("synapse").plan
    assert planned.network == released.network
    assert (planned.spacing_mm, planned.channels) == (released.spacing_mm, released.channels)
    assert planned.labels[0].name == "organ 1"
    with pytest.raises(InputError, match="leave out"):
        make_plan(dataset, fingerprint, Settings(plan=replace(named, patch_size=(48, 192, 192))))
    with pytest.raises(InputError, match="1 channels and 3 structures"):
        make_plan(dataset, fingerprint, Settings(plan=PlanSettings(named="acdc")))


def test_the_plan_step_tells_the_memory_of_a_step_and_what_recomputing_would_allow(
    ball_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[network]\nmemory_gb = 1.0\nfeatures = [64, 64]\n[dataset]\nfolds = 2\n[recipe]\namp = "off"\n')
    assert plan(ball_dataset, tmp_path / "run", config) == 0
    told = capsys.readouterr().out
    assert "GB with recompute = true" in told
    assert "with recompute = true in [recipe] the patch could be (12, 14, 12)" in told


def test_the_guides_commands_plan_a_download_of_synapse_as_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Thirty tiny scans in the folders of RawData.zip; the shipped configuration has plan, split, names and codes."""
    grid = Geometry.from_matrix(np.eye(4), (12, 16, 16))
    for number in (*range(1, 11), *range(21, 41)):
        noise = np.random.default_rng(number).normal(0, 300, grid.shape).astype(np.int16)
        labels = (np.arange(noise.size).reshape(noise.shape) % 14).astype(np.uint8)
        for array, kind in ((noise, "img"), (labels, "label")):
            path = tmp_path / "RawData" / "Training" / kind / f"{kind}{number:04d}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_volume(array, grid, path)
    assert main(["convert", "synapse", str(tmp_path / "RawData"), str(tmp_path / "data"), "--link"]) == 0
    config = Path(__file__).resolve().parents[2] / "Training" / "configs" / "synapse.toml"
    assert plan(tmp_path / "data", tmp_path / "run", config) == 0
    told = capsys.readouterr().out
    assert "5 folds grouped by subject (published split 'transunet' of synapse" in told
    assert "12 cases held out" in told
    planned = RunFolder(tmp_path / "run").read_plan()
    assert planned.patch_size == (48, 192, 192)
    assert (planned.labels[5].name, planned.labels[5].terminology.type.value) == ("Liver", "10200004")


def test_held_out_cases_have_no_share_in_the_intensities(ball_dataset: Path) -> None:
    dataset = read_dataset(ball_dataset)
    held_out = ("s0_a", "s0_b")
    for path in (case.images[0] for case in dataset.cases if case.name in held_out):
        image = SimpleITK.ReadImage(str(path))
        SimpleITK.WriteImage(image + 5000, str(path))
    found = take_fingerprint(dataset, held_out=held_out)
    assert found.intensities[0].maximum < 1000
    assert take_fingerprint(dataset).intensities[0].maximum > 5000
    assert len(found.cases) == 6


@pytest.mark.parametrize(("channel", "told"), [("CT", True), ("MRI", False)])
def test_a_window_that_measured_cases_have_a_share_in_is_told(
    ball_dataset: Path, config_file: Path, channel: str, told: bool
) -> None:
    description = json.loads((ball_dataset / "dataset.json").read_text())
    (ball_dataset / "dataset.json").write_text(json.dumps({**description, "channel_names": {"0": channel}}))
    run = ball_dataset.parent / "run"
    assert main(["plan", str(ball_dataset), str(run), "--config", str(config_file), "--workers", "0"]) == 0
    text = describe_leakage(RunFolder(run))
    assert text.startswith("No leak between training and measured cases (6 images compared")
    assert ("measured cases have a share in them" in text) == told


def test_a_run_with_trained_folds_is_planned_again_only_as_they_were_trained(
    validated_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, config = tmp_path / "run", tmp_path / "other.toml"
    shutil.copytree(validated_run, run)
    text = (validated_run.parent / "config.toml").read_text()
    command = ["plan", str(validated_run.parent / "Dataset900_Balls"), str(run), "--config", str(config)]
    before = (run / "plan.json").read_bytes()
    for old, new, told in (
        ("patch_size = [16, 16, 16]", "patch_size = [8, 16, 16]", "network"),
        ("mirror_axes = [2]", "mirror_axes = [1, 2]", "mirror_axes"),
        ("folds = 3", "folds = 2", "fold 0, fold 2"),  # fold 1 happens to be drawn alike
    ):
        config.write_text(text.replace(old, new))
        capsys.readouterr()
        assert main([*command, "--workers", "0"]) == 2
        assert f"was trained with other settings ({told})" in capsys.readouterr().err
        assert (run / "plan.json").read_bytes() == before
    config.write_text(text + '[[labels]]\nvalue = 1\nname = "big ball"\ncolor = [1, 2, 3]\n')
    assert main([*command, "--workers", "0"]) == 0
    assert RunFolder(run).read_plan().labels[0].name == "big ball"
