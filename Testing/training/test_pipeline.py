"""The whole way from a data set to a bundle, by commands only."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from MambaSegTraining.__main__ import main
from MambaSegTraining.component_selection import final_prediction
from MambaSegTraining.export import export_bundle
from MambaSegTraining.files import load_checkpoint, load_weights
from MambaSegTraining.run_folder import RunFolder
from MambaSegTraining.settings import read_settings

from MambaSegLib.bundle import load_bundle
from MambaSegLib.errors import InputError
from MambaSegLib.predictor import Predictor
from MambaSegLib.volume_io import read_channels


def test_from_data_set_to_bundle(validated_run, tmp_path):
    run, target = validated_run, tmp_path / "bundle"
    assert "| out of fold | 6 |" in (run / "validation" / "summary.md").read_text()
    summary = json.loads((run / "validation" / "summary.json").read_text())
    protocol = "out of fold, 3-fold cross-validation grouped by subject; folds: drawn with seed 12345"
    assert summary["protocol"].startswith(protocol)
    assert len((run / "validation" / "scores.csv").read_text().splitlines()) == 1 + 6 * 2

    assert main(["export", str(run), str(target)]) == 0
    bundle = load_bundle(target)
    assert bundle.fold_indices == (0, 1, 2)
    assert bundle.manifest.provenance.seeds == (12345, 12346, 12347)
    assert bundle.manifest.provenance.training_cases == 6
    dice = next(metric for metric in bundle.manifest.metrics if (metric.name, metric.label) == ("DSC", "ball"))
    assert dice.n + dice.excluded == 6

    _check_predictions_are_those_of_the_validation(bundle, run, run.parent / "Dataset900_Balls")


def _check_predictions_are_those_of_the_validation(bundle, run, dataset):
    splits = RunFolder(run).read_splits()
    name = splits.folds[1].val[0]
    volume = read_channels({"MRI": dataset / "imagesTr" / f"{name}_0000.nii.gz"})
    predicted = Predictor(bundle, device="cpu", folds=(1,)).predict(volume).labels
    stored = final_prediction(RunFolder(run), 1, name)
    assert np.array_equal(predicted.array, stored.array)
    assert predicted.geometry.is_close(stored.geometry)


def test_the_average_of_the_weights_is_what_is_exported(validated_run):
    bundle = load_bundle(validated_run / "fold_0" / "bundle")
    final, stored = load_weights(validated_run / "fold_0" / "weights.safetensors"), bundle.load_weights(0)
    assert all(np.array_equal(stored[name], weights) for name, weights in final.items())
    checkpoint = load_checkpoint(validated_run / "fold_0" / "checkpoint.pt")
    name = next(iter(final))
    assert np.array_equal(final[name], checkpoint["average"][f"module.{name}"])
    assert not np.array_equal(final[name], checkpoint["network"][name])


def test_export_wants_all_that_is_to_be_said_and_names_what_lacks_at_once(validated_run, config_file, tmp_path, capsys):
    text = config_file.read_text().replace('intended_use = "Tests."', "").replace('weights_license = "CC0-1.0"', "")
    config_file.write_text(text.replace('name = "Balls"', ""))  # that of the run counts
    command = ["export", str(validated_run), str(tmp_path / "bundle"), "--config", str(config_file)]
    assert main(command) == 2
    assert (
        "the configuration lacks bundle.weights_license, bundle.intended_use. Fill that in" in capsys.readouterr().err
    )
    assert not (tmp_path / "bundle").exists()


def test_name_and_license_of_the_data_set_are_those_of_dataset_json_unless_stated(ball_dataset, config_file, tmp_path):
    config_file.write_text(config_file.read_text().replace('name = "Balls"', "").replace('license = "CC0-1.0"', "", 1))
    path = ball_dataset / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "name": "Bright balls", "licence": "CC-BY-4.0"}))
    assert main(["plan", str(ball_dataset), str(tmp_path / "run"), "--config", str(config_file), "--workers", "0"]) == 0
    about = RunFolder(tmp_path / "run").read_settings().dataset
    assert (about.name, about.license) == ("Bright balls", "CC-BY-4.0")


def test_export_wants_every_trained_fold_to_be_validated(validated_run, config_file, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(validated_run, run)
    shutil.rmtree(run / "fold_1" / "validation")
    with pytest.raises(InputError, match=r"Fold 1 of .* is not validated"):
        export_bundle(RunFolder(run), read_settings(config_file), tmp_path / "bundle")


def test_preprocessing_continues_and_notices_other_files(planned_run, capsys):
    main(["preprocess", str(planned_run), "--workers", "0"])
    assert "6 case(s) preprocessed" in capsys.readouterr().out
    ball_dataset = planned_run.parent / "Dataset900_Balls"
    image = ball_dataset / "imagesTr" / "s0_a_0000.nii.gz"
    (planned_run / "preprocessed" / "s1_a.json").unlink()
    image.write_bytes((ball_dataset / "imagesTr" / "s2_a_0000.nii.gz").read_bytes())
    main(["preprocess", str(planned_run), "--workers", "1"])
    assert "2 case(s) preprocessed, 4 were up to date" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "{run}", "--fold", "9", "--device", "cpu"], "folds 0 to 2"),
        (["train", "{run}", "--fold", "0", "--device", "toaster"], "no device 'toaster'"),
        (["validate", "{run}", "--fold", "0", "--device", "cpu"], "not trained to its end"),
        (["export", "{run}", "{run}/bundle"], "No fold"),
        (["plan", "{run}", "{run}/x"], "no dataset.json"),
        (["train", "nowhere", "--fold", "0"], "does not exist"),
    ],
)
def test_mistakes_end_with_a_sentence_and_exit_code_2(planned_run, arguments, expected, capsys):
    assert main([argument.format(run=planned_run) for argument in arguments]) == 2
    message = capsys.readouterr().err
    assert expected in message
    assert "Traceback" not in message
