"""Folds that measure on what they trained on are found: by name, by patient, by voxels, by look."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from MambaSegTraining.dataset import read_dataset
from MambaSegTraining.fingerprint import take_fingerprint
from MambaSegTraining.leakage import (
    CORRELATION_FLOOR,
    CaseContent,
    LeakageError,
    LeakageRecord,
    case_content,
    check_leakage,
    descriptor,
    similar_pairs,
)
from MambaSegTraining.published_splits import (
    apply_published_split,
    find_published_split,
    list_published_splits,
)
from MambaSegTraining.splits import Fold, Splits, read_subjects
from scipy import ndimage

from MambaSegLib.errors import InputError
from MambaSegLib.geometry import Geometry
from MambaSegLib.schema import from_json, to_json
from MambaSegLib.volume import Volume
from MambaSegLib.volume_io import read_channels


def anatomy(seed: int, shape: tuple[int, int, int] = (30, 36, 32)) -> np.ndarray:
    """A smooth random image, different for each seed."""
    noise = np.random.default_rng(seed).normal(size=shape)
    smooth = ndimage.gaussian_filter(noise, 3)
    return (100 * smooth / smooth.std() + 500).astype(np.float32)


def content(name: str, array: np.ndarray) -> CaseContent:
    volume = Volume(array[None], Geometry.from_matrix(np.diag([1.0, 1.0, 1.0, 1.0]), array.shape), (), name)
    return CaseContent(name, str(hash(array.tobytes())), descriptor(volume))


def one_fold(train: tuple[str, ...], val: tuple[str, ...], subjects: Mapping[str, str] | None = None) -> Splits:
    return Splits((Fold(train, val),), "by hand", "case", subjects or {name: name for name in (*train, *val)})


CHANGES = {
    "noise": lambda a: a + np.random.default_rng(9).normal(0, 0.2 * a.std(), a.shape),
    "other intensities": lambda a: 3 * a - 700,
    "gamma": lambda a: (a - a.min()) ** 1.3,
    "8 bit": lambda a: np.round((a - a.min()) / np.ptp(a) * 255),
    "resampled": lambda a: ndimage.zoom(a, 0.8, order=1),
    "one voxel cut off": lambda a: a[1:, 1:, 1:],
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_recognized(change: str) -> None:
    contents = [content("original", anatomy(1)), content("copy", CHANGES[change](anatomy(1)))]
    pairs, _ = similar_pairs(contents, {"original": "A", "copy": "B"})
    assert [(pair.first, pair.second, pair.kind) for pair in pairs] == [("original", "copy", "near-duplicate image")]


def test_different_images_are_not_taken_for_copies() -> None:
    contents = [content(f"case{seed}", anatomy(seed)) for seed in range(12)]
    pairs, _ = similar_pairs(contents, {c.name: c.name for c in contents})
    assert pairs == ()


def test_images_that_all_look_alike_are_told_apart_from_a_copy_among_them() -> None:
    """As skull-stripped heads in an atlas space: every pair correlates above the floor, one pair is a copy."""
    common = 4 * anatomy(0)
    contents = [content(f"case{seed:02d}", common + anatomy(seed)) for seed in range(1, 16)]
    contents.append(content("copy", common + anatomy(7) + np.random.default_rng(0).normal(0, 10, common.shape)))
    matrix = np.stack([c.descriptor for c in contents])
    assert np.median(matrix @ matrix.T) > CORRELATION_FLOOR
    pairs, threshold = similar_pairs(contents, {c.name: c.name for c in contents})
    assert [(pair.first, pair.second) for pair in pairs] == [("case07", "copy")]
    assert threshold > CORRELATION_FLOOR


def test_two_phases_of_one_patient_are_no_duplicate_but_equal_voxels_are() -> None:
    same = anatomy(1)
    contents = [content("diastole", same), content("systole", same + 5 * anatomy(2) / 100), content("again", same)]
    pairs, _ = similar_pairs(contents, dict.fromkeys(("diastole", "systole", "again"), "patient"))
    assert [str(pair) for pair in pairs] == ["again is a copy of diastole: the same voxels"]


def test_the_same_voxels_in_another_file_type_have_the_same_hash_and_look(tmp_path: Path) -> None:
    voxels = anatomy(3).astype(np.int16)
    for name, array in (("short.nii.gz", voxels), ("float.nrrd", voxels.astype(np.float32))):
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(tmp_path / name))
    one, other = (
        case_content(name, read_channels({"MRI": tmp_path / name})) for name in ("short.nii.gz", "float.nrrd")
    )
    assert one.sha256 == other.sha256


def test_a_flipped_storage_order_of_the_same_head_is_recognized() -> None:
    array = anatomy(4)
    original = content("original", array)
    flipped = Geometry.from_matrix(
        np.array([[-1.0, 0, 0, array.shape[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), array.shape
    )
    straight = Volume(array[None], Geometry.from_matrix(np.eye(4), array.shape))
    other = Volume(array[::-1][None], flipped)
    assert float(descriptor(straight) @ descriptor(other)) == pytest.approx(1, abs=1e-6)
    assert original.descriptor.shape == (4096,)


def test_a_patient_on_both_sides_is_refused_and_named() -> None:
    splits = one_fold(("p1_ed", "p2_ed"), ("p1_es",), {"p1_ed": "p1", "p1_es": "p1", "p2_ed": "p2"})
    with pytest.raises(LeakageError, match="p1_es is measured and p1_ed trained on \\(same patient\\)"):
        check_leakage(splits)


def test_a_copy_across_a_fold_is_refused_unless_forced_and_then_told() -> None:
    contents = [content("a", anatomy(1)), content("b", anatomy(2)), content("c", anatomy(1) + 1)]
    splits = one_fold(("a", "b"), ("c",))
    with pytest.raises(LeakageError, match="near-duplicate image"):
        check_leakage(splits, contents)
    record = check_leakage(splits, contents, force=True)
    assert record.forced
    assert [(leak.where, leak.train, leak.measured) for leak in record.leaks] == [("fold 0", "a", "c")]
    assert "LEAK in by hand" in record.describe()
    assert from_json(LeakageRecord, to_json(record), "record") == record


def test_clean_folds_pass_and_the_record_says_what_was_compared() -> None:
    contents = [content("a", anatomy(1)), content("b", anatomy(2))]
    record = check_leakage(one_fold(("a",), ("b",)), contents)
    assert record.leaks == ()
    assert not record.forced
    assert record.describe() == "No leak between training and measured cases (2 images compared, threshold 0.900)."


def test_held_out_cases_are_compared_with_every_fold() -> None:
    splits = replace(one_fold(("a",), ("b",), {"a": "A", "b": "B", "t": "B"}), test=("t",))
    with pytest.raises(LeakageError, match="test: t is measured and b trained on"):
        check_leakage(splits)


def acdc_frames() -> tuple[list[str], dict[str, str]]:
    names = [f"patient{number:03d}_frame{frame:02d}" for number in range(1, 101) for frame in (1, 9)]
    return names, {name: name[:10] for name in names}


def test_the_released_acdc_folds_leak_nearly_every_validation_patient() -> None:
    cases, subjects = acdc_frames()
    applied = apply_published_split(find_published_split("acdc", "released"), cases, subjects, seed=1)
    with pytest.raises(LeakageError):
        check_leakage(applied)
    record = check_leakage(applied, force=True)
    leaked = [len({subjects[x.measured] for x in record.leaks if x.where == f"fold {fold}"}) for fold in range(5)]
    validated = [len({subjects[case] for case in fold.val}) for fold in applied.folds]
    # Counted from the published file: leaking patients of all validation patients, per fold.
    assert list(zip(leaked, validated, strict=True)) == [(24, 28), (26, 29), (28, 30), (30, 31), (30, 31)]
    assert {leak.kind for leak in record.leaks} == {"same patient"}
    assert not any(leak.where == "test" for leak in record.leaks)


def test_the_first_released_acdc_fold_holds_the_published_frames() -> None:
    cases, subjects = acdc_frames()
    applied = apply_published_split(find_published_split("acdc", "released"), cases, subjects, seed=1)
    first = applied.folds[0]
    assert first.val[:4] == ("patient004_frame01", "patient010_frame01", "patient015_frame01", "patient015_frame09")
    assert (len(first.train), len(first.val), len(applied.test)) == (128, 32, 40)


def test_the_nnformer_split_of_acdc_gets_folds_by_patient_that_do_not_leak() -> None:
    cases, subjects = acdc_frames()
    applied = apply_published_split(find_published_split("acdc", "nnformer"), cases, subjects, seed=1)
    assert check_leakage(applied).leaks == ()
    assert sorted(case for fold in applied.folds for case in fold.val) == sorted(set(cases) - set(applied.test))
    assert "patient002_frame01" in applied.test


def test_the_two_synapse_splits_share_seven_of_the_held_out_cases_with_training() -> None:
    transunet, released = (find_published_split("synapse", name) for name in ("transunet", "released"))
    assert sorted(set(transunet.test) & set(released.train)) == [1, 2, 3, 4, 8, 22, 25]
    assert find_published_split("synapse", "nnformer").test == transunet.test


@pytest.mark.parametrize("split", list_published_splits(), ids=lambda split: f"{split.dataset}-{split.name}")
def test_published_folds_divide_the_training_cases(split: object) -> None:
    sizes = {"acdc": (80, 20), "synapse": (18, 12), "braintumour": (460, 24)}
    assert (len(split.train), len(split.test)) == sizes[split.dataset]
    assert not set(split.train) & set(split.test)
    validated = [case for fold in split.folds for case in fold]
    assert len(set(validated)) == len(validated)
    assert {int(case.split(":")[0]) for case in validated} in (set(), set(split.train))


def test_an_unknown_or_unfitting_split_is_refused_with_what_there_is() -> None:
    with pytest.raises(InputError, match="has nnformer, released"):
        find_published_split("acdc", "transunet")
    with pytest.raises(InputError, match=r"lacks \[2, 3"):
        apply_published_split(find_published_split("synapse", "released"), ["case0001"], {"case0001": "A"}, 1)


@pytest.mark.shared_data
def test_the_two_hippocampi_of_a_head_are_not_duplicates_and_a_copy_of_one_is(shared_data: Path) -> None:
    dataset = read_dataset(shared_data / "hippocampus" / "Dataset004_Hippocampus")
    contents: list[CaseContent] = []
    take_fingerprint(dataset, on_content=contents.append)
    alone = {case.name: case.name for case in dataset.cases}  # as if nobody knew which two belong together
    pairs, threshold = similar_pairs(contents, alone)
    assert pairs == ()
    assert threshold < 0.95
    copy = CaseContent("copy", "other", contents[5].descriptor + np.float32(1e-3))
    found, _ = similar_pairs([*contents, copy], {**alone, "copy": "copy"})
    assert [(pair.first, pair.second) for pair in found] == [(contents[5].name, "copy")]
    subjects = read_subjects(dataset.folder / "subjects.csv")
    neighbors = next(
        number for number in range(len(contents)) if list(subjects.values()).count(subjects[contents[number].name]) == 2
    )
    splits = Splits((Fold((contents[neighbors + 1].name,), (contents[neighbors].name,)),), "pair", "case", subjects)
    with pytest.raises(LeakageError, match="same patient"):
        check_leakage(splits)
