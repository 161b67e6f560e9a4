"""The Batch tab, used as a person does: folder, scene and DICOM database."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import qt
import slicer
import vtk
from conftest import waitFor
from MambaSegmentationLib import conversion, region
from MambaSegmentationLib.dicom_series import databaseSeries, dicomCases
from threshold_worker import bright

from MambaSegLib.errors import InputError
from MambaSegLib.plan import Channel, Normalization
from MambaSegLib.volume_io import read_labels, read_volume, write_volume


@pytest.fixture
def tab(ready, thresholdWorker):
    window, ui, errors = ready
    window._segmenter.workerCommand = thresholdWorker
    ui.modeTabs.setCurrentIndex(1)
    return window, ui, errors


def choose(selector, value):
    selector.setCurrentIndex(selector.findData(value))


def rows(ui):
    table = ui.outcomeTable
    return [[table.item(row, column).text() for column in range(3)] for row in range(table.rowCount())]


def runs(window, ui):
    ui.applyButton.click()
    waitFor(lambda: not window._isBusy(), 60)


def test_a_folder_goes_to_a_folder_and_is_resumed(tab, obliqueVolume, tmp_path):
    window, ui, errors = tab
    source, target = tmp_path / "in", tmp_path / "new" / "out"
    source.mkdir()
    volume = conversion.volumeFromNode(obliqueVolume)
    write_volume(volume.array[0], volume.geometry, source / "a.nrrd")
    (source / "b.nrrd").write_bytes(b"no image")
    assert ui.applyButton.toolTip() == "Choose a folder of images"
    window.dialogs.chooseFolder = lambda title: str(source)
    ui.inputFolderButton.click()
    assert ui.applyButton.toolTip() == "Choose an output folder"
    ui.outputFolderEdit.setText(str(target))
    assert ui.applyButton.isEnabled()
    runs(window, ui)
    assert errors == []
    assert rows(ui) == [["a", "Done", "0 s"], ["b", "Failed", "0 s"]]
    assert "1 segmented, 0 done before, 1 failed" in ui.statusLabel.text()
    assert np.array_equal(read_labels(target / "a.seg.nrrd").array == 1, bright(volume.array[0]))
    runs(window, ui)
    assert rows(ui)[0] == ["a", "Done before", ""]


def test_cancelling_says_what_is_done_and_how_to_go_on(tab, obliqueVolume, tmp_path):
    window, ui, errors = tab
    source = tmp_path / "in"
    source.mkdir()
    volume = conversion.volumeFromNode(obliqueVolume)
    for name in "ab":
        write_volume(volume.array[0], volume.geometry, source / f"{name}.nrrd")
    ui.inputFolderEdit.setText(str(source))
    ui.outputFolderEdit.setText(str(tmp_path / "out"))
    choose(ui.qualitySelector, "best")
    ui.applyButton.click()
    waitFor(lambda: "b: Predicting (2 of 2)" in ui.statusLabel.text(), 30)
    assert ui.progressBar.value() == 75
    ui.cancelButton.click()
    waitFor(lambda: not window._isBusy(), 10)
    assert "1 case(s) are done and stay" in ui.statusLabel.text()
    assert (tmp_path / "out" / "a.seg.nrrd").is_file()
    assert errors == []


def test_coming_back_to_a_folder_shows_what_was_done(tab, tmp_path):
    _, ui, _ = tab
    (tmp_path / "outcomes.csv").write_text(
        "case,status,message,seconds,output,key,head [ml]\n"
        "p1,failed,no voxels,0.1,p1.seg.nrrd,x,\n"
        "p1,done,,75.00,p1.seg.nrrd,x,1.5\n"
        "p2,failed,disk,2.00,p2.seg.nrrd,x,\n"
        "p1,skipped,,0,p1.seg.nrrd,x,\n",
        encoding="utf-8",
    )
    ui.outputFolderEdit.setText(str(tmp_path))
    assert rows(ui) == [["p1", "Done", "1 min 15 s"], ["p2", "Failed", "2 s"]]


def test_marked_images_of_the_scene_are_segmented_and_can_be_undone(tab, obliqueVolume, addVolume, scene):
    window, ui, errors = tab
    matrix = slicer.util.arrayFromVTKMatrix(_matrix(obliqueVolume))
    others = [addVolume(slicer.util.arrayFromVolume(obliqueVolume) + k, matrix, f"scan {k}") for k in (1, 2)]
    choose(ui.sourceSelector, "scene")
    gone = addVolume(np.zeros((2, 2, 2), np.int16), matrix, "loaded later")
    waitFor(lambda: ui.caseList.count() == 4, 5)
    scene.RemoveNode(gone)
    waitFor(lambda: ui.caseList.count() == 3, 5)
    items = [ui.caseList.item(k) for k in range(ui.caseList.count())]
    assert [item.text() for item in items] == ["T1", "scan 1", "scan 2"]
    assert not ui.applyButton.isEnabled()
    for item in items[1:]:
        item.setCheckState(qt.Qt.Checked)
    runs(window, ui)
    assert errors == []
    assert [row[:2] for row in rows(ui)] == [["scan 1", "Done"], ["scan 2", "Done"]]
    for node, image in zip(window.run.segmentationNodes, others, strict=True):
        found = conversion.labelsFromSegmentation(node, image).array == 1
        assert np.array_equal(found, bright(slicer.util.arrayFromVolume(image)))
    ui.undoButton.click()
    assert scene.GetFirstNodeByClass("vtkMRMLSegmentationNode") is None


def test_a_region_of_the_batch_is_its_own_and_the_hint_says_what_becomes_of_images_outside(
    tab, obliqueVolume, addVolume, scene
):
    window, ui, errors = tab
    far = np.array([[1, 0, 0, 900], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    addVolume(np.zeros((8, 8, 8), np.int16), far, "far away")
    choose(ui.sourceSelector, "scene")
    assert "Images outside the region" not in ui.batchHintLabel.text()
    ui.batchRoiSelector.addNode()
    assert "Images outside the region fail" in ui.batchHintLabel.text()
    assert ui.roiSelector.currentNode() is None
    roi = ui.batchRoiSelector.currentNode()
    assert window._choices.get("batchRoi") is roi
    window._segmenter.workerCommand = ()
    region.fitRegion(roi, obliqueVolume)
    for number in range(2):
        ui.caseList.item(number).setCheckState(qt.Qt.Checked)
    runs(window, ui)
    assert errors == []
    assert [row[:2] for row in rows(ui)] == [["T1", "Done"], ["far away", "Failed"]]
    assert "outside the image" in ui.outcomeTable.item(1, 3).text()


def test_a_region_of_images_in_the_scene_is_told_to_be_turned_where_it_is_in_them(tab, obliqueVolume, scene):
    window, ui, errors = tab
    ui.batchRoiSelector.addNode()
    region.fitRegion(ui.batchRoiSelector.currentNode(), obliqueVolume)
    transform = vtk.vtkTransform()
    transform.RotateZ(30)
    parent = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "turned")
    parent.SetMatrixTransformToParent(transform.GetMatrix())
    for node in (obliqueVolume, ui.batchRoiSelector.currentNode()):
        node.SetAndObserveTransformNodeID(parent.GetID())
    choose(ui.sourceSelector, "scene")
    ui.caseList.item(0).setCheckState(qt.Qt.Checked)
    assert "upright box" not in ui.batchHintLabel.text(), "turned with its image"
    ui.batchRoiSelector.currentNode().SetAndObserveTransformNodeID(None)
    ui.batchRoiSelector.currentNode().Modified()
    assert "upright box around it" in ui.batchHintLabel.text()
    runs(window, ui)
    assert errors == []
    assert "upright box around it" in ui.warningLabel.text()


def _matrix(node):
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return matrix


class Database:
    """What `slicer.dicomDatabase` offers, over folders of files."""

    isOpen = True

    def __init__(self, series):
        self.series = series

    def patients(self):
        return ["1"]

    def studiesForPatient(self, patient):
        return sorted({one.study for one in self.series.values()})

    def seriesForStudy(self, study):
        return [uid for uid, one in self.series.items() if one.study == study]

    def filesForSeries(self, uid):
        return [str(path) for path in sorted(Path(self.series[uid].folder).iterdir()) if path.suffix == ".dcm"]

    def fileValue(self, file, tag):
        one = next(one for one in self.series.values() if Path(file).parent == Path(one.folder))
        return {"0010,0010": "Doe", "0008,0020": "20260102"}.get(tag) or (
            one.modality if tag == "0008,0060" else one.description
        )


@pytest.mark.shared_data
def test_marked_series_of_the_database_are_segmented(scene, shared_data, monkeypatch, request, tmp_path):
    folder = next(path.parent for path in sorted((shared_data / "volumes" / "dicom_hippocampus").rglob("*.dcm")))
    head = shared_data / "volumes" / "dicom_ct_head_slicer"
    series = {
        "1.2.3.4": SimpleNamespace(study="9", folder=folder, modality="MR", description="T1 sag"),
        "1.2.3.5": SimpleNamespace(study="9", folder=head, modality="CT", description="head"),
    }
    monkeypatch.setattr(slicer, "dicomDatabase", Database(series), raising=False)
    window, ui, errors = request.getfixturevalue("tab")
    choose(ui.sourceSelector, "dicom")
    assert ui.caseList.count() == 1  # the model wants MR
    assert ui.caseList.item(0).text().startswith("Doe, 20260102, T1 sag (MR, ")
    ui.caseList.item(0).setCheckState(qt.Qt.Checked)
    ui.outputFolderEdit.setText(str(tmp_path / "out"))
    runs(window, ui)
    assert errors == []
    ((case, outcome, _time),) = rows(ui)
    assert (case, outcome) == ("Doe_20260102_T1_sag_1_2_3_4", "Done")
    labels = read_labels(tmp_path / "out" / f"{case}.seg.nrrd")
    assert labels.geometry.is_close(read_volume(folder).geometry)


def test_a_study_is_one_case_when_the_model_takes_several_channels():
    channels = [Channel(name, Normalization("zscore")) for name in ("FLAIR", "T1")]
    series = {
        uid: SimpleNamespace(study=study, folder="/nowhere", modality="MR", description=text)
        for uid, study, text in [("1.1", "1", "t1 mprage"), ("1.2", "1", "FLAIR tra"), ("2.1", "2", "T1")]
    }
    database = Database(series)
    database.filesForSeries = lambda uid: [f"/nowhere/{uid}.dcm"]
    database.fileValue = lambda file, tag: {"0008,0060": "MR", "0008,103e": series[Path(file).stem].description}.get(
        tag, ""
    )
    found = databaseSeries(database)
    (case,) = dicomCases(channels, found[:2]).values()
    assert [one.description for one in case] == ["FLAIR tra", "t1 mprage"]
    with pytest.raises(InputError, match="none could be told to be FLAIR"):
        dicomCases(channels, found)
    with pytest.raises(InputError, match="No series was chosen"):
        dicomCases(channels, ())
    assert databaseSeries(None) == ()
    assert databaseSeries(database, ["CT"]) == ()


def test_the_database_is_not_looked_through_at_every_letter(scene, monkeypatch, request):
    database = Database(
        {"1.2": SimpleNamespace(study="9", folder=Path(__file__).parent, modality="MR", description="x")}
    )
    asked = []
    database.patients = lambda: asked.append(1) or []
    monkeypatch.setattr(slicer, "dicomDatabase", database, raising=False)
    _window, ui, _errors = request.getfixturevalue("tab")
    choose(ui.sourceSelector, "dicom")
    assert asked
    asked.clear()
    for text in ("/o", "/ou", "/out"):
        ui.outputFolderEdit.setText(text)
    assert asked == []
