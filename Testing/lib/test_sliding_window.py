"""The streaming sliding window against a plain twin that holds everything, and what gives way when memory is short."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from MambaSegLib.devices import measured_convolutions
from MambaSegLib.errors import CancelledError, EnvironmentProblemError, InputError
from MambaSegLib.memory_ladder import MemoryLadder, Placement, tiles_at_a_time
from MambaSegLib.readout import exclusive_classes
from MambaSegLib.sliding_window import (
    Ensemble,
    _Uploaded,
    count_tiles,
    importance_map,
    mirrorings,
    predict_probabilities,
    tile_starts,
    tiles_to_compute,
)
from MambaSegLib.time_estimate import TimeEstimate

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB"


class ConvNetwork(nn.Module):
    """A small real network whose answer depends on where in its tile a voxel lies."""

    deep_supervision = False

    def __init__(self, channels=2, classes=3, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.conv = nn.Conv3d(channels, classes, 3, padding=1)
        for parameter in self.parameters():
            # 0.3: logits of a few units, whose rounding in float32 stays below the 1e-6 asked for.
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)

    def forward(self, image):
        return (self.conv(image),)


def cpu_ladder(tile_batch=1):
    return MemoryLadder(Placement(CPU, CPU, tile_batch))


def noise(shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def collect(ensemble, image, ladder=None, **settings):
    slabs = list_of_copies(predict_probabilities(ensemble, image, ladder or cpu_ladder(), **settings))
    assert [start for start, _, _ in slabs] == np.cumsum([0] + [len(p) for _, p, _ in slabs[:-1]]).tolist()
    probabilities = np.concatenate([p for _, p, _ in slabs]).transpose(1, 0, 2, 3)
    if slabs[0][2] is None:
        return probabilities, None
    return probabilities, np.concatenate([d for _, _, d in slabs])


def list_of_copies(slabs):
    return [
        (s.start, s.probabilities.numpy().copy(), None if s.disagreement is None else s.disagreement.numpy().copy())
        for s in slabs
    ]


def entropy(p, axis):
    return -(p * np.log(np.maximum(p, 1e-300))).sum(axis=axis)


def plain_twin(ensemble, image, overlap):
    """Everything at once, in float64: all tiles of all members into arrays of the whole (padded) volume."""
    patch = ensemble.patch_size
    missing = [max(p - n, 0) for n, p in zip(image.shape[1:], patch, strict=True)]
    image = np.pad(image, [(0, 0), *((m // 2, m - m // 2) for m in missing)])
    sums, weights = np.zeros((ensemble.readout.outputs, *image.shape[1:])), np.zeros(image.shape[1:])
    entropies = np.zeros(image.shape[1:])
    importance = importance_map(patch).double().numpy()
    starts = (tile_starts(n, p, overlap) for n, p in zip(image.shape[1:], patch, strict=True))
    for corner in product(*starts):
        part = tuple(slice(a, a + p) for a, p in zip(corner, patch, strict=True))
        members = [
            torch.softmax(network(torch.from_numpy(image[(None, slice(None), *part)]).flip(f))[0].flip(f), 1)[0]
            for network in ensemble.networks
            for f in [[a + 2 for a in axes] for axes in mirrorings(ensemble.mirror_axes)]
        ]
        members = np.stack([m.detach().double().numpy() for m in members])
        sums[(slice(None), *part)] += members.mean(axis=0) * importance
        entropies[part] += entropy(members, 1).mean(axis=0) * importance
        weights[part] += importance
    mean = sums / weights
    inner = tuple(slice(m // 2, n - (m - m // 2)) for m, n in zip(missing, weights.shape, strict=True))
    difference = (entropy(mean, 0) - entropies / weights) / np.log(ensemble.readout.outputs)
    return mean[(slice(None), *inner)], difference[inner]


@pytest.mark.parametrize(
    ("size", "patch", "overlap", "starts"),
    [
        (10, 10, 0.5, (0,)),
        (7, 10, 0.5, (0,)),
        (11, 10, 0.5, (0, 1)),
        (20, 10, 0.5, (0, 5, 10)),
        (21, 10, 0.5, (0, 4, 7, 11)),
        (20, 10, 0.0, (0, 10)),
        (30, 10, 0.9, tuple(range(21))),
        (4, 1, 0.0, (0, 1, 2, 3)),
    ],
)
def test_tiles_start_where_counting_by_hand_says(size, patch, overlap, starts):
    assert tile_starts(size, patch, overlap) == starts


def test_tiles_cover_every_voxel_and_overlap_as_asked():
    for size, patch, overlap in product(range(1, 60), (1, 2, 5, 16), (0.0, 0.25, 0.5, 0.75)):
        starts = tile_starts(size, patch, overlap)
        assert starts[0] == 0
        assert starts[-1] == max(size - patch, 0)
        # 1: both starts of a step are rounded to whole voxels.
        assert max(np.diff(starts), default=0) < max(patch * (1 - overlap), 1) + 1


@pytest.mark.parametrize("patch", [(8, 8, 8), (1, 7, 16), (64, 192, 160), (2, 1, 3)])
def test_importance_is_largest_in_the_middle_symmetric_and_never_zero(patch):
    weights = importance_map(patch)
    assert weights.shape == patch
    assert weights.max() == 1
    assert weights.min() > 1e-12
    assert torch.equal(weights, weights.flip((0, 1, 2)))
    # One sigma (1/8 of the tile) off the center, along Z alone.
    if patch == (64, 192, 160):
        expected = np.exp(-0.5 * ((8.5**2 - 0.5**2) / 8**2))
        assert float(weights[40, 96, 80] / weights[32, 96, 80]) == pytest.approx(expected, rel=1e-5)


def test_mirroring_two_axes_makes_four_versions():
    assert mirrorings((2, 0)) == ((), (0,), (2,), (0, 2))
    assert mirrorings(()) == ((),)


@pytest.mark.parametrize(
    ("shape", "patch", "overlap"),
    [
        ((17, 19, 23), (8, 8, 8), 0.5),
        ((17, 9, 11), (4, 8, 10), 0.25),
        ((5, 6, 7), (8, 8, 8), 0.5),
        ((5, 20, 7), (8, 8, 8), 0.5),
        ((1, 13, 1), (1, 8, 1), 0.5),
        ((1, 1, 1), (4, 4, 4), 0.0),
        ((16, 16, 16), (8, 8, 8), 0.0),
        ((30, 8, 8), (8, 8, 8), 0.9),
    ],
)
@pytest.mark.parametrize("tile_batch", [1, 3])
def test_streaming_equals_the_plain_twin(shape, patch, overlap, tile_batch):
    ensemble = Ensemble((ConvNetwork(),), exclusive_classes(3), patch)
    image = noise((2, *shape))
    found, _ = collect(ensemble, image, cpu_ladder(tile_batch), overlap=overlap)
    expected, _ = plain_twin(ensemble, image, overlap)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_folds_and_mirrors_are_averaged_as_probabilities():
    ensemble = Ensemble((ConvNetwork(seed=1), ConvNetwork(seed=2)), exclusive_classes(3), (6, 8, 8), mirror_axes=(0, 2))
    image = noise((2, 9, 13, 12))
    found, disagreement = collect(ensemble, image, disagreement=True)
    expected, difference = plain_twin(ensemble, image, 0.5)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(disagreement, difference, atol=2e-6)
    assert disagreement.min() >= 0
    assert disagreement.max() > 0.2


def test_members_that_agree_do_not_disagree():
    network = ConvNetwork()
    ensemble = Ensemble((network, network), exclusive_classes(3), (8, 8, 8))
    _, disagreement = collect(ensemble, noise((2, 8, 8, 8)), disagreement=True)
    np.testing.assert_allclose(disagreement, 0, atol=1e-6)


def test_the_same_input_gives_the_same_bytes():
    ensemble = Ensemble((ConvNetwork(),), exclusive_classes(3), (8, 8, 8), (0, 1, 2))
    image = noise((2, 13, 14, 15))
    first, second = collect(ensemble, image)[0], collect(ensemble, image)[0]
    assert first.tobytes() == second.tobytes()


def test_every_tile_is_reported_once():
    reports = []
    ensemble = Ensemble((ConvNetwork(),), exclusive_classes(3), (8, 8, 8))
    image = noise((2, 17, 9, 16))
    collect(ensemble, image, cpu_ladder(2), on_tile=lambda done, total: reports.append((done, total)))
    total = count_tiles((17, 9, 16), (8, 8, 8), 0.5)
    assert total == 4 * 2 * 3
    assert reports == [(done, total) for done in range(0, total + 1, 2)]


def test_blank_tiles_that_need_not_be_computed_are_not_counted():
    image = np.full((1, 8, 8, 64), -1.0, np.float32)
    image[..., 20:30] = 3.0  # the second value reaches into tiles, none of which is blank
    image[..., 40] = noise((8, 8))
    ensemble, reports = Ensemble((ConvNetwork(1),), exclusive_classes(3), (8, 8, 8)), []
    collect(ensemble, image, on_tile=lambda done, total: reports.append((done, total)))
    # By hand, tiles start at 0, 4, 8, ..., 56. Blank with -1: 0 to 12 and 32, 44 to 56; with 3: 20; others: 16, 24, 28, 36, 40.
    # Blank ones first: -1 is computed, then 3, then -1 again.
    assert reports == [(done, 8) for done in range(9)]
    assert tiles_to_compute(image, (8, 8, 8), 0.5) == 8


class Counting(ConvNetwork):
    """Counts the tiles it was given."""

    tiles = 0

    def forward(self, image):
        self.tiles += len(image)
        return super().forward(image)


@pytest.mark.parametrize("disagreement", [False, True])
def test_blank_tiles_are_computed_once_and_the_result_is_the_same_to_the_bit(disagreement, monkeypatch):
    image = np.full((2, 8, 40, 8), -3.0, np.float32)
    image[1] = 1.5
    image[:, 2:5, 30:36, 3:6] = noise((2, 3, 6, 3))
    network = Counting()
    ensemble = Ensemble((network,), exclusive_classes(3), (8, 8, 8))
    found = collect(ensemble, image, overlap=0.0, disagreement=disagreement)
    assert network.tiles == 3  # of five: one of three blank ones, and the two that the content reaches into
    monkeypatch.setattr("MambaSegLib.blank_tiles.blank_values", lambda tile: None)
    expected = collect(ensemble, image, overlap=0.0, disagreement=disagreement)
    assert network.tiles == 8
    for one, other in zip(found, expected, strict=True):
        assert one is other is None or one.tobytes() == other.tobytes()


def test_a_tile_blank_in_one_channel_or_with_another_value_is_computed():
    image = np.zeros((2, 4, 16, 4), np.float32)
    image[0, :, 4:8] = 1  # another value
    image[1, 2, 9, 2] = 1  # one voxel, one channel
    network = Counting()
    collect(Ensemble((network,), exclusive_classes(3), (4, 4, 4)), image, overlap=0.0)
    assert (
        network.tiles == 4
    )  # the last is as blank as the first, but two others lay between: only the last one is kept


@pytest.mark.parametrize("tile_batch", [2, 3, 16])
def test_among_tiles_that_share_a_batch_blank_ones_are_computed_once_too(tile_batch):
    image = np.full((2, 8, 8, 96), -2.0, np.float32)
    image[:, 2:5, 3:6, 30:36] = noise((2, 3, 3, 6))
    network = Counting()
    ensemble = Ensemble((network,), exclusive_classes(3), (8, 8, 8))
    found, _ = collect(ensemble, image, cpu_ladder(tile_batch), overlap=0.5)
    assert network.tiles == 1 + 3  # of 23: the content lies in the tiles that start at 24, 28 and 32
    np.testing.assert_allclose(found, plain_twin(ensemble, image, 0.5)[0], atol=1e-6)


def test_a_tile_blank_but_for_rounding_is_blank_and_one_with_the_faintest_content_is_not():
    image = np.full((1, 4, 4, 24), -8.75, np.float32)
    image += np.random.default_rng(0).integers(-4, 5, image.shape) * np.spacing(np.float32(8.75))
    faint = image.copy()
    faint[0, 2, 2, 10] += 1e-3  # a tenth of a Hounsfield unit
    for shown, expected in ((image, 1), (faint, 2)):
        network = Counting(channels=1)
        found, _ = collect(Ensemble((network,), exclusive_classes(3), (4, 4, 4)), shown, overlap=0.0)
        assert network.tiles == expected
        np.testing.assert_allclose(
            found, plain_twin(Ensemble((network,), exclusive_classes(3), (4, 4, 4)), shown, 0.0)[0], atol=1e-5
        )


def test_never_more_than_one_patch_depth_of_probabilities_is_held(monkeypatch):
    """By construction: the largest tensor made while streaming through a long volume."""
    largest = []
    zeros = torch.zeros

    def recording_zeros(shape, **settings):
        largest.append(int(np.prod(shape)))
        return zeros(shape, **settings)

    monkeypatch.setattr(torch, "zeros", recording_zeros)
    ensemble = Ensemble((ConvNetwork(channels=1),), exclusive_classes(3), (4, 8, 8))
    slabs = list_of_copies(predict_probabilities(ensemble, noise((1, 200, 10, 8)), cpu_ladder()))
    assert max(largest) == 4 * 3 * 10 * 8
    assert max(len(p) for _, p, _ in slabs[:-1]) == 2


def test_raising_from_the_callback_ends_the_work_at_that_tile():
    calls = []

    def cancel(done, total):
        calls.append(done)
        if done == 3:
            raise CancelledError

    slabs = predict_probabilities(
        Ensemble((ConvNetwork(),), exclusive_classes(3), (8, 8, 8)), noise((2, 30, 8, 8)), cpu_ladder(), on_tile=cancel
    )
    with pytest.raises(CancelledError):
        list(slabs)
    assert calls == [0, 1, 2, 3]


class NotANumber(ConvNetwork):
    def forward(self, image):
        logits = self.conv(image)
        logits[0, 0, 2, 2, 2] = float("nan")
        return (logits,)


def test_a_nan_is_an_error_and_not_background():
    ensemble = Ensemble((ConvNetwork(), NotANumber()), exclusive_classes(3), (8, 8, 8))
    with pytest.raises(EnvironmentProblemError, match=r"network 2 of 2 .*not finite"):
        collect(ensemble, noise((2, 8, 8, 8)))


def test_a_network_with_another_number_of_classes_is_refused():
    with pytest.raises(InputError, match=r"\(1, 3, 8, 8, 8\) instead of \(1, 4, 8, 8, 8\)"):
        collect(Ensemble((ConvNetwork(),), exclusive_classes(4), (8, 8, 8)), noise((2, 8, 8, 8)))


@pytest.mark.parametrize("overlap", [-0.1, 1.0, float("nan")])
def test_an_overlap_out_of_range_is_refused(overlap):
    with pytest.raises(InputError, match="overlap"):
        collect(Ensemble((ConvNetwork(),), exclusive_classes(3), (8, 8, 8)), noise((2, 8, 8, 8)), overlap=overlap)


class Hungry(ConvNetwork):
    """Runs out of memory with more than `limit` tiles at a time."""

    limit = 1

    def forward(self, image):
        if len(image) > self.limit:
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        return super().forward(image)


def test_out_of_memory_makes_the_tile_batch_smaller_and_changes_no_voxel():
    image = noise((2, 17, 17, 9))
    plain = Ensemble((ConvNetwork(),), exclusive_classes(3), (8, 8, 8))
    hungry = Ensemble((Hungry(),), exclusive_classes(3), (8, 8, 8))
    ladder = cpu_ladder(4)
    found, _ = collect(hungry, image, ladder)
    np.testing.assert_allclose(found, collect(plain, image)[0], atol=1e-6)
    assert ladder.placement.tile_batch == 1
    assert [notice.split(": ")[1] for notice in ladder.notices] == [
        "tiles are now computed 2 at a time.",
        "tiles are now computed 1 at a time.",
    ]


@pytest.mark.parametrize(
    "message",
    [
        "MPS backend out of memory (MPS allocated: 5.56 GB, other allocations: 1.10 GB, max allowed: 6.80 GB).",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_memory_that_runs_out_in_an_error_of_another_kind_moves_the_ladder_too(message):
    class Other(Hungry):
        def forward(self, image):
            try:
                return super().forward(image)
            except torch.OutOfMemoryError:
                raise RuntimeError(message) from None

    ladder = cpu_ladder(2)
    collect(Ensemble((Other(),), exclusive_classes(3), (8, 8, 8)), noise((2, 17, 17, 9)), ladder)
    assert ladder.placement.tile_batch == 1


def test_slices_are_sent_to_a_device_once():
    slices = _Uploaded(torch.zeros(1, 2, 3, 4))
    assert slices.on(CPU) is slices.on(CPU)
    meta = torch.device("meta")
    assert slices.on(meta).device == meta
    assert slices.on(meta) is slices.on(meta)
    assert slices.on(CPU).device == CPU


def test_small_patches_share_a_batch_on_a_gpu():
    assert tiles_at_a_time(CPU, 1000) == 1
    assert tiles_at_a_time(CUDA, 48 * 192 * 192) == 1
    assert tiles_at_a_time(CUDA, 40 * 56 * 40) == 16
    assert tiles_at_a_time(CUDA, 96**3) == 2
    assert tiles_at_a_time(CUDA, 512**3) == 1


def test_the_ladder_goes_from_tile_batch_to_accumulator_to_cpu():
    steps = []
    placement = Placement(CUDA, CUDA, 3)
    while (step := placement.step_down()) is not None:
        placement, _ = step
        steps.append((placement.device.type, placement.accumulator.type, placement.tile_batch))
    assert steps == [("cuda", "cuda", 1), ("cuda", "cpu", 1), ("cpu", "cpu", 1)]


def test_one_tile_too_many_is_an_error_for_a_person():
    network = Hungry()
    network.limit = 0
    with pytest.raises(EnvironmentProblemError, match=r"Not enough memory on cpu .*2\.00 GiB.*region"):
        collect(Ensemble((network,), exclusive_classes(3), (8, 8, 8)), noise((2, 8, 8, 8)))


def test_other_errors_do_not_move_the_ladder():
    class Broken(ConvNetwork):
        def forward(self, image):
            raise ZeroDivisionError

    ladder = cpu_ladder(4)
    with pytest.raises(ZeroDivisionError):
        collect(Ensemble((Broken(),), exclusive_classes(3), (8, 8, 8)), noise((2, 8, 8, 8)), ladder)
    assert ladder.placement.tile_batch == 4


def test_an_accumulator_that_does_not_fit_is_kept_in_main_memory():
    ladder = MemoryLadder(Placement(CUDA, CUDA))

    def make(device):
        if device == CUDA:
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        return device

    empty_cache, torch.cuda.empty_cache = torch.cuda.empty_cache, lambda: None
    try:
        assert ladder.on_accumulator(make) == CPU
    finally:
        torch.cuda.empty_cache = empty_cache
    assert ladder.placement == Placement(CUDA, CPU)
    assert len(ladder.notices) == 1


def test_gradients_stay_as_they_were_for_the_caller_between_slabs():
    slabs = predict_probabilities(
        Ensemble((ConvNetwork(),), exclusive_classes(3), (8, 8, 8)), noise((2, 30, 8, 8)), cpu_ladder()
    )
    next(slabs)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


class Asking(ConvNetwork):
    """Notes whether cuDNN would measure its algorithms."""

    def forward(self, image):
        self.measures = torch.backends.cudnn.benchmark
        return super().forward(image)


def test_only_while_a_network_computes_cudnn_measures_its_algorithms(monkeypatch):
    network = Asking()
    ensemble = Ensemble((network,), exclusive_classes(3), (8, 8, 8))
    next(predict_probabilities(ensemble, noise((2, 30, 8, 8)), cpu_ladder()))
    assert network.measures
    assert not torch.backends.cudnn.benchmark
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    next(predict_probabilities(ensemble, noise((2, 30, 8, 8)), cpu_ladder()))
    assert not network.measures


def test_cudnn_measures_until_the_last_of_several_threads_is_done():
    """Each would otherwise put back what it found, which the last to begin found changed by the others."""
    first, second = measured_convolutions(), measured_convolutions()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.backends.cudnn.benchmark
    second.__exit__(None, None, None)
    assert not torch.backends.cudnn.benchmark


class FakeClock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def run_estimate(durations, batch=1):
    clock = FakeClock()
    estimate = TimeEstimate(len(durations), clock)
    found = []
    for first in range(0, len(durations), batch):
        clock.now += sum(durations[first : first + batch])
        done = min(first + batch, len(durations))
        found.append((done, estimate.seconds_left(done), sum(durations[done:])))
    return found


def test_a_first_tile_that_may_be_mostly_compilation_tells_nothing():
    assert [left for _, left, _ in run_estimate([12.0, 1.0, 1.0, 1.0])] == [None, 2.0, 1.0, 0.0]
    assert [left for _, left, _ in run_estimate([60.0, 50.0, 50.0])] == [120.0, 50.0, 0.0]
    assert [left for _, left, _ in run_estimate([12.0])] == [0.0]


@pytest.mark.parametrize(
    "durations",
    [
        [2.0] * 100,
        [60.0] + [1.0] * 99,  # compilation in the first tile
        [1.0 + 0.5 * (k % 3) for k in range(100)],
        [1.0 + k / 100 for k in range(100)],  # a laptop that gets slower
        [0.5] * 30,
    ],
)
@pytest.mark.parametrize("batch", [1, 2])
def test_the_time_left_is_right_within_a_factor_two_after_ten_percent(durations, batch):
    for done, estimated, true in run_estimate(durations, batch):
        if 0.1 * len(durations) <= done < len(durations):
            assert true / 2 <= estimated <= true * 2
    assert run_estimate(durations, batch)[-1][1] == 0


def test_a_single_step_has_nothing_left():
    assert run_estimate([3.0])[-1][1] == 0


def test_an_earlier_jobs_speed_is_the_estimate_until_steps_are_measured():
    clock = FakeClock()
    estimate = TimeEstimate(10, clock, expected_step_s=3.0)
    assert estimate.seconds_expected() == 30.0
    clock.now += 5
    assert estimate.seconds_left(1) == 27.0  # the first step may be mostly compilation
    assert estimate.step_s() is None
    clock.now += 2
    assert estimate.seconds_left(2) == 16.0
    assert estimate.step_s() == 2.0
    assert TimeEstimate(10, clock).seconds_expected() is None
