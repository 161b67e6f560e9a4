"""How outputs are read: classes that exclude each other, regions that overlap; by hand and against plain twins."""

import itertools
import json
from argparse import Namespace
from dataclasses import replace

import numpy as np
import pytest
import torch

from MambaSegLib.bundle import load_bundle
from MambaSegLib.commands.models import run_list, run_show
from MambaSegLib.label_statistics import label_statistics
from MambaSegLib.manifest import SCHEMA_VERSION
from MambaSegLib.manifest_check import plan_problems
from MambaSegLib.memory_ladder import MemoryLadder, Placement
from MambaSegLib.plan import Channel, Label, NetworkPlan, Normalization, Plan, Region
from MambaSegLib.postprocessing import to_labels
from MambaSegLib.predictor import Predictor
from MambaSegLib.preprocessing import preprocess, preprocess_with_labels
from MambaSegLib.readout import exclusive_classes, readout_of
from MambaSegLib.sliding_window import Ensemble, Slab, predict_probabilities
from MambaSegLib.volume import Geometry, Labels, Volume

TUMOR = (Region("whole", (4, 7, 9), 4), Region("core", (7, 9), 7), Region("enhancing", (9,), 9))
AXIAL = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))


def make_plan(regions=TUMOR, values=(4, 7, 9), spacing=(1.0, 1.0, 1.0), **settings):
    channels = (Channel("image", Normalization("none")),)
    labels = tuple(Label(value, f"label {value}", (255, 0, value)) for value in values)
    network = NetworkPlan("mamba_unet_unidirectional", 1, len(regions) or len(values) + 1, (8, 8, 8), ())
    settings = {"crop_to_nonzero": False, "regions": regions, **settings}
    return Plan("SPL", spacing, channels, labels, network, **settings)


def volume_of(array, spacing=(1.0, 1.0, 1.0)):
    return Volume(np.asarray(array, np.float32)[None], Geometry(np.shape(array), spacing, (0.0, 0.0, 0.0), AXIAL))


def test_regions_become_labels_in_their_order_each_above_one_half():
    """Worked out by hand: one voxel a column, probabilities of whole, core and enhancing."""
    columns = {
        (0.4, 0.4, 0.4): 0,  # nothing
        (0.6, 0.1, 0.1): 4,  # whole only
        (0.6, 0.9, 0.5): 7,  # core inside whole; one half is not above one half
        (0.9, 0.8, 0.7): 9,  # all three, the last painted wins
        (0.1, 0.6, 0.1): 7,  # core although whole was not found: it is painted all the same
        (0.2, 0.2, 0.51): 9,
    }
    probabilities = torch.tensor(list(columns)).T[None, :, None, None]
    values = np.array([0, 4, 7, 9])
    assert values[readout_of(make_plan()).classes(probabilities).ravel()].tolist() == list(columns.values())


def test_a_region_may_hold_a_label_that_is_never_predicted():
    plan = make_plan((Region("whole", (4, 7, 9), 7), Region("core", (9,), 9)))
    assert [label.value for label in plan.predicted_labels] == [7, 9]
    assert [(region.name, region.labels) for region in plan.compound_regions] == [("whole", (7, 9))]
    assert readout_of(plan).members == ((1, 2, 3), (3,))


def test_targets_of_overlapping_regions_and_of_classes_are_false_where_nobody_labelled():
    classes = torch.tensor([[0, 1, 2, 3, 4]])
    regions = readout_of(make_plan(ignore_value=10)).targets(classes)
    assert regions[0].int().tolist() == [[0, 1, 1, 1, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 0]]
    exclusive = exclusive_classes(4, ignored=4).targets(classes)
    assert exclusive[0].int().tolist() == [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0]]


def test_uncertainty_of_regions_is_the_mean_of_their_entropies():
    probabilities = torch.tensor([[1.0, 0.5, 0.25], [0.5, 0.5, 0.5], [0.0, 1.0, 0.0]])[:, :, None, None]
    quarter = -(0.25 * np.log2(0.25) + 0.75 * np.log2(0.75))
    found = readout_of(make_plan()).uncertainty(probabilities)
    np.testing.assert_allclose(found.ravel(), [(0 + 1 + quarter) / 3, 1, 0], atol=1e-6)


def linear_twin(array, shape):
    """Trilinear resampling voxel by voxel, edges matched."""
    result = np.zeros(shape)
    for index in np.ndindex(*shape):
        value = array.astype(np.float64)
        for i, n, m in zip(index, array.shape, shape, strict=True):
            where = min(max((i + 0.5) * n / m - 0.5, 0), n - 1)
            low = min(int(where), max(n - 2, 0))
            value = value[low] * (1 - (where - low)) + value[min(low + 1, n - 1)] * (where - low)
        result[index] = value
    return result


@pytest.mark.parametrize("thicknesses", [(6,), (1, 4, 1), (2, 2, 2)])
def test_slabs_of_regions_become_labels_as_the_whole_volume_would(thicknesses):
    """Against a twin that holds all probabilities on the input's grid and decides voxel by voxel."""
    generator = np.random.default_rng(0)
    shape, spacing = (9, 7, 10), (2.0, 1.5, 1.0)
    plan = make_plan(spacing=(3.0, 2.0, 1.25))
    undo = preprocess(volume_of(np.ones(shape), spacing), plan).undo
    assert undo.working.shape[0] == sum(thicknesses)
    probabilities = generator.random((undo.working.shape[0], 3, *undo.working.shape[1:])).astype(np.float32)
    bounds = np.cumsum((0, *thicknesses))
    slabs = [
        Slab(int(start), torch.from_numpy(probabilities[start:stop].copy()))
        for start, stop in itertools.pairwise(bounds)
    ]
    found = to_labels(slabs, undo, plan, uncertainty=True)
    fine = np.stack([linear_twin(probabilities[:, k], shape) for k in range(3)])
    assert np.abs(fine - 0.5).min() > 1e-6  # no voxel is left to rounding
    labels, entropies = np.zeros(shape, int), np.zeros(shape)
    for voxel in np.ndindex(*shape):
        for region, p in zip(TUMOR, fine[(slice(None), *voxel)], strict=True):
            if p > 0.5:
                labels[voxel] = region.value
            entropies[voxel] -= (p * np.log2(p) + (1 - p) * np.log2(1 - p)) / 3
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_allclose(found.uncertainty, entropies, atol=1e-5)


class _Constant(torch.nn.Module):
    """The same logits everywhere."""

    deep_supervision = False

    def __init__(self, *logits):
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, image):
        shape = (len(image), len(self.logits), *image.shape[2:])
        return (self.logits[None, :, None, None, None].expand(shape).clone(),)


def test_members_of_an_ensemble_average_the_probabilities_of_each_region():
    readout = readout_of(make_plan())
    networks = (_Constant(2.0, -1.0, 0.0), _Constant(0.0, 3.0, 0.0))
    image = np.zeros((1, 8, 8, 12), np.float32)
    cpu = torch.device("cpu")
    ladder = MemoryLadder(Placement(cpu, cpu, 1))
    ensemble = Ensemble(networks, readout, (8, 8, 8))
    for slab in predict_probabilities(ensemble, image, ladder, disagreement=True):
        members = torch.sigmoid(torch.stack([network.logits for network in networks]))
        mean = members.mean(0)
        assert torch.allclose(slab.probabilities, mean[None, :, None, None].expand_as(slab.probabilities), atol=1e-6)
        expected = readout.uncertainty(mean[None, :]) - readout.uncertainty(members).mean()
        assert torch.allclose(slab.disagreement, expected.expand_as(slab.disagreement), atol=1e-6)
        assert (slab.disagreement > 0.01).all()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"regions": TUMOR[::-1]}, "painted over by core"),
        ({"regions": (TUMOR[0], replace(TUMOR[1], value=4), TUMOR[2])}, "none of its labels"),
        ({"regions": (TUMOR[0], replace(TUMOR[1], value=9), TUMOR[2])}, "a value of its own"),
        ({"regions": (TUMOR[0], TUMOR[1], replace(TUMOR[2], labels=(9, 11)))}, "different ones of"),
        ({"regions": (replace(TUMOR[0], name="label 7"), *TUMOR[1:])}, "another name than each label"),
        ({"regions": TUMOR[:2]}, "is 3, but 2 regions make 2"),
        ({"ignore_value": 9}, "must be above all labels"),
    ],
)
def test_regions_that_make_no_sense_are_refused(changes, expected):
    assert not list(plan_problems(make_plan()))
    assert expected in "; ".join(text for _, text in plan_problems(replace(make_plan(), **changes)))


def test_an_ignored_value_is_the_class_after_the_last_and_survives_resampling():
    array = np.zeros((4, 4, 4), np.uint8)
    array[:2], array[2, 0, 0] = 10, 7
    volume, plan = volume_of(np.ones((4, 4, 4))), make_plan(ignore_value=10)
    labels = Labels(array, volume.geometry, plan.labels)
    _, classes = preprocess_with_labels(volume, labels, plan)
    np.testing.assert_array_equal(classes, np.select([array == 10, array == 7], [4, 2], 0))
    _, fine = preprocess_with_labels(volume, labels, make_plan(spacing=(0.5, 1.0, 1.0), ignore_value=10))
    assert (fine[:4] == 4).all()
    assert (fine[4:] != 4).all()


@pytest.fixture
def region_bundle(tmp_path, make_bundle, tiny_manifest):
    plan = tiny_manifest.plan
    regions = (Region("Hippocampus", (1, 2), 1), Region("Posterior", (2,), 2))
    network = replace(plan.network, out_channels=2)
    manifest = replace(tiny_manifest, plan=replace(plan, regions=regions, network=network))
    return make_bundle(tmp_path / "made" / tiny_manifest.name, manifest)


def test_a_model_of_regions_says_so_everywhere_a_person_looks(region_bundle, capsys, tmp_path):
    bundle = load_bundle(region_bundle.path)
    assert bundle.manifest.schema_version == SCHEMA_VERSION
    assert bundle.manifest.plan.structure_names == ("Hippocampus", "Posterior")
    card = (region_bundle.path / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "| Hippocampus | 1 + 2 | 1 |" in card
    run_show(Namespace(name=str(bundle.path), models_dir=None, json=False), None)
    assert "regions that may overlap" in capsys.readouterr().out
    run_list(Namespace(models_dir=region_bundle.path.parent, json=False), None)
    assert "Segments: Anterior, Posterior. Regions: Hippocampus, Posterior." in capsys.readouterr().out

    volume = volume_of(np.random.default_rng(0).normal(size=(16, 18, 17)), (1.5, 1.0, 1.0))
    prediction = Predictor(bundle, device="cpu").predict(volume, uncertainty=True)
    assert 0 <= prediction.uncertainty.min() <= prediction.uncertainty.max() <= 1
    assert ("Regions", "Hippocampus = 1+2") in prediction.labels.tags
    prediction.labels.write(tmp_path / "a.seg.nrrd")
    assert b"MambaSegmentation.Regions:=Hippocampus = 1+2" in (tmp_path / "a.seg.nrrd").read_bytes()
    anterior, posterior, whole = label_statistics(prediction.labels, volume, bundle.manifest.plan.compound_regions)
    assert (whole.value, whole.name) == ("1+2", "Hippocampus")
    assert whole.voxels == anterior.voxels + posterior.voxels == np.count_nonzero(prediction.labels.array)
    inside = volume.array[0][prediction.labels.array > 0]
    if inside.size:
        assert whole.channels[0].mean == pytest.approx(inside.mean(dtype=np.float64), abs=1e-9)


def test_a_model_of_the_first_schema_version_is_read_as_before(tiny_bundle):
    path = tiny_bundle.path / "bundle.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    data["schema_version"] = 1
    del data["plan"]["regions"], data["plan"]["ignore_value"]
    path.write_text(json.dumps(data), encoding="utf-8")
    plan = load_bundle(tiny_bundle.path).manifest.plan
    assert plan == tiny_bundle.manifest.plan
    assert readout_of(plan) == exclusive_classes(3)
