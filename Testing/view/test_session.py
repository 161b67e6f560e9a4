"""What the viewer does to Slicer's scene, without its page: where images lie, what is saved, what is refused."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_model

from MambaSegLib import read_labels
from MambaSegLib.bundle import Bundle, load_bundle, pack_bundle, save_bundle
from MambaSegLib.geometry import Box
from MambaSegLib.networks import create_network
from MambaSegLib.plan import Label
from MambaSegLib.volume import Labels
from MambaSegLib.volume_io import write_volume

SCRIPT = Path(__file__).with_name("session_script.py")
TABLE = (Label(1, "Front", (220, 60, 40)), Label(2, "Back", (40, 120, 220)))


MODELS = {
    "net.both": ("T1", "FLAIR"),
    "net.t1": ("T1",),
    "net.other": ("MR",),
    "net.strange": ("T1", "T2"),
}
"""Channels of each."""


def save_model(like: Bundle, folder: Path, channels: tuple[str, ...]) -> None:
    """A model with fresh weights, in its channels unlike another one."""
    plan = like.manifest.plan
    network = replace(plan.network, in_channels=len(channels))
    plan = replace(plan, network=network, channels=tuple(replace(plan.channels[0], name=name) for name in channels))
    manifest = replace(like.manifest, name=folder.name, plan=plan)
    save_bundle(manifest, {0: create_network(network).state_dict()}, folder)


@pytest.fixture(scope="module")
def labels(oblique_geometry) -> Labels:
    """Two blocks on the oblique grid of the image."""
    array = np.zeros(oblique_geometry.shape, np.uint8)
    array[3:6, 4:8, 5:9] = 1
    array[3:6, 8:11, 5:9] = 2
    return Labels(array, oblique_geometry, TABLE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, oblique_geometry, labels) -> Path:
    """Two images, some models, a damaged segmentation, and a good one that covers only a part of the image's grid."""
    place = tmp_path_factory.mktemp("session")
    array = np.random.default_rng(1).integers(0, 900, oblique_geometry.shape).astype(np.int16)
    write_volume(array, oblique_geometry, place / "image.nrrd")
    (place / "broken.seg.nrrd").write_bytes(b"NRRD0004\nnonsense")
    write_volume(array[::-1], oblique_geometry, place / "flair.nrrd")
    tiny_model.save(place / tiny_model.NAME)
    for name, channels in MODELS.items():
        save_model(load_bundle(place / tiny_model.NAME), place / "models" / name, channels)
    pack_bundle(load_bundle(place / "models" / "net.t1"), place / "models" / "copied.zip")
    box = Box((2, 3, 4), (8, 12, 11))
    replace(labels, array=labels.array[box.slices], geometry=oblique_geometry.cropped(box)).write(
        place / "part.seg.nrrd"
    )
    return place


@pytest.fixture(scope="module")
def said(folder, view_python, view_environment) -> dict[str, object]:
    """What the script in the viewer's Python reports."""
    result = subprocess.run(
        [view_python, SCRIPT, folder], env=view_environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_an_oblique_image_lies_where_its_file_says(said):
    assert said["grid"]
    assert said["voxels"]


def test_a_segmentation_of_a_part_of_the_image_is_counted_on_the_images_grid(said, labels):
    voxel_ml = labels.geometry.voxel_volume_mm3 / 1000
    expected = [["Front", "#dc3c28", 48 * voxel_ml], ["Back", "#2878dc", 36 * voxel_ml]]
    assert [row[:2] for row in said["part"]] == [row[:2] for row in expected]
    assert [row[2] for row in said["part"]] == pytest.approx([row[2] for row in expected])


def test_slices_go_to_the_middle_of_what_was_found(said, labels):
    lps = labels.geometry.to_world((4.0, 7.0, 6.5))
    assert said["middle"] == pytest.approx((lps * (-1, -1, 1)).tolist(), abs=1e-3)


@pytest.mark.parametrize("name", ["out.seg.nrrd", "out.nii.gz"])
def test_what_is_saved_is_what_was_shown(said, folder, labels, name):
    assert said[name] == name
    saved = read_labels(folder / name)
    if name.endswith(".nii.gz"):
        assert saved.geometry.is_close(labels.geometry)
    inside = saved.geometry.to_index(labels.geometry.to_world(np.argwhere(labels.array > 0)))
    found = saved.array[tuple(np.rint(inside).astype(int).T)]
    assert (found == labels.array[labels.array > 0]).all()
    assert (saved.array > 0).sum() == (labels.array > 0).sum()


def test_nothing_is_overwritten_unless_asked(said):
    assert "exists already" in said["again"]
    assert said["replaced"] == "out.nii.gz"


def test_what_cannot_be_done_is_said_and_changes_nothing(said, folder):
    assert "no segmentation to save" in said["nothing to save"]
    assert "cannot be read" in said["broken"]
    assert "does not exist" in said["missing"]
    assert "out.txt" in said["bad name"]
    assert not list(folder.glob(".tmp-*"))


def test_one_segmentation_is_shown_at_a_time(said):
    assert said["shown"] == ["second"]
    assert said["shown then"] == ["part"]
    assert said["visible"] == [False, True]


def test_the_region_is_where_the_command_line_put_it(said):
    assert said["no region"]
    assert said["region"] == pytest.approx([-10, 0, -5, 5, 1, 9])
    assert said["region off"]


def test_a_new_region_is_no_larger_than_what_the_model_knows(said):
    assert said["new region"] == pytest.approx([3.0, *said["whole"][1:]])


def test_a_model_gets_the_channels_it_asks_for_or_the_one_that_is_shown(said):
    assert said["channels"] == ["FLAIR", "T1"]
    assert said["channel shown"].endswith(" T1")
    flair = said["channel shown"].removesuffix("T1") + "FLAIR"
    assert said["net.both"] == {"T1": said["channel shown"], "FLAIR": flair}
    assert said["net.t1"] == {"T1": said["channel shown"]}
    assert said["net.other"] == {"": said["channel shown"]}
    assert said["net.strange"] == {"FLAIR": flair, "T1": said["channel shown"]}  # refused, with both lists


def test_a_model_that_is_started_with_by_its_path_is_not_taken_for_a_copy_of_that_name(said):
    assert said["copied"] == ["copied.zip", ""]
