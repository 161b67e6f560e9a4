"""NIfTI files against two other readers, SimpleITK and nibabel, and against their bytes."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest

from MambaSegLib.errors import InputError
from MambaSegLib.volume import Geometry
from MambaSegLib.volume_io import read_volume, write_volume

nibabel = pytest.importorskip("nibabel")
sitk = pytest.importorskip("SimpleITK")

SHAPE_XYZ = (4, 5, 6)
TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def affine(shear=0.0, spacing=(0.7, 1.1, 3.3), angle=0.3):
    c, s = np.cos(angle), np.sin(angle)
    axes = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])
    axes[:, 2] = [0, np.sin(shear), np.cos(shear)]
    matrix = np.eye(4)
    matrix[:3, :3] = axes * spacing
    matrix[:3, 3] = [-12.3, 45.6, 7.8]
    return matrix


def save(path, array=None, matrix=None, codes=(1, 1), image=nibabel.Nifti1Image, **header):
    array = np.arange(np.prod(SHAPE_XYZ), dtype=np.int16).reshape(SHAPE_XYZ) if array is None else array
    made = image(array, matrix if matrix is not None else affine())
    for key, value in header.items():
        made.header[key] = value
    nibabel.save(made, path)
    # nibabel writes codes of its own choice where an affine is given.
    return patch(path, 252, "<2h", *codes) if image is nibabel.Nifti1Image and path.suffix == ".nii" else path


def patch(path, offset, form, *values):
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, offset, *values)
    path.write_bytes(bytes(data))
    return path


def geometry_of(image):
    axes = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = axes[:, ::-1], image.GetOrigin()
    return Geometry.from_matrix(matrix, image.GetSize()[::-1])


@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_voxels_of_every_type_and_byte_order_arrive_unchanged(tmp_path, kind, order, suffix):
    kind = np.dtype(kind)
    limits = np.iinfo(kind) if kind.kind in "iu" else np.finfo(kind)
    array = np.arange(120).reshape(SHAPE_XYZ).astype(kind)
    array[0, 0, 0], array[3, 4, 5] = limits.min, limits.max
    header = nibabel.Nifti1Header(endianness=order)
    header.set_data_dtype(kind)
    path = tmp_path / f"image{suffix}"
    nibabel.save(nibabel.Nifti1Image(array, affine(), header), path)
    volume = read_volume(path)
    assert volume.array.dtype == kind
    assert volume.array.dtype.isnative
    assert np.array_equal(volume.array[0], array.T)
    assert volume.name == "image"


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (1, 1), (2, 1), (1, 2), (4, 4)])
def test_the_grid_is_the_one_simpleitk_and_nibabel_see(tmp_path, codes):
    path = save(tmp_path / "a.nii", codes=codes)
    volume = read_volume(path)
    assert volume.geometry.is_close(geometry_of(sitk.ReadImage(str(path))), 1e-5)
    expected = TO_LPS @ nibabel.load(path).affine @ [1, 2, 3, 1]
    np.testing.assert_allclose(volume.geometry.to_world((3, 2, 1)), expected[:3], atol=1e-5)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("angle", [0.0, 0.3, np.pi / 2, 2.5, np.pi])
def test_the_quaternion_form_agrees_with_nibabel_for_every_angle(tmp_path, mirrored, angle):
    matrix = affine(angle=angle)
    matrix[:, 0] *= -1 if mirrored else 1
    volume = read_volume(save(tmp_path / "a.nii", matrix=matrix, codes=(1, 0)))
    expected = (TO_LPS @ matrix @ [3, 4, 5, 1])[:3]
    np.testing.assert_allclose(volume.geometry.to_world((5, 4, 3)), expected, atol=1e-5)


@pytest.mark.parametrize("codes", [(1, 1), (1, 2), (2, 1), (2, 4), (4, 4)])
def test_where_two_forms_disagree_the_choice_is_simpleitks_and_is_told(tmp_path, codes):
    path = save(tmp_path / "a.nii", codes=codes)
    patch(path, 268, "<3f", 100.0, 200.0, 300.0)
    notices = []
    volume = read_volume(path, on_notice=notices.append)
    assert volume.geometry.is_close(geometry_of(sitk.ReadImage(str(path))), 1e-5)
    assert len(notices) == 1
    assert "two positions" in notices[0]


def test_a_header_without_position_is_read_as_slicer_does_with_a_notice(tmp_path):
    path = save(tmp_path / "a.nii", codes=(0, 0))
    notices = []
    volume = read_volume(path, on_notice=notices.append)
    assert volume.geometry.is_close(geometry_of(sitk.ReadImage(str(path))), 1e-6)
    assert "left, right" in notices[0]


def test_a_slightly_sheared_sform_is_repaired_where_simpleitk_refuses(tmp_path):
    path = save(tmp_path / "a.nii", matrix=affine(shear=0.004), codes=(0, 1))
    with pytest.raises(RuntimeError):
        sitk.ReadImage(str(path))
    notices = []
    volume = read_volume(path, on_notice=notices.append)
    assert "perpendicular" in notices[0]
    assert np.array_equal(volume.array[0], nibabel.load(path).get_fdata().T)
    expected = (TO_LPS @ affine(shear=0.004) @ [1.5, 2, 2.5, 1])[:3]
    np.testing.assert_allclose(volume.geometry.to_world((2.5, 2, 1.5)), expected, atol=1e-5)


def test_a_repaired_grid_is_written_so_that_simpleitk_reads_it(tmp_path):
    volume = read_volume(save(tmp_path / "a.nii", matrix=affine(shear=0.004)), on_notice=str)
    write_volume(volume.array[0], volume.geometry, tmp_path / "b.nii.gz")
    assert geometry_of(sitk.ReadImage(str(tmp_path / "b.nii.gz"))).is_close(volume.geometry, 1e-5)


@pytest.mark.parametrize("shear", [9e-5, 5e-5])
def test_a_shear_too_small_to_repair_is_small_enough_for_simpleitk(tmp_path, shear):
    volume = read_volume(save(tmp_path / "a.nii", matrix=affine(shear=shear)))
    write_volume(volume.array[0], volume.geometry, tmp_path / "b.nii")
    assert geometry_of(sitk.ReadImage(str(tmp_path / "b.nii"))).is_close(volume.geometry, 1e-3)


def test_a_sheared_grid_is_refused_and_resampled_only_when_asked(tmp_path):
    path = save(tmp_path / "a.nii", matrix=affine(shear=0.2, angle=0.0), codes=(0, 1))
    with pytest.raises(InputError, match=r"a\.nii: the grid is sheared by 11\.5 degrees"):
        read_volume(path)


def test_resampling_a_sheared_grid_keeps_a_linear_ramp_at_its_places(tmp_path):
    # Intensity = world y + 2 z: linear interpolation gives it back exactly wherever the source covers.
    matrix = affine(shear=0.2, spacing=(1.0, 1.0, 2.0))
    index = np.indices((12, 14, 8)).reshape(3, -1)
    world = (TO_LPS @ matrix)[:3, :3] @ index + (TO_LPS @ matrix)[:3, 3:]
    ramp = (100 + world[1] + 2 * world[2]).reshape(12, 14, 8).astype(np.float32)
    path = save(tmp_path / "a.nii", array=ramp, matrix=matrix, codes=(0, 1))
    notices = []
    volume = read_volume(path, resample_sheared=True, on_notice=notices.append)
    assert "resampled" in notices[-1]
    places = volume.geometry.to_world(np.indices(volume.geometry.shape).reshape(3, -1).T)
    source = np.linalg.solve((TO_LPS @ matrix)[:3, :3], (places - (TO_LPS @ matrix)[:3, 3]).T).T
    inside = ((source >= 0) & (source <= np.subtract((12, 14, 8), 1))).all(axis=1)
    assert inside.sum() > 300
    expected = 100 + places[:, 1] + 2 * places[:, 2]
    np.testing.assert_allclose(volume.array[0].ravel()[inside], expected[inside], atol=2e-3)
    corners = np.array([[0, 0, 0], [11, 13, 7]]) @ (TO_LPS @ matrix)[:3, :3].T + (TO_LPS @ matrix)[:3, 3]
    covered = volume.geometry.to_index(corners)
    assert (covered >= -1e-4).all()
    assert (covered <= np.subtract(volume.geometry.shape, 1) + 1e-4).all()


def test_scaling_is_honored_as_simpleitk_does(tmp_path):
    path = save(tmp_path / "a.nii")
    patch(path, 112, "<2f", 0.5, -1024.0)
    volume = read_volume(path)
    assert volume.array.dtype == np.float32
    assert np.array_equal(volume.array[0], sitk.GetArrayFromImage(sitk.ReadImage(str(path), sitk.sitkFloat32)))
    assert volume.array[0, 5, 4, 3] == 119 * 0.5 - 1024


@pytest.mark.parametrize("slope", [0.0, float("nan")])
def test_a_slope_of_zero_or_nan_means_no_scaling(tmp_path, slope):
    path = patch(save(tmp_path / "a.nii"), 112, "<2f", slope, 5.0)
    assert read_volume(path).array.max() == 119


def test_nifti_2_is_read(tmp_path):
    path = save(tmp_path / "a.nii.gz", image=nibabel.Nifti2Image)
    volume = read_volume(path)
    assert np.array_equal(volume.array[0], nibabel.load(path).get_fdata().T)
    np.testing.assert_allclose(volume.geometry.to_world((0, 0, 0)), (TO_LPS @ affine())[:3, 3], atol=1e-9)


@pytest.mark.parametrize(("unit", "mm"), [(1, 1000.0), (2, 1.0), (3, 0.001)])
def test_meters_and_micrometers_become_mm(tmp_path, unit, mm):
    path = save(tmp_path / "a.nii", matrix=affine(spacing=(0.2 / mm, 0.2 / mm, 0.2 / mm)), xyzt_units=unit)
    np.testing.assert_allclose(read_volume(path).geometry.spacing_mm, 0.2, rtol=1e-6)


def test_one_frame_of_four_dimensions_is_read_and_several_ask(tmp_path):
    array = np.arange(240, dtype=np.int16).reshape(*SHAPE_XYZ, 2)
    path = save(tmp_path / "a.nii.gz", array=array)
    with pytest.raises(InputError, match=r"holds 2 frames.*0 to 1.*--frame"):
        read_volume(path)
    for frame in (0, 1):
        assert np.array_equal(read_volume(path, frame=frame).array[0], array[..., frame].T)
    with pytest.raises(InputError, match="no frame 2"):
        read_volume(path, frame=2)
    with pytest.raises(InputError, match="no frame -1"):
        read_volume(path, frame=-1)


def test_a_single_frame_needs_no_choice(tmp_path):
    array = np.zeros((*SHAPE_XYZ, 1), np.int16)
    assert read_volume(save(tmp_path / "a.nii", array=array)).array.shape == (1, 6, 5, 4)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((4, 5, 6, 1, 3), np.int16), "vector or tensor"),
        (np.zeros((4, 5), np.int16), "2D image"),
        (np.zeros(SHAPE_XYZ, np.complex64), "complex"),
        (np.zeros(SHAPE_XYZ, [("R", "u1"), ("G", "u1"), ("B", "u1")]), "RGB"),
    ],
)
def test_what_is_no_scalar_volume_is_refused(tmp_path, array, said):
    with pytest.raises(InputError, match=said):
        read_volume(save(tmp_path / "a.nii", array=array))


@pytest.mark.parametrize("spacing", [0.0, -1.0, float("nan"), float("inf")])
def test_spacing_that_is_no_length_is_refused(tmp_path, spacing):
    path = patch(save(tmp_path / "a.nii"), 84, "<f", spacing)
    with pytest.raises(InputError, match="spacing"):
        read_volume(path)


@pytest.mark.parametrize(
    ("offset", "form", "values", "said"),
    [
        (280, "<12f", [0.0] * 12, "voxel size"),
        (280, "<4f", [float("nan")] * 4, "sform"),
        (280, "<12f", [0.7, 0, 0, 0, 0, 1.1, 1.1, 0, 0, 0, 3.1, 0], "sheared"),
        (280, "<12f", [0.7, 0, 0, 0, 0, 1.1, 3.3, 0, 0, 0, 0, 0], "one plane"),
        (280, "<12f", [1.4, 0, 0, 0, 0, 1.1, 0, 0, 0, 0, 3.3, 0], "two voxel sizes"),
        (42, "<3h", [32000, 32000, 32000], "at most"),
        (42, "<h", [-4], "damaged"),
        (40, "<h", [9], r"no NIfTI|damaged"),
        (70, "<h", [1], "one bit"),
        (70, "<h", [77], "unknown type"),
        (108, "<f", [1e30], "damaged"),
        (108, "<f", [-5.0], "damaged"),
        (108, "<f", [100000.0], "at most"),
        (123, "<B", [5], "unit"),
        (116, "<f", [float("nan")], "scl_inter"),
        (344, "4s", [b"ni1\0"], "pair"),
        (0, "<i", [12], "no NIfTI"),
    ],
)
def test_damaged_headers_are_refused_with_their_fault(tmp_path, offset, form, values, said):
    path = save(tmp_path / "a.nii")
    patch(path, 112, "<2f", 2.0, 0.0)
    with pytest.raises(InputError, match=said):
        read_volume(patch(path, offset, form, *values))


@pytest.mark.parametrize("keep", [0, 1, 100, 347, 352, 400, 591])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_file_cut_off_anywhere_is_refused(tmp_path, keep, suffix):
    path = save(tmp_path / f"a{suffix}")
    data = path.read_bytes()
    path.write_bytes(data[: keep if suffix == ".nii" else keep * len(data) // 592])
    with pytest.raises(InputError, match=r"cut off|empty|no NIfTI|damaged"):
        read_volume(path)


def test_a_small_file_that_claims_terabytes_is_refused_before_memory_is_asked_for(tmp_path):
    path = save(tmp_path / "a.nii")
    patch(path, 42, "<3h", 32767, 32767, 32767)
    packed = tmp_path / "b.nii.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    for file in (path, packed):
        with pytest.raises(InputError, match="damaged or cut off"):
            read_volume(file)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_the_sform_is_written_back_with_the_same_bits(tmp_path, suffix):
    path = save(tmp_path / f"a{suffix}", codes=(1, 1))
    volume = read_volume(path)
    write_volume(volume.array[0], volume.geometry, tmp_path / f"b{suffix}")
    old, new = (nibabel.load(tmp_path / f"{name}{suffix}") for name in "ab")
    assert old.header.get_sform().tobytes() == new.header.get_sform().tobytes()
    np.testing.assert_allclose(new.header.get_qform(), old.header.get_qform(), atol=1e-5)
    np.testing.assert_allclose(new.header["pixdim"], old.header["pixdim"], rtol=2e-7)
    assert np.array_equal(np.asanyarray(new.dataobj), np.asanyarray(old.dataobj))
    assert new.get_data_dtype() == old.get_data_dtype()


def test_an_axis_too_long_for_the_format_is_refused(tmp_path):
    grid = Geometry(
        (1, 1, 40000), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    )
    with pytest.raises(InputError, match="NIfTI cannot hold"):
        write_volume(np.zeros((1, 1, 40000), np.uint8), grid, tmp_path / "a.nii")
    assert list(tmp_path.iterdir()) == []
