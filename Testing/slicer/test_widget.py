"""The window, used as a person does: choosing and clicking. Stand-ins for Qt's Slicer widgets, real nodes and workers."""

from __future__ import annotations

import shutil
import sys
import zipfile

import slicer
from conftest import MODULE_FILE, waitFor
from MambaSegmentationLib.widgets import choose

from MambaSegLib.errors import EnvironmentProblemError

TALKATIVE = """if True:
    import time
    print('{"event": "log", "level": "warning", "message": "The voxels are unlike the training images."}')
    print('{"event": "progress", "stage": "Predicting", "done": 1, "total": 4, "seconds_left": 9.5}')
    print("a line of the log")
    time.sleep(600)
"""


def selector(window):
    return window.inputs.selectors()["T1"]


def test_opening_the_window_starts_and_installs_nothing(opened):
    widget, _, errors = opened
    assert widget.window.run is None
    assert "Not for clinical use" in widget.window.ui.disclaimerLabel.text()
    assert not widget.window.ui.applyButton.isEnabled()
    assert errors == []


def test_apply_makes_a_segmentation(ready, scene, obliqueVolume):
    window, ui, errors = ready
    assert ui.applyButton.isEnabled()
    ui.uncertaintyCheck.click()
    ui.applyButton.click()
    assert not ui.applyButton.isEnabled()
    assert ui.cancelButton.isEnabled()
    waitFor(lambda: window.run.state != "running")
    waitFor(ui.applyButton.isEnabled)
    assert errors == []
    node = scene.GetFirstNodeByClass("vtkMRMLSegmentationNode")
    assert node.GetName() == "T1 segmentation"
    assert ui.statusLabel.text().startswith("Done in ")
    assert ui.statusLabel.text().endswith(": T1 segmentation")
    assert window.run.uncertaintyNode.GetName() == "T1 uncertainty"


def test_cancel_shows_progress_notices_and_log_until_then_and_is_ready_again(ready, workerOf, scene):
    window, ui, errors = ready
    window._segmenter.workerCommand = workerOf(TALKATIVE)
    ui.applyButton.click()
    waitFor(lambda: "a line of the log" in ui.logText.toPlainText())
    assert "Predicting 25 %" in ui.statusLabel.text()
    assert "about 10 s left" in ui.statusLabel.text()
    assert "unlike the training images" in ui.warningLabel.text()
    ui.copyLogButton.click()
    ui.cancelButton.click()
    waitFor(ui.applyButton.isEnabled, 10)
    assert "as it was" in ui.statusLabel.text()
    assert scene.GetFirstNodeByClass("vtkMRMLSegmentationNode") is None
    assert errors == []


def test_a_failure_is_shown_with_its_cause_and_the_next_apply_can_follow(ready, workerOf):
    window, ui, errors = ready
    window._segmenter.workerCommand = workerOf("import sys; print('out of ideas', file=sys.stderr); sys.exit(5)")
    ui.applyButton.click()
    waitFor(ui.applyButton.isEnabled, 30)
    assert "out of ideas" in errors[0]
    assert "out of ideas" in ui.logText.toPlainText()


def test_apply_is_off_until_every_channel_has_an_image(ready):
    window, ui, _ = ready
    selector(window).setCurrentNode(None)
    assert not ui.applyButton.isEnabled()
    assert ui.applyButton.toolTip() == "Choose an image for T1"


def test_closing_the_scene_while_running_leaves_the_window_ready_for_another(ready, workerOf, scene):
    window, ui, errors = ready
    window._segmenter.workerCommand = workerOf(TALKATIVE)
    ui.applyButton.click()
    scene.Clear(0)
    waitFor(lambda: window.run.state == "cancelled", 10)
    waitFor(lambda: "scene was closed" in ui.statusLabel.text(), 10)
    assert ui.modelGroup.isEnabled()
    assert ui.deviceSelector.currentData() == window._choices.get("device")
    assert not ui.applyButton.isEnabled()  # no image is left
    assert errors == []


def test_a_scene_that_is_closed_takes_along_what_was_said_of_it(ready, scene, thresholdWorker):
    window, ui, _ = ready
    window._segmenter.workerCommand = thresholdWorker
    ui.applyButton.click()
    waitFor(lambda: not window._isBusy(), 60)
    assert ui.statusLabel.text().startswith("Done in ")
    window.runs.warn(["It is unlike the training images."])
    scene.Clear(0)
    assert ui.statusLabel.text() == ""
    assert ui.warningLabel.text() == ""


def test_missing_packages_are_asked_for_once_and_refusing_changes_nothing(ready, monkeypatch):
    from MambaSegmentationLib import dependencies

    window, ui, errors = ready
    asked, installed = [], []
    monkeypatch.setattr(dependencies, "missingPackages", lambda: dependencies.PACKAGES[:1])
    monkeypatch.setattr(dependencies, "install", lambda *a, **k: installed.append(a))
    window.dialogs.confirm = lambda title, text: bool(asked.append(text))
    ui.applyButton.click()
    assert len(asked) == 1
    assert "torch" in asked[0]
    assert installed == []
    assert "Nothing was installed" in ui.statusLabel.text()
    assert ui.applyButton.isEnabled()

    def fail(*_, **__):
        message = "no network"
        raise EnvironmentProblemError(message)

    monkeypatch.setattr(dependencies, "install", fail)
    window.dialogs.confirm = lambda title, text: True
    ui.applyButton.click()
    assert errors == ["no network"]


def test_while_packages_are_installed_a_second_click_starts_nothing(ready, monkeypatch, thresholdWorker):
    """Slicer's pip handles clicks while it works."""
    from MambaSegmentationLib import dependencies

    window, ui, errors = ready
    window._segmenter.workerCommand = thresholdWorker
    missing, seen = [dependencies.PACKAGES[1]], []

    def install(*_, **__):
        ui.applyButton.click()
        ui.estimateButton.click()
        seen.append((ui.applyButton.isEnabled(), ui.applyButton.toolTip(), ui.cancelButton.isEnabled()))
        missing.clear()

    monkeypatch.setattr(dependencies, "missingPackages", lambda: tuple(missing))
    monkeypatch.setattr(dependencies, "install", install)
    window.dialogs.confirm = lambda title, text: True
    ui.applyButton.click()
    assert seen == [(False, "Packages are being installed", False)]
    waitFor(lambda: not window._isBusy())
    assert ui.statusLabel.text().startswith("Done in ")
    assert errors == []


def test_reloading_the_module_reads_all_of_its_files_again(opened):
    widget = opened[0]
    kept = {name: module for name, module in sys.modules.items() if name.startswith("MambaSeg")}
    try:
        widget.onReload()
        assert not [name for name in sys.modules if name.startswith(("MambaSegLib", "MambaSegmentationLib"))]
    finally:
        sys.modules.update(kept)


def test_the_details_say_what_a_person_must_know(ready):
    _, ui, _ = ready
    text = ui.modelDetails.toPlainText()
    for words in ("T1 (MR)", "Anterior", "Posterior", "Apache-2.0", "Testing.", "Knows nothing.", "DSC mean: 0.500"):
        assert words in text


def test_the_search_keeps_what_fits(ready):
    _, ui, _ = ready
    ui.modelSearch.setText("halves T1")
    assert ui.modelSelector.count() == 1
    ui.modelSearch.setText("liver")
    assert ui.modelSelector.findData("mamba_unet_unidirectional.tiny") == -1


def test_choices_are_stored_in_the_scene_and_shown_again(ready, obliqueVolume, scene):
    import headless_slicer

    window, ui, _ = ready
    choose(ui.qualitySelector, "best")
    window.disconnect()
    _, widget, host = headless_slicer.loadModule(MODULE_FILE)
    again = widget.window
    assert again.ui.qualitySelector.currentData() == "best"
    assert again.compute.options()["quality"] == "best"
    assert again.ui.deviceSelector.currentData() == "cpu"
    headless_slicer.closeModule(widget, host)


def test_a_model_is_installed_from_a_file_and_removed(ready, tmp_path, modelPath):
    from MambaSegLib.bundle import load_bundle, pack_bundle

    window, ui, errors = ready
    window.dialogs.confirm = lambda title, text: True
    ui.removeButton.click()
    assert ui.modelSelector.findData("mamba_unet_unidirectional.tiny") == -1
    pack_bundle(load_bundle(modelPath), tmp_path / "model.zip")
    window.dialogs.chooseFile = lambda: str(tmp_path / "model.zip")
    ui.installButton.click()
    assert ui.modelSelector.currentData() == "mamba_unet_unidirectional.tiny"
    (tmp_path / "bad.zip").write_bytes(b"no zip")
    window.dialogs.chooseFile = lambda: str(tmp_path / "bad.zip")
    ui.installButton.click()
    assert len(errors) == 1
    assert "bad.zip" in errors[0]


def test_whoever_adds_a_model_of_nnunet_is_told_how_to_convert_it(ready, tmp_path):
    window, ui, errors = ready
    with zipfile.ZipFile(tmp_path / "exported.zip", "w") as archive:
        archive.writestr("Dataset004_Hippocampus/nnUNetTrainer__nnUNetPlans__3d_fullres/plans.json", "{}")
    window.dialogs.chooseFile = lambda: str(tmp_path / "exported.zip")
    ui.installButton.click()
    assert len(errors) == 1
    assert "mambaseg models convert exported.zip" in errors[0]


def test_weights_that_may_not_be_used_for_everything_are_kept_only_if_the_license_is_accepted(
    opened, tmp_path, modelPath
):
    widget, _, errors = opened
    window, ui = widget.window, widget.window.ui
    window._segmenter.remove("mamba_unet_unidirectional.tiny")
    folder = tmp_path / "restricted"
    shutil.copytree(modelPath, folder)
    text = (folder / "bundle.json").read_text(encoding="utf-8")
    (folder / "bundle.json").write_text(text.replace('"Apache-2.0"', '"CC-BY-NC-4.0"'), encoding="utf-8")
    asked = []
    window.dialogs.chooseFile = lambda: str(folder)
    window.dialogs.confirm = lambda title, question: bool(asked.append(question))
    ui.installButton.click()
    assert "CC-BY-NC-4.0" in asked[0]
    assert ui.modelSelector.findData("mamba_unet_unidirectional.tiny") == -1
    assert "not kept" in ui.statusLabel.text()
    window.dialogs.confirm = lambda title, question: True
    ui.installButton.click()
    assert ui.modelSelector.currentData() == "mamba_unet_unidirectional.tiny"
    assert errors == []


def test_the_window_can_be_looked_at(ready, opened, tmp_path):
    _, host, _ = opened
    host.resize(460, 900)
    host.show()
    slicer.app.processEvents()
    picture = host.grab()
    assert picture.save(str(tmp_path / "window.png"))
    assert len({picture.toImage().pixel(x, y) for x in range(0, 460, 7) for y in range(0, 900, 7)}) > 10


def test_a_defect_is_shown_and_not_only_written_to_the_console(ready, monkeypatch):
    window, ui, errors = ready

    def fails(*_arguments, **_options):
        message = "nobody thought of this"
        raise ZeroDivisionError(message)

    for name, button in (("start", ui.applyButton), ("startEstimate", ui.estimateButton), ("remove", ui.removeButton)):
        monkeypatch.setattr(window._segmenter, name, fails)
        window.dialogs.confirm = lambda title, text: True
        button.click()
        assert "ZeroDivisionError: nobody thought of this" in errors.pop()
        assert ui.applyButton.isEnabled()
