"""Images that change over time: every frame is segmented, and the result is browsed together with the image."""

from __future__ import annotations

import numpy as np
import pytest
import slicer
from conftest import contents, rasMatrix, until
from MambaSegmentationLib import conversion
from MambaSegmentationLib.frames import numberOfFrames, sourceName
from threshold_worker import bright

from MambaSegLib.bundle import load_bundle
from MambaSegLib.errors import CancelledError, InputError
from MambaSegLib.predictor import Predictor


@pytest.fixture
def arrays(oblique_geometry, rng):
    return [rng.integers(-200, 900, oblique_geometry.shape).astype(np.int16) for _ in range(3)]


@pytest.fixture
def cine(addSequence, arrays, oblique_geometry):
    return addSequence(arrays, rasMatrix(oblique_geometry))


def start(segmenter, nodes, **options):
    return segmenter.start(
        nodes, model="mamba_unet_unidirectional.tiny", device="cpu", scan="pytorch", frames="all", **options
    )


def goTo(browser, number):
    browser.SetSelectedItemNumber(number)
    slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)


def test_every_frame_gets_the_labels_the_library_gives_it(segmenter, cine, scene, modelPath):
    node, browser = cine
    goTo(browser, 1)
    before = contents(scene)
    run = start(segmenter, node, uncertainty=True, statistics=True, show3D=True)
    result = run.wait(300)
    assert browser.GetSelectedItemNumber() == 1
    pytest.importorskip("torch")
    predictor = Predictor(load_bundle(modelPath), device="cpu", scan="pytorch")
    found = []
    for number in (0, 2, 1):
        goTo(browser, number)
        expected = predictor.predict(conversion.volumeFromNode(node), uncertainty=True)
        labels = conversion.labelsFromSegmentation(result, node)
        assert np.array_equal(labels.array, expected.labels.array)
        shown = slicer.util.arrayFromVolume(run.uncertaintyNode)
        np.testing.assert_allclose(shown, expected.uncertainty, atol=1e-5)
        found.append(labels.array)
    assert not np.array_equal(found[0], found[1])
    assert [label.name for label in labels.table] == ["Anterior", "Posterior"]
    assert result.GetNodeReference(result.GetReferenceImageGeometryReferenceRole()) is node
    assert result.GetSegmentation().ContainsRepresentation("Closed surface")
    assert run.sequenceNode.GetNthIndexValue(2) == "1"
    assert run.sequenceNode.GetIndexUnit() == "s"
    table = run.statisticsNode.GetTable()
    assert table.GetColumnName(0) == "frame"
    assert sorted({table.GetValue(row, 0).ToInt() for row in range(table.GetNumberOfRows())}) == [1, 2, 3]

    run.undo()
    assert contents(scene) == before
    assert browser.GetNumberOfSynchronizedSequenceNodes(True) == 1


def test_the_current_frame_alone_is_an_ordinary_segmentation_that_says_which_frame(segmenter, cine):
    node, browser = cine
    goTo(browser, 2)
    assert numberOfFrames(node) == 3
    assert sourceName(node) == f"{node.GetName()}, frame 3 of 3 (time 1 s)"


def test_a_frame_that_fails_is_named_and_shows_no_other_frames_segments(
    segmenter, arrays, addSequence, oblique_geometry, thresholdWorker
):
    segmenter.workerCommand = thresholdWorker
    broken = [array.astype(np.float32) for array in arrays[:2]]
    broken[1][0, 0, 0] = np.nan
    node, browser = addSequence(broken, rasMatrix(oblique_geometry))
    run = start(segmenter, node)
    result = run.wait(300)
    assert any("Frame 2 was not segmented" in notice and "NaN" in notice for notice in run.notices)
    goTo(browser, 0)
    assert conversion.labelsFromSegmentation(result, node).array.any()
    goTo(browser, 1)
    assert result.GetSegmentation().GetNumberOfSegments() == 2
    assert not conversion.labelsFromSegmentation(result, node).array.any()


def test_the_components_of_a_volume_become_a_sequence(segmenter, scene, arrays, oblique_geometry, thresholdWorker):
    segmenter.workerCommand = thresholdWorker
    image = np.stack(arrays, axis=-1)
    node = slicer.util.addVolumeFromArray(
        image, ijkToRAS=rasMatrix(oblique_geometry), name="fMRI", nodeClassName="vtkMRMLVectorVolumeNode"
    )
    before = contents(scene)
    assert numberOfFrames(node) == 3
    run = start(segmenter, node)
    result = run.wait(60)
    browser = scene.GetFirstNodeByClass("vtkMRMLSequenceBrowserNode")
    proxy = browser.GetProxyNode(browser.GetMasterSequenceNode())
    for number, array in enumerate(arrays):
        goTo(browser, number)
        assert np.array_equal(slicer.util.arrayFromVolume(proxy), array)
        assert np.array_equal(conversion.labelsFromSegmentation(result, proxy).array == 1, bright(array))
    run.undo()
    assert contents(scene) == before


def test_cancelling_leaves_the_scene_and_the_browser_as_they_were(segmenter, cine, scene, thresholdWorker):
    node, browser = cine
    goTo(browser, 1)
    before = contents(scene)
    segmenter.workerCommand = thresholdWorker
    run = start(segmenter, node, quality="best")
    until(run, lambda: run.fraction == 0.5)  # the second of three is half done
    assert run.progress.stage == "Frame 2: Predicting"
    run.cancel()
    with pytest.raises(CancelledError, match="as it was"):
        run.wait(30)
    assert contents(scene) == before
    assert browser.GetSelectedItemNumber() == 1


def test_what_cannot_be_is_refused_in_words(segmenter, cine, obliqueVolume, addSequence, arrays, scene):
    with pytest.raises(InputError, match="one frame only"):
        start(segmenter, obliqueVolume)
    output = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "mine")
    output.GetSegmentation().AddEmptySegment("kept")
    with pytest.raises(InputError, match="holds segments"):
        start(segmenter, cine[0], outputNode=output)
    assert output.GetSegmentation().GetNumberOfSegments() == 1


def test_images_with_different_numbers_of_frames_do_not_go_together(cine, addSequence, arrays, oblique_geometry):
    from MambaSegmentationLib.frames import framesOf

    other, _ = addSequence(arrays[:2], rasMatrix(oblique_geometry), "other")
    with pytest.raises(InputError, match=r"different numbers of frames: .* has 3, .* has 2"):
        framesOf([cine[0], other])


def test_an_image_that_is_no_sequence_is_the_same_in_all_frames(cine, obliqueVolume, arrays):
    from MambaSegmentationLib.frames import framesOf

    frames = framesOf([obliqueVolume, cine[0]])
    first, second = frames.volumes(2)
    assert np.array_equal(first.array[0], slicer.util.arrayFromVolume(obliqueVolume))
    assert np.array_equal(second.array[0], arrays[2])


def test_deleting_the_browser_stops_the_work(segmenter, cine, scene, thresholdWorker):
    segmenter.workerCommand = thresholdWorker
    run = start(segmenter, cine[0], quality="best")
    scene.RemoveNode(cine[1])
    with pytest.raises(CancelledError, match="browser was deleted"):
        run.wait(30)
