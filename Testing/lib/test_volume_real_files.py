"""Real volumes of many scanners and tools: same voxels at the same places as SimpleITK and nibabel see them."""

from __future__ import annotations

import numpy as np
import pytest

from MambaSegLib.errors import InputError
from MambaSegLib.plan import Label
from MambaSegLib.volume import Geometry, Labels
from MambaSegLib.volume_io import read_channels, read_labels, read_volume, write_labels, write_volume

sitk = pytest.importorskip("SimpleITK")
nibabel = pytest.importorskip("nibabel")
pytestmark = pytest.mark.shared_data

FILES = {
    "ct_multiorgan/example_ct.nii.gz": "SAR",
    "ct_multiorgan/example_seg_dicom.nii.gz": "SAL",
    "ct_spleen_manual/sub-spleen2_ct.nii.gz": "SAR",
    "dicom_seg_dcmqi/heart_seg.nrrd": "SPL",
    "mr_spinalcord_oblique/t2.nii.gz": "RSP",
    "mr_spinalcord_oblique/t2s_uncropped.nii.gz": "SAL",
    "mr_stroke_oblique/T2.nii.gz": "SAR",
    "mr_tumour_nrrd/brain1_image.nrrd": "SAL",
    "mr_tumour_nrrd/breast1_label.nrrd": "SPL",
    "sts_multimodal/STS_003/PET_image.nii.gz": "SPL",
}


def twin_geometry(image):
    matrix = np.eye(4)
    matrix[:3, :3] = (np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing())[:, ::-1]
    matrix[:3, 3] = image.GetOrigin()
    return Geometry.from_matrix(matrix, image.GetSize()[::-1])


@pytest.mark.parametrize(("name", "orientation"), FILES.items())
def test_voxels_type_and_place_are_those_simpleitk_reads(shared_data, name, orientation):
    path = shared_data / "volumes" / name
    volume = read_volume(path)
    twin = sitk.ReadImage(str(path))
    array = sitk.GetArrayFromImage(twin)
    assert volume.array.dtype == array.dtype
    assert np.array_equal(volume.array[0], array)
    # ITK takes the rotation from the quaternion's 32-bit floats: 1e-5 mm over a field of view.
    assert volume.geometry.is_close(twin_geometry(twin), 1e-4)
    assert volume.geometry.orientation == orientation


@pytest.mark.parametrize("name", [name for name in FILES if "nii" in name])
def test_labels_lie_on_the_bits_of_the_input_grid(shared_data, tmp_path, name):
    path = shared_data / "volumes" / name
    volume = read_volume(path)
    bright = (volume.array[0] > volume.array.mean()).astype(np.uint8)
    labels = Labels(bright, volume.geometry, (Label(1, "bright", (255, 0, 0)),))
    write_labels(labels, tmp_path / "a.nii.gz")
    old, new = nibabel.load(path), nibabel.load(tmp_path / "a.nii.gz")
    if old.header["sform_code"] > 0:
        assert np.array_equal(old.header.get_sform(), new.header.get_sform())
    np.testing.assert_allclose(new.affine, old.affine, atol=2e-5)
    assert np.array_equal(np.asanyarray(new.dataobj).T, labels.array)
    write_labels(labels, tmp_path / "a.seg.nrrd")
    back = read_labels(tmp_path / "a.seg.nrrd")
    assert back.geometry.is_close(volume.geometry, 1e-9)
    assert np.array_equal(back.array, bright)


@pytest.mark.parametrize(
    ("name", "frames"),
    [
        ("mr_4d/sct_fmri.nii.gz", 30),
        ("mr_4d_nibabel/example4d.nii.gz", 2),
        ("mr_4d_nibabel/functional.nii", 20),
        ("mr_4d_nibabel/example_nifti2.nii.gz", 2),
    ],
)
def test_a_time_series_asks_for_a_frame_and_gives_it(shared_data, name, frames):
    path = shared_data / "volumes" / name
    with pytest.raises(InputError, match=f"holds {frames} frames.*--frame"):
        read_volume(path)
    volume = read_volume(path, frame=frames - 1, on_notice=str)
    image = nibabel.load(path)
    np.testing.assert_allclose(volume.array[0], np.asanyarray(image.dataobj)[..., frames - 1].T, rtol=1e-6)
    last = np.array(image.shape[:3]) - 1
    expected = np.diag([-1, -1, 1, 1]) @ image.affine @ [*last, 1]
    np.testing.assert_allclose(volume.geometry.to_world(last[::-1]), expected[:3], atol=1e-3)


def test_three_oblique_channels_share_a_grid(shared_data):
    folder = shared_data / "volumes" / "mr_stroke_oblique"
    volume = read_channels({name: folder / f"{name}.nii.gz" for name in ("FLAIR", "T1", "T2")})
    assert volume.array.shape == (3, 140, 160, 124)
    assert volume.channels == ("FLAIR", "T1", "T2")
    assert volume.array.dtype == np.float32


def test_ct_and_pet_on_different_grids_are_refused_and_resampled_when_asked(shared_data):
    folder = shared_data / "volumes" / "sts_multimodal" / "STS_003"
    paths = {"CT": folder / "CT_image.nii.gz", "PET": folder / "PET_image.nii.gz"}
    with pytest.raises(InputError, match=r"channel PET .*size 51 x 30 x 29 instead of 51 x 158 x 154"):
        read_channels(paths)
    volume = read_channels(paths, resample_to_first=True, on_notice=str)
    assert volume.array.shape == (2, 51, 158, 154)
    pet = read_volume(paths["PET"])
    hottest = np.unravel_index(pet.array[0].argmax(), pet.geometry.shape)
    there = np.rint(volume.geometry.to_index(pet.geometry.to_world(hottest))).astype(int)
    # Up to half a CT voxel beside the hottest PET center, of 5.5 times the size: nearly its value.
    assert volume.array[1][tuple(there)] > 0.85 * pet.array.max()


def test_label_maps_stored_as_floats_are_read_as_integers(shared_data):
    labels = shared_data / "hippocampus" / "Dataset004_Hippocampus" / "labelsTr"
    found = read_labels(labels / "hippocampus_003.nii.gz")
    assert found.array.dtype == np.uint8
    assert [label.value for label in found.table] == [1, 2]


def test_an_image_written_in_every_format_is_the_same_image(shared_data, tmp_path):
    volume = read_volume(shared_data / "volumes" / "mr_spinalcord_oblique" / "t2s_uncropped.nii.gz")
    for suffix in (".nii", ".nii.gz", ".nrrd", ".mha"):
        write_volume(volume.array[0], volume.geometry, tmp_path / f"a{suffix}")
        again = read_volume(tmp_path / f"a{suffix}")
        assert np.array_equal(again.array, volume.array)
        assert again.array.dtype == volume.array.dtype
        assert again.geometry.is_close(volume.geometry, 1e-9)
