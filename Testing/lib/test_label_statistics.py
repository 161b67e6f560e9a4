"""Volume, place and intensities per structure: by hand on a few voxels."""

import csv
import json
import math

import numpy as np
import pytest

from MambaSegLib.errors import InputError
from MambaSegLib.label_statistics import label_statistics, write_statistics
from MambaSegLib.plan import Label
from MambaSegLib.volume import Geometry, Labels, Volume

GEOMETRY = Geometry(
    (2, 3, 4), (5.0, 2.0, 1.0), (10.0, 20.0, 30.0), ((0.0, 0.0, -1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
)
TABLE = (Label(1, "Left, upper", (1, 2, 3)), Label(300, "Right", (4, 5, 6)), Label(7, "Nowhere", (7, 8, 9)))


@pytest.fixture
def measured():
    labels = np.zeros((2, 3, 4), dtype=np.uint16)
    labels[0, 1, 1] = labels[1, 1, 1] = labels[1, 1, 3] = 1
    labels[0, 2, 0] = 300
    image = np.zeros((2, 2, 3, 4), dtype=np.int16)
    image[0, 0, 1, 1], image[0, 1, 1, 1], image[0, 1, 1, 3] = 10, 20, 60
    image[1] = 5
    volume = Volume(image, GEOMETRY, ("T1", "T2"))
    return label_statistics(Labels(labels, GEOMETRY, TABLE), volume)


def test_voxels_volume_and_centroid_are_as_counted_by_hand(measured):
    first, second, empty = measured
    assert (first.value, first.name, first.voxels) == (1, "Left, upper", 3)
    assert first.volume_ml == pytest.approx(3 * 10 / 1000)
    # Mean index (2/3, 1, 5/3); x runs to the right, so LPS x falls.
    assert first.centroid_lps_mm == pytest.approx((10 - 5 / 3, 20 + 2, 30 + 10 / 3))
    assert second.centroid_lps_mm == pytest.approx((10, 24, 30))
    assert (empty.voxels, empty.volume_ml) == (0, 0)
    assert all(math.isnan(c) for c in empty.centroid_lps_mm)


def test_intensities_are_as_computed_by_hand(measured):
    t1, t2 = measured[0].channels
    assert (t1.channel, t1.mean, t1.minimum, t1.maximum) == ("T1", 30, 10, 60)
    assert t1.std == pytest.approx(math.sqrt((400 + 100 + 900) / 3))
    assert (t2.mean, t2.std) == (5, 0)
    assert math.isnan(measured[2].channels[0].mean)


def test_a_large_mean_does_not_spoil_the_deviation():
    image = np.array([[[[1e8, 1e8 + 1, 1e8 + 2, 1e8 + 3]]]])
    geometry = Geometry((1, 1, 4), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), GEOMETRY.direction)
    labels = Labels(np.ones((1, 1, 4), dtype=np.uint8), geometry, TABLE[:1])
    (record,) = label_statistics(labels, Volume(image, geometry))
    assert record.channels[0].std == pytest.approx(math.sqrt(1.25))
    assert record.channels[0].channel == "channel 0"


def test_another_grid_is_refused(measured):
    other = Geometry((2, 3, 4), (5.0, 2.0, 1.5), (10.0, 20.0, 30.0), GEOMETRY.direction)
    labels = Labels(np.zeros((2, 3, 4), dtype=np.uint8), other, TABLE)
    with pytest.raises(InputError, match="spacing"):
        label_statistics(labels, Volume(np.zeros((1, 2, 3, 4)), GEOMETRY))


def test_csv_has_a_row_per_structure(measured, tmp_path):
    write_statistics(measured, tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["name"] for row in rows] == ["Left, upper", "Right", "Nowhere"]
    assert float(rows[0]["volume_ml"]) == pytest.approx(0.03)
    assert float(rows[0]["T1 mean"]) == 30
    assert float(rows[1]["centroid_y_mm"]) == 24
    assert rows[2]["T1 mean"] == rows[2]["centroid_x_mm"] == ""
    assert rows[2]["voxels"] == "0"


def test_json_holds_the_records_with_null_where_undefined(measured, tmp_path):
    write_statistics(measured, tmp_path / "a.json")
    first, _, empty = json.loads((tmp_path / "a.json").read_text())
    assert first["voxels"] == 3
    assert first["channels"][1] == {"channel": "T2", "mean": 5.0, "std": 0.0, "minimum": 5.0, "maximum": 5.0}
    assert empty["centroid_lps_mm"] == [None, None, None]


def test_no_structures_make_an_empty_table(tmp_path):
    write_statistics((), tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text().startswith("value,name,voxels,volume_ml")


def test_another_suffix_is_refused_and_nothing_is_written(measured, tmp_path):
    with pytest.raises(InputError, match=r"\.csv or \.json"):
        write_statistics(measured, tmp_path / "a.xlsx")
    assert not list(tmp_path.iterdir())
