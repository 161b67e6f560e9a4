"""Ten bad things that happen while a person works: a clear message, nothing lost, and the next Apply works."""

from __future__ import annotations

import errno
import os
import signal
import sys

import numpy as np
import pytest
import slicer
from conftest import contents, waitFor
from MambaSegmentationLib import conversion, dependencies
from MambaSegmentationLib.widgets import choose
from threshold_worker import bright

from MambaSegLib.errors import EnvironmentProblemError, InputError


@pytest.fixture
def person(ready, scene, thresholdWorker):
    """Somebody in front of the window, with a segmentation of an earlier day in the scene."""
    window, ui, errors = ready
    window._segmenter.workerCommand = thresholdWorker
    earlier = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "earlier")
    earlier.GetSegmentation().AddEmptySegment("precious")
    return Person(window, ui, errors, scene)


class Person:
    def __init__(self, window, ui, errors, scene):
        self.window, self.ui, self.errors, self.scene = window, ui, errors, scene

    def startsSlowWork(self):
        choose(self.ui.qualitySelector, "best")
        self.ui.applyButton.click()
        waitFor(lambda: self.window.run.secondsLeft == 9.5, 30)

    def waitsForTheEnd(self):
        waitFor(lambda: not self.window._isBusy(), 30)

    def hasLostNothing(self):
        earlier = self.scene.GetFirstNodeByName("earlier")
        return earlier is not None and earlier.GetSegmentation().GetSegment("precious") is not None

    def succeedsNext(self, node):
        choose(self.ui.qualitySelector, "standard")
        selector = self.window.inputs.selectors()["T1"]
        selector.setCurrentNode(node)
        assert self.ui.applyButton.isEnabled()
        known = len(self.errors)
        self.ui.applyButton.click()
        self.waitsForTheEnd()
        assert len(self.errors) == known
        assert self.ui.statusLabel.text().startswith("Done in")
        result = self.window.run.segmentationNode
        found = conversion.labelsFromSegmentation(result, node).array
        return np.array_equal(found == 1, bright(slicer.util.arrayFromVolume(node)))


@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
def test_cancelling(person, obliqueVolume, scene, late):
    before = contents(scene)
    if late:
        person.startsSlowWork()
    else:
        choose(person.ui.qualitySelector, "best")
        person.ui.applyButton.click()
    person.ui.cancelButton.click()
    person.waitsForTheEnd()
    assert person.ui.statusLabel.text() == "Cancelled. The scene is as it was before."
    assert contents(scene) == before
    assert person.succeedsNext(obliqueVolume)


def test_closing_the_scene(person, scene, addVolume, oblique_geometry):
    person.startsSlowWork()
    scene.Clear(0)
    person.waitsForTheEnd()
    assert "The scene was closed while T1 was being segmented" in person.ui.statusLabel.text()
    array = np.arange(10 * 11 * 12, dtype=np.int16).reshape(10, 11, 12)
    person.ui.modelSelector.setCurrentIndex(person.ui.modelSelector.findData("mamba_unet_unidirectional.tiny"))
    assert person.succeedsNext(addVolume(array, np.eye(4), "another"))


def test_deleting_the_image(person, scene, obliqueVolume, addVolume):
    person.startsSlowWork()
    scene.RemoveNode(obliqueVolume)
    person.waitsForTheEnd()
    assert "T1 was deleted while it was being used" in person.ui.statusLabel.text()
    assert person.hasLostNothing()
    array = np.arange(10 * 11 * 12, dtype=np.int16).reshape(10, 11, 12)
    assert person.succeedsNext(addVolume(array, np.eye(4), "another"))


def test_a_second_apply(person, obliqueVolume):
    """The button is off; a script that tries is told, and the first run goes on."""
    person.startsSlowWork()
    assert not person.ui.applyButton.isEnabled()
    assert person.ui.applyButton.toolTip() == "A segmentation is running"
    with pytest.raises(InputError, match="running already"):
        person.window._segmenter.start(obliqueVolume, model="mamba_unet_unidirectional.tiny")
    assert person.window._isBusy()
    person.ui.cancelButton.click()
    person.waitsForTheEnd()
    assert person.succeedsNext(obliqueVolume)


def test_no_torch(person, obliqueVolume, monkeypatch):
    asked = []
    person.window.dialogs.confirm = lambda title, text: bool(asked.append(text))
    with monkeypatch.context() as patch:
        patch.setattr(dependencies, "missingPackages", lambda: dependencies.PACKAGES[:1])
        person.ui.applyButton.click()
        assert "torch" in asked[0]
        assert "MB" in asked[0]
        assert "Nothing was installed" in person.ui.statusLabel.text()
        person.window.dialogs.confirm = lambda title, text: True
        patch.setitem(sys.modules, "PyTorchUtils", None)  # the PyTorch extension is not there either
        person.ui.applyButton.click()
        assert "Extensions Manager" in person.errors[-1]
    assert person.hasLostNothing()
    assert person.succeedsNext(obliqueVolume)


def test_a_wrong_channel(person, obliqueVolume):
    with pytest.raises(InputError, match=r"needs 1 image\(s\): T1. Missing or not known: FLAIR, T1"):
        person.window._segmenter.start({"FLAIR": obliqueVolume}, model="mamba_unet_unidirectional.tiny")
    person.window.inputs.selectors()["T1"].setCurrentNode(None)
    assert not person.ui.applyButton.isEnabled()
    assert "Choose an image for" in person.ui.applyButton.toolTip()
    assert person.succeedsNext(obliqueVolume)


def test_a_region_outside(person, scene, obliqueVolume):
    roi = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "region")
    roi.SetXYZ(5000, 0, 0)
    roi.SetRadiusXYZ(2, 2, 2)
    person.ui.roiSelector.setCurrentNode(roi)
    before = contents(scene)
    person.ui.applyButton.click()
    assert "outside" in person.errors[-1]
    assert contents(scene) == before
    person.ui.roiSelector.setCurrentNode(None)
    assert person.succeedsNext(obliqueVolume)


def test_a_damaged_model(person, obliqueVolume):
    weights = person.window._segmenter.modelsFolder / "mamba_unet_unidirectional.tiny" / "fold_0.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    person.ui.applyButton.click()
    assert "Download the model again" in person.errors[-1]
    person.window.models.refresh()
    assert "cannot be used" in person.ui.modelSelector.currentText()
    assert "cannot be used" in person.ui.modelDetails.toPlainText()
    assert not person.ui.applyButton.isEnabled()
    weights.write_bytes(whole)
    person.window.models.refresh()
    assert person.succeedsNext(obliqueVolume)


def test_a_full_disk(person, obliqueVolume, scene, monkeypatch):
    from MambaSegLib import label_writing

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = contents(scene)
    with monkeypatch.context() as patch:
        patch.setattr(label_writing, "new_file", full)
        person.ui.applyButton.click()
    assert "disk is full" in person.errors[-1]
    assert contents(scene) == before
    assert person.succeedsNext(obliqueVolume)


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
def test_a_killed_worker(person, obliqueVolume, scene):
    before = contents(scene)
    person.startsSlowWork()
    os.kill(person.window.run.workerPid, signal.SIGKILL)
    person.waitsForTheEnd()
    assert "run out of memory" in person.errors[-1]
    assert contents(scene) == before
    assert person.succeedsNext(obliqueVolume)


def test_a_result_that_cannot_be_taken_in(person, obliqueVolume, scene, monkeypatch):
    """Half of it is in the scene when it goes wrong."""
    from MambaSegmentationLib import results

    def fails(*_):
        message = "no room for a volume"
        raise EnvironmentProblemError(message)

    before = contents(scene)
    with monkeypatch.context() as patch:
        patch.setattr(results, "read_volume", lambda path: conversion.volumeFromNode(obliqueVolume))
        patch.setattr(results, "volumeNodeFromArray", fails)
        person.ui.uncertaintyCheck.setChecked(True)
        person.ui.applyButton.click()
        person.waitsForTheEnd()
    assert "no room for a volume" in person.errors[-1]
    assert contents(scene) == before
    person.ui.uncertaintyCheck.setChecked(False)
    assert person.succeedsNext(obliqueVolume)
