"""Reading and writing image files: round trips, channels, refusals, and outputs that are whole or not there."""

from __future__ import annotations

import builtins
import errno
import gzip
import os
import zlib

import numpy as np
import pytest

from MambaSegLib.errors import EnvironmentProblemError, InputError
from MambaSegLib.plan import Label
from MambaSegLib.volume import Geometry, Labels
from MambaSegLib.volume_io import check_output_path, read_channels, read_labels, read_volume, write_labels, write_volume

sitk = pytest.importorskip("SimpleITK")

AXIAL = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
GRID = Geometry((3, 4, 5), (3.0, 2.0, 1.0), (10.0, 20.0, 30.0), AXIAL)
KINDS = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"]
SUFFIXES = [".nii", ".nii.gz", ".nrrd", ".mha"]


def image(kind="i2", shape=GRID.shape):
    return np.arange(np.prod(shape)).reshape(shape).astype(kind)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", KINDS)
def test_voxels_of_every_type_and_the_place_of_each_come_back(tmp_path, oblique_geometry, suffix, kind):
    array = image(kind, oblique_geometry.shape)
    write_volume(array, oblique_geometry, tmp_path / f"a{suffix}")
    again = read_volume(tmp_path / f"a{suffix}")
    assert again.array.dtype == array.dtype
    assert np.array_equal(again.array[0], array)
    # NIfTI-1 holds 32-bit floats: 1 part in 10^7 of 40 mm.
    assert again.geometry.is_close(oblique_geometry, 1e-5 if "nii" in suffix else 1e-12)
    again_twice = sitk.ReadImage(str(tmp_path / f"a{suffix}"))
    assert np.array_equal(sitk.GetArrayFromImage(again_twice), array)
    expected = again_twice.TransformContinuousIndexToPhysicalPoint([3.0, 2.0, 1.0])
    np.testing.assert_allclose(oblique_geometry.to_world((1, 2, 3)), expected, atol=1e-4)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".seg.nrrd"])
def test_a_straight_grid_comes_back_to_the_bit(tmp_path, suffix):
    grid = Geometry((3, 4, 5), (3.3, 1 / 3, 0.1), (-1 / 7, 1e-9, 123456.789), AXIAL)
    write_labels(Labels(image("u1"), grid, ()), tmp_path / f"a{suffix}")
    assert read_volume(tmp_path / f"a{suffix}").geometry == grid


def test_mha_keeps_an_oblique_grid_to_the_bit(tmp_path, oblique_geometry):
    write_volume(image("u1", oblique_geometry.shape), oblique_geometry, tmp_path / "a.mha")
    again = sitk.ReadImage(str(tmp_path / "a.mha"))
    assert again.GetOrigin() == oblique_geometry.origin_mm
    assert again.GetSpacing() == oblique_geometry.spacing_mm[::-1]
    direction = np.array(again.GetDirection()).reshape(3, 3)[:, ::-1]
    assert np.array_equal(direction, np.array(oblique_geometry.direction))


@pytest.mark.parametrize("suffix", [".seg.nrrd", *SUFFIXES])
@pytest.mark.parametrize(("kind", "stored"), [("u1", "u1"), ("u2", "u2"), ("u4", "u1"), ("u8", "u1")])
def test_label_maps_keep_their_values_in_a_small_type(tmp_path, suffix, kind, stored):
    labels = Labels(image(kind), GRID, (Label(1, "thing", (255, 0, 0)),))
    labels.write(tmp_path / f"a{suffix}")
    assert read_volume(tmp_path / f"a{suffix}").array.dtype == stored
    again = read_labels(tmp_path / f"a{suffix}").array
    assert np.array_equal(again, np.where(image() == 1, 1, 0) if "seg" in suffix else image())


def test_values_without_names_are_named_by_their_number(tmp_path):
    write_volume(np.where(image() == 7, 300, image("f4") % 2), GRID, tmp_path / "a.nii.gz")
    labels = read_labels(tmp_path / "a.nii.gz")
    assert labels.array.dtype == np.uint16
    assert [(label.value, label.name) for label in labels.table] == [(1, "label 1"), (300, "label 300")]
    assert len({label.color for label in labels.table}) == 2


@pytest.mark.parametrize("value", [-1, 0.5, 70000])
def test_an_image_is_no_label_map(tmp_path, value):
    write_volume(np.full(GRID.shape, value, np.float32), GRID, tmp_path / "a.mha")
    with pytest.raises(InputError, match="no label map"):
        read_labels(tmp_path / "a.mha")


def test_other_types_are_stored_as_the_nearest_one_or_refused(tmp_path):
    write_volume(image() % 2 == 1, GRID, tmp_path / "a.nrrd")
    assert read_volume(tmp_path / "a.nrrd").array.dtype == np.uint8
    write_volume(image("f2"), GRID, tmp_path / "a.nrrd")
    assert read_volume(tmp_path / "a.nrrd").array.dtype == np.float32
    with pytest.raises(InputError, match="complex"):
        write_volume(image("c8"), GRID, tmp_path / "a.nrrd")
    with pytest.raises(InputError, match="label maps"):
        write_volume(image(), GRID, tmp_path / "a.seg.nrrd")
    with pytest.raises(InputError, match="shape"):
        write_volume(image()[1:], GRID, tmp_path / "a.nrrd")


@pytest.mark.parametrize("name", ["a.png", "a", "a.nii.zip", ".nii.gz", "a.gz", "nrrd"])
def test_an_output_of_unknown_kind_is_refused(tmp_path, name):
    with pytest.raises(InputError, match=r"must end with one of .*seg\.nrrd"):
        check_output_path(tmp_path / name)


def test_an_output_that_cannot_be_is_refused_before_work(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        check_output_path(tmp_path / "missing" / "a.nii")
    (tmp_path / "a.nii").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        check_output_path(tmp_path / "a.nii")
    assert check_output_path(str(tmp_path / "A.SEG.NRRD")) == tmp_path / "A.SEG.NRRD"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write and read everything")
def test_folders_and_files_without_permission_are_named(tmp_path):
    write_volume(image(), GRID, tmp_path / "a.mha")
    (tmp_path / "a.mha").chmod(0)
    with pytest.raises(InputError, match="may not be read"):
        read_volume(tmp_path / "a.mha")
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="may not be written"):
        check_output_path(tmp_path / "b.mha")


@pytest.mark.parametrize("suffix", [".seg.nrrd", *SUFFIXES])
@pytest.mark.parametrize(("number", "said"), [(errno.ENOSPC, "disk is full"), (errno.EIO, "was not written")])
def test_a_failing_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, suffix, number, said):
    target = tmp_path / f"a{suffix}"
    target.write_bytes(b"old")

    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(EnvironmentProblemError, match=said):
        Labels(image("u1"), GRID, ()).write(target)
    assert [file.name for file in tmp_path.iterdir()] == [target.name]
    assert target.read_bytes() == b"old"


@pytest.mark.parametrize("suffix", [".seg.nrrd", *SUFFIXES])
def test_an_interrupt_while_writing_leaves_nothing(tmp_path, monkeypatch, suffix):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    monkeypatch.setattr("pathlib.Path.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Labels(image("u1"), GRID, ()).write(tmp_path / f"a{suffix}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_a_new_file_has_the_permissions_of_any_other_new_file(tmp_path, monkeypatch):
    # Asking for the umask sets it for a moment, for files of other threads, too.
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask was changed"))
    (tmp_path / "other").touch()
    write_volume(image(), GRID, tmp_path / "a.nrrd")
    assert (tmp_path / "a.nrrd").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("name", ["a" * 246 + ".nrrd", "a." + "b" * 240 + ".nii.gz"])
def test_names_as_long_as_names_may_be_are_written(tmp_path, name):
    write_volume(image(), GRID, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("missing.nii.gz", None, "does not exist"),
        ("missing.nrrd", None, "does not exist"),
        ("missing.mha", None, "does not exist"),
        ("missing", None, "does not exist"),
        ("a.png", b"\x89PNG", "no known kind.*nii.gz"),
        ("a.nii", b"", "is empty"),
        ("a.nrrd", b"", "is empty"),
        ("a.mha", b"", "is empty"),
        ("a.nrrd", b"no nrrd at all", "no NRRD file"),
        ("a.mha", b"no image at all", "no complete MetaImage"),
        ("a.dcm", b"no dicom at all", "no readable DICOM"),
    ],
)
def test_files_that_are_no_images_are_refused(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_volume(tmp_path / name)


def nrrd(path, data=None, **change):
    array = image("i2")
    fields = {
        "type": "int16",
        "dimension": "3",
        "space": "left-posterior-superior",
        "sizes": "5 4 3",
        "space directions": "(1,0,0) (0,2,0) (0,0,3)",
        "kinds": "domain domain domain",
        "endian": "little",
        "encoding": "raw",
        "space origin": "(0,0,0)",
    }
    fields.update({key.replace("_", " "): value for key, value in change.items()})
    lines = ["NRRD0004", *(f"{key}: {value}" for key, value in fields.items() if value is not None)]
    path.write_bytes("\n".join(lines).encode() + b"\n\n" + (array.tobytes() if data is None else data))
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sizes": "50000 50000 50000"}, "cut off"),
        ({"sizes": "5 4 4"}, "cut off"),
        ({"sizes": "5 4"}, "damaged"),
        ({"sizes": "5 4 x"}, "damaged"),
        ({"sizes": "-5 -4 3"}, "damaged"),
        ({"type": "block"}, "numbers are needed"),
        ({"type": None}, "numbers are needed"),
        ({"space_directions": "(1,0,0) (0,2,0) (0,2,0)"}, "plane|axes|read"),
        ({"space_directions": "(1,0,0) (0,2,0) (0,0,0)"}, "axes|spacing|read"),
        ({"space_directions": "(1,0,0) (0,2,0) (nan,0,3)"}, "axes|spacing|read"),
        ({"space_directions": "(1,0,0) (0,2,0) (0,1,3)"}, "sheared"),
        ({"space_directions": "(1,0,0) (0,2,0) (0,0,3e9)"}, "not believable"),
        ({"space_origin": "(nan,0,0)"}, "origin|read"),
        ({"kinds": "RGB-color domain domain", "sizes": "3 4 5"}, "axes rgb-color domain domain"),
        ({"kinds": "vector domain domain", "sizes": "3 4 5"}, "axes vector domain domain"),
        ({"data_file": "missing.raw"}, "missing.raw does not exist"),
        ({"encoding": "gzip"}, "cannot be decoded"),
        ({"encoding": "hex"}, "encoding 'hex'"),
        ({"sizes": "5 12", "dimension": "2", "kinds": "domain domain", "space": "2d", "space_directions": None,
          "space_origin": None}, "2D|read"),
    ],
)  # fmt: skip
def test_damaged_nrrd_files_are_refused(tmp_path, change, said):
    with pytest.raises(InputError, match=said):
        read_volume(nrrd(tmp_path / "a.nrrd", **change))


def test_the_nrrd_of_these_tests_is_itself_readable(tmp_path):
    volume = read_volume(nrrd(tmp_path / "a.nrrd"))
    assert np.array_equal(volume.array[0], image())
    assert volume.geometry == Geometry((3, 4, 5), (3.0, 2.0, 1.0), (0.0, 0.0, 0.0), AXIAL)


def test_a_nrrd_with_its_data_in_another_file_is_read(tmp_path):
    (tmp_path / "a.raw").write_bytes(image().tobytes())
    assert np.array_equal(read_volume(nrrd(tmp_path / "a.nhdr", b"", data_file="a.raw")).array[0], image())


@pytest.mark.parametrize("axis", ["list", "time"])
def test_frames_in_a_nrrd_are_chosen_by_number(tmp_path, axis):
    array = np.stack([image(), image() + 1000], axis=-1)
    change = {"kinds": f"{axis} domain domain domain", "sizes": "2 5 4 3", "dimension": "4"}
    directions = "none (1,0,0) (0,2,0) (0,0,3)"
    path = nrrd(tmp_path / "a.nrrd", array.tobytes(), space_directions=directions, **change)
    with pytest.raises(InputError, match="holds 2 frames"):
        read_volume(path)
    assert np.array_equal(read_volume(path, frame=1).array[0], image() + 1000)
    assert read_volume(path, frame=1).geometry.spacing_mm == (3, 2, 1)


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_four_spatial_axes_are_frames(tmp_path, suffix):
    frames = sitk.JoinSeries([sitk.GetImageFromArray(image()), sitk.GetImageFromArray(image() + 1000)])
    sitk.WriteImage(frames, str(tmp_path / f"a{suffix}"))
    with pytest.raises(InputError, match="holds 2 frames"):
        read_volume(tmp_path / f"a{suffix}")
    assert np.array_equal(read_volume(tmp_path / f"a{suffix}", frame=1).array[0], image() + 1000)


def mha(path, **change):
    write_volume(image(), GRID, path)
    data = path.read_bytes()
    head, mark, rest = data.partition(b"ElementDataFile = LOCAL\n")
    lines = head.decode().splitlines()
    for key, value in change.items():
        lines = [f"{key} = {value}" if line.startswith(key + " =") else line for line in lines]
    path.write_bytes("\n".join(lines).encode() + b"\n" + mark + rest)
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"DimSize": "50000 50000 50000"}, "cut off"),
        ({"DimSize": "5 4"}, "damaged"),
        ({"DimSize": "5 4 -3"}, "damaged"),
        ({"DimSize": "a b c"}, "damaged"),
        ({"ElementSpacing": "1 2 0"}, "spacing"),
        ({"ElementSpacing": "1 2 -3"}, "spacing"),
        ({"ElementSpacing": "1 2 nan"}, "spacing"),
        ({"Offset": "nan 0 0"}, "finite"),
        ({"TransformMatrix": "1 0 0 0 1 0 0 0.5 1"}, "sheared"),
        ({"TransformMatrix": "1 0 0 0 1 0 0 1 0"}, "plane|read"),
        ({"TransformMatrix": "0 0 0 0 0 0 0 0 0"}, "axes|plane|read"),
        ({"ElementType": "MET_BLOCK"}, "MET_BLOCK"),
        ({"NDims": "2"}, "damaged"),
    ],
)
def test_damaged_metaimages_are_refused(tmp_path, change, said):
    with pytest.raises(InputError, match=said):
        read_volume(mha(tmp_path / "a.mha", **change))


def old_mha(path, *lines):
    """A file as older programs wrote it: with few and other fields."""
    head = ["NDims = 3", "DimSize = 5 4 3", "ElementType = MET_SHORT", *lines, "ElementDataFile = LOCAL"]
    path.write_bytes("\n".join(head).encode() + b"\n" + image("<i2").tobytes())
    return path


@pytest.mark.parametrize(
    "lines",
    [
        ["ElementSize = 1 2 3"],
        ["ElementSize = 9 9 9", "ElementSpacing = 1 2 3"],
        ["ElementSpacing = 1 2 3", "ElementByteOrderMSB = True"],
        ["ElementSpacing = 1 2 3", "BinaryDataByteOrderMSB = False", "ElementByteOrderMSB = True"],
        ["ElementSpacing = 1 2 3", "BinaryDataByteOrderMSB = True", "ElementByteOrderMSB = False"],
    ],
)
def test_metaimages_of_older_programs_are_read_as_simpleitk_does(tmp_path, lines):
    path = old_mha(tmp_path / "a.mha", *lines)
    expected = sitk.ReadImage(str(path))
    volume = read_volume(path)
    assert volume.geometry.spacing_mm[::-1] == expected.GetSpacing() == (1.0, 2.0, 3.0)
    assert np.array_equal(volume.array[0], sitk.GetArrayFromImage(expected))


def test_a_size_that_is_assumed_is_told(tmp_path):
    notices = []
    assert read_volume(old_mha(tmp_path / "a.mha"), on_notice=notices.append).geometry.spacing_mm == (1.0, 1.0, 1.0)
    assert "1 mm is assumed" in notices[0]
    header = "NRRD0004\ntype: short\ndimension: 3\nsizes: 5 4 3\nendian: little\nencoding: raw\n\n"
    (tmp_path / "b.nrrd").write_bytes(header.encode() + image("<i2").tobytes())
    assert read_volume(tmp_path / "b.nrrd", on_notice=notices.append).geometry.spacing_mm == (1.0, 1.0, 1.0)
    assert "1 mm is assumed" in notices[-1]


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_vectors_and_complex_numbers_are_refused(tmp_path, suffix):
    vector = sitk.GetImageFromArray(np.zeros((3, 4, 5, 3), np.uint8), isVector=True)
    sitk.WriteImage(vector, str(tmp_path / f"a{suffix}"))
    with pytest.raises(InputError, match="3 values per voxel"):
        read_volume(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_voxels_cut_off_in_compressed_files_are_noticed(tmp_path, suffix, rng):
    write_volume(
        rng.integers(0, 1000, (16, 16, 16)).astype(np.int16), Geometry((16,) * 3, *grid_rest()), tmp_path / f"a{suffix}"
    )
    data = (tmp_path / f"a{suffix}").read_bytes()
    (tmp_path / f"a{suffix}").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(InputError):
        read_volume(tmp_path / f"a{suffix}")


def grid_rest():
    return GRID.spacing_mm, GRID.origin_mm, GRID.direction


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", ["f4", "f8"])
def test_nan_and_infinity_are_counted_and_refused_unless_replaced(tmp_path, suffix, kind):
    array = image(kind)
    array[0, 0, 0], array[1, 2, 3], array[2, 3, 4] = np.nan, np.inf, -np.inf
    write_volume(array, GRID, tmp_path / f"a{suffix}")
    with pytest.raises(InputError, match=r"3 of 60 voxels are NaN or infinite.*--replace-nonfinite"):
        read_volume(tmp_path / f"a{suffix}")
    notices = []
    volume = read_volume(tmp_path / f"a{suffix}", replace_nonfinite=-5, on_notice=notices.append)
    assert volume.array[0, 0, 0, 0] == volume.array[0, 1, 2, 3] == volume.array[0, 2, 3, 4] == -5
    assert volume.array[0, 0, 0, 1] == 1
    assert volume.array.dtype == kind
    assert "set to -5" in notices[0]


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_what_replaces_nan_must_be_a_number_the_voxels_can_hold(tmp_path, value):
    array = image("f4")
    array[0, 0, 0] = np.nan
    write_volume(array, GRID, tmp_path / "a.nii")
    with pytest.raises(InputError, match="give an ordinary number"):
        read_volume(tmp_path / "a.nii", replace_nonfinite=value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("name", ["a.nii", "a.dcm", "a"])
def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match="is not a file"):
        read_volume(tmp_path / name)


def test_channels_keep_their_order_and_names(tmp_path):
    for k, name in enumerate("ab"):
        write_volume(image() + 1000 * k, GRID, tmp_path / f"{name}.nrrd")
    volume = read_channels({"T1": tmp_path / "b.nrrd", "FLAIR": tmp_path / "a.nrrd"})
    assert volume.channels == ("T1", "FLAIR")
    assert volume.array[:, 0, 0, 0].tolist() == [1000, 0]
    assert volume.name == "b"
    assert read_channels([tmp_path / "a.nrrd"]).channels == ()


def test_channels_of_different_types_share_one_that_holds_both(tmp_path):
    write_volume(image("i2"), GRID, tmp_path / "a.nrrd")
    write_volume(image("f8") + 0.1, GRID, tmp_path / "b.nrrd")
    volume = read_channels([tmp_path / "a.nrrd", tmp_path / "b.nrrd"])
    assert np.array_equal(volume.array[0], image())
    assert np.array_equal(volume.array[1], image("f8") + 0.1)


def test_channels_on_other_grids_are_refused_by_name_with_the_difference(tmp_path):
    write_volume(image(), GRID, tmp_path / "a.nrrd")
    moved = Geometry(GRID.shape, (3.0, 2.0, 1.5), (11.0, 20.0, 30.0), AXIAL)
    write_volume(image(), moved, tmp_path / "b.nrrd")
    with pytest.raises(InputError) as caught:
        read_channels({"T1": tmp_path / "a.nrrd", "T2": tmp_path / "b.nrrd"})
    message = str(caught.value)
    assert "channel T2" in message
    assert "spacing (3, 2, 1.5) instead of (3, 2, 1) mm" in message
    assert "origin (11, 20, 30) instead of (10, 20, 30) mm" in message
    assert "--resample-channels" in message


def test_a_resampled_channel_holds_the_same_content_at_the_same_place(tmp_path, oblique_geometry):
    write_volume(np.zeros(oblique_geometry.shape, np.float32), oblique_geometry, tmp_path / "a.nrrd")
    # A ramp along world axes on a grid that covers the first: linear interpolation keeps it exactly.
    cover = Geometry((60, 60, 60), (1.5, 1.5, 1.5), (-60.0, 0.0, -30.0), AXIAL)
    world = cover.to_world(np.indices(cover.shape).reshape(3, -1).T)
    ramp = (world @ [1.0, 0.5, -2.0]).reshape(cover.shape).astype(np.float32)
    write_volume(ramp, cover, tmp_path / "b.nrrd")
    notices = []
    volume = read_channels([tmp_path / "a.nrrd", tmp_path / "b.nrrd"], resample_to_first=True, on_notice=notices.append)
    assert volume.geometry.is_close(oblique_geometry, 1e-9)
    assert "channel 1" in notices[0]
    for index in [(0, 0, 0), (8, 13, 16), (4, 6, 8)]:
        expected = oblique_geometry.to_world(index) @ [1.0, 0.5, -2.0]
        assert volume.array[1][index] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("smallest", "outside"), [(-1000, -1000.0), (7, 0.0)])
def test_outside_a_resampled_channel_is_air(tmp_path, smallest, outside):
    write_volume(image(), GRID, tmp_path / "a.nrrd")
    small = Geometry((1, 4, 5), GRID.spacing_mm, GRID.origin_mm, AXIAL)
    write_volume(image(shape=small.shape) + np.int16(smallest), small, tmp_path / "b.nrrd")
    volume = read_channels([tmp_path / "a.nrrd", tmp_path / "b.nrrd"], resample_to_first=True, on_notice=str)
    assert np.unique(volume.array[1, 1:]).tolist() == [outside]


def test_no_image_at_all_is_refused():
    with pytest.raises(InputError, match="no input image"):
        read_channels([])


def test_a_series_is_a_matter_of_dicom_folders_only(tmp_path):
    write_volume(image(), GRID, tmp_path / "a.mha")
    with pytest.raises(InputError, match="no DICOM folder"):
        read_volume(tmp_path / "a.mha", series="1")


def test_a_frame_of_a_3d_image_is_0_or_refused(tmp_path):
    write_volume(image(), GRID, tmp_path / "a.mha")
    assert read_volume(tmp_path / "a.mha", frame=0).array.shape == (1, 3, 4, 5)
    with pytest.raises(InputError, match="no frame 1"):
        read_volume(tmp_path / "a.mha", frame=1)


def test_without_simpleitk_all_but_dicom_works_and_that_says_what_to_install(tmp_path, monkeypatch):
    for suffix in SUFFIXES:
        write_volume(image(), GRID, tmp_path / f"a{suffix}")
    (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM")
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "SimpleITK":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    for suffix in SUFFIXES:
        assert read_volume(tmp_path / f"a{suffix}").array.shape == (1, 3, 4, 5)
    with pytest.raises(EnvironmentProblemError, match="pip install"):
        read_volume(tmp_path / "a.dcm")


def corrupted(data, rng, header_bytes):
    """A few bytes of the header changed, or the file cut off."""
    data = bytearray(data)
    if rng.random() < 0.2:
        return bytes(data[: rng.integers(0, len(data))])
    for _ in range(rng.integers(1, 6)):
        at = rng.integers(0, min(header_bytes, len(data)))
        data[at] = rng.choice([0, 1, 0x20, 0x2D, 0x30, 0x39, 0x7F, 0x80, 0xFF, rng.integers(256)])
    return bytes(data)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".seg.nrrd", ".mha"])
def test_corrupted_files_are_refused_or_read_as_valid_volumes(tmp_path, suffix, rng):
    # A crash of the process would end the test run, so that would be noticed, too.
    path = tmp_path / f"a{suffix}"
    Labels(image("u1") % 3, GRID, (Label(1, "one", (255, 0, 0)), Label(2, "two", (0, 255, 0)))).write(path)
    whole = path.read_bytes()
    if suffix == ".nii.gz":
        whole = gzip.decompress(whole)
    refused = 0
    for _ in range(300):
        broken = corrupted(whole, rng, 352 if "nii" in suffix else len(whole))
        path.write_bytes(gzip.compress(broken, 1) if suffix == ".nii.gz" else broken)
        for read in (read_volume, read_labels):
            try:
                found = read(path, on_notice=str)
            except InputError:
                refused += 1
                continue
            array = found.array if read is read_labels else found.array[0]
            assert array.shape == found.geometry.shape
            assert array.dtype.kind in "iuf"
            assert np.isfinite(array).all()
    assert refused > 50


def test_a_bomb_in_gzip_is_not_unpacked(tmp_path):
    # 60 MB of zeros behind a small image: only the image is unpacked.
    write_volume(image(), GRID, tmp_path / "a.nii")
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = packer.compress((tmp_path / "a.nii").read_bytes())
    packed += b"".join(packer.compress(bytes(1 << 20)) for _ in range(60)) + packer.flush()
    (tmp_path / "a.nii.gz").write_bytes(packed)
    assert np.array_equal(read_volume(tmp_path / "a.nii.gz").array[0], image())


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_an_image_that_is_read_once_need_not_be_packed(tmp_path, oblique_geometry, suffix):
    array = np.zeros(oblique_geometry.shape, np.int16)
    write_volume(array, oblique_geometry, tmp_path / f"packed{suffix}")
    write_volume(array, oblique_geometry, tmp_path / f"plain{suffix}", compression=0)
    assert (tmp_path / f"plain{suffix}").stat().st_size > array.nbytes > (tmp_path / f"packed{suffix}").stat().st_size
    assert np.array_equal(read_volume(tmp_path / f"plain{suffix}").array[0], array)


def test_a_segmentation_is_not_taken_for_an_image(tmp_path):
    labels = Labels(np.ones(GRID.shape, np.uint8), GRID, (Label(1, "a", (1, 2, 3)),))
    labels.write(tmp_path / "a.seg.nrrd")
    (tmp_path / "renamed.nrrd").write_bytes((tmp_path / "a.seg.nrrd").read_bytes())
    for name in ("a.seg.nrrd", "renamed.nrrd"):
        with pytest.raises(InputError, match=rf"{name} is a segmentation, not an image. Give the image"):
            read_channels([tmp_path / name])
