"""A CT is segmented in the box of the body: what is left out, what is said of it, and when nothing is left out."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from MambaSegLib import body_crop
from MambaSegLib.body_crop import Air, body_box, surrounded
from MambaSegLib.geometry import Box
from MambaSegLib.plan import Channel, Label, NetworkPlan, Normalization, Plan
from MambaSegLib.predictor import Predictor
from MambaSegLib.preprocessing import preprocess
from MambaSegLib.sliding_window import Slab
from MambaSegLib.volume import Geometry, Volume

WINDOW = Normalization("ct", lower=-200, upper=300, mean=50, std=100)
AIR, FLOOR = -1000, -2.5


def make_plan(*normalizations, patch=(8, 8, 8), spacing=(1.0, 1.0, 1.0), **settings):
    normalizations = normalizations or (WINDOW,)
    channels = tuple(Channel(f"c{k}", how) for k, how in enumerate(normalizations))
    network = NetworkPlan("mamba_unet_unidirectional", len(channels), 2, patch, ())
    return Plan("SPL", spacing, channels, (Label(1, "organ", (255, 0, 0)),), network, **settings)


def axial(array):
    array = array if array.ndim == 4 else array[None]
    direction = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    return Volume(array, Geometry(array.shape[1:], (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), direction))


class Organ(nn.Module):
    """Class 1 above 0, voxel by voxel; `of_air` is added to class 1 in the middle of a tile without content."""

    deep_supervision = False

    def __init__(self, of_air=0.0):
        super().__init__()
        self.tiles, self.of_air = 0, of_air

    def forward(self, image):
        self.tiles += len(image)
        found = torch.cat([-image[:, :1], image[:, :1]], 1)
        if self.of_air and bool((image == image.flatten()[0]).all()):
            found[:, 1, 4, 4, 4] += self.of_air
        return (found,)


def scan(shape=(20, 40, 44), body=(slice(6, 12), slice(10, 22), slice(14, 24))):
    """Noisy air and a body of soft tissue."""
    generator = np.random.default_rng(0)
    array = generator.integers(-1040, -960, shape)
    array[body] = generator.integers(20, 90, array[body].shape)
    return array.astype(np.int16)


def preprocessed(array, plan):
    return preprocess(axial(array), plan).array


def test_the_box_is_the_body_with_a_quarter_of_a_tile_around_it():
    plan = make_plan()
    assert body_box(preprocessed(scan(), plan), plan) == Box((4, 8, 12), (14, 24, 26))


def test_no_voxel_that_shows_anything_is_left_out():
    plan = make_plan()
    for corner in ((0, 0, 0), (19, 39, 43), (0, 39, 0)):
        array = scan()
        array[corner] = -199  # one Hounsfield unit above the window's lower end
        box = body_box(preprocessed(array, plan), plan)
        assert all(a <= k < b for a, k, b in zip(box.start, corner, box.stop, strict=True))
        array[corner] = -200
        assert body_box(preprocessed(array, plan), plan) == Box((4, 8, 12), (14, 24, 26))


def test_the_box_is_at_least_a_tile_where_the_image_is():
    plan = make_plan(patch=(24, 32, 16))
    body = (slice(0, 1), slice(38, 39), slice(20, 21))
    assert body_box(preprocessed(scan(body=body), plan), plan) == Box((0, 8, 12), (20, 40, 28))


def test_an_image_of_nothing_but_air_is_kept_whole():
    plan = make_plan()
    assert body_box(preprocessed(np.full((9, 20, 20), AIR), plan), plan) == Box((0, 0, 0), (9, 20, 20))


@pytest.mark.parametrize("scheme", ["zscore", "rescale", "none"])
def test_other_schemes_are_never_cropped_not_even_in_one_channel(scheme):
    for normalizations in ((Normalization(scheme),), (WINDOW, Normalization(scheme))):
        plan = make_plan(*normalizations)
        array = np.stack([scan()] * len(normalizations))
        image = preprocess(axial(array), plan).array
        assert body_box(image, plan) == Box((0, 0, 0), (20, 40, 44))


def test_what_any_channel_shows_is_kept():
    plan = make_plan(WINDOW, replace(WINDOW, lower=-100))
    array = np.stack([scan(), scan(body=(slice(8, 10), slice(18, 33), slice(15, 16)))])
    assert body_box(preprocess(axial(array), plan).array, plan) == Box((4, 8, 12), (14, 35, 26))


def test_ringing_of_the_resampled_edge_ends_within_seven_voxels():
    plan = make_plan(spacing=(0.7, 0.6, 0.8))
    image = preprocessed(scan(), plan)
    box = body_box(image, plan)
    margin = 2 + 7
    for first, last, start, stop, step in zip(
        (6, 10, 14), (12, 22, 24), box.start, box.stop, (0.7, 0.6, 0.8), strict=True
    ):
        assert first / step - margin - 1 <= start <= first / step - 2
        assert last / step + 2 <= stop <= last / step + margin + 1


def predict(network, plan, array, **settings):
    manifest = SimpleNamespace(plan=plan, name="test", version="1")
    bundle = SimpleNamespace(manifest=manifest, fold_indices=(0,), sha256="", load_network=lambda fold: network)
    predictor = Predictor(bundle, device="cpu", overlap=0.5)
    return predictor.predict(axial(array), **settings)


def whole(monkeypatch):
    monkeypatch.setattr(body_crop, "body_box", lambda image, plan: Box((0, 0, 0), image.shape[1:]))


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.5, 0.8, 1.25)])
def test_the_result_is_that_of_the_whole_image_with_fewer_tiles(spacing, monkeypatch):
    plan, array = make_plan(spacing=spacing), scan()
    one, other = Organ(), Organ()
    reports = []
    found = predict(one, plan, array, progress=reports.append, uncertainty=True, disagreement=True)
    counts = [(p.done, p.total) for p in reports if p.stage == "Predicting"]
    assert counts[0][0] == 0
    assert counts[-1][0] == counts[-1][1] == {total for _, total in counts}.pop()
    whole(monkeypatch)
    expected = predict(other, plan, array, uncertainty=True, disagreement=True)
    assert one.tiles < 0.6 * other.tiles
    assert expected.labels.array.any()
    np.testing.assert_array_equal(found.labels.array, expected.labels.array)
    # Voxel by voxel, it makes no difference where tiles lie.
    np.testing.assert_allclose(found.uncertainty, expected.uncertainty, atol=1e-5)
    np.testing.assert_allclose(found.disagreement, expected.disagreement, atol=1e-5)


def test_a_network_that_finds_something_in_air_gets_the_whole_image(monkeypatch):
    plan, array = make_plan(), scan()
    found = predict(Organ(of_air=100.0), plan, array)
    whole(monkeypatch)
    expected = predict(Organ(of_air=100.0), plan, array)
    assert expected.labels.array[4, 4, 4] == 1
    np.testing.assert_array_equal(found.labels.array, expected.labels.array)


def test_where_too_few_tiles_would_be_saved_no_blank_one_is_computed():
    network = Organ()
    predict(network, make_plan(patch=(20, 40, 40)), scan())
    assert network.tiles == 2


def test_slabs_of_a_box_become_slabs_of_the_whole_without_gaps():
    inside = torch.rand(13, 2, 3, 4)
    slabs = [Slab(0, inside[:10], inside[:10, 0]), Slab(10, inside[10:], inside[10:, 0])]
    box, shape = Box((20, 1, 2), (33, 4, 6)), (40, 5, 9)
    made = [
        (s.start, s.probabilities.clone(), s.disagreement.clone())
        for s in surrounded(slabs, box, shape, Air(torch.tensor([0.9, 0.1]), 0.25))
    ]
    assert [start for start, _, _ in made] == np.cumsum([0] + [len(p) for _, p, _ in made[:-1]]).tolist()
    probabilities, disagreement = torch.cat([p for _, p, _ in made]), torch.cat([d for _, _, d in made])
    expected = torch.tensor([0.9, 0.1])[None, :, None, None].repeat(40, 1, 5, 9)
    expected[20:33, :, 1:4, 2:6] = inside
    assert torch.equal(probabilities, expected)
    assert torch.equal(disagreement[20:33, 1:4, 2:6], inside[:, 0])
    assert (disagreement[:20] == 0.25).all()
