"""Parts of the window: models from the web and by dropping, sequences, estimates, undo, and several windows at once."""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import shutil
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import qt
import slicer
import vtk
from conftest import MODULE_FILE, contents, rasMatrix, waitFor
from MambaSegmentationLib import conversion, dependencies
from MambaSegmentationLib.choices import Choices
from MambaSegmentationLib.computer import Computer, Estimate
from MambaSegmentationLib.region import regionBounds, regionBox
from MambaSegmentationLib.widgets import choose
from MambaSegmentationLib.worker import pythonExecutable
from threshold_worker import bright

from MambaSegLib.bundle import load_bundle, pack_bundle, save_bundle
from MambaSegLib.networks import create_network

NAME = "mamba_unet_unidirectional.tiny"
DOCTOR = """if True:
    import json, sys
    print(json.dumps({"event": "result", "machine": {"memory_free_bytes": 8 * 2**30, "devices": ["cpu"]},
        "unavailable_devices": {"cuda": "the device cuda is not there: no NVIDIA GPU or driver found. Choose auto or cpu."},
        "backends": [{"name": "triton", "device": "cpu", "available": False, "reason": "it needs a CUDA device"},
                     {"name": "numba", "device": "cpu", "available": True, "reason": ""}],
        "estimate": {"tiles": 3, "seconds": 75.0, "memory_bytes": 2**30} if "--input" in sys.argv else None}))
"""


@pytest.fixture
def archive(modelPath, tmp_path):
    folder = tmp_path / "web"
    folder.mkdir()
    pack_bundle(load_bundle(modelPath), folder / "model.zip")
    return folder / "model.zip"


@pytest.fixture
def address(archive):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(archive.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/model.zip"
        server.shutdown()


def test_a_model_is_installed_from_the_web_if_its_hash_is_right(ready, address, archive):
    window, ui, errors = ready
    window._segmenter.remove(NAME)
    window.models.refresh()
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    for text, outcome in ((f"{address} {'0' * 64}", "SHA-256"), ("ftp://somewhere", "https://")):
        window.dialogs.askText = lambda title, question, text=text: text
        ui.addressButton.click()
        waitFor(lambda: not window._isBusy(), 60)
        assert outcome in errors[-1]
        assert ui.modelSelector.findData(NAME) == -1
    window.dialogs.askText = lambda title, question: f"{address} {sha256}"
    ui.addressButton.click()
    waitFor(lambda: not window._isBusy(), 60)
    assert ui.modelSelector.currentData() == NAME
    assert ui.statusLabel.text() == f"Installed {NAME}"
    assert "1 installed" in ui.modelDiskLabel.text()


@pytest.mark.filterwarnings("ignore:Function.*QDr:DeprecationWarning")  # the constructors serve no other purpose
def test_a_dropped_zip_is_installed_and_other_files_are_not_taken(opened, archive, tmp_path):
    widget, _, errors = opened
    window, ui = widget.window, widget.window.ui
    window._segmenter.remove(NAME)
    window.models.refresh()

    def dropped(path):
        data = qt.QMimeData()
        data.setUrls([qt.QUrl.fromLocalFile(str(path))])
        words = (qt.QPoint(5, 5), qt.Qt.CopyAction, data, qt.Qt.LeftButton, qt.Qt.NoModifier)
        enter = qt.QDragEnterEvent(*words)
        qt.QApplication.sendEvent(ui.modelDetails, enter)
        if enter.isAccepted():
            qt.QApplication.sendEvent(ui.modelDetails, qt.QDropEvent(qt.QPointF(5, 5), *words[1:]))
        return enter.isAccepted()

    assert dropped(archive)
    assert ui.modelSelector.currentData() == NAME
    (tmp_path / "scan.nrrd").write_bytes(b"")
    before = ui.modelDetails.toPlainText()
    dropped(tmp_path / "scan.nrrd")
    assert ui.modelDetails.toPlainText() == before
    assert errors == []


def test_the_license_of_a_model_that_was_copied_in_is_asked_for_once(ready, thresholdWorker):
    """A model installed from the command line has not been asked for here."""
    window, ui, _ = ready
    path = window._segmenter.modelsFolder / NAME / "bundle.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"Apache-2.0"', '"CC-BY-NC-4.0"'), encoding="utf-8")
    window.models.refresh()
    window._segmenter.workerCommand = thresholdWorker
    asked = []
    window.dialogs.confirm = lambda title, text: bool(asked.append(text))
    ui.applyButton.click()
    assert "CC-BY-NC-4.0" in asked[0]
    assert "not accepted" in ui.statusLabel.text()
    window.dialogs.confirm = lambda title, text: asked.append(text) or True
    for _number in range(2):
        ui.applyButton.click()
        waitFor(lambda: not window._isBusy(), 30)
    assert len(asked) == 2
    assert ui.statusLabel.text().startswith("Done in")


def test_the_folder_of_models_is_opened_with_its_disk_use_beside_it(ready):
    window, ui, _ = ready
    seen = []
    window.dialogs.openFolder = seen.append
    ui.folderButton.click()
    assert seen == [window._segmenter.modelsFolder]
    size = sum(path.stat().st_size for path in (window._segmenter.modelsFolder / NAME).iterdir())
    assert f"1 installed ({size / 1e6:.1f} MB on disk)" in ui.modelDiskLabel.text()


def test_frames_are_offered_for_a_sequence_only(ready, addSequence, oblique_geometry, rng, thresholdWorker):
    window, ui, errors = ready
    assert ui.framesSelector.isHidden()
    arrays = [rng.integers(-200, 900, oblique_geometry.shape).astype(np.int16) for _ in range(3)]
    node, browser = addSequence(arrays, rasMatrix(oblique_geometry))
    window.inputs.selectors()["T1"].setCurrentNode(node)
    assert not ui.framesSelector.isHidden()
    ui.framesSelector.setCurrentIndex(ui.framesSelector.findData("all"))
    assert ui.framesSelector.currentText() == "All 3"
    window._segmenter.workerCommand = thresholdWorker
    ui.applyButton.click()
    waitFor(lambda: not window._isBusy(), 60)
    assert errors == []
    assert ui.statusLabel.text().startswith("Done in")
    for number, array in enumerate(arrays):
        browser.SetSelectedItemNumber(number)
        slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)
        found = conversion.labelsFromSegmentation(window.run.segmentationNode, node).array
        assert np.array_equal(found == 1, bright(array))


def test_a_new_region_is_drawn_around_the_image(ready, obliqueVolume):
    _, ui, errors = ready
    ui.roiSelector.addNode()
    bounds = [0.0] * 6
    obliqueVolume.GetRASBounds(bounds)
    found = [0.0] * 6
    ui.roiSelector.currentNode().GetRASBounds(found)
    np.testing.assert_allclose(found, bounds, atol=1e-4)
    box = regionBox(regionBounds(ui.roiSelector.currentNode(), obliqueVolume), conversion.volumeGeometry(obliqueVolume))
    assert box.shape == conversion.volumeGeometry(obliqueVolume).shape
    assert errors == []


def test_an_image_that_is_loaded_later_goes_to_the_channel_that_has_none(opened, modelPath, addVolume, tmp_path):
    pytest.importorskip("torch")
    window, ui = opened[0].window, opened[0].window.ui
    manifest = load_bundle(modelPath).manifest
    channels = tuple(replace(manifest.plan.channels[0], name=name) for name in ("FLAIR", "T1"))
    plan = replace(manifest.plan, channels=channels, network=replace(manifest.plan.network, in_channels=2))
    name = "mamba_unet_unidirectional.two"
    weights = {0: create_network(plan.network).state_dict()}
    save_bundle(replace(manifest, name=name, plan=plan), weights, tmp_path / name)
    window._segmenter.install(tmp_path / name)
    window.models.refresh()
    choose(ui.modelSelector, name)
    array = np.zeros((4, 4, 4), np.int16)
    t1 = addVolume(array, np.eye(4), "T1 sagittal")
    waitFor(lambda: window.inputs.nodes()["T1"] is t1, 5)
    assert ui.applyButton.toolTip() == "Choose an image for FLAIR"
    addVolume(array, np.eye(4), "another T1")
    flair = addVolume(array, np.eye(4), "flair axial")
    waitFor(lambda: window.inputs.nodes()["FLAIR"] is flair, 5)
    assert window.inputs.nodes()["T1"] is t1


def test_images_that_modules_hide_are_not_guessed(opened, scene, addVolume):
    window = opened[0].window
    choose(window.ui.modelSelector, NAME)
    hidden = addVolume(np.zeros((4, 4, 4), np.int16), np.eye(4), "T1 of a module")
    hidden.SetHideFromEditors(1)
    shown = addVolume(np.zeros((4, 4, 4), np.int16), np.eye(4), "T1")
    waitFor(lambda: window.inputs.nodes()["T1"] is shown, 5)


def test_what_is_no_installed_model_cannot_be_removed_as_one(ready):
    window, ui, _ = ready
    (window._segmenter.modelsFolder / "copied.zip").write_bytes(b"PK")
    window.models.refresh()
    choose(ui.modelSelector, "copied.zip")
    assert "is not installed" in ui.modelDetails.toPlainText()
    assert not ui.removeButton.isEnabled()
    assert ", of which 1 installed" in ui.modelDiskLabel.text()
    choose(ui.modelSelector, NAME)
    assert ui.removeButton.isEnabled()


def test_a_turned_region_is_told_to_be_segmented_as_its_upright_box(ready, obliqueVolume, thresholdWorker):
    window, ui, _ = ready
    ui.roiSelector.addNode()
    roi = ui.roiSelector.currentNode()
    assert not ui.roiNoteLabel.isVisibleTo(ui.singleTab)
    turn = vtk.vtkTransform()
    turn.Translate(roi.GetCenter())
    turn.RotateZ(45)
    roi.SetAndObserveObjectToNodeMatrix(turn.GetMatrix())  # as its handles do
    assert ui.roiNoteLabel.isVisibleTo(ui.singleTab)
    assert "upright box around it" in ui.roiNoteLabel.text()
    ui.modeTabs.setCurrentIndex(1)
    window.show()
    assert not ui.roiNoteLabel.isVisibleTo(ui.singleTab), "the other page has no room to give"
    ui.modeTabs.setCurrentIndex(0)
    window._segmenter.workerCommand = thresholdWorker
    ui.applyButton.click()
    waitFor(lambda: not window._isBusy())
    assert "upright box around it" in ui.warningLabel.text()
    ui.roiSelector.setCurrentNode(None)
    assert not ui.roiNoteLabel.isVisibleTo(ui.singleTab)


def test_a_new_region_in_a_large_image_is_as_large_as_the_images_the_model_knows(opened, addVolume):
    ui = opened[0].window.ui
    if ui.modelSelector.findData("mamba_unet_multidirectional.hippocampus") < 0:
        pytest.skip("the model is not shipped")
    addVolume(np.zeros((30, 90, 80), np.int16), np.diag([2.0, 2.0, 2.0, 1.0]), "head")
    waitFor(ui.applyButton.isEnabled, 5)
    ui.roiSelector.addNode()
    roi = ui.roiSelector.currentNode()
    np.testing.assert_allclose(roi.GetSize(), (43, 59, 47))  # of the training images, R, A, S
    np.testing.assert_allclose(roi.GetCenter(), (79, 89, 29))


def test_undo_takes_everything_back(ready, scene, thresholdWorker):
    window, ui, _ = ready
    window._segmenter.workerCommand = thresholdWorker
    output = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "mine")
    output.GetSegmentation().AddEmptySegment("kept")
    ui.outputSelector.setCurrentNode(output)
    before = contents(scene)
    assert not ui.undoButton.isEnabled()
    ui.applyButton.click()
    waitFor(lambda: not window._isBusy(), 30)
    assert output.GetSegmentation().GetNumberOfSegments() == 3
    assert "unlike the training images" in ui.warningLabel.text()
    ui.undoButton.click()
    assert [output.GetSegmentation().GetNthSegmentID(0)] == ["kept"]
    assert output.GetSegmentation().GetNumberOfSegments() == 1
    assert contents(scene) == before
    assert not ui.undoButton.isEnabled()
    assert ui.warningLabel.text() == "", "what is gone needs no notice"


def test_slicers_own_undo_works_where_it_is_on(ready, scene, thresholdWorker):
    window, ui, _ = ready
    window._segmenter.workerCommand = thresholdWorker
    before = contents(scene)
    scene.SetUndoOn()
    try:
        ui.applyButton.click()
        waitFor(lambda: not window._isBusy(), 30)
        assert contents(scene) != before
        scene.Undo()
        assert contents(scene) == before
    finally:
        scene.SetUndoOff()


def test_an_estimate_is_shown_kept_and_belongs_to_its_choice(ready, workerOf):
    window, ui, errors = ready
    assert "not estimated yet" in ui.needLabel.text()
    window._segmenter.workerCommand = workerOf(DOCTOR)
    ui.estimateButton.click()
    assert "Estimating" in ui.needLabel.text()
    waitFor(lambda: "1 min 15 s" in ui.needLabel.text(), 30)
    assert "1.0 GiB of memory (8.0 GiB free)" in ui.needLabel.text()
    choose(ui.qualitySelector, "best")
    assert "not estimated yet" in ui.needLabel.text()
    choose(ui.qualitySelector, "standard")
    assert "1 min 15 s" in ui.needLabel.text()
    assert errors == []


def test_an_estimate_that_fails_says_so_without_a_dialog(ready, workerOf):
    window, ui, errors = ready
    window._segmenter.workerCommand = workerOf("import sys; print('no tile today', file=sys.stderr); sys.exit(1)")
    ui.estimateButton.click()
    waitFor(lambda: "no tile today" in ui.needLabel.text(), 30)
    assert errors == []
    assert ui.applyButton.isEnabled()


def test_too_little_memory_is_a_warning(scene):
    from MambaSegmentationLib.need_section import needText

    assert "More than is free" in needText(Estimate(10.0, 9 * 2**30, 8 * 2**30, 1))
    assert "free" not in needText(Estimate(10.0, 9 * 2**30, 0, 1))


def test_unfolding_advanced_writes_the_reason_beside_what_is_out(ready, workerOf):
    window, ui, _ = ready
    window._segmenter.workerCommand = workerOf(DOCTOR)
    ui.advancedGroup.setProperty("collapsed", False)
    waitFor(lambda: "no NVIDIA" in ui.deviceSelector.itemText(2), 30)
    assert ui.deviceSelector.itemText(2) == "NVIDIA GPU (cuda) (no NVIDIA GPU or driver found)"
    triton = ui.backendSelector.findData("triton")
    assert ui.backendSelector.itemText(triton) == "triton (it needs a CUDA device)"
    assert not ui.backendSelector.model().item(triton).isEnabled()
    assert ui.backendSelector.model().item(ui.backendSelector.findData("numba")).isEnabled()
    assert ui.deviceSelector.itemText(1) == "CPU"
    note = ui.computeNoteLabel.text()
    assert "NVIDIA GPU (cuda): no NVIDIA GPU or driver found" in note
    assert "triton: it needs a CUDA device" in note
    assert "numba" not in note


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for ssh is a shell script")
def test_another_computer_computes_once_the_person_has_agreed(ready, tmp_path, monkeypatch, obliqueVolume):
    """Over a stand-in for ssh that stays here; PyTorch is not needed in Slicer then."""
    window, ui, errors = ready
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    program = f"{pythonExecutable()} -m MambaSegLib"
    ssh.write_text(f'#!/bin/sh\nfor last; do :; done\nexec {program} "${{last#mambaseg }}"\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ssh.parent}{os.pathsep}{os.environ['PATH']}")
    ui.hostEdit.setText("ada@far")
    ui.hostButton.click()
    assert "Asking ada@far" in ui.needLabel.text()
    waitFor(lambda: "ada@far answers. It computes on: cpu" in ui.needLabel.text(), 60)
    asked = []
    window.dialogs.confirm = lambda title, text: bool(asked.append(text))
    ui.applyButton.click()
    assert "sent to ada@far" in asked[0]
    assert "Nothing was sent" in ui.statusLabel.text()
    monkeypatch.setattr(dependencies, "missingPackages", lambda: dependencies.PACKAGES[:1])
    window.dialogs.confirm = lambda title, text: asked.append(text) or True
    ui.applyButton.click()
    waitFor(lambda: not window._isBusy(), 120)
    assert len(asked) == 2
    assert errors == []
    found = conversion.labelsFromSegmentation(window.run.segmentationNode, obliqueVolume).array
    assert found.any()
    ssh.write_text("#!/bin/sh\necho 'Permission denied (publickey).' >&2\nexit 255\n")
    ui.applyButton.click()
    waitFor(lambda: not window._isBusy(), 60)
    assert "ada@far could not be reached: Permission denied" in errors[0]
    assert ui.applyButton.isEnabled()


@pytest.mark.parametrize("host", ["--ssh=/tmp/program", "-oProxyCommand=x", "a b", "$(x)"])
def test_a_scene_cannot_pass_an_option_off_as_a_computer(ready, host):
    window, ui, errors = ready
    window.dialogs.confirm = lambda title, text: True
    ui.hostEdit.setText(host)
    ui.hostButton.click()
    ui.applyButton.click()
    assert len(errors) == 2
    assert all("is no name of a computer" in error for error in errors)
    assert window.need.run is None
    assert window.run is None


def test_without_packages_nothing_is_looked_for(ready, monkeypatch):
    window, ui, _ = ready
    monkeypatch.setattr(dependencies, "missingPackages", lambda: dependencies.PACKAGES[:1])
    ui.advancedGroup.setProperty("collapsed", False)
    assert window.need.run is None


def test_one_fold_can_be_chosen_of_a_model_that_has_several(opened):
    window, ui = opened[0].window, opened[0].window.ui
    if ui.modelSelector.findData("mamba_unet_multidirectional.hippocampus") < 0:
        pytest.skip("the model is not shipped")
    ui.modelSelector.setCurrentIndex(ui.modelSelector.findData("mamba_unet_multidirectional.hippocampus"))
    assert ui.foldsSelector.itemText(0) == "All 5, averaged"
    ui.foldsSelector.setCurrentIndex(ui.foldsSelector.findData("3"))
    assert window.compute.options()["folds"] == (3,)


def test_an_image_that_is_loaded_later_is_chosen_unless_there_is_one(ready, addVolume):
    window, ui, _ = ready
    selector = window.inputs.selectors()["T1"]
    chosen = selector.currentNode()
    addVolume(np.zeros((2, 2, 2), np.int16), np.eye(4), "p1 T1")
    slicer.app.processEvents()
    assert selector.currentNode() is chosen
    selector.setCurrentNode(None)
    later = addVolume(np.zeros((2, 2, 2), np.int16), np.eye(4), "p2 t1 post")
    waitFor(lambda: selector.currentNode() is not None, 5)
    assert selector.currentNode() is not later  # the first that fits
    assert ui.applyButton.isEnabled()


@pytest.fixture
def second(ready):
    """Another window of the module, on the same scene."""
    import headless_slicer

    _, widget, host = headless_slicer.loadModule(MODULE_FILE)
    yield widget.window
    headless_slicer.closeModule(widget, host)


def test_two_windows_show_the_same_choices(ready, second, addVolume):
    first, ui, _ = ready
    assert second.ui.modelSelector.currentData() == NAME
    assert second.inputs.nodes() == first.inputs.nodes()
    ui.deviceSelector.setCurrentIndex(ui.deviceSelector.findData("cuda"))
    assert second.ui.deviceSelector.currentData() == "cuda"
    other = addVolume(np.zeros((3, 3, 3), np.int16), np.eye(4), "other")
    second.inputs.selectors()["T1"].setCurrentNode(other)
    assert first.inputs.nodes() == {"T1": other}
    second.ui.modeTabs.setCurrentIndex(1)
    assert ui.modeTabs.currentIndex() == 1


def test_two_windows_can_work_at_the_same_time(ready, second, thresholdWorker, scene):
    first, _, errors = ready
    for window in (first, second):
        window._segmenter.workerCommand = thresholdWorker
    first.ui.applyButton.click()
    second.ui.applyButton.click()
    waitFor(lambda: not first._isBusy() and not second._isBusy(), 30)
    assert errors == []
    names = {window.run.segmentationNode.GetName() for window in (first, second)}
    assert len(names) == 2
    assert scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 2


def test_a_saved_scene_brings_the_choices_back(ready, opened, scene, tmp_path):
    window, ui, _ = ready
    ui.modeTabs.setCurrentIndex(1)
    ui.inputFolderEdit.setText("/somewhere")
    ui.uncertaintyCheck.click()
    ui.backendSelector.setCurrentIndex(ui.backendSelector.findData("numba"))
    path = str(tmp_path / "scene.mrb")
    assert scene.WriteToMRB(path, None)
    scene.Clear(0)
    assert ui.inputFolderEdit.text() == ""
    assert ui.modeTabs.currentIndex() == 0
    assert scene.ReadFromMRB(path, True, None)
    opened[0].enter()
    assert ui.inputFolderEdit.text() == "/somewhere"
    assert ui.modeTabs.currentIndex() == 1
    assert ui.uncertaintyCheck.isChecked()
    assert ui.backendSelector.currentData() == "numba"
    assert ui.modelSelector.currentData() == NAME
    assert window.inputs.nodes()["T1"].GetName() == "T1"


def test_a_computer_that_is_not_known_yet_explains_nothing():
    assert Computer((), {}, {}, 0).backendProblem("numba", "auto") == ""


def test_a_segmentation_made_in_the_selector_is_visible_afterwards(ready, thresholdWorker):
    window, ui, _ = ready
    window._segmenter.workerCommand = thresholdWorker
    ui.outputSelector.addNode()
    output = ui.outputSelector.currentNode()
    assert output.GetDisplayNode() is None
    ui.applyButton.click()
    waitFor(lambda: not window._isBusy(), 30)
    assert output.GetDisplayNode().GetVisibility()
    ui.undoButton.click()
    assert output.GetDisplayNode() is None


def test_a_model_that_has_gone_is_named_and_no_other_takes_its_place(ready, opened):
    window, ui, _ = ready
    shutil.rmtree(window._segmenter.modelsFolder)
    opened[0].enter()
    assert f"The model {NAME} was chosen, but is not on this computer" in ui.modelDetails.toPlainText()
    assert ui.modelSelector.currentIndex() == -1
    assert window._choices.get("model") == NAME
    assert not ui.applyButton.isEnabled()
    ui.modelSelector.setCurrentIndex(0)
    assert ui.applyButton.isEnabled()


def test_an_estimate_can_be_cancelled(ready, workerOf):
    window, ui, errors = ready
    window._segmenter.workerCommand = workerOf("import time; time.sleep(600)")
    assert not ui.cancelButton.isEnabled()
    ui.estimateButton.click()
    assert ui.cancelButton.isEnabled()
    ui.cancelButton.click()
    waitFor(lambda: window.need.run is None, 10)
    assert "not estimated yet" in ui.needLabel.text()
    waitFor(lambda: not ui.cancelButton.isEnabled(), 5)
    assert ui.estimateButton.isEnabled()
    assert errors == []


def test_dragging_the_region_makes_an_estimate_void(ready, workerOf):
    window, ui, _ = ready
    window._segmenter.workerCommand = workerOf(DOCTOR)
    ui.roiSelector.addNode()
    ui.estimateButton.click()
    waitFor(lambda: "1 min 15 s" in ui.needLabel.text(), 30)
    roi = ui.roiSelector.currentNode()
    roi.SetSize(*(0.5 * side for side in roi.GetSize()))
    assert "not estimated yet" in ui.needLabel.text()


def test_what_is_missing_is_written_where_apply_is(ready):
    window, ui, _ = ready
    window.inputs.selectors()["T1"].setCurrentNode(None)
    assert ui.needLabel.text() == "Choose an image for T1"


def test_undo_asks_before_it_takes_a_persons_own_work(ready, thresholdWorker, obliqueVolume, scene):
    window, ui, _ = ready
    window._segmenter.workerCommand = thresholdWorker
    output = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "mine")
    ui.outputSelector.setCurrentNode(output)
    ui.applyButton.click()
    waitFor(lambda: not window._isBusy(), 30)
    segmentation = output.GetSegmentation()
    output.CreateClosedSurfaceRepresentation()  # looking is not changing
    output.GetDisplayNode().SetVisibility(False)
    asked = []
    window.dialogs.confirm = lambda title, text: bool(asked.append(text))
    first = segmentation.GetNthSegmentID(0)
    mask = slicer.util.arrayFromSegmentBinaryLabelmap(output, first, obliqueVolume)
    assert not window.run.change.isEdited
    slicer.util.updateSegmentBinaryLabelmapFromArray(1 - mask, output, first, obliqueVolume)
    segmentation.AddEmptySegment("by hand")
    ui.undoButton.click()
    assert "changed since" in asked[0]
    assert segmentation.GetNumberOfSegments() == 3
    window.dialogs.confirm = lambda title, text: True
    ui.undoButton.click()
    assert [segmentation.GetNthSegmentID(k) for k in range(segmentation.GetNumberOfSegments())] == ["by hand"]


def test_undo_asks_nothing_when_nothing_was_changed(ready, thresholdWorker, scene):
    window, ui, _ = ready
    window._segmenter.workerCommand = thresholdWorker
    ui.show3DCheck.setChecked(True)
    ui.applyButton.click()
    waitFor(lambda: not window._isBusy(), 30)
    window.dialogs.confirm = lambda title, text: pytest.fail(text)
    ui.undoButton.click()
    assert scene.GetFirstNodeByClass("vtkMRMLSegmentationNode") is None


def test_another_parameter_node_shares_nothing_with_the_one_before(ready, opened, scene):
    window, ui, _ = ready
    before = window._parameters
    after = type(before)(scene.AddNewNodeByClass("vtkMRMLScriptedModuleNode", "after"))
    window.connect(after)
    ui.uncertaintyCheck.setChecked(True)
    assert (before.uncertainty, after.uncertainty) == (False, True)
    before.statistics = True
    assert not ui.statisticsCheck.isChecked()


@pytest.mark.parametrize("name", ["T1 & T2", '"quoted"', "b<1000", "T1:post;late", "100%"])
def test_a_scene_opens_again_whatever_a_model_calls_its_channels(scene, obliqueVolume, tmp_path, name):
    choices = Choices()
    node = scene.AddNewNodeByClass("vtkMRMLScriptedModuleNode", "choices")
    choices.connect(SimpleNamespace(parameterNode=node), lambda: None)
    choices.storeChannelNode(name, obliqueVolume)
    assert scene.WriteToMRB(str(tmp_path / "scene.mrb"), None)
    choices.disconnect()
    scene.Clear(0)
    assert scene.ReadFromMRB(str(tmp_path / "scene.mrb"), True, None)
    again = scene.GetFirstNodeByName("choices")
    choices.connect(SimpleNamespace(parameterNode=again), lambda: None)
    assert choices.channelNode(name).GetName() == "T1"
    choices.disconnect()
