"""Only the largest component: decided on validated cases, stored in the bundle, applied by the same code everywhere."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from MambaSegTraining import component_selection
from MambaSegTraining.__main__ import main
from MambaSegTraining.component_selection import (
    final_plan,
    final_prediction,
    final_scores,
    prediction_file,
    select_components,
)
from MambaSegTraining.files import read_json, write_json
from MambaSegTraining.fingerprint import dataset_of
from MambaSegTraining.metrics import score_case
from MambaSegTraining.report import report_runs
from MambaSegTraining.run_folder import RunFolder
from MambaSegTraining.scores import FoldScores, structures
from MambaSegTraining.validation import summarize

from MambaSegLib.bundle import load_bundle
from MambaSegLib.predictor import Predictor
from MambaSegLib.volume import Labels
from MambaSegLib.volume_io import read_channels, read_labels


@pytest.fixture
def run(validated_run: Path, tmp_path: Path) -> RunFolder:
    shutil.copytree(validated_run, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def replace_predictions(run: RunFolder, stray: int) -> None:
    """Predictions as the references, with a stray block of one label in a corner, and their scores."""
    references = {case.name: case.labels for case in dataset_of(run).cases}
    for fold in range(3):
        path = run.fold(fold) / "validation" / "scores.json"
        scores = []
        for name in run.read_fold(fold).val:
            labels = read_labels(references[name])
            array = labels.array.copy()
            array[:2, :2, :2] = stray
            wrong = Labels(array, labels.geometry, labels.table)
            wrong.write(prediction_file(run, fold, name))
            scores += score_case(wrong, labels, name, fold, structures(run))
        write_json(path, replace(read_json(FoldScores, path), scores=tuple(scores)))


def test_stray_parts_are_removed_where_that_helps_and_everything_tells(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replace_predictions(run, stray=1)
    text = summarize(run)
    assert select_components(run).names == ("ball",)
    assert "; only the largest component of ball, decided on the same cases" in text
    assert "* ball: Only the largest component is kept: HD95" in text
    assert "* core: All components are kept" in text
    assert final_plan(run).keep_largest == (1,)
    assert {score.dice for fold in final_scores(run) for score in fold.scores} == {1.0}
    stored = read_json(FoldScores, run.fold(0) / "validation" / "scores.json")
    assert any(score.dice != 1.0 for score in stored.scores)  # as the network made it
    name = run.read_fold(0).val[0]
    reference = next(case.labels for case in dataset_of(run).cases if case.name == name)
    assert np.array_equal(final_prediction(run, 0, name).array, read_labels(reference).array)

    assert main(["export", str(run.path), str(tmp_path / "bundle")]) == 0
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.manifest.plan.keep_largest == (1,)
    assert all("only the largest component of ball" in metric.protocol for metric in bundle.manifest.metrics)
    assert "largest connected component is kept: ball." in (tmp_path / "bundle" / "MODEL_CARD.md").read_text()
    files = report_runs([run.path], tmp_path / "report")
    assert "Connected components kept" in files.html.read_text(encoding="utf-8")
    components = json.loads(files.json.read_text(encoding="utf-8"))["runs"][0]["components"]
    assert [(choice["label"], choice["keep_largest"]) for choice in components] == [("ball", True), ("core", False)]


def test_the_exported_bundle_gives_exactly_the_label_maps_that_were_measured(run: RunFolder, tmp_path: Path) -> None:
    """Also where components are removed: then the scores are about the maps without them."""
    selection = select_components(run)
    path = run.path / "validation" / "components.json"
    ball, core = selection.choices
    write_json(path, replace(selection, choices=(replace(ball, keep_largest=True), replace(core, keep_largest=True))))
    assert main(["export", str(run.path), str(tmp_path / "bundle")]) == 0
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.manifest.plan.keep_largest == (1, 2)
    removed = 0
    for fold in range(3):
        predictor = Predictor(bundle, device="cpu", folds=(fold,))
        for case in (case for case in dataset_of(run).cases if case.name in run.read_fold(fold).val):
            predicted = predictor.predict(read_channels({"MRI": case.images[0]})).labels
            assert np.array_equal(predicted.array, final_prediction(run, fold, case.name).array)
            measured = read_labels(prediction_file(run, fold, case.name))
            removed += int((measured.array != predicted.array).sum())
    assert removed > 0


def test_the_decision_is_made_once_and_again_for_new_scores(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    select_components(run)
    replace_predictions(run, stray=2)
    assert select_components(run).names == ("core",)
    monkeypatch.setattr(component_selection, "score_case", lambda *_: pytest.fail("decided twice"))
    assert select_components(run).names == ("core",)


def test_a_structure_in_two_parts_keeps_both(run: RunFolder, tmp_path: Path) -> None:
    """Where the reference has two parts as well, removing one makes the overlap worse."""
    cases = dataset_of(run).cases
    shutil.copytree(cases[0].labels.parents[1], tmp_path / "data")
    fingerprint = json.loads(run.fingerprint_file.read_text())
    run.fingerprint_file.write_text(json.dumps(fingerprint | {"folder": str(tmp_path / "data")}))
    for case in dataset_of(run).cases:
        labels = read_labels(case.labels)
        array = labels.array.copy()
        array[:2, :2, :2] = 1
        Labels(array, labels.geometry, labels.table).write(case.labels)
    replace_predictions(run, stray=1)
    assert select_components(run).names == ()
