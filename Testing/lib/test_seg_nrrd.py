"""The .seg.nrrd files: what is in them, what comes back, and what 3D Slicer's own code makes of them."""

from __future__ import annotations

import gzip
import importlib.util
from dataclasses import replace

import numpy as np
import pytest

from MambaSegLib.errors import InputError
from MambaSegLib.nrrd_header import read_nrrd_header
from MambaSegLib.plan import Code, Label, Terminology
from MambaSegLib.seg_nrrd import label_extents, parse_terminology, terminology_entry
from MambaSegLib.volume import Geometry, Labels
from MambaSegLib.volume_io import read_labels, read_volume

sitk = pytest.importorskip("SimpleITK")
needs_slicer = pytest.mark.skipif(importlib.util.find_spec("slicer") is None, reason="needs the package slicer-core")

TISSUE = Code("SCT", "85756007", "Tissue")
HIPPOCAMPUS = Code("SCT", "5366008", "Hippocampus")
RIGHT = Code("SCT", "24028007", "Right")
TABLE = (
    Label(1, "anterior", (255, 0, 51), Terminology(TISSUE, HIPPOCAMPUS, RIGHT)),
    Label(3, "hintere Hälfte := ok", (12, 200, 255), Terminology(TISSUE, HIPPOCAMPUS)),
    Label(7, "absent", (1, 2, 3)),
)
TAGS = (("model", "mamba_unet_unidirectional.hippocampus"), ("note", "Not for clinical use:\nC:\\models | a=b"))


@pytest.fixture
def labels(oblique_geometry: Geometry) -> Labels:
    array = np.zeros(oblique_geometry.shape, np.uint8)
    array[2:5, 3:7, 1] = 1
    array[8, 13, 16] = 3
    array[4, 6, 9:12] = 3
    return Labels(array, oblique_geometry, TABLE, TAGS)


def test_everything_but_the_rounding_of_the_grid_comes_back(tmp_path, labels):
    labels.write(tmp_path / "a.seg.nrrd")
    again = read_labels(tmp_path / "a.seg.nrrd")
    assert np.array_equal(again.array, labels.array)
    assert again.array.dtype == np.uint8
    assert again.table == TABLE
    assert tuple(again.tags) == TAGS
    assert again.geometry.is_close(labels.geometry, 1e-12)


def test_the_fields_slicer_reads_are_in_the_file(tmp_path, labels):
    labels.write(tmp_path / "a.seg.nrrd")
    image = sitk.ReadImage(str(tmp_path / "a.seg.nrrd"))
    stored = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    assert stored["Segmentation_MasterRepresentation"] == "Binary labelmap"
    assert stored["Segmentation_ContainedRepresentationNames"] == "Binary labelmap|"
    assert stored["Segment0_Name"] == "anterior"
    assert stored["Segment0_LabelValue"] == "1"
    assert stored["Segment0_Color"] == "1.0 0.0 0.2"
    assert stored["Segment0_Extent"] == "1 1 3 6 2 4"
    assert stored["Segment1_Extent"] == "9 16 6 13 4 8"
    assert stored["Segment2_Extent"] == "0 -1 0 -1 0 -1"
    assert stored["Segment0_Tags"].startswith(
        "TerminologyEntry:Segmentation category and type - DICOM master list~SCT^85756007^Tissue~"
        "SCT^5366008^Hippocampus~SCT^24028007^Right~Anatomic codes - DICOM master list~^^~^^|"
    )
    assert "TerminologyEntry" not in stored["Segment2_Tags"]


def test_a_name_that_is_no_valid_text_does_not_cost_the_segmentation(tmp_path, labels):
    name = b"patient_\xe9".decode("utf-8", "surrogateescape")  # a file name written by an older system
    replace(labels, tags=(("Source", name),)).write(tmp_path / "a.seg.nrrd")
    assert tuple(read_labels(tmp_path / "a.seg.nrrd").tags) == (("Source", "patient_?"),)


def test_the_same_labels_give_the_same_bytes(tmp_path, labels):
    labels.write(tmp_path / "a.seg.nrrd")
    labels.write(tmp_path / "b.seg.nrrd")
    assert (tmp_path / "a.seg.nrrd").read_bytes() == (tmp_path / "b.seg.nrrd").read_bytes()


def test_extents_are_those_of_a_search_through_all_voxels(rng):
    array = rng.integers(0, 5, (3, 4, 5)).astype(np.uint16) * rng.integers(0, 2, (3, 4, 5)).astype(np.uint16)
    found = label_extents(array)
    assert 0 not in found
    for value in np.unique(array[array > 0]):
        where = np.argwhere(array == value)
        low, high = where.min(axis=0), where.max(axis=0)
        assert found[int(value)] == (low[2], high[2], low[1], high[1], low[0], high[0])


def test_terminology_survives_unless_its_text_holds_separators():
    plain = Terminology(TISSUE, HIPPOCAMPUS, RIGHT)
    assert parse_terminology(terminology_entry(plain)) == plain
    odd = Terminology(Code("SCT", "1", "a~b^c|d"), HIPPOCAMPUS)
    assert parse_terminology(terminology_entry(odd)).category.meaning == "a b c d"
    assert parse_terminology("nonsense") is None


def edit(path, **fields):
    data = path.read_bytes()
    head, _, rest = data.partition(b"\n\n")
    lines = head.decode().split("\n")
    for key, value in fields.items():
        lines = [f"{key}:={value}" if line.startswith(key + ":=") else line for line in lines]
    path.write_bytes("\n".join(lines).encode() + b"\n\n" + rest)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"Segment0_LabelValue": "x"}, "unreadable fields"),
        ({"Segment0_LabelValue": "-1"}, "label value -1"),
        ({"Segment0_LabelValue": "70000"}, "label value 70000"),
        ({"Segment0_Layer": "1"}, "layer 1 of 1"),
        ({"Segment0_Layer": "-1"}, "layer -1"),
        ({"Segment0_Color": "red"}, "unreadable fields"),
    ],
)
def test_damaged_segment_fields_are_refused(tmp_path, labels, fields, said):
    path = tmp_path / "a.seg.nrrd"
    labels.write(path)
    edit(path, **fields)
    with pytest.raises(InputError, match=said):
        read_labels(path)


def layered(path, layers, segments):
    """A file as 3D Slicer writes it for overlapping segments: the first axis lists the layers."""
    array = np.stack(layers, axis=-1).astype(np.uint8)
    lines = ["NRRD0004", "type: uint8", "dimension: 4", "space: left-posterior-superior"]
    lines += ["sizes: " + " ".join(map(str, array.shape[::-1])), "kinds: list domain domain domain"]
    lines += ["space directions: none (1,0,0) (0,1,0) (0,0,1)", "space origin: (0,0,0)", "encoding: gzip"]
    for k, (value, layer) in enumerate(segments):
        lines += [f"Segment{k}_ID:=s{k}", f"Segment{k}_Name:=part {k}", f"Segment{k}_LabelValue:={value}"]
        lines += [f"Segment{k}_Layer:={layer}", f"Segment{k}_Color:=1 0 0", f"Segment{k}_Tags:="]
    path.write_bytes("\n".join(lines).encode() + b"\n\n" + gzip.compress(array.tobytes()))


def test_layers_that_do_not_overlap_are_merged_with_new_values(tmp_path):
    a, b = np.zeros((3, 4, 5)), np.zeros((3, 4, 5))
    a[0], b[1] = 1, 1
    layered(tmp_path / "a.seg.nrrd", [a, b], [(1, 0), (1, 1)])
    found = read_labels(tmp_path / "a.seg.nrrd")
    assert [label.value for label in found.table] == [1, 2]
    assert np.array_equal(found.array, a + 2 * b)


def test_layers_that_overlap_are_refused(tmp_path):
    a = np.ones((3, 4, 5))
    layered(tmp_path / "a.seg.nrrd", [a, a], [(1, 0), (1, 1)])
    with pytest.raises(InputError, match=r"part 1.*overlaps"):
        read_labels(tmp_path / "a.seg.nrrd")


def test_voxels_of_no_segment_are_left_out_with_a_notice_and_a_file_without_any_segment_is_refused(tmp_path):
    a = np.zeros((3, 4, 5))
    a[0], a[1, 0] = 1, 7
    notices = []
    layered(tmp_path / "a.seg.nrrd", [a], [(1, 0)])
    found = read_labels(tmp_path / "a.seg.nrrd", on_notice=notices.append)
    assert np.array_equal(found.array, a == 1)
    assert [notice for notice in notices if "5 voxels belong to none of its segments" in notice]
    layered(tmp_path / "b.seg.nrrd", [a], [])
    with pytest.raises(InputError, match=r"describes no segment.*name it \.nrrd"):
        read_labels(tmp_path / "b.seg.nrrd")
    layered(tmp_path / "c.seg.nrrd", [0 * a], [])
    assert not read_labels(tmp_path / "c.seg.nrrd").array.any()


def test_a_nrrd_with_segments_inside_keeps_its_names_under_any_name(tmp_path, labels):
    labels.write(tmp_path / "a.seg.nrrd")
    (tmp_path / "a.seg.nrrd").rename(tmp_path / "b.nrrd")
    assert read_labels(tmp_path / "b.nrrd").table == TABLE


def test_wide_values_are_kept(tmp_path, oblique_geometry):
    array = np.zeros(oblique_geometry.shape, np.uint32)
    array[0, 0, 0] = 65535
    Labels(array, oblique_geometry, (Label(65535, "last", (0, 0, 0)),)).write(tmp_path / "a.seg.nrrd")
    assert read_labels(tmp_path / "a.seg.nrrd").array[0, 0, 0] == 65535
    assert read_nrrd_header(tmp_path / "a.seg.nrrd").fields["type"] == "uint16"


def test_a_label_map_can_be_read_as_an_image(tmp_path, labels):
    labels.write(tmp_path / "a.seg.nrrd")
    volume = read_volume(tmp_path / "a.seg.nrrd")
    assert np.array_equal(volume.array[0], labels.array)
    assert volume.name == "a"


@needs_slicer
def test_slicer_finds_names_colors_meanings_and_every_voxel_in_its_place(tmp_path, labels):
    import slicer
    import vtk
    from vtk.util.numpy_support import vtk_to_numpy

    labels.write(tmp_path / "a.seg.nrrd")
    scene = slicer.vtkMRMLScene()
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    storage = slicer.vtkMRMLSegmentationStorageNode()
    scene.AddNode(storage)
    storage.SetFileName(str(tmp_path / "a.seg.nrrd"))
    assert storage.ReadData(node) == 1
    segmentation = node.GetSegmentation()
    assert segmentation.GetNumberOfSegments() == 3
    for k, label in enumerate(TABLE):
        segment = segmentation.GetNthSegment(k)
        assert segment.GetName() == label.name
        assert segment.GetLabelValue() == label.value
        np.testing.assert_allclose(segment.GetColor(), np.array(label.color) / 255, atol=1e-6)
        entry = vtk.mutable("")
        if label.terminology is not None:  # to others 3D Slicer gives its default, "Tissue"
            assert segment.GetTag("TerminologyEntry", entry)
            assert parse_terminology(str(entry)) == label.terminology
        assert segment.GetTag("MambaSegmentation.model", entry)
        assert str(entry) == TAGS[0][1]
    for k, label in enumerate(TABLE[:2]):
        image = slicer.vtkOrientedImageData()
        assert node.GetBinaryLabelmapRepresentation(segmentation.GetNthSegmentID(k), image)
        voxels = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1])
        extent = image.GetExtent()
        matrix = vtk.vtkMatrix4x4()
        image.GetImageToWorldMatrix(matrix)
        kji = np.argwhere(voxels) + np.array([extent[4], extent[2], extent[0]])
        ras = np.array([matrix.MultiplyPoint((i, j, k, 1))[:3] for k, j, i in kji])
        expected = labels.geometry.to_world(np.argwhere(labels.array == label.value)) * [-1, -1, 1]
        assert len(ras) == len(expected)
        order, expected_order = np.lexsort(ras.round(3).T), np.lexsort(expected.round(3).T)
        np.testing.assert_allclose(ras[order], expected[expected_order], atol=1e-5)
