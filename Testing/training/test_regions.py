"""Regions that overlap and the ignore label: what dataset.json may say, losses, patches and scores, by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK
import torch
from MambaSegTraining.batches import Batch
from MambaSegTraining.case_sources import case_key
from MambaSegTraining.converters.decathlon import BRAIN_LABELS, BRAIN_REGIONS
from MambaSegTraining.dataset import DatasetError, read_dataset
from MambaSegTraining.fingerprint import take_fingerprint
from MambaSegTraining.losses import cross_entropy, deep_supervision_loss, dice_and_cross_entropy
from MambaSegTraining.metrics import Structure, score_case, structures_of
from MambaSegTraining.metrics.legacy import score_case_legacy
from MambaSegTraining.patch_check import patch_dice
from MambaSegTraining.patches import cut_patch, random_generator
from MambaSegTraining.planning import make_plan
from MambaSegTraining.settings import Settings
from MambaSegTraining.store import LABELLED, StoredCase, sample_points

from MambaSegLib.errors import InputError
from MambaSegLib.label_table import parse_labels
from MambaSegLib.plan import Label, Region, VolumeRange
from MambaSegLib.readout import Readout, exclusive_classes
from MambaSegLib.schema import from_json
from MambaSegLib.volume import Geometry, Labels

BRATS = {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": 3}
TWO_REGIONS = Readout(members=((1, 2), (2,)), painted=(1, 2), exclusive=False)
PARTLY_LABELLED = Readout(members=((1, 2), (2,)), painted=(1, 2), exclusive=False, ignored=3)
S = 1e-5


def parse(labels, **others):
    return parse_labels({"labels": labels, **others})


def test_the_regions_of_nnunets_documentation_are_read():
    table = parse({**BRATS, "ignore": 4}, regions_class_order=[1, 2, 3])
    assert table.regions == (
        Region("whole tumor", (1, 2, 3), 1),
        Region("tumor core", (2, 3), 2),
        Region("enhancing tumor", (3,), 3),
    )
    assert table.ignore_value == 4
    assert table.labels == {
        1: "whole tumor outside tumor core",
        2: "tumor core outside enhancing tumor",
        3: "enhancing tumor",
    }


def test_labels_of_regions_have_the_names_that_are_given_and_different_ones_otherwise():
    names = {"1": "edema", "2": "non-enhancing tumor"}
    given = parse(BRATS, regions_class_order=[1, 2, 3], label_names=names)
    assert list(given.labels.values()) == ["edema", "non-enhancing tumor", "enhancing tumor"]
    alike = parse({"background": 0, "organ": [1, 2, 3], "lesion": [3]}, regions_class_order=[2, 3])
    assert alike.labels == {1: "organ outside lesion (label 1)", 2: "organ outside lesion", 3: "lesion"}


def test_a_list_of_one_value_is_a_label():
    assert parse({"background": [0], "organ": [1]}).labels == {1: "organ"}


@pytest.mark.parametrize(
    ("labels", "order", "expected"),
    [
        (BRATS, None, "regions_class_order: for each of whole tumor, tumor core, enhancing tumor"),
        (BRATS, [1, 2], "found \\[1, 2\\]"),
        (dict(reversed(BRATS.items())), [3, 2, 1], "painted over by tumor core"),
        (BRATS, [1, 2, 2], "a value of its own"),
        (BRATS, [2, 1, 3], "becomes the value 1, which is none of its labels"),
        ({**BRATS, "ignore": 5}, [1, 2, 3], '"ignore" must be the highest value, 4 here; found 5'),
        ({"background": 0, "a": 1, "ignore": 1}, None, '"ignore" must be the highest value, 2 here'),
        ({"background": 0, "a": 2, "ignore": 1}, None, "without gaps"),
        ({"background": 0, "a": 1, "b": 1}, None, "different values"),
        ({"background": 0, "a": "1"}, None, "whole number, or to a list"),
        ({"background": 0, "a": []}, None, "whole number, or to a list"),
        ({"a": 1}, None, "begin with background = 0"),
        ({"background": 0, "ignore": 1}, None, "without gaps"),
    ],
)
def test_what_nnunet_would_refuse_or_could_never_predict_is_refused(labels, order, expected):
    with pytest.raises(InputError, match=expected):
        parse(labels, regions_class_order=order)


def logits_of(*probabilities):
    """(1, K, 1, 1, N) whose sigmoid is these probabilities."""
    values = torch.tensor(probabilities, dtype=torch.float64)
    return (values / (1 - values)).log()[None, :, None, None].float().requires_grad_()


def test_the_loss_of_two_regions_by_hand_leaves_ignored_voxels_out_and_gives_them_no_gradient():
    logits = logits_of([0.8, 0.6, 0.3], [0.7, 0.2, 0.9])
    labels = torch.tensor([2, 1, 3])[None, None, None]
    entropy = -(math.log(0.8) + math.log(0.7) + math.log(0.6) + math.log(0.8)) / 4
    whole, core = (2 * 1.4 + S) / (1.4 + 2 + S), (2 * 0.7 + S) / (0.9 + 1 + S)
    loss = dice_and_cross_entropy(logits, labels, PARTLY_LABELLED)
    assert loss.item() == pytest.approx(1 - (whole + core) / 2 + entropy, rel=1e-5)
    loss.backward()
    assert (logits.grad[..., 2] == 0).all()
    assert (logits.grad[..., :2] != 0).all()


def test_the_loss_of_classes_by_hand_leaves_ignored_voxels_out_and_gives_them_no_gradient():
    probabilities = torch.tensor([[0.2, 0.6, 0.1], [0.8, 0.4, 0.9]], dtype=torch.float64)
    logits = probabilities.log()[None, :, None, None].float().requires_grad_()
    labels = torch.tensor([1, 0, 2])[None, None, None]
    entropy, dice = -(math.log(0.8) + math.log(0.6)) / 2, (2 * 0.8 + S) / (1.2 + 1 + S)
    loss = dice_and_cross_entropy(logits, labels, exclusive_classes(2, ignored=2))
    assert loss.item() == pytest.approx(1 - dice + entropy, rel=1e-5)
    loss.backward()
    assert (logits.grad[..., 2] == 0).all()
    assert (logits.grad[..., :2] != 0).all()


@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.parametrize("readout", [exclusive_classes(3), TWO_REGIONS])
def test_nothing_changes_where_everything_is_labelled_but_an_ignore_label_exists(readout, batch_dice):
    torch.manual_seed(0)
    outputs = tuple(torch.randn(2, readout.outputs, size, size, size) for size in (8, 4, 2))
    labels = torch.randint(0, 3, (2, 8, 8, 8))
    partly = Readout(readout.members, readout.painted, readout.exclusive, ignored=3)
    expected = deep_supervision_loss(outputs, labels, readout, batch_dice)
    assert deep_supervision_loss(outputs, labels, partly, batch_dice).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("readout", [exclusive_classes(3, ignored=3), PARTLY_LABELLED])
def test_no_output_of_deep_supervision_learns_from_ignored_voxels(readout):
    torch.manual_seed(0)
    outputs = tuple(torch.randn(1, readout.outputs, size, size, size).requires_grad_() for size in (8, 4, 2))
    labels = torch.randint(0, 3, (1, 8, 8, 8))
    labels[:, 4:] = 3
    deep_supervision_loss(outputs, labels, readout).backward()
    for output in outputs[:2]:
        half = output.shape[2] // 2
        assert (output.grad[:, :, half:] == 0).all()
        assert (output.grad[:, :, :half] != 0).any()


@pytest.mark.parametrize("readout", [exclusive_classes(3, ignored=3), PARTLY_LABELLED])
def test_a_patch_without_any_labelled_voxel_costs_nothing(readout):
    logits = torch.randn(1, readout.outputs, 2, 2, 2).requires_grad_()
    loss = dice_and_cross_entropy(logits, torch.full((1, 2, 2, 2), 3), readout)
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("readout", [exclusive_classes(3, ignored=3), PARTLY_LABELLED])
def test_processes_that_share_a_batch_unequally_labelled_learn_what_one_would(readout):
    torch.manual_seed(0)
    logits, labels = torch.randn(2, readout.outputs, 2, 2, 2), torch.randint(0, 3, (2, 2, 2, 2))
    labels[0, 0] = labels[1, :, :, 1] = labels[1, 0] = 3
    whole = cross_entropy(logits, labels, readout)
    known = float((labels != 3).sum())

    def share(part):
        answers = iter((torch.tensor(2.0), torch.tensor(known)))  # of processes, of labelled voxels
        return cross_entropy(logits[part], labels[part], readout, lambda value: next(answers))

    assert ((share(slice(0, 1)) + share(slice(1, 2))) / 2).item() == pytest.approx(whole.item(), rel=1e-6)


class _Fixed(torch.nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, image):
        return (self.logits,)


def test_patch_dice_is_that_of_the_regions_and_of_labelled_voxels():
    logits = logits_of([0.9, 0.8, 0.1, 0.9], [0.9, 0.1, 0.6, 0.9]).detach()
    batch = Batch(torch.zeros(1, 1, 1, 1, 4), torch.tensor([2, 1, 0, 3])[None, None, None])
    whole, core = patch_dice(_Fixed(logits), [batch], PARTLY_LABELLED, "cpu", "off")
    assert whole == 1  # predicted and true: the first two voxels; the last one is ignored
    assert core == pytest.approx(2 * 1 / (2 + 1))


def test_points_are_those_of_each_region_and_never_ignored_ones():
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[0, 0, 0], labels[1, 1, 1], labels[2:] = 1, 2, 3
    points = {key: sorted(where.tolist()) for key, where in sample_points(labels, PARTLY_LABELLED).items()}
    assert points[1] == [[0, 0, 0], [1, 1, 1]]
    assert points[2] == [[1, 1, 1]]
    assert points[LABELLED] == np.argwhere(labels < 3).tolist()
    assert LABELLED not in sample_points(labels, TWO_REGIONS)


def sparse_case(readout):
    """40^3 voxels, a hundred of them labelled, two of those a structure."""
    labels = np.full((40, 40, 40), readout.ignored, np.uint8)
    labels[30, 20:30, 5:15] = 0
    labels[30, 20, 5:7] = 2
    return StoredCase("case", np.zeros((1, *labels.shape), np.float32), labels, sample_points(labels, readout))


@pytest.mark.parametrize("readout", [exclusive_classes(3, ignored=3), PARTLY_LABELLED])
def test_every_patch_of_a_sparsely_labelled_case_holds_labelled_voxels(readout):
    case = sparse_case(readout)
    places = set()
    for seed in range(60):
        patch = cut_patch(case, (6, 6, 6), False, random_generator((0,), seed))
        assert (patch.labels != readout.ignored).any()
        places.add(int((patch.labels == 2).sum()))
        assert (cut_patch(case, (6, 6, 6), True, random_generator((0,), seed)).labels == 2).any()
    assert places == {0, 1, 2}  # centered on any labelled voxel, not on structures only


GEOMETRY = Geometry((12, 12, 12), (1.0, 2.0, 0.5), (0.0, 0.0, 0.0), ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)))


def labels_of(array):
    return Labels(np.asarray(array, np.uint8), GEOMETRY, ())


def test_scores_do_not_depend_on_what_is_predicted_where_nobody_labelled():
    reference = np.zeros(GEOMETRY.shape)
    reference[3:9, 3:9, 3:9] = 1
    prediction = reference.copy()
    prediction[3, 3:6, 3:9] = 0  # labelled, and wrong
    reference[6:] = 3
    structure = (Structure("ball", (1,)),)
    scores = []
    for inside in (0, 1):
        prediction[6:] = inside
        scores += score_case(labels_of(prediction), labels_of(reference), "case", 0, structure, ignore_value=3)
    assert scores[0] == scores[1]
    predicted, true = 3 * 36 - 18, 3 * 36
    assert scores[0].dice == pytest.approx(2 * predicted / (predicted + true))
    assert scores[0].reference_ml == pytest.approx(true * 1.0 / 1000)
    assert scores[0].volume_error_ml == pytest.approx(-18 * 1.0 / 1000)
    legacy = score_case_legacy(labels_of(prediction), labels_of(reference), "case", 0, structure, ignore_value=3)
    assert legacy[0].dice == scores[0].dice


def test_where_labelled_and_unlabelled_meet_there_is_no_surface_to_be_wrong_about():
    """The reference is labelled up to slice 5; an ideal prediction goes on behind it."""
    reference = np.zeros(GEOMETRY.shape)
    reference[2:10, 3:9, 3:9] = 1
    prediction = reference.copy()
    reference[6:] = 3
    for structures in ((Structure("ball", (1,)),), structures_of((Label(1, "ball", (0, 0, 0)),))):
        (score,) = score_case(labels_of(prediction), labels_of(reference), "case", 0, structures, ignore_value=3)
        assert (score.dice, score.nsd, score.hd95_mm, score.assd_mm) == (1, 1, 0, 0)
    prediction[1] = prediction[2]  # one slice, 1 mm, too much
    (score,) = score_case(labels_of(prediction), labels_of(reference), "case", 0, structures, ignore_value=3)
    assert score.hd95_mm == pytest.approx(1.0, abs=0.1)


def test_single_labelled_slices_have_overlap_but_no_surface_distance():
    reference = np.full(GEOMETRY.shape, 3)
    reference[5] = 0
    reference[5, 3:9, 3:9] = 1
    (score,) = score_case(labels_of(reference == 1), labels_of(reference), "case", 0, (Structure("a", (1,)),), 3)
    assert (score.dice, score.nsd, score.hd95_mm, score.assd_mm, score.empty) == (1, None, None, None, "none")


def test_a_structure_only_where_nobody_labelled_counts_as_absent():
    reference, prediction = np.zeros(GEOMETRY.shape), np.zeros(GEOMETRY.shape)
    reference[4:] = 3
    prediction[6, 6, 6] = 1
    (score,) = score_case(labels_of(prediction), labels_of(reference), "case", 0, (Structure("a", (1,)),), 3)
    assert (score.empty, score.dice) == ("both", None)


def test_regions_are_measured_as_all_their_labels_together():
    regions = (Region("whole", (1, 2), 1), Region("core", (2,), 2))
    table = (Label(1, "rim", (1, 2, 3)), Label(2, "core", (4, 5, 6)))
    structures = structures_of(table, {"core": 1.0}, 2.0, regions)
    assert [(s.name, s.values, s.tolerance_mm, s.color) for s in structures] == [
        ("whole", (1, 2), 2.0, (1, 2, 3)),
        ("core", (2,), 1.0, (4, 5, 6)),
    ]
    with pytest.raises(InputError, match="the structures are whole, core"):
        structures_of(table, {"rim": 1.0}, 2.0, regions)


def describe(folder, **changes):
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def write_image(path, array):
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(path))


@pytest.fixture
def partly_labelled(ball_dataset):
    """The ball data set with everything from slice 9 on unlabelled."""
    for path in (ball_dataset / "labelsTr").glob("*.nii.gz"):
        array = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
        array[9:] = 3
        write_image(path, array)
    describe(ball_dataset, labels={"background": 0, "ball": 1, "core": 2, "ignore": 3})
    return ball_dataset


def test_an_ignore_label_is_accepted_and_leaves_no_trace_in_the_fingerprint(partly_labelled):
    dataset = read_dataset(partly_labelled)
    assert (dataset.ignore_value, dict(dataset.labels)) == (3, {1: "ball", 2: "core"})
    fingerprint = take_fingerprint(dataset)
    assert all(len(case.label_voxels) == 2 and sum(case.label_voxels) < 9 * 22 * 20 / 4 for case in fingerprint.cases)
    assert fingerprint.intensities[0].minimum > 100  # of ball and core; background is 50
    plan = make_plan(dataset, fingerprint, Settings())
    assert (plan.ignore_value, plan.network.out_channels) == (3, 3)
    assert plan.fingerprint.volumes == (), "structures may go on where nobody labelled"
    assert [label.name for label in plan.labels] == ["ball", "core"]


def test_a_case_in_which_nothing_is_labelled_is_a_problem(partly_labelled):
    write_image(partly_labelled / "labelsTr" / "s0_a.nii.gz", np.full((18, 22, 20), 3, np.uint8))
    with pytest.raises(DatasetError, match="s0_a: every voxel has the label ignore"):
        take_fingerprint(read_dataset(partly_labelled))


def test_regions_of_the_configuration_replace_the_labels_and_change_what_is_preprocessed(ball_dataset):
    dataset = read_dataset(ball_dataset)
    fingerprint = take_fingerprint(dataset)
    plain = make_plan(dataset, fingerprint, Settings())
    regions = [{"name": "whole", "labels": [1, 2], "value": 1}, {"name": "inner", "labels": [2], "value": 2}]
    plan = make_plan(dataset, fingerprint, from_json(Settings, {"regions": regions}))
    assert plan.structure_names == ("whole", "inner")
    assert (plan.network.out_channels, [label.name for label in plan.labels]) == (2, ["ball", "core"])
    assert len({case_key(dataset.cases[0], p) for p in (plain, plan)}) == 2
    for bad in (regions[::-1], [{**regions[0], "labels": [1, 5]}], [{**regions[0], "name": "ball"}, regions[1]]):
        with pytest.raises(InputError, match="No model could be made of this"):
            make_plan(dataset, fingerprint, from_json(Settings, {"regions": bad}))


def test_labels_that_regions_join_have_their_volume_together(ball_dataset):
    dataset = read_dataset(ball_dataset)
    fingerprint = take_fingerprint(dataset)
    apart = make_plan(dataset, fingerprint, Settings()).fingerprint.volumes
    joined = from_json(Settings, {"regions": [{"name": "whole", "labels": [1, 2], "value": 1}]})
    volumes = make_plan(dataset, fingerprint, joined).fingerprint.volumes
    sums = [sum(case.label_voxels) / 1000 for case in fingerprint.cases]  # voxels of 1 mm
    assert volumes == (VolumeRange(min(sums), max(sums)), apart[1])
    nested = [{"name": "whole", "labels": [1, 2], "value": 1}, {"name": "inner", "labels": [2], "value": 2}]
    assert make_plan(dataset, fingerprint, from_json(Settings, {"regions": nested})).fingerprint.volumes == apart


def test_a_region_nobody_has_is_a_problem_a_label_inside_another_region_is_not(ball_dataset):
    labels = {"background": 0, "whole": [1, 2, 3], "rare": [3, 4]}
    describe(ball_dataset, labels=labels, regions_class_order=[1, 3])
    with pytest.raises(DatasetError, match="the region rare") as error:
        take_fingerprint(read_dataset(ball_dataset))
    assert len(error.value.problems) == 1


def test_the_released_brain_tumour_plan_takes_the_challenges_regions(ball_dataset):
    balls = read_dataset(ball_dataset)
    facts = take_fingerprint(balls)
    cases = tuple(replace(case, label_voxels=(*case.label_voxels, 1)) for case in facts.cases)
    fingerprint = replace(facts, cases=cases)
    brains = replace(balls, channels=("FLAIR", "T1w", "T1gd", "T2w"), labels=BRAIN_LABELS, regions=BRAIN_REGIONS)
    settings = from_json(Settings, {"plan": {"named": "braintumour"}})
    plan = make_plan(brains, fingerprint, settings)
    assert plan.structure_names == ("whole tumor", "tumor core", "enhancing tumor")
    assert (plan.network.out_channels, plan.patch_size) == (3, (128, 128, 128))
    as_released = make_plan(replace(brains, regions=()), fingerprint, settings)
    assert (as_released.network.out_channels, as_released.regions) == (4, ())


@pytest.mark.parametrize("variant", ["encoder", "decoder"])
def test_queries_that_share_voxels_out_are_refused_for_regions(ball_dataset, variant):
    dataset = read_dataset(ball_dataset)
    regions = [{"name": "whole", "labels": [1, 2], "value": 1}, {"name": "inner", "labels": [2], "value": 2}]
    network = {"name": "transunet", "options": {"variant": variant}}
    settings = from_json(Settings, {"regions": regions, "network": network})
    if variant == "encoder":
        assert make_plan(dataset, take_fingerprint(dataset), settings).network.out_channels == 2
        return
    with pytest.raises(InputError, match="cannot find regions that overlap"):
        make_plan(dataset, take_fingerprint(dataset), settings)
