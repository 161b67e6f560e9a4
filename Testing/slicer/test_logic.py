"""The logic as a script uses it: real nodes, real worker processes, and everything that can go wrong in between."""

from __future__ import annotations

import errno
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import slicer
from conftest import contents, until
from MambaSegmentationLib import conversion, dependencies
from MambaSegmentationLib.channels import orderedNodes, suggestedNodes
from MambaSegmentationLib.region import regionBounds, regionBox
from MambaSegmentationLib.request import Options, predictionWords

from MambaSegLib.bundle import load_bundle
from MambaSegLib.errors import CancelledError, EnvironmentProblemError, InputError
from MambaSegLib.plan import Channel, Normalization
from MambaSegLib.predictor import Predictor

ENDLESS = """if True:
    import time
    print('{"event": "progress", "stage": "Predicting", "done": 1, "total": 4, "seconds_left": 9.5}')
    time.sleep(600)
"""


@pytest.fixture
def image(obliqueVolume):
    return obliqueVolume


def start(segmenter, image, **options):
    return segmenter.start(image, model="mamba_unet_unidirectional.tiny", device="cpu", scan="pytorch", **options)


def folders():
    return set(Path(tempfile.gettempdir()).glob("mambaseg-*"))


def test_the_result_is_what_the_library_computes_with_everything_asked_for(segmenter, image, modelPath, scene):
    nodes, before = contents(scene), folders()
    run = start(segmenter, image, uncertainty=True, statistics=True, show3D=True)
    node = run.wait(300)
    pytest.importorskip("torch")
    expected = Predictor(load_bundle(modelPath), device="cpu", scan="pytorch").predict(conversion.volumeFromNode(image))
    found = conversion.labelsFromSegmentation(node, image)
    assert expected.labels.array.any()
    assert np.array_equal(found.array, expected.labels.array)
    assert [label.name for label in found.table] == ["Anterior", "Posterior"]
    assert slicer.util.arrayFromVolume(run.uncertaintyNode).shape == found.array.shape
    assert run.statisticsNode.GetTable().GetNumberOfRows() >= 2
    assert node.GetSegmentation().ContainsRepresentation("Closed surface")
    assert run.state == "done"
    assert run.log[-1] == "Computed on cpu, scan backend pytorch."
    assert folders() == before
    run.undo()
    assert contents(scene) == nodes


def test_a_region_limits_the_result(segmenter, image, scene):
    center = conversion.volumeGeometry(image).to_world((4, 7, 8))
    roi = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "region")
    roi.SetXYZ(-center[0], -center[1], center[2])
    roi.SetRadiusXYZ(2, 2, 2)
    node = start(segmenter, image, roiNode=roi).wait(300)
    box = regionBox(regionBounds(roi, image), conversion.volumeGeometry(image))
    outside = conversion.labelsFromSegmentation(node, image).array.copy()
    outside[box.slices] = 0
    assert not outside.any()


def test_what_the_library_refuses_reaches_the_caller_in_its_words(segmenter, addVolume):
    array = np.full((6, 6, 6), np.nan, np.float32)
    run = start(segmenter, addVolume(array, np.eye(4), "broken"))
    with pytest.raises(InputError, match=r"(?i)nan|finite") as refused:
        run.wait(300)
    assert str(refused.value).startswith("broken: "), "not by the name of a temporary file"
    assert run.state == "failed"


def test_what_the_library_says_of_voxels_names_the_image_too(segmenter, addVolume):
    run = start(segmenter, addVolume(np.full((6, 6, 6), 1e300), np.eye(4), "too bright"))
    with pytest.raises(InputError, match=r"^too bright: values from") as refused:
        run.wait(300)
    assert "--" not in str(refused.value), "there is no command line"


def test_what_is_said_of_nan_can_be_done_in_slicer(segmenter, image):
    array = slicer.util.arrayFromVolume(image).astype(np.float32)
    array[0, 0, :3] = np.nan, np.inf, -np.inf
    slicer.util.updateVolumeFromArray(image, array)
    with pytest.raises(InputError, match=r"3 of .* NaN or infinite") as refused:
        start(segmenter, image).wait(300)
    assert "--replace-nonfinite" not in str(refused.value)
    typed = str(refused.value).partition("for NAME: ")[2]
    exec(typed.replace("NAME", image.GetName()), vars(slicer.util).copy())  # noqa: S102 (as Slicer's console does)
    assert slicer.util.arrayFromVolume(image)[0, 0, :4].tolist() == [0, 0, 0, array[0, 0, 3]]
    assert start(segmenter, image).wait(300) is not None


def test_what_a_worker_says_twice_is_one_notice(segmenter, image, workerOf):
    said = '{"event": "log", "level": "warning", "message": "It was resampled."}'
    segmenter.workerCommand = workerOf(f"print({said!r}); print({said!r}); raise SystemExit(3)")
    run = start(segmenter, image)
    with pytest.raises(EnvironmentProblemError):
        run.wait(30)
    assert run.notices == ["It was resampled."]


@pytest.mark.parametrize("late", [False, True])
def test_cancelling_leaves_nothing_behind(segmenter, image, scene, workerOf, late):
    nodes, before = contents(scene), folders()
    segmenter.workerCommand = workerOf(ENDLESS)
    run = start(segmenter, image)
    if late:
        until(run, lambda: run.secondsLeft == 9.5)
    begin = time.monotonic()
    run.cancel()
    with pytest.raises(CancelledError, match="as it was"):
        run.wait(30)
    assert time.monotonic() - begin < 2.0
    assert (contents(scene), folders()) == (nodes, before)


def test_a_second_run_at_the_same_time_is_refused_and_the_first_goes_on(segmenter, image, workerOf):
    segmenter.workerCommand = workerOf(ENDLESS)
    run = start(segmenter, image)
    with pytest.raises(InputError, match="running already"):
        start(segmenter, image)
    assert not run.poll()
    run.cancel()
    until(run, lambda: run.state == "cancelled")
    again = start(segmenter, image)
    again.cancel()
    until(again, lambda: again.state == "cancelled")


def test_deleting_the_image_stops_the_work_and_says_so(segmenter, image, scene, workerOf):
    segmenter.workerCommand = workerOf(ENDLESS)
    run = start(segmenter, image)
    other = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "other")
    scene.RemoveNode(other)
    assert not run.poll()
    scene.RemoveNode(image)
    with pytest.raises(CancelledError, match="T1 was deleted"):
        run.wait(30)


def test_deleting_the_output_node_stops_the_work_and_says_so(segmenter, image, scene, workerOf):
    segmenter.workerCommand = workerOf(ENDLESS)
    output = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "mine")
    run = start(segmenter, image, outputNode=output)
    scene.RemoveNode(output)
    with pytest.raises(CancelledError, match="mine was deleted"):
        run.wait(30)


def test_closing_the_scene_stops_the_work_and_says_so(segmenter, image, scene, workerOf):
    segmenter.workerCommand = workerOf(ENDLESS)
    run = start(segmenter, image)
    scene.Clear(0)
    with pytest.raises(CancelledError, match="scene was closed"):
        run.wait(30)
    assert scene.GetFirstNodeByClass("vtkMRMLSegmentationNode") is None


@pytest.mark.parametrize(
    ("source", "kind", "words"),
    [
        ("import os; os.kill(os.getpid(), 9)", EnvironmentProblemError, "run out of memory"),
        ("import sys; print('about to fail', file=sys.stderr); sys.exit(7)", EnvironmentProblemError, "about to fail"),
        ("pass", EnvironmentProblemError, "without a result"),
        (
            """print('{"event": "error", "code": 3, "message": "The disk is full."}'); raise SystemExit(3)""",
            EnvironmentProblemError,
            "disk is full",
        ),
        ("""print('{"event": "result"}')""", InputError, "labels.seg.nrrd"),
    ],
    ids=["killed", "crashed", "silent", "disk full", "no file"],
)
def test_a_failing_worker_becomes_a_message_and_the_scene_stays(segmenter, image, scene, workerOf, source, kind, words):
    nodes, before = contents(scene), folders()
    segmenter.workerCommand = workerOf(source)
    run = start(segmenter, image)
    with pytest.raises(kind, match=words):
        run.wait(30)
    assert (contents(scene), folders()) == (nodes, before)


def test_a_region_outside_is_refused_before_a_process_is_started(segmenter, image, scene):
    before = folders()
    roi = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "region")
    roi.SetXYZ(5000, 0, 0)
    roi.SetRadiusXYZ(2, 2, 2)
    with pytest.raises(InputError, match="outside"):
        start(segmenter, image, roiNode=roi)
    assert folders() == before


def test_a_damaged_model_is_listed_with_its_problem_and_refused(segmenter, image):
    weights = segmenter.modelsFolder / "mamba_unet_unidirectional.tiny" / "fold_0.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    (model,) = (model for model in segmenter.models() if model.name == "mamba_unet_unidirectional.tiny")
    assert "bytes" in model.problem
    with pytest.raises(InputError, match="Download the model again"):
        start(segmenter, image)


def test_missing_packages_are_named_and_nothing_is_installed(segmenter, image, monkeypatch):
    monkeypatch.setattr(dependencies, "missingPackages", lambda: dependencies.PACKAGES[:2])
    with pytest.raises(EnvironmentProblemError, match="torch, numba"):
        start(segmenter, image)


def test_images_are_taken_in_order_or_by_name(modelPath, image):
    bundle = load_bundle(modelPath)
    assert (
        orderedNodes(image, bundle) == orderedNodes([image], bundle) == orderedNodes({"T1": image}, bundle) == (image,)
    )
    for wrong in ([image, image], [], [None], {"T2": image}):
        with pytest.raises(InputError, match=r"unidirectional\.tiny needs 1 image\(s\): T1"):
            orderedNodes(wrong, bundle)


def test_a_full_disk_is_said_before_a_process_is_started_and_leaves_nothing(segmenter, image, scene, monkeypatch):
    from MambaSegLib import label_writing

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    nodes, before = contents(scene), folders()
    monkeypatch.setattr(label_writing, "new_file", full)
    with pytest.raises(EnvironmentProblemError, match="disk is full"):
        start(segmenter, image)
    assert (contents(scene), folders()) == (nodes, before)


def test_unknown_options_are_refused_with_the_known_ones(segmenter, image):
    with pytest.raises(InputError, match=r"Unknown option mirror.*mirroring"):
        start(segmenter, image, mirror=True)
    with pytest.raises(InputError, match=r"Unknown quality finest.*fast, standard, best"):
        start(segmenter, image, quality="finest")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, ["--quality", "standard"]),
        ({"quality": "best", "mirroring": False}, ["--quality", "best", "--no-mirroring"]),
        ({"mirroring": True}, ["--quality", "standard", "--mirroring"]),
    ],
)
def test_the_quality_is_handed_to_the_worker_and_a_named_mirroring_wins(options, words, modelPath):
    found = predictionWords(load_bundle(modelPath), Options.checked(**options))
    assert found[-len(words) :] == words


def test_images_are_assigned_to_channels_by_name_the_longest_first(scene):
    nodes = [scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name) for name in ("p1 t1ce", "p1 t1", "p1 flair")]
    channels = [Channel(name, Normalization("zscore")) for name in ("FLAIR", "T1", "T1CE", "T2")]
    assert suggestedNodes(channels, nodes) == (nodes[2], nodes[1], nodes[0], None)


def test_what_a_person_may_write_for_folds_and_frames():
    assert Options.checked(folds=0).folds == (0,)
    with pytest.raises(InputError, match=r"Unknown frames every. Choose current or all"):
        Options.checked(frames="every")


def test_what_is_no_image_is_refused_in_words(segmenter, scene):
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "no image")
    with pytest.raises(InputError, match="needs 1 image"):
        start(segmenter, node)


def test_progress_never_goes_back(segmenter, image, workerOf):
    stages = [("Reading", 1, 1), ("Preprocessing", 1, 1), ("Predicting", 0, 4), ("Predicting", 3, 4), ("Writing", 0, 1)]
    lines = [f'{{"event": "progress", "stage": "{name}", "done": {n}, "total": {of}}}' for name, n, of in stages]
    segmenter.workerCommand = workerOf(f"import time\nfor line in {lines}: print(line); time.sleep(0.2)")
    run = start(segmenter, image)
    seen = []
    while not run.poll():
        seen += [run.fraction] if run.fraction not in seen[-1:] else []
        time.sleep(0.02)
    assert seen == [0.0, 0.75, 1.0]
