"""Patches: where they are cut, how often they hold a structure, and that a position in the stream decides them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from MambaSegTraining.patches import case_order, cut, cut_patch, is_foreground_patch, random_generator
from MambaSegTraining.store import CaseOrigin, StoredCase, is_stored, open_case, read_record, sample_points, store_case

from MambaSegLib.readout import exclusive_classes


def _case(shape=(20, 20, 20), voxel=(17, 2, 9), value=1) -> StoredCase:
    labels = np.zeros(shape, np.uint8)
    labels[voxel] = value
    return StoredCase(
        "case",
        np.arange(labels.size, dtype=np.float32).reshape(1, *shape),
        labels,
        sample_points(labels, exclusive_classes(3)),
    )


def test_a_foreground_patch_holds_the_structure_even_at_the_border():
    case = _case()
    for seed in range(50):
        patch = cut_patch(case, (6, 6, 6), True, random_generator((0,), seed))
        assert patch.labels.max() == 1


def test_each_structure_of_a_case_is_equally_likely_whatever_its_size():
    labels = np.ones((20, 20, 20), np.uint8)
    labels[0, 0, 0] = 2
    case = StoredCase(
        "case", np.zeros((1, 20, 20, 20), np.float32), labels, sample_points(labels, exclusive_classes(3))
    )
    patches = [cut_patch(case, (4, 4, 4), True, random_generator((0,), seed)) for seed in range(200)]
    assert 70 <= sum(2 in patch.labels for patch in patches) <= 130


def test_image_and_labels_are_cut_at_the_same_place_and_padded_with_zeros():
    case = _case(shape=(4, 4, 4), voxel=(0, 0, 0))
    patch = cut(case, [-1, 2, 0], (3, 3, 3))
    assert patch.image.shape == (1, 3, 3, 3)
    assert (patch.image[0, 0] == 0).all()  # above the case
    assert (patch.image[0, :, 2] == 0).all()  # right of it
    assert patch.image[0, 1, 0].tolist() == [8, 9, 10]
    assert patch.labels.max() == 0
    assert cut(case, [0, 0, 0], (3, 3, 3)).labels[0, 0, 0] == 1


def test_a_patch_far_outside_is_empty():
    assert (cut(_case(), [100, 0, 0], (3, 3, 3)).image == 0).all()


def test_a_case_smaller_than_the_patch_lies_in_its_middle():
    case = _case(shape=(4, 4, 4), voxel=(0, 0, 0))
    patch = cut_patch(case, (8, 8, 8), True, random_generator((0,), 0))
    assert np.argwhere(patch.labels).tolist() == [[2, 2, 2]]


def test_random_patches_reach_every_corner_of_the_case():
    case = _case(shape=(5, 5, 5), voxel=(2, 2, 2))
    firsts = {cut_patch(case, (4, 4, 4), False, random_generator((0,), seed)).image[0, 0, 0, 0] for seed in range(200)}
    assert firsts == {float(z * 25 + y * 5 + x) for z in (0, 1) for y in (0, 1) for x in (0, 1)}


def test_a_wider_cut_has_the_patch_in_its_middle():
    case = _case()
    narrow = cut_patch(case, (4, 4, 4), True, random_generator((0,), 3))
    wide = cut_patch(case, (4, 4, 4), True, random_generator((0,), 3), wider=(8, 6, 5))
    assert (wide.labels[2:6, 1:5, 0:4] == narrow.labels).all()


@pytest.mark.parametrize(("batch_size", "forced"), [(2, 1), (3, 1), (9, 3), (1, 0)])
def test_about_a_third_of_a_batch_is_forced_onto_structures_as_nnunet_rounds_it(batch_size, forced):
    assert sum(is_foreground_patch(index, batch_size, 1 / 3) for index in range(batch_size)) == forced


def test_every_case_comes_once_per_pass_and_any_part_of_the_stream_can_be_had_alone():
    whole = case_order((7, 0), 10, 0, 40)
    for start in (0, 10, 20, 30):
        assert Counter(whole[start : start + 10]) == Counter(range(10))
    assert whole[:10] != whole[10:20]
    assert case_order((7, 0), 10, 13, 9) == whole[13:22]


def test_a_stored_case_comes_back_and_knows_what_it_was_made_from(tmp_path):
    labels = np.zeros((3, 4, 5), np.int64)
    labels[1, 2, 3] = 2
    image = np.random.default_rng(0).normal(size=(2, 3, 4, 5))
    store_case(tmp_path, CaseOrigin("a", "key"), image, labels, exclusive_classes(3))
    case = open_case(tmp_path, "a")
    assert np.allclose(case.image, image, rtol=1e-6)
    assert (case.labels == labels).all()
    assert {value: where.tolist() for value, where in case.points.items()} == {2: [[1, 2, 3]]}
    record = read_record(tmp_path, "a")
    assert record is not None
    assert (record.key, record.shape, record.labels) == ("key", (3, 4, 5), (2,))


def test_a_case_that_was_interrupted_while_written_does_not_count(tmp_path):
    origin = CaseOrigin("a", "key")
    store_case(tmp_path, origin, np.zeros((1, 2, 2, 2)), np.zeros((2, 2, 2), int), exclusive_classes(2))
    assert is_stored(tmp_path, "a")
    (tmp_path / "a.json").unlink()
    assert not is_stored(tmp_path, "a")
    assert read_record(tmp_path, "a") is None
