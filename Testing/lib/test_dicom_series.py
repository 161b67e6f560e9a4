"""DICOM folders made for the purpose: choice of series, order and spacing of slices, what is refused."""

from __future__ import annotations

import errno
import os
import warnings
from pathlib import Path

import numpy as np
import pytest

from MambaSegLib import dicom_files
from MambaSegLib.errors import InputError
from MambaSegLib.volume_io import files_of, read_volume

pydicom = pytest.importorskip("pydicom")
sitk = pytest.importorskip("SimpleITK")

from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, EnhancedMRImageStorage, ExplicitVRLittleEndian, generate_uid

ANGLE = np.radians(18)
ROW = np.array([1.0, 0.0, 0.0])
COLUMN = np.array([0.0, np.cos(ANGLE), np.sin(ANGLE)])
NORMAL = np.cross(ROW, COLUMN)
FIRST = np.array([-20.5, 13.25, 40.0])
SERIES = "1.2.826.0.1.3680043.8.498.1"


def header(sop_class=CTImageStorage, uid=SERIES, modality="CT", description="thorax"):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    data.SeriesInstanceUID, data.StudyInstanceUID = uid, "1.2.3"
    data.Modality, data.SeriesDescription, data.PatientName = modality, description, "Phantom"
    return data


def pixels(data, array, spacing=(0.8, 0.6)):
    data.Rows, data.Columns = array.shape[-2:]
    data.PixelSpacing = [str(s) for s in spacing]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 1
    data.PixelData = array.astype("<i2").tobytes()
    return data


def save(data, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.save_as(path, enforce_file_format=True)
    return path


def slice_values(k, repeat=0):
    return np.arange(20).reshape(4, 5) + 100 * k + 1000 * repeat


def write_series(folder, count=6, step=2.5 * NORMAL, order=None, change=None, **about):
    """Slices `FIRST + k * step` under names that do not follow their order."""
    for k in order if order is not None else range(count):
        data = pixels(header(**about), slice_values(k))
        data.ImagePositionPatient = [f"{v:.10g}" for v in FIRST + k * step]
        data.ImageOrientationPatient = [f"{v:.10g}" for v in (*ROW, *COLUMN)]
        data.InstanceNumber, data.SliceThickness = 100 - k, "5"
        if change is not None:
            change(k, data)
        save(data, folder / f"{(k * 7) % 11:02d}.dcm")
    return folder


def test_slices_are_sorted_by_position_whatever_their_names_and_numbers(tmp_path):
    volume = read_volume(write_series(tmp_path))
    assert volume.array.shape == (1, 6, 4, 5)
    assert volume.array.dtype == np.int16
    for k in range(6):
        assert np.array_equal(volume.array[0, k], slice_values(k))
    assert volume.name == "thorax"


def test_the_grid_is_that_of_the_headers(tmp_path):
    grid = read_volume(write_series(tmp_path)).geometry
    np.testing.assert_allclose(grid.spacing_mm, (2.5, 0.8, 0.6), rtol=1e-8)
    expected = FIRST + 3 * 2.5 * NORMAL + 2 * 0.8 * COLUMN + 4 * 0.6 * ROW
    np.testing.assert_allclose(grid.to_world((3, 2, 4)), expected, atol=1e-7)
    assert grid.orientation == "SPL"


def test_rescaling_gives_the_modality_values(tmp_path):
    def rescale(_, data):
        data.RescaleSlope, data.RescaleIntercept = "1", "-1024"

    assert read_volume(write_series(tmp_path, change=rescale)).array.min() == -1024


def test_a_slope_per_slice_is_not_rounded_to_the_first_slices_type(tmp_path):
    def rescale(k, data):
        data.RescaleSlope, data.RescaleIntercept = ("1" if k == 0 else "0.25"), "0"

    volume = read_volume(write_series(tmp_path, change=rescale))
    assert volume.array[0, 0, 0, 1] == 1
    assert volume.array[0, 1, 0, 1] == 101 * 0.25


def test_several_series_are_listed_and_never_chosen_silently(tmp_path):
    write_series(tmp_path / "a", description="T2\x1b axial", uid="1.2.3.4")  # terminals obey what follows ESC
    write_series(tmp_path / "b", description="T1", uid="1.2.3.5", count=4)
    with pytest.raises(InputError) as caught:
        read_volume(tmp_path)
    message = str(caught.value)
    assert "2 image series" in message
    assert "1: T2 axial [CT], 5 x 4 x 6, 0.6 x 0.8 x 5 mm, 1.2.3.4" in message
    assert "2: T1 [CT], 5 x 4 x 4" in message
    assert "--series" in message


@pytest.mark.parametrize("choice", ["1.2.9.5", "1.2.9", "t1", "T1", "2", " 2 "])
def test_a_series_is_chosen_by_uid_its_beginning_description_or_number(tmp_path, choice):
    write_series(tmp_path / "a", description="T2", uid="1.2.3.4")
    write_series(tmp_path / "b", description="T1", uid="1.2.9.5", count=4)
    assert read_volume(tmp_path, series=choice).array.shape[1] == 4


@pytest.mark.parametrize(("choice", "said"), [("1.2", "2 series fit"), ("T3", "no series fits"), ("3", "no series")])
def test_a_choice_that_fits_none_or_several_is_refused_with_the_listing(tmp_path, choice, said):
    write_series(tmp_path / "a", description="T2", uid="1.2.3.4")
    write_series(tmp_path / "b", description="T1", uid="1.2.9.5")
    with pytest.raises(InputError, match=rf"{said}(?s:.*)T2(?s:.*)T1"):
        read_volume(tmp_path, series=choice)


def test_a_file_stands_for_its_own_series(tmp_path):
    write_series(tmp_path, description="T2", uid="1.2.3.4")
    for path in list(tmp_path.iterdir()):
        path.rename(tmp_path / f"x{path.name}")
    write_series(tmp_path, description="T1", uid="1.2.9.5", count=4)
    assert read_volume(tmp_path / "00.dcm").array.shape[1] == 4
    assert read_volume(tmp_path / "x00.dcm").array.shape[1] == 6


def test_a_localizer_with_the_same_uid_is_a_choice_of_its_own(tmp_path):
    write_series(tmp_path / "a")
    scout = pixels(header(), np.zeros((9, 9)))
    scout.ImagePositionPatient, scout.ImageOrientationPatient = [0, 0, 0], [0, 1, 0, 0, 0, -1]
    save(scout, tmp_path / "scout.dcm")
    with pytest.raises(InputError, match="2 image series"):
        read_volume(tmp_path)
    assert read_volume(tmp_path, series="1").array.shape == (1, 6, 4, 5)


@pytest.mark.parametrize("missing", [1, 2, 4])
def test_a_missing_slice_is_refused_with_the_gap(tmp_path, missing):
    order = [k for k in range(6) if k != missing]
    with pytest.raises(InputError, match=r"gaps from 2\.5 to 5 mm.*between .*dcm and"):
        read_volume(write_series(tmp_path, order=order))


def test_positions_rounded_to_a_twentieth_of_the_spacing_are_even(tmp_path):
    def rounded(k, data):
        data.ImagePositionPatient = list(FIRST + (k * 2.5 + 0.1 * (k % 2)) * NORMAL)

    assert read_volume(write_series(tmp_path, change=rounded)).array.shape[1] == 6


def test_a_tilted_gantry_is_refused_and_resampled_when_asked(tmp_path):
    tilted = 2.5 * (NORMAL * np.cos(0.2) + COLUMN * np.sin(0.2))
    write_series(tmp_path, step=tilted)
    with pytest.raises(InputError, match=r"sheared by 11\.\d degrees.*--resample-sheared"):
        read_volume(tmp_path)
    volume = read_volume(tmp_path, resample_sheared=True, on_notice=str)
    # Slices keep their planes; the first lies where it was.
    np.testing.assert_allclose(volume.geometry.spacing_mm, (2.5 * np.cos(0.2), 0.8, 0.6), rtol=1e-6)
    np.testing.assert_allclose(volume.array[0, 0, :4], slice_values(0), atol=1e-3)


def test_repeated_positions_are_frames_to_choose_from(tmp_path):
    write_series(tmp_path / "a")

    def later(k, data):
        data.TemporalPositionIdentifier = "2"
        data.PixelData = slice_values(k, repeat=1).astype("<i2").tobytes()

    write_series(tmp_path / "b", change=later)
    with pytest.raises(InputError, match=r"holds 2 images at each slice position.*--frame"):
        read_volume(tmp_path)
    assert read_volume(tmp_path, frame=0).array[0, 3, 0, 0] == 300
    assert read_volume(tmp_path, frame=1).array[0, 3, 0, 0] == 1300


def test_an_incomplete_repetition_is_refused(tmp_path):
    write_series(tmp_path / "a")
    write_series(tmp_path / "b", count=4)
    with pytest.raises(InputError, match="2 images at some slice positions and 1 at others"):
        read_volume(tmp_path)


def test_copies_of_a_file_are_left_out_and_told(tmp_path):
    write_series(tmp_path)
    (tmp_path / "copy.dcm").write_bytes((tmp_path / "00.dcm").read_bytes())
    notices = []
    assert read_volume(tmp_path, on_notice=notices.append).array.shape[1] == 6
    assert "1 files are copies" in notices[0]


def test_structure_sets_and_segmentations_beside_the_images_are_left_out_and_told(tmp_path):
    write_series(tmp_path)
    save(header("1.2.840.10008.5.1.4.1.1.481.3", "1.9.9", "RTSTRUCT", "GTV"), tmp_path / "rs.dcm")
    seg = pixels(header("1.2.840.10008.5.1.4.1.1.66.4", "1.9.8", "SEG", "liver"), np.zeros((4, 5)))
    save(seg, tmp_path / "seg.dcm")
    notices = []
    volume = read_volume(tmp_path, on_notice=notices.append)
    assert volume.array.shape == (1, 6, 4, 5)
    assert "2 DICOM files" in notices[0]
    for name in ("rs.dcm", "seg.dcm"):
        assert name in notices[0]
        with pytest.raises(InputError, match="no image to segment"):
            read_volume(tmp_path / name)


def test_a_file_that_may_not_be_read_is_not_passed_over(tmp_path, monkeypatch):
    write_series(tmp_path)
    (tmp_path / "07.dcm").rename(tmp_path / "IM0001")
    readable = os.access
    # Root may read everything, whatever a file's permissions.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "IM0001" and readable(path, mode))
    with pytest.raises(InputError, match="IM0001 may not be read by this user"):
        read_volume(tmp_path)


def test_a_folder_in_the_folder_that_may_not_be_read_is_not_passed_over(tmp_path, monkeypatch):
    write_series(tmp_path)
    (tmp_path / "more").mkdir()
    scan = os.scandir

    def refusing(path):
        if Path(path).name == "more":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(InputError, match=r"more cannot be read: Permission denied; change its permissions"):
        read_volume(tmp_path)


def test_a_folder_whose_names_may_be_listed_but_not_opened_is_not_passed_over(tmp_path, monkeypatch):
    write_series(tmp_path)
    (tmp_path / "more").mkdir()
    (tmp_path / "07.dcm").rename(tmp_path / "more" / "07.dcm")
    allowed = os.access
    # From Python 3.14 on is_file says no to what lies in such a folder; before it raises.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "more" and allowed(path, mode))
    for read in (read_volume, files_of):
        with pytest.raises(InputError, match=r"more cannot be read: Permission denied; change its permissions"):
            read(tmp_path)


def test_a_file_among_more_than_a_study_has_is_refused_before_all_are_opened(tmp_path, monkeypatch):
    write_series(tmp_path)
    monkeypatch.setattr(dicom_files, "MAX_FILES", 3)
    with pytest.raises(InputError, match="more than 3 files"):
        files_of(tmp_path / "00.dcm")


def test_folders_without_images_are_refused(tmp_path):
    (tmp_path / "note.txt").write_text("nothing")
    with pytest.raises(InputError, match="no DICOM file"):
        read_volume(tmp_path)
    save(header("1.2.840.10008.5.1.4.1.1.481.3", "1.9.9", "RTSTRUCT", "GTV"), tmp_path / "rs.dcm")
    with pytest.raises(InputError, match="1 DICOM files without an image"):
        read_volume(tmp_path)


@pytest.mark.parametrize("tag", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
def test_slices_that_do_not_say_where_they_lie_are_refused(tmp_path, tag):
    with pytest.raises(InputError, match="does not say where it lies"):
        read_volume(write_series(tmp_path, change=lambda _, data: delattr(data, tag)))


def test_color_images_are_refused(tmp_path):
    def color(_, data):
        data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
        data.BitsAllocated = data.BitsStored = 8
        data.HighBit, data.PixelRepresentation = 7, 0
        data.PixelData = bytes(4 * 5 * 3)

    with pytest.raises(InputError, match="color"):
        read_volume(write_series(tmp_path, change=color))


def test_a_slice_without_its_pixels_is_refused(tmp_path):
    def cut(k, data):
        if k == 2:
            data.PixelData = bytes(10)

    with pytest.raises(InputError, match="1 of 6 files are cut off"):
        read_volume(write_series(tmp_path, change=cut))


@pytest.mark.parametrize("keep", [0.2, 0.9, 0.99])
def test_a_file_cut_off_while_copying_is_refused(tmp_path, keep):
    path = enhanced(tmp_path / "e.dcm", range(20))
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(InputError, match=r"cut off|no image|no readable"):
        read_volume(path)


@pytest.mark.shared_data
def test_a_compressed_slice_cut_off_while_copying_is_refused(shared_data, tmp_path):
    source = sorted((shared_data / "volumes" / "ct_multiorgan" / "example_ct_dicom").iterdir())
    for file in source[:3]:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    whole = read_volume(tmp_path).array
    assert whole.shape[1] == 3
    (tmp_path / source[1].name).write_bytes(source[1].read_bytes()[:-5000])
    with pytest.raises(InputError, match="1 of 3 files are cut off"):
        read_volume(tmp_path)


def test_one_slice_is_a_volume_as_thick_as_the_slice(tmp_path):
    volume = read_volume(write_series(tmp_path, count=1))
    assert volume.array.shape == (1, 1, 4, 5)
    assert volume.geometry.spacing_mm[0] == pytest.approx(5)


def enhanced(path, order, positions=True, sop_class=EnhancedMRImageStorage):
    data = header(sop_class, modality="MR", description="enhanced")
    data = pixels(data, np.stack([slice_values(k) for k in order]))
    del data.PixelSpacing
    data.NumberOfFrames = len(order)
    frames = []
    for k in order:
        item = Dataset()
        if positions:
            item.PlanePositionSequence = Sequence([Dataset()])
            item.PlanePositionSequence[0].ImagePositionPatient = [f"{v:.10g}" for v in FIRST + k * 2.5 * NORMAL]
        frames.append(item)
    shared = Dataset()
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = Sequence([Dataset()]), Sequence([Dataset()])
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [f"{v:.10g}" for v in (*ROW, *COLUMN)]
    shared.PixelMeasuresSequence[0].PixelSpacing = ["0.8", "0.6"]
    shared.PixelMeasuresSequence[0].SliceThickness = "2.5"
    data.SharedFunctionalGroupsSequence, data.PerFrameFunctionalGroupsSequence = Sequence([shared]), Sequence(frames)
    return save(data, path)


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]])
def test_the_frames_of_an_enhanced_object_are_sorted_by_their_positions(tmp_path, order):
    volume = read_volume(enhanced(tmp_path / "e.dcm", order))
    assert [int(plane[0, 0]) for plane in volume.array[0]] == [0, 100, 200, 300]
    np.testing.assert_allclose(volume.geometry.spacing_mm, (2.5, 0.8, 0.6), rtol=1e-8)
    np.testing.assert_allclose(volume.geometry.to_world((2, 0, 0)), FIRST + 5 * NORMAL, atol=1e-7)


def test_an_enhanced_object_with_a_gap_or_without_positions_is_refused(tmp_path):
    with pytest.raises(InputError, match="not evenly spaced"):
        read_volume(enhanced(tmp_path / "a" / "e.dcm", [0, 1, 3, 4]))
    with pytest.raises(InputError, match="where its slices lie is unknown"):
        read_volume(enhanced(tmp_path / "b" / "e.dcm", [0, 1, 2], positions=False))


def test_time_points_in_an_enhanced_object_are_frames(tmp_path):
    path = enhanced(tmp_path / "e.dcm", [0, 1, 2, 0, 1, 2])
    with pytest.raises(InputError, match="2 images at each slice position"):
        read_volume(path)
    assert read_volume(path, frame=1).array.shape == (1, 3, 4, 5)


def test_a_film_is_refused(tmp_path):
    with pytest.raises(InputError, match="film of 3 frames"):
        read_volume(enhanced(tmp_path / "e.dcm", [0, 1, 2], sop_class="1.2.840.10008.5.1.4.1.1.3.1"))


@pytest.mark.shared_data
def test_compressed_slices_give_the_voxels_of_the_matching_segmentation_grid(shared_data):
    folder = shared_data / "volumes" / "ct_multiorgan"
    volume = read_volume(folder / "example_ct_dicom")
    assert volume.array.shape == (1, 20, 512, 512)
    assert -1100 < volume.array.min() <= -1000
    segmentation = read_volume(folder / "example_seg_dicom.nii.gz")
    turned = segmentation.reoriented(segmentation.geometry.reorientation_to("SPL"))
    assert turned.geometry.is_close(volume.geometry)


@pytest.mark.shared_data
def test_a_ct_series_beside_its_structure_set_equals_its_nifti_twin(shared_data):
    volumes = shared_data / "volumes"
    notices = []
    dicom = read_volume(volumes / "dicom_ct_rtstruct", on_notice=notices.append)
    nifti = read_volume(volumes / "sts_multimodal" / "STS_025" / "CT_image.nii.gz")
    assert "RS.dcm" in notices[0]
    twin = nifti.reoriented(nifti.geometry.reorientation_to("SPL"))
    assert dicom.geometry.is_close(twin.geometry, 0.02)
    assert np.array_equal(dicom.array.astype(np.float32), twin.array)


@pytest.mark.shared_data
def test_two_oblique_mr_series_are_a_choice_and_agree_with_itk(shared_data):
    folder = shared_data / "volumes" / "dicom_prostate_oblique"
    with pytest.raises(InputError, match="2 image series"):
        read_volume(folder)
    volume = read_volume(folder, series="t2_tse_tra")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder / "t2_tra")))
    twin = reader.Execute()
    assert np.array_equal(volume.array[0], sitk.GetArrayFromImage(twin))
    for index in [(0, 0, 0), (18, 383, 0), (9, 100, 383)]:
        expected = twin.TransformContinuousIndexToPhysicalPoint([float(v) for v in index[::-1]])
        np.testing.assert_allclose(volume.geometry.to_world(index), expected, atol=1e-3)
