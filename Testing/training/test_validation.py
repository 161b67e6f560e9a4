"""Validation: killed and continued, with and without mirroring, in bounded memory."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from pathlib import Path

import pytest
from MambaSegTraining import validation
from MambaSegTraining.__main__ import main
from MambaSegTraining.export import export_bundle
from MambaSegTraining.files import read_json
from MambaSegTraining.run_folder import RunFolder
from MambaSegTraining.scores import FoldScores, protocol
from MambaSegTraining.validation import validate_fold
from MambaSegTraining.validation_progress import PARTIAL_FILE, PartialScores

from MambaSegLib.errors import InputError


@pytest.fixture
def run(validated_run, tmp_path):
    """Fold 0 trained and validated; a copy."""
    shutil.copytree(validated_run, tmp_path / "run")
    return RunFolder(tmp_path / "run")


@pytest.fixture
def predicted(monkeypatch):
    """Names of the cases that are predicted, as they are."""
    names: list[str] = []
    predict_case = validation.predict_case

    def watched(predictor, case, plan):
        names.append(case.name)
        return predict_case(predictor, case, plan)

    monkeypatch.setattr(validation, "predict_case", watched)
    return names


def _folder(run: RunFolder) -> Path:
    return run.fold(0) / "validation"


def test_a_killed_validation_goes_on_with_the_next_case(run, predicted):
    whole = read_json(FoldScores, _folder(run) / "scores.json")
    first, second = run.read_fold(0).val
    shutil.rmtree(_folder(run))

    def kill(name: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        validate_fold(run, 0, on_case=kill)
    assert not (_folder(run) / "scores.json").exists()
    with (_folder(run) / PARTIAL_FILE).open("a") as stream:
        stream.write('{"case": "' + second + '", "sco')  # cut short in the middle of a line
    assert validate_fold(run, 0).scores == whole.scores
    assert predicted == [first, second]
    assert not (_folder(run) / PARTIAL_FILE).exists()


def test_scores_of_other_weights_or_files_are_not_taken_over(tmp_path, run):
    score = read_json(FoldScores, _folder(run) / "scores.json").scores[:1]
    PartialScores(tmp_path, "one").add("a", score)
    assert PartialScores(tmp_path, "one").of("a") == score
    assert PartialScores(tmp_path, "other").of("a") is None
    assert PartialScores(tmp_path, "one").of("a") is None


def test_a_finished_validation_is_measured_again_only_if_something_changed_or_on_request(run, predicted):
    validate_fold(run, 0)
    assert predicted == []
    label_map = run.path.parent / "x.nii.gz"
    assert not label_map.exists()
    settings = json.loads(run.settings_file.read_text())
    settings["validation"]["tolerance_mm"] = 0.5
    run.settings_file.write_text(json.dumps(settings))
    assert {score.tolerance_mm for score in validate_fold(run, 0).scores} == {0.5}
    assert len(predicted) == 2
    validate_fold(run, 0, again=True)
    assert len(predicted) == 4


def test_mirroring_is_measured_and_told(run, capsys):
    before = read_json(FoldScores, _folder(run) / "scores.json")
    assert main(["validate", str(run.path), "--fold", "0", "--mirroring", "--device", "cpu", "--threads", "1"]) == 0
    after = read_json(FoldScores, _folder(run) / "scores.json")
    assert after.mirroring
    assert after.scores != before.scores
    assert protocol(run.read_splits(), [after]).endswith("; predicted with mirroring")
    assert "mirroring" not in protocol(run.read_splits(), [before])
    with pytest.raises(InputError, match="with mirroring, some without"):
        export_bundle(run, run.read_settings(), run.path / "bundle")


def test_threads_bounds_all_that_computes(run):
    import SimpleITK
    import torch

    threads = SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads()
    before = torch.get_num_threads()
    try:
        assert main(["validate", str(run.path), "--fold", "0", "--device", "cpu", "--threads", "1"]) == 0
        assert torch.get_num_threads() == SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads() == 1
    finally:
        torch.set_num_threads(before)
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)


def test_memory_holds_one_case_at_a_time(run, monkeypatch):
    alive: list[weakref.ref] = []
    most = []
    predict_case = validation.predict_case

    def watched(predictor, case, plan):
        gc.collect()
        most.append(sum(reference() is not None for reference in alive))
        labels = predict_case(predictor, case, plan)
        alive.append(weakref.ref(labels.array))
        return labels

    monkeypatch.setattr(validation, "predict_case", watched)
    validate_fold(run, 0, again=True)
    assert most == [0, 0]
