"""Validation: killed and continued, with and without mirroring, in bounded memory."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
from MambaSegTraining import validation
from MambaSegTraining.__main__ import main
from MambaSegTraining.export import export_bundle
from MambaSegTraining.files import read_json, write_json
from MambaSegTraining.metrics import LabelScore
from MambaSegTraining.run_folder import RunFolder
from MambaSegTraining.scores import FoldScores, protocol, summarize_groups
from MambaSegTraining.splits import Splits
from MambaSegTraining.validation import validate_fold
from MambaSegTraining.validation_progress import PARTIAL_FILE, PartialScores
from MambaSegTraining.validation_tables import markdown_table

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


def test_what_does_not_change_the_scores_needs_no_new_validation(run, predicted, monkeypatch):
    """Other colors and notes in the plan, fields that a later version added, another release of the program."""
    plan = json.loads(run.plan_file.read_text())
    plan["labels"][0]["color"] = [1, 2, 3]
    plan["channels"][0]["modality"] = "CT"
    plan["fingerprint"] = None
    run.plan_file.write_text(json.dumps(plan))
    monkeypatch.setattr("MambaSegLib.__version__", "9.9.9")
    validate_fold(run, 0)
    assert predicted == []


@pytest.mark.parametrize("measured_by", ["this version", "an earlier version"])
def test_a_new_validation_says_why_the_old_one_does_not_count(run, predicted, caplog, measured_by):
    caplog.set_level("INFO")
    path = _folder(run) / "scores.json"
    if measured_by == "an earlier version":
        stored = json.loads(path.read_text())
        del stored["basis"]
        path.write_text(json.dumps(stored))
        validate_fold(run, 0)
        told = "an earlier version of the program did not keep what its scores depend on"
    else:
        validate_fold(run, 0, mirroring=True)
        told = "final weights, without mirroring then, final weights, with mirroring now"
    assert f"Fold 0 was validated before and is measured again: {told}." in caplog.messages
    assert len(predicted) == 2


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


def test_a_choice_of_weights_by_the_measured_cases_is_told(run):
    scores = validate_fold(run, 0, weights="best")
    assert protocol(run.read_splits(), [scores]).endswith("; weights with the best patch Dice on the same cases")


def test_the_only_structure_of_a_data_set_stands_in_a_table_once():
    scores = [replace(score, label="heart") for score in _scores_of("ball")]
    groups = summarize_groups([FoldScores(0, "final", tuple(scores))], ["heart"], Splits((), "", "case", {}))
    head = markdown_table(groups, ["heart"], "all").splitlines()[0]
    assert head == "| cases | n | DSC heart | NSD heart | HD95 heart (mm) |"
    two = [*scores, *(replace(score, label="aorta") for score in scores)]
    groups = summarize_groups([FoldScores(0, "final", tuple(two))], ["heart", "aorta"], Splits((), "", "case", {}))
    head = markdown_table(groups, ["heart", "aorta"], "all").splitlines()[0]
    assert head == "| cases | n | DSC heart | DSC aorta | DSC mean | NSD mean | HD95 mean (mm) |"


def _scores_of(label: str) -> list[LabelScore]:
    return [LabelScore(f"c{k}", 0, label, "none", 0.9, 0.8, 2.0, 1.0, 0.1, 0.1, 1.1, 1.0, 2.0) for k in range(3)]


def test_another_way_of_measuring_can_go_elsewhere_and_leaves_the_runs_result(run, tmp_path, capsys):
    def files() -> dict[Path, bytes]:
        kept = (*run.path.glob("fold_*/validation/*"), *run.path.glob("validation/*"))
        return {path: path.read_bytes() for path in kept}

    before, elsewhere = files(), tmp_path / "with mirroring"
    command = ["validate", str(run.path), "--mirroring", "--device", "cpu", "--threads", "1"]
    assert main([*command, "-o", str(elsewhere)]) == 0
    assert "predicted with mirroring" in capsys.readouterr().out
    assert files() == before
    case = run.read_fold(0).val[0]
    assert {path.name for path in (elsewhere / "fold_0").iterdir()} >= {f"{case}.nii.gz", "scores.json"}
    assert {path.name for path in elsewhere.iterdir()} >= {"summary.md", "summary.json", "scores.csv", "fold_2"}
    assert "predicted with mirroring" not in export_bundle(
        run, run.read_settings(), tmp_path / "bundle"
    ).manifest.metrics[0].protocol  # fmt: skip
    assert main([*command, "-o", str(elsewhere)]) == 0  # nothing is measured twice there, either


def test_scores_do_not_stand_beside_label_maps_of_another_way_of_measuring(run):
    def kill(name: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        validate_fold(run, 0, mirroring=True, on_case=kill)
    assert not (_folder(run) / "scores.json").exists()


def test_label_maps_that_were_removed_are_made_again(run, predicted):
    before = read_json(FoldScores, _folder(run) / "scores.json")
    first = run.read_fold(0).val[0]
    (_folder(run) / f"{first}.nii.gz").unlink()
    assert validate_fold(run, 0) == before
    assert (_folder(run) / f"{first}.nii.gz").is_file()
    assert predicted == [first]


def test_a_copied_data_set_needs_no_new_validation_and_a_missing_one_is_told(run, predicted):
    from MambaSegTraining.fingerprint import DatasetFingerprint, dataset_of

    fingerprint = read_json(DatasetFingerprint, run.fingerprint_file)
    copy = run.path.parent / "copy of the data"
    shutil.copytree(fingerprint.folder, copy, copy_function=shutil.copyfile)  # new times
    write_json(run.fingerprint_file, replace(fingerprint, folder=str(copy)))
    validate_fold(run, 0)
    assert predicted == []
    shutil.rmtree(copy)
    with pytest.raises(InputError, match="If it was moved, run mambaseg-train plan with its new place"):
        dataset_of(run)
