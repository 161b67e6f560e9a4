"""Data sets are read as nnU-Net lays them out, and all that is wrong with one is said at once."""

from __future__ import annotations

import json

import numpy as np
import pytest
from MambaSegTraining.dataset import DatasetError, read_dataset
from MambaSegTraining.fingerprint import take_fingerprint

from MambaSegLib.errors import InputError


def _rewrite(path, array, spacing=(1.0, 1.0, 1.0)):
    import SimpleITK

    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(spacing)
    SimpleITK.WriteImage(image, str(path))


def test_cases_channels_and_labels_are_found(ball_dataset):
    dataset = read_dataset(ball_dataset)
    assert [case.name for case in dataset.cases] == ["s0_a", "s0_b", "s1_a", "s1_b", "s2_a", "s2_b"]
    assert dataset.cases[0].images == (ball_dataset / "imagesTr" / "s0_a_0000.nii.gz",)
    assert dataset.channels == ("MRI",)
    assert dict(dataset.labels) == {1: "ball", 2: "core"}


def test_missing_superfluous_and_miscounted_files_are_all_named_in_one_message(ball_dataset):
    (ball_dataset / "imagesTr" / "s0_a_0000.nii.gz").unlink()
    (ball_dataset / "labelsTr" / "s1_b.nii.gz").unlink()
    with pytest.raises(DatasetError) as error:
        read_dataset(ball_dataset)
    assert len(error.value.problems) == 3
    for part in ("s0_a: s0_a_0000.nii.gz is missing", "s1_b_0000.nii.gz has no label map", "numTraining 6"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"labels": {"background": 0, "a": 1, "b": 3}}, "without gaps"),
        ({"labels": {"background": 0, "whole": [1, 2]}}, "regions_class_order"),
        ({"channel_names": {"1": "MRI"}}, "keys 0, 1"),
        ({"file_ending": None}, "lacks file_ending"),
    ],
)
def test_a_description_that_cannot_be_used_is_refused(ball_dataset, changes, expected):
    path = ball_dataset / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(DatasetError, match=expected):
        read_dataset(ball_dataset)


def test_problems_inside_the_files_are_listed_for_every_case_at_once(ball_dataset):
    labels = ball_dataset / "labelsTr"
    images = ball_dataset / "imagesTr"
    _rewrite(labels / "s0_a.nii.gz", np.ones((18, 22, 20), np.uint8), spacing=(2.0, 1.0, 1.0))
    _rewrite(labels / "s0_b.nii.gz", np.full((18, 22, 20), 7, np.uint8))
    _rewrite(images / "s1_a_0000.nii.gz", np.full((18, 22, 20), 5, np.float32))
    broken = np.zeros((18, 22, 20), np.float32)
    broken[3, 4, 5] = np.nan
    _rewrite(images / "s1_b_0000.nii.gz", broken)
    (images / "s2_a_0000.nii.gz").write_bytes(b"not an image")
    with pytest.raises(DatasetError) as error:
        take_fingerprint(read_dataset(ball_dataset))
    text = str(error.value)
    assert len(error.value.problems) == 5, text
    assert "s0_a: image and label map are not on one grid" in text
    assert "s0_b: the label map holds the values [7]" in text
    assert "s1_a: all voxels of the image are equal" in text
    assert "s1_b" in text
    assert "s2_a" in text


def test_copied_images_and_structures_nobody_has_are_problems(ball_dataset):
    first, second = (ball_dataset / "imagesTr" / f"s0_{letter}_0000.nii.gz" for letter in "ab")
    second.write_bytes(first.read_bytes())
    path = ball_dataset / "dataset.json"
    description = json.loads(path.read_text())
    description["labels"]["unicorn"] = 3
    path.write_text(json.dumps(description))
    with pytest.raises(DatasetError, match="s0_b is a copy of s0_a") as error:
        take_fingerprint(read_dataset(ball_dataset))
    assert "no case has a voxel of label 3 (unicorn)" in str(error.value)


def test_the_fingerprint_holds_shapes_spacings_and_intensities_of_the_structures(ball_dataset):
    fingerprint = take_fingerprint(read_dataset(ball_dataset))
    case = fingerprint.cases[0]
    assert (case.shape, case.spacing_mm) == ((18, 22, 20), (1.0, 1.0, 1.0))
    assert case.label_voxels[1] > 50
    # Label 1 has intensity 150 and label 2 250, with noise of 10.
    assert 150 < fingerprint.intensities[0].mean < 250
    assert fingerprint.intensities[0].minimum > 100


def test_a_folder_without_description_is_refused_with_the_expected_layout(tmp_path):
    with pytest.raises(InputError, match="nnU-Net v2's raw layout"):
        read_dataset(tmp_path)
