"""A whole prediction with small real networks: labels on the right voxels, honest progress, errors for people."""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from MambaSegLib import model_folders
from MambaSegLib.bundle import load_bundle
from MambaSegLib.devices import resolve_device
from MambaSegLib.errors import BackendUnavailableError, CancelledError, EnvironmentProblemError, InputError
from MambaSegLib.plan import (
    Channel,
    Fingerprint,
    Label,
    NetworkPlan,
    Normalization,
    Plan,
    StagePlan,
    VolumeRange,
)
from MambaSegLib.predictor import Predictor
from MambaSegLib.quality import QUALITIES, Thoroughness, thoroughness
from MambaSegLib.volume import Box, Geometry, Volume
from MambaSegLib.volume_io import read_labels

ORIENTATIONS = [
    "".join(("LR", "PA", "SI")[axis][flip] for axis, flip in zip(axes, flips, strict=True))
    for axes in permutations(range(3))
    for flips in product((0, 1), repeat=3)
]


class Threshold(nn.Module):
    """Class k where the first channel is nearest to k: a 1x1x1 network whose right answer is known."""

    deep_supervision = True

    def __init__(self, classes=3, sharpness=20.0):
        super().__init__()
        self.levels = nn.Parameter(torch.arange(classes, dtype=torch.float32), requires_grad=True)
        self.sharpness = sharpness

    def forward(self, image):
        logits = -self.sharpness * (image[:, :1] - self.levels[:, None, None, None]) ** 2
        return (logits, logits[..., ::2, ::2, ::2]) if self.deep_supervision else (logits,)


class MemoryBundle:
    """A model that was never written: networks by fold."""

    name = "test.memory"
    sha256 = "0" * 64

    def __init__(self, plan, *networks):
        self.manifest = SimpleNamespace(plan=plan, name=self.name, version="1.0")
        self.networks = networks or (Threshold(plan.network.out_channels),)

    @property
    def fold_indices(self):
        return tuple(range(len(self.networks)))

    def load_network(self, fold):
        return self.networks[fold]


def make_plan(spacing=(1.0, 1.0, 1.0), values=(1, 2), names=("image",), patch=(8, 8, 8), **settings):
    channels = tuple(Channel(name, Normalization("none")) for name in names)
    labels = tuple(Label(value, f"structure {value}", (255, 0, 0)) for value in values)
    network = NetworkPlan("mamba_unet_unidirectional", len(names), len(values) + 1, patch, ())
    settings = {"orientation": "SPL", "crop_to_nonzero": True, **settings}
    return Plan(spacing_mm=spacing, channels=channels, labels=labels, network=network, **settings)


def axial(array, spacing=(1.0, 1.0, 1.0), **settings):
    array = np.asarray(array)
    array = array[None] if array.ndim == 3 else array
    direction = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    return Volume(array, Geometry(array.shape[1:], spacing, (-7.0, 3.0, 11.0), direction), **settings)


def blocks(shape=(12, 13, 15)):
    """0 around; two structures."""
    array = np.zeros(shape, dtype=np.int16)
    array[2:9, 3:8, 4:12] = 1
    array[5:11, 8:11, 2:9] = 2
    return array


def predictor(plan=None, *networks, **settings):
    return Predictor(MemoryBundle(plan or make_plan(), *networks), device="cpu", **settings)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_what_the_network_sees_comes_back_on_its_voxel_in_every_orientation(orientation):
    volume = axial(blocks(), (2.0, 1.0, 1.5))
    turned = volume.reoriented(volume.geometry.reorientation_to(orientation))
    found = predictor(make_plan((2.0, 1.0, 1.5), values=(1, 2))).predict(turned)
    np.testing.assert_array_equal(found.labels.array, turned.array[0])
    assert found.labels.geometry == turned.geometry


@pytest.mark.parametrize("orientation", ["SPL", "RAI", "LSA"])
def test_the_same_mask_comes_back_through_another_spacing(orientation):
    """A threefold finer network grid: each input voxel is the median of the voxels that came from it."""
    volume = axial(np.kron(blocks((6, 7, 8)), np.ones((2, 2, 2))), (3.0, 3.0, 3.0))
    turned = volume.reoriented(volume.geometry.reorientation_to(orientation))
    network = Threshold(sharpness=1e4)
    found = predictor(make_plan((1.0, 1.0, 1.0), patch=(16, 16, 16)), network).predict(turned).labels.array
    # Splines pass half of 1 to 2 at the voxel edge: only edges of structure 2 against 0 show a rim of structure 1.
    assert (found == turned.array[0]).mean() > 0.98
    assert ((found > 0) == (turned.array[0] > 0)).all()


def test_label_values_and_table_are_the_plans():
    plan = make_plan(values=(4, 300))
    found = predictor(plan).predict(axial(blocks()))
    assert found.labels.array.dtype == np.uint16
    assert set(np.unique(found.labels.array)) == {0, 4, 300}
    assert found.labels.table == plan.labels
    assert dict(found.labels.tags)["Model"] == "test.memory 1.0"


def test_outside_the_region_nothing_is_segmented():
    volume = axial(blocks())
    roi = Box((3, 2, 0), (8, 9, 9))
    found = predictor().predict(volume, roi=roi).labels.array
    expected = np.zeros_like(found)
    expected[roi.slices] = volume.array[0][roi.slices]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.uint8, np.float32])
def test_any_real_type_is_segmented(dtype):
    found = predictor().predict(axial(blocks().astype(dtype)))
    np.testing.assert_array_equal(found.labels.array, blocks())


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 13, 15), (3, 1, 40)])
def test_flat_volumes_are_segmented(shape):
    array = np.arange(np.prod(shape)).reshape(shape) % 3
    found = predictor(make_plan(crop_to_nonzero=False)).predict(axial(array))
    np.testing.assert_array_equal(found.labels.array, array)


def test_an_empty_image_gives_an_empty_segmentation_and_a_notice():
    found = predictor().predict(axial(np.zeros((9, 9, 9))))
    assert not found.labels.array.any()
    assert any("everywhere" in notice for notice in found.notices)


def test_the_result_says_what_computed_it():
    found = predictor().predict(axial(blocks()))
    assert (found.backend, found.device) == ("none", "cpu")
    assert found.uncertainty is None
    assert found.disagreement is None
    assert found.notices == ()
    assert found.seconds.total > found.seconds.prediction > 0


def test_uncertainty_is_between_0_and_1_and_high_between_two_classes():
    array = blocks().astype(float)
    array[10, 10, 2] = 0.5
    found = predictor(None, Threshold(sharpness=30.0)).predict(axial(array), uncertainty=True)
    assert found.uncertainty.dtype == np.float32
    assert found.uncertainty.shape == array.shape
    assert 0 <= found.uncertainty.min() < 1e-3
    assert found.uncertainty.max() == found.uncertainty[10, 10, 2] == pytest.approx(np.log(2) / np.log(3), abs=1e-3)


def test_folds_that_contradict_each_other_disagree():
    plan = make_plan(values=(1,))
    yes, no = Threshold(2, 1000.0), Threshold(2, 1000.0)
    no.levels.data = no.levels.data.flip(0)
    both = predictor(plan, yes, no).predict(axial(blocks() > 0), uncertainty=True, disagreement=True)
    inside = np.zeros(both.disagreement.shape, dtype=bool)
    inside[2:11, 3:11, 2:12] = True  # the nonzero region; nobody looked outside
    np.testing.assert_allclose(both.disagreement[inside], 1, atol=1e-5)
    np.testing.assert_allclose(both.uncertainty[inside], 1, atol=1e-5)
    one = predictor(plan, yes, no, folds=[0]).predict(axial(blocks() > 0), disagreement=True)
    np.testing.assert_allclose(one.disagreement, 0, atol=1e-5)
    np.testing.assert_array_equal(one.labels.array, blocks() > 0)


class Sides(nn.Module):
    """Class 1 in the first half of a tile along X: mirroring along X must make it undecided."""

    deep_supervision = False

    def forward(self, image):
        side = torch.linspace(30, -30, image.shape[-1]).expand(image[:, 0].shape)
        return (torch.stack([-side, side], dim=1),)


def test_mirroring_uses_the_axes_the_model_was_trained_to_mirror_and_no_others():
    volume = axial(np.ones((8, 8, 8)))
    plain = make_plan(values=(1,), mirror_axes=(0, 1))
    mirrored = make_plan(values=(1,), mirror_axes=(2,))
    off = predictor(mirrored, Sides()).predict(volume, uncertainty=True)
    other = predictor(plain, Sides(), mirroring=True).predict(volume, uncertainty=True)
    on = predictor(mirrored, Sides(), mirroring=True).predict(volume, uncertainty=True)
    assert off.uncertainty.max() == pytest.approx(other.uncertainty.max(), abs=1e-6)
    assert off.uncertainty.max() < 0.1
    np.testing.assert_allclose(on.uncertainty, 1, atol=1e-5)


def test_a_quality_is_an_overlap_and_mirroring_and_what_is_named_beside_it_wins():
    assert thoroughness("fast") == Thoroughness(0.25, False)
    assert thoroughness("standard") == Thoroughness(0.5, False)
    assert thoroughness("best") == Thoroughness(0.5, True)
    assert thoroughness("best", overlap=0.0, mirroring=False) == Thoroughness(0.0, False)
    assert thoroughness("fast", mirroring=True) == Thoroughness(0.25, True)
    with pytest.raises(InputError, match=r"no quality 'finest'; choose fast, standard, best"):
        predictor(quality="finest")


def test_the_quality_decides_how_many_tiles_and_mirrored_versions_are_computed():
    volume, calls = axial(np.random.default_rng(0).normal(size=(8, 8, 32))), {}
    for quality in QUALITIES:
        network = Sides()
        with_hook = calls.setdefault(quality, [])
        network.register_forward_hook(lambda *_, seen=with_hook: seen.append(1))
        plan = make_plan(values=(1,), mirror_axes=(2,))
        predictor(plan, network, quality=quality).predict(volume)
    assert {quality: len(seen) for quality, seen in calls.items()} == {"fast": 5, "standard": 7, "best": 14}


def test_the_best_quality_of_a_model_trained_without_mirroring_is_no_surprise():
    assert predictor(quality="best").predict(axial(blocks())).notices == ()


def test_mirroring_without_mirrored_training_is_left_out_with_a_notice():
    found = predictor(mirroring=True).predict(axial(blocks()))
    assert any("without it" in notice for notice in found.notices)


def test_the_same_input_gives_the_same_bytes_twice():
    plan = make_plan((1.3, 0.9, 1.1), keep_largest=(1,))
    torch.manual_seed(0)
    one = predictor(plan, Conv())
    volume = axial(np.random.default_rng(0).normal(size=(14, 15, 16)))
    first, second = (one.predict(volume, uncertainty=True) for _ in range(2))
    assert first.labels.array.tobytes() == second.labels.array.tobytes()
    assert first.uncertainty.tobytes() == second.uncertainty.tobytes()
    assert len(np.unique(first.labels.array)) == 3


class Conv(nn.Module):
    deep_supervision = False

    def __init__(self, classes=3):
        super().__init__()
        self.conv = nn.Conv3d(1, classes, 3, padding=1)

    def forward(self, image):
        return (self.conv(image),)


def test_networks_predict_in_evaluation_mode_without_deep_supervision_or_gradients():
    network = Threshold()
    predictor(None, network)
    assert not network.training
    assert not network.deep_supervision
    assert not network.levels.requires_grad


def test_progress_counts_every_tile_and_estimates_the_time_left():
    reports = []
    now = [0.0]

    def progress(report):
        reports.append(report)
        now[0] += 2.0

    plan = make_plan(crop_to_nonzero=False)
    predictor(plan).predict(axial(np.random.default_rng(0).random((8, 8, 48))), progress, clock=lambda: now[0])
    assert [r.stage for r in reports[:2]] == ["Preprocessing"] * 2
    tiles = [r for r in reports if r.stage == "Predicting"]
    assert [(r.done, r.total) for r in tiles] == [(k, 11) for k in range(12)]
    assert tiles[0].seconds_left is None
    assert [r.seconds_left for r in tiles[2:]] == [2.0 * (11 - k) for k in range(2, 12)]
    assert reports[-1].stage == "Postprocessing"


@pytest.mark.parametrize("stop_at", ["Preprocessing", "Predicting", "Postprocessing"])
def test_cancelling_ends_the_work_and_the_predictor_still_works(stop_at):
    one = predictor()

    def cancel(report):
        if report.stage == stop_at:
            raise CancelledError

    with pytest.raises(CancelledError):
        one.predict(axial(blocks()), cancel)
    np.testing.assert_array_equal(one.predict(axial(blocks())).labels.array, blocks())


def test_a_missing_channel_is_named():
    plan = make_plan(names=("T1", "FLAIR"))
    with pytest.raises(InputError, match=r"expects 2 channels \(T1, FLAIR\), got 1"):
        predictor(plan, Threshold()).predict(axial(blocks()))


@pytest.mark.parametrize("image", ["t1.nii.gz", np.zeros((4, 4, 4))])
def test_what_is_no_volume_is_refused_in_words(image):
    with pytest.raises(InputError, match=r"a Volume is needed, as read_volume returns it; found (str|ndarray)"):
        predictor().predict(image)


def test_channels_arrive_by_name():
    plan = make_plan(names=("T1", "FLAIR"))
    array = np.stack([np.full_like(blocks(), 7), blocks()])
    found = predictor(plan, Threshold()).predict(axial(array, channels=("FLAIR", "T1")))
    np.testing.assert_array_equal(found.labels.array, blocks())


class Diverged(Threshold):
    def forward(self, image):
        return (super().forward(image)[0] * float("nan"),)


def test_nan_from_a_network_is_an_environment_problem_not_background():
    with pytest.raises(EnvironmentProblemError, match="not finite"):
        predictor(None, Diverged()).predict(axial(blocks()))


def test_an_image_unlike_the_training_images_comes_with_a_notice():
    seen = Fingerprint((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), (10.0, 10.0, 10.0), (20.0, 20.0, 20.0))
    one = predictor(make_plan(fingerprint=seen))
    assert one.predict(axial(blocks())).notices == ()
    assert "5 mm" in one.predict(axial(blocks(), (5.0, 1.0, 1.0))).notices[0]


def test_what_the_image_tells_is_told_before_the_networks_compute():
    seen = Fingerprint((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), (10.0, 10.0, 10.0), (20.0, 20.0, 20.0))
    told = []
    found = predictor(make_plan(fingerprint=seen)).predict(
        axial(blocks(), (5.0, 1.0, 1.0)), lambda progress: told.append(progress.stage), on_notice=told.append
    )
    assert told.index(found.notices[0]) < told.index("Predicting")


def test_a_structure_of_an_unlikely_volume_comes_with_a_notice():
    bounds = (1.0, 1.0, 1.0), (1.0, 1.0, 1.0), (10.0, 10.0, 10.0), (20.0, 20.0, 20.0)
    plan = make_plan()
    volume_ml = [(blocks() == label.value).sum() / 1000 for label in plan.labels]
    likely = tuple(VolumeRange(size, size) for size in volume_ml)
    one = predictor(replace(plan, fingerprint=Fingerprint(*bounds, volumes=likely)))
    assert one.predict(axial(blocks())).notices == ()
    larger = (VolumeRange(2 * volume_ml[0], 2 * volume_ml[0]), *likely[1:])
    one = predictor(replace(plan, fingerprint=Fingerprint(*bounds, volumes=larger)))
    (notice,) = one.predict(axial(blocks())).notices
    assert notice.startswith(f"{plan.labels[0].name} has")


def test_only_the_region_is_compared_with_the_training_images():
    seen = Fingerprint((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), (10.0, 10.0, 10.0), (20.0, 20.0, 20.0))
    one = predictor(make_plan(fingerprint=seen))
    large = axial(np.pad(blocks(), 20))
    assert len(one.predict(large).notices) == 3
    assert one.predict(large, roi=Box((20, 20, 20), (32, 33, 35))).notices == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scan": "fast"}, "auto, triton, mamba_ssm, numba, pytorch"),
        ({"folds": []}, "fold"),
        ({"folds": [0, 0]}, "fold"),
        ({"overlap": 1.0}, "overlap"),
        ({"overlap": -0.5}, "overlap"),
        ({"tile_batch": 0}, "tiles"),
    ],
)
def test_senseless_settings_are_refused_at_once(settings, message):
    with pytest.raises(InputError, match=message):
        predictor(**settings)


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(InputError, match="no device 'tpu'"):
        resolve_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(EnvironmentProblemError, match="device cuda is not there"):
            resolve_device("cuda")
    if not torch.backends.mps.is_available():
        with pytest.raises(EnvironmentProblemError, match="Apple"):
            resolve_device("mps")


def test_running_out_of_memory_is_explained():
    class Greedy(Threshold):
        def forward(self, image):
            raise MemoryError

    with pytest.raises(EnvironmentProblemError, match="region of interest"):
        predictor(None, Greedy()).predict(axial(blocks()))


def mamba_plan():
    """A Mamba U-Net of two small stages."""
    stages = (StagePlan(4, (1, 1, 1), (3, 3, 3), 1), StagePlan(8, (2, 2, 2), (3, 3, 3), 1))
    network = NetworkPlan("mamba_unet_multidirectional", 1, 3, (8, 8, 8), stages)
    channels = (Channel("image", Normalization("zscore")),)
    labels = tuple(Label(value, f"structure {value}", (255, 0, 0)) for value in (1, 2))
    return Plan("SPL", (1.0, 1.0, 1.0), channels, labels, network)


def test_a_mamba_network_says_which_scan_backend_computed():
    from MambaSegLib.networks import create_network

    torch.manual_seed(0)
    plan = mamba_plan()
    network = create_network(plan.network)
    found = Predictor(MemoryBundle(plan, network), device="cpu", scan="pytorch").predict(axial(blocks()))
    assert found.backend == "pytorch"
    auto = Predictor(MemoryBundle(plan, network), device="cpu").predict(axial(blocks()))
    assert auto.backend in ("numba", "pytorch")
    assert (auto.labels.array == found.labels.array).mean() > 0.999


def test_a_named_backend_that_cannot_run_is_an_error():
    from MambaSegLib.networks import create_network

    plan = mamba_plan()
    with pytest.raises(BackendUnavailableError, match="triton"):
        Predictor(MemoryBundle(plan, create_network(plan.network)), device="cpu", scan="triton")


def test_a_bundle_from_disk_predicts_the_same_every_time_it_is_loaded(tiny_bundle):
    volume = axial(np.random.default_rng(0).normal(100, 20, (14, 20, 18)), (2.0, 1.2, 1.0))
    one = Predictor(tiny_bundle, device="cpu", scan="pytorch", mirroring=True)
    assert one.folds == (0, 1)
    first = one.predict(volume, uncertainty=True)
    second = Predictor(load_bundle(tiny_bundle.path), device="cpu", scan="pytorch", mirroring=True).predict(
        volume, uncertainty=True
    )
    assert first.labels.array.tobytes() == second.labels.array.tobytes()
    assert first.uncertainty.tobytes() == second.uncertainty.tobytes()
    assert first.labels.geometry == volume.geometry


@pytest.mark.parametrize("kind", [str, Path])
def test_a_model_is_also_given_by_its_path(tiny_bundle, kind):
    assert Predictor(kind(tiny_bundle.path), device="cpu", folds=[0]).bundle.sha256 == tiny_bundle.sha256


def test_a_model_is_also_given_by_its_name(tiny_bundle, monkeypatch):
    monkeypatch.setattr(model_folders, "BUNDLED_MODELS", tiny_bundle.path.parent)
    assert Predictor(tiny_bundle.path.name, device="cpu", folds=[0]).bundle.name == tiny_bundle.name


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("no.such", 'no model "no.such"'),
        (Path("/no/such"), 'no model "/no/such"'),
        (None, "found None"),
        (3, r"3 \(int"),
    ],
)
def test_what_is_no_model_is_refused_in_words(model, message):
    with pytest.raises(InputError, match=message):
        Predictor(model, device="cpu")


def test_a_fold_the_model_does_not_have_is_refused(tiny_bundle):
    with pytest.raises(InputError, match=r"no fold 7; it has 0, 1"):
        Predictor(tiny_bundle, device="cpu", folds=[7])


REAL_LABELS = (
    "hippocampus/Dataset004_Hippocampus/labelsTr/hippocampus_003.nii.gz",
    "volumes/mr_spinalcord_oblique/t2_seg-manual.nii.gz",
    "volumes/mr_tumour_nrrd/breast1_label.nrrd",
    "volumes/sts_multimodal/STS_003/MR_T1_mask.nii.gz",
)


@pytest.mark.shared_data
@pytest.mark.parametrize("name", REAL_LABELS)
def test_real_label_maps_survive_orientation_and_spacing(shared_data, name):
    """A manual label map is the image; a network that knows it must give it back, wherever the header puts it."""
    path = shared_data / name
    if not path.exists():
        pytest.skip(f"{name} is not on this computer")
    labels = read_labels(path)
    values = tuple(label.value for label in labels.table)
    volume = Volume(labels.array[None], labels.geometry)
    turned = labels.geometry.reoriented(labels.geometry.reorientation_to("SPL"))
    same = make_plan(turned.spacing_mm, values=values, patch=(32, 64, 64))
    found = predictor(same, Threshold(max(values) + 1)).predict(volume).labels
    np.testing.assert_array_equal(found.array, labels.array)
    finer = make_plan(tuple(s / 1.5 for s in turned.spacing_mm), values=values, patch=(32, 64, 64))
    found = predictor(finer, Threshold(max(values) + 1)).predict(volume).labels
    both = np.count_nonzero((found.array > 0) & (labels.array > 0))
    dice = 2 * both / (np.count_nonzero(found.array) + np.count_nonzero(labels.array))
    # There and back on a grid 1.5 times finer costs thin structures (a cord of 10 voxels across) the most.
    assert dice > 0.97


def test_without_pytorch_the_message_says_how_to_install_it():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from MambaSegLib import EnvironmentProblemError, Predictor\n"
        "try:\n    Predictor(None)\nexcept EnvironmentProblemError as error:\n    print(error)"
    )
    root = Path(__file__).resolve().parents[2]
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert "pip install torch" in found.stdout


def test_the_time_of_a_tile_is_remembered_for_the_start_of_the_next_volume(tmp_path):
    """Each clock reading is a second later, so tiles take whole seconds; the second volume's estimate comes at once."""
    speeds, reports = tmp_path / "speeds.json", []
    ticks = iter(range(10_000))
    volume = axial(np.random.default_rng(0).random((8, 8, 40)))
    for _ in range(2):
        found = []
        predictor(speeds=speeds).predict(volume, found.append, clock=lambda: float(next(ticks)))
        reports.append([step for step in found if step.stage == "Predicting"])
    first, second = reports
    assert first[0].seconds_left is None
    assert second[0].total == second[0].seconds_left > 0


@pytest.mark.parametrize("seconds", ["soon", -1, 0, None, float("nan"), float("inf")])
def test_a_remembered_time_that_is_none_is_ignored(seconds, tmp_path):
    speeds, found = tmp_path / "speeds.json", []
    one = predictor(speeds=speeds)
    speeds.write_text(json.dumps({one._speed_key(): seconds}))
    one.predict(axial(blocks()), found.append)
    assert next(step for step in found if step.stage == "Predicting").seconds_left is None


@pytest.mark.parametrize(("value", "count"), [(0.0, 1), (1.0, 0)])
def test_finding_nothing_is_said(value, count):
    array = np.zeros((8, 8, 8), np.float32)
    array[2:5, 2:5, 2:5] = value
    array[0, 0, 0] = -0.1  # or there would be nothing to see
    prediction = Predictor(MemoryBundle(make_plan()), device="cpu").predict(axial(array))
    assert prediction.notices.count("None of the model's structures was found in the image.") == count
