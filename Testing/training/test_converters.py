"""Downloads of public data sets, as they are laid out, become nnU-Net's raw layout with every voxel in its place."""

from __future__ import annotations

import csv
import io
import json
import tarfile
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from MambaSegTraining.converters import convert
from MambaSegTraining.dataset import read_dataset
from MambaSegTraining.splits import read_subjects

from MambaSegLib.errors import InputError
from MambaSegLib.volume_io import read_volume

AXIAL = np.diag([1.5, 1.5, 10.0, 1.0])


def save(path: Path, array: np.ndarray, affine: np.ndarray = AXIAL) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return array


def stored(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)


def random_image(seed: int, shape: tuple[int, ...] = (5, 4, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 1000, shape).astype(np.int16)


def random_labels(seed: int, largest: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, largest + 1, (5, 4, 3)).astype(np.uint8)


@pytest.fixture
def acdc(tmp_path: Path) -> Path:
    """Two training patients and a test patient; the second one's axes are 0.1 degrees off the perpendicular."""
    root = tmp_path / "ACDC" / "database"
    sheared = AXIAL.copy()
    sheared[0, 1] = 1.5 * np.sin(np.radians(0.1))
    patients = (("training", 1, AXIAL, 12), ("training", 2, sheared, 7), ("testing", 101, AXIAL, 9))
    for part, number, affine, systole in patients:
        folder = root / part / f"patient{number:03d}"
        save(folder / f"patient{number:03d}_4d.nii.gz", random_image(9, (5, 4, 3, 2)), affine)
        for frame in (1, systole):
            stem = f"patient{number:03d}_frame{frame:02d}"
            save(folder / f"{stem}.nii.gz", random_image(number + frame), affine)
            save(folder / f"{stem}_gt.nii.gz", random_labels(number + frame), affine)
        info = f"ED: 1\nES: {systole}\nGroup: DCM\nHeight: 184.0\nNbFrame: 30\nWeight: 95.0\n"
        (folder / "Info.cfg").write_text(info)
    return root.parent


def decathlon(root: Path, name: str, numbers: tuple[int, ...], channels: int, tests: tuple[int, ...] = ()) -> Path:
    shape = (5, 4, 3) if channels == 1 else (5, 4, 3, channels)
    for number in (*numbers, *tests):
        part = "imagesTs" if number in tests else "imagesTr"
        save(root / part / f"{name.lower()}_{number:03d}.nii.gz", random_image(number, shape))
        (root / part / f"._{name.lower()}_{number:03d}.nii.gz").write_bytes(b"what macOS leaves behind")
        if number not in tests:
            save(root / "labelsTr" / f"{name.lower()}_{number:03d}.nii.gz", random_labels(number))
    description = {
        "name": name.upper(),
        "reference": "somewhere",
        "licence": "CC-BY-SA 4.0",
        "modality": {str(k): "MRI" for k in range(channels)},
        "labels": {"0": "background", "1": "one", "2": "two", "3": "three"},
        "numTraining": len(numbers),
        "training": [
            {"image": f"./imagesTr/{name.lower()}_{n:03d}.nii.gz", "label": f"./labelsTr/{name.lower()}_{n:03d}.nii.gz"}
            for n in numbers
        ],
        "test": [f"./imagesTs/{name.lower()}_{n:03d}.nii.gz" for n in tests],
    }
    (root / "dataset.json").write_text(json.dumps(description))
    return root


def test_acdc_gives_one_case_per_phase_with_the_patient_as_subject(acdc: Path, tmp_path: Path) -> None:
    result = convert("acdc", acdc, tmp_path / "out")
    dataset = read_dataset(tmp_path / "out")
    assert [case.name for case in dataset.cases] == [
        "patient001_frame01",
        "patient001_frame12",
        "patient002_frame01",
        "patient002_frame07",
    ]
    assert dict(dataset.labels) == {1: "RV", 2: "MYO", 3: "LV"}
    assert read_subjects(tmp_path / "out" / "subjects.csv")["patient002_frame07"] == "patient002"
    assert (result.training_cases, result.test_cases, result.subjects) == (4, 2, 2)
    assert (tmp_path / "out" / "labelsTs" / "patient101_frame09.nii.gz").is_file()
    assert np.array_equal(stored(dataset.cases[1].images[0]), random_image(13))
    assert np.array_equal(stored(dataset.cases[1].labels), random_labels(13))


def test_acdc_headers_off_the_perpendicular_are_straightened_and_voxels_kept(acdc: Path, tmp_path: Path) -> None:
    result = convert("acdc", acdc, tmp_path / "out")
    case = read_dataset(tmp_path / "out").cases[2]
    assert case.name == "patient002_frame01"
    notices: list[str] = []
    image = read_volume(case.images[0], on_notice=notices.append)
    labels = read_volume(case.labels, on_notice=notices.append)
    assert notices == []
    assert image.geometry.differences(labels.geometry) == ""
    assert np.array_equal(stored(case.images[0]), random_image(3))
    assert np.array_equal(stored(case.labels), random_labels(3))
    assert len(result.notices) == 4  # two frames, image and labels each
    assert "patient002_frame01" in (tmp_path / "out" / "ATTRIBUTION.md").read_text()


def test_acdc_files_with_straight_headers_are_copied_byte_for_byte(acdc: Path, tmp_path: Path) -> None:
    convert("acdc", acdc, tmp_path / "out")
    source = acdc / "database" / "training" / "patient001" / "patient001_frame01.nii.gz"
    assert (tmp_path / "out" / "imagesTr" / "patient001_frame01_0000.nii.gz").read_bytes() == source.read_bytes()


def test_acdc_without_the_systolic_frame_is_refused_by_name(acdc: Path, tmp_path: Path) -> None:
    (acdc / "database" / "training" / "patient001" / "patient001_frame12_gt.nii.gz").unlink()
    with pytest.raises(InputError, match=r"patient001_frame12_gt\.nii\.gz is missing"):
        convert("acdc", acdc, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_four_channels_of_a_brain_tumour_are_divided_without_touching_a_voxel(tmp_path: Path) -> None:
    source = decathlon(tmp_path / "Task01_BrainTumour", "BRATS", (1, 2), 4, tests=(485,))
    convert("braintumour", source, tmp_path / "out")
    dataset = read_dataset(tmp_path / "out")
    assert dataset.channels == ("FLAIR", "T1w", "T1gd", "T2w")
    whole = random_image(2, (5, 4, 3, 4))
    for channel, path in enumerate(dataset.cases[1].images):
        assert np.array_equal(stored(path), whole[..., channel])
        assert np.allclose(nib.load(path).affine, AXIAL)
    assert (tmp_path / "out" / "imagesTs" / "brats_485_0003.nii.gz").is_file()
    assert list(dataset.labels.values()) == ["edema", "non-enhancing tumor", "enhancing tumor"]
    assert dataset.regions == ()


def test_a_brain_tumour_is_converted_with_the_regions_the_challenge_scores(tmp_path: Path) -> None:
    source = decathlon(tmp_path / "Task01_BrainTumour", "BRATS", (1, 2), 4)
    convert("braintumour", source, tmp_path / "out", regions=True)
    dataset = read_dataset(tmp_path / "out")
    assert [(region.name, region.labels, region.value) for region in dataset.regions] == [
        ("whole tumor", (1, 2, 3), 1),
        ("tumor core", (2, 3), 2),
        ("enhancing tumor", (3,), 3),
    ]
    assert list(dataset.labels.values()) == ["edema", "non-enhancing tumor", "enhancing tumor"]
    with pytest.raises(InputError, match="in another way"):
        convert("braintumour", source, tmp_path / "out")


def test_a_data_set_without_regions_cannot_be_converted_with_them(acdc: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no regions of its own"):
        convert("acdc", acdc, tmp_path / "out", regions=True)


def test_a_scaled_big_endian_frame_reads_the_same_after_division(tmp_path: Path) -> None:
    header = nib.Nifti1Header(endianness=">")
    image = nib.Nifti1Image(random_image(1, (5, 4, 3, 4)), AXIAL, header)
    image.header.set_slope_inter(0.25, -7.0)
    source = decathlon(tmp_path / "task", "BRATS", (1,), 4)
    nib.save(image, source / "imagesTr" / "brats_001.nii.gz")
    convert("msd", source, tmp_path / "out")
    before = nib.load(source / "imagesTr" / "brats_001.nii.gz").get_fdata()
    after = nib.load(tmp_path / "out" / "imagesTr" / "brats_001_0002.nii.gz").get_fdata()
    assert np.array_equal(after, before[..., 2])


def test_both_hippocampi_of_a_head_are_one_subject(tmp_path: Path) -> None:
    source = decathlon(tmp_path / "Task04_Hippocampus", "Hippocampus", (1, 3, 4, 7, 8), 1)
    convert("msd", source, tmp_path / "out")
    subjects = read_subjects(tmp_path / "out" / "subjects.csv")
    assert list(subjects.values()) == ["S001", "S002", "S002", "S004", "S004"]


def test_synapse_keeps_its_thirteen_organs_and_its_test_images_apart(tmp_path: Path) -> None:
    root = tmp_path / "RawData"
    for number in (1, 21):
        save(root / "Training" / "img" / f"img{number:04d}.nii.gz", random_image(number))
        save(root / "Training" / "label" / f"label{number:04d}.nii.gz", random_labels(number, 13))
    save(root / "Testing" / "img" / "img0061.nii.gz", random_image(61))
    packed = tmp_path / "RawData.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(root.rglob("*.nii.gz")):
            archive.write(path, path.relative_to(tmp_path))
    convert("synapse", packed, tmp_path / "out")
    dataset = read_dataset(tmp_path / "out")
    assert [case.name for case in dataset.cases] == ["case0001", "case0021"]
    assert len(dataset.labels) == 13
    assert (dataset.labels[1], dataset.labels[8], dataset.labels[13]) == ("spleen", "aorta", "left adrenal gland")
    assert np.array_equal(stored(dataset.cases[1].labels), random_labels(21, 13))
    assert [path.name for path in (tmp_path / "out" / "imagesTs").iterdir()] == ["case0061_0000.nii.gz"]
    assert "syn3193805" in (tmp_path / "out" / "ATTRIBUTION.md").read_text()


def test_a_tar_gives_what_its_folder_gives_and_leaves_nothing_else(tmp_path: Path) -> None:
    source = decathlon(tmp_path / "Task04_Hippocampus", "Hippocampus", (1, 3), 1)
    with tarfile.open(tmp_path / "Task04.tar", "w") as archive:
        archive.add(source, source.name)
    (tmp_path / "results").mkdir()
    convert("msd", tmp_path / "Task04.tar", tmp_path / "results" / "tar")
    convert("msd", source, tmp_path / "results" / "folder")
    files = sorted(p.relative_to(tmp_path / "results" / "tar") for p in (tmp_path / "results" / "tar").rglob("*.*"))
    assert files
    for file in files:
        one, other = (tmp_path / "results" / kind / file for kind in ("tar", "folder"))
        assert one.read_bytes() == other.read_bytes()
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["folder", "tar"]


@pytest.mark.parametrize("name", ["../outside.txt", "/tmp/outside.txt", "task/../../outside.txt"])
def test_a_tar_that_points_outside_is_refused(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        info = tarfile.TarInfo(name)
        info.size = 3
        archive.addfile(info, io.BytesIO(b"bad"))
    with pytest.raises(InputError, match="leads outside"):
        convert("msd", tmp_path / "bad.tar", tmp_path / "deep" / "out")
    assert [path.name for path in tmp_path.rglob("outside.txt")] == []
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_link_in_a_tar_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        info = tarfile.TarInfo("task/dataset.json")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(InputError, match="neither a file nor a folder"):
        convert("msd", tmp_path / "bad.tar", tmp_path / "out")


def test_a_description_that_names_files_outside_the_task_is_refused(tmp_path: Path) -> None:
    source = decathlon(tmp_path / "task", "Heart", (1,), 1)
    text = (source / "dataset.json").read_text().replace("./imagesTr/heart_001.nii.gz", "../secret.nii.gz")
    (source / "dataset.json").write_text(text)
    with pytest.raises(InputError, match="outside the task"):
        convert("msd", source, tmp_path / "out")


def test_converting_again_changes_nothing_and_other_files_are_refused(tmp_path: Path) -> None:
    source = decathlon(tmp_path / "task", "Heart", (1, 2), 1)
    first = convert("msd", source, tmp_path / "out")
    image = tmp_path / "out" / "imagesTr" / "heart_001_0000.nii.gz"
    time = image.stat().st_mtime_ns
    again = convert("msd", source, tmp_path / "out")
    assert not first.was_there
    assert again.was_there
    assert image.stat().st_mtime_ns == time
    with pytest.raises(InputError, match="other files"):
        convert("msd", decathlon(tmp_path / "other", "Heart", (1, 2, 3), 1), tmp_path / "out")


def test_a_folder_that_no_conversion_made_is_left_alone(tmp_path: Path) -> None:
    source = decathlon(tmp_path / "task", "Heart", (1,), 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("important")
    with pytest.raises(InputError, match="no conversion made it"):
        convert("msd", source, tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "important"


def test_a_file_cut_off_in_the_middle_leaves_no_half_data_set(tmp_path: Path) -> None:
    source = decathlon(tmp_path / "task", "BRATS", (1, 2), 4)
    image = source / "imagesTr" / "brats_002.nii.gz"
    image.write_bytes(image.read_bytes()[:-60])
    with pytest.raises(InputError, match=r"brats_002\.nii\.gz is damaged or cut off"):
        convert("msd", source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["task"]


def test_links_share_the_file_with_the_download(tmp_path: Path) -> None:
    source = decathlon(tmp_path / "task", "Heart", (1,), 1)
    convert("msd", source, tmp_path / "out", link=True)
    one, other = source / "imagesTr" / "heart_001.nii.gz", tmp_path / "out" / "imagesTr" / "heart_001_0000.nii.gz"
    assert one.samefile(other)


def test_subjects_say_which_cases_are_held_out(acdc: Path, tmp_path: Path) -> None:
    convert("acdc", acdc, tmp_path / "out")
    with (tmp_path / "out" / "subjects.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert {row["case"] for row in rows if row["set"] == "test"} == {"patient101_frame01", "patient101_frame09"}
