"""The sliding window on a CUDA device: the CPU's probabilities, and a short memory that changes none of them."""

import numpy as np
import pytest
import torch
from torch import nn

from MambaSegLib.memory_ladder import MemoryLadder, Placement, first_placement
from MambaSegLib.postprocessing import resampled_slabs
from MambaSegLib.readout import exclusive_classes
from MambaSegLib.sliding_window import Ensemble, Slab, predict_probabilities

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this computer"),
]

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


class ConvNetwork(nn.Module):
    deep_supervision = False

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv3d(2, 3, 3, padding=1)

    def forward(self, image):
        return (self.conv(image),)


class RunsOutOnCuda(ConvNetwork):
    """Asks for more memory than any device has, until it is on the CPU."""

    def forward(self, image):
        if image.is_cuda:
            torch.empty(2**50, dtype=torch.uint8, device=image.device)
        return super().forward(image)


def collect(network, placement):
    image = np.random.default_rng(0).normal(size=(2, 40, 33, 50)).astype(np.float32)
    ladder = MemoryLadder(placement)
    ensemble = Ensemble((network,), exclusive_classes(3), (16, 16, 16), mirror_axes=(0,))
    slabs = predict_probabilities(ensemble, image, ladder, disagreement=True)
    return np.concatenate([slab.probabilities.cpu().clone().numpy() for slab in slabs]), ladder


def test_cuda_gives_the_cpus_probabilities():
    expected, _ = collect(ConvNetwork(), Placement(CPU, CPU))
    found, _ = collect(ConvNetwork(), Placement(CUDA, CUDA, 4))
    # The network's convolution runs in bfloat16 (8 bits): logits of a few units are off by up to 1 %.
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_sums_in_main_memory_are_the_sums_on_the_device():
    on_device, _ = collect(ConvNetwork(), Placement(CUDA, CUDA))
    in_main_memory, _ = collect(ConvNetwork(), Placement(CUDA, CPU))
    np.testing.assert_allclose(in_main_memory, on_device, atol=1e-6)


def test_the_ladder_ends_on_the_cpu_with_the_cpus_result():
    expected, _ = collect(ConvNetwork(), Placement(CPU, CPU))
    found, ladder = collect(RunsOutOnCuda(), Placement(CUDA, CUDA, 2))
    assert ladder.placement == Placement(CPU, CPU, 1)
    assert len(ladder.notices) == 3
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_sums_too_large_for_the_device_start_in_main_memory():
    assert first_placement(CUDA, 1, 2**50).accumulator == CPU
    assert first_placement(CUDA, 1, 2**20).accumulator == CUDA


class Counting(ConvNetwork):
    """Counts the tiles it was given."""

    tiles = 0

    def forward(self, image):
        self.tiles += len(image)
        return super().forward(image)


def test_blank_tiles_are_computed_once_among_batches_and_give_the_cpus_probabilities():
    image = np.full((2, 16, 16, 128), -2.5, np.float32)
    image[:, 5:9, 5:9, 50:60] = np.random.default_rng(0).normal(size=(2, 4, 4, 10))
    found = {}
    for placement in (Placement(CPU, CPU), Placement(CUDA, CUDA, 4), Placement(CUDA, CPU, 4)):
        network = Counting()
        ensemble = Ensemble((network,), exclusive_classes(3), (16, 16, 16))
        slabs = predict_probabilities(ensemble, image, MemoryLadder(placement))
        found[placement] = np.concatenate([slab.probabilities.cpu().clone().numpy() for slab in slabs])
        assert network.tiles == 1 + 3  # of 15: the content lies in the tiles that start at 40, 48 and 56
    expected, *others = found.values()
    for other in others:
        np.testing.assert_allclose(other, expected, atol=0.02)


def test_slabs_that_move_to_main_memory_on_the_way_are_resampled_all_the_same():
    probabilities = torch.rand(6, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    parts = [Slab(0, probabilities[:3]), Slab(3, probabilities[3:])]
    moved = [Slab(0, probabilities[:3].cuda()), Slab(3, probabilities[3:])]
    expected, found = (
        torch.cat([slab.probabilities.cpu() for slab in resampled_slabs(slabs, (6, 4, 5), (11, 7, 9))])
        for slabs in (parts, moved)
    )
    torch.testing.assert_close(found, expected)


class WideNetwork(ConvNetwork):
    """Its features take 256 MiB per tile: one fits under the cap below, four do not."""

    def forward(self, image):
        features = image.new_zeros((len(image), 1024 * 16, *image.shape[2:]))
        return (super().forward(image)[0] + features.mean(1, keepdim=True),)


@pytest.fixture
def capped_memory():
    """Little memory on a real device: PyTorch's allocator refuses more than this."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 700 * 2**20) / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


@pytest.mark.usefixtures("capped_memory")
def test_real_lack_of_memory_takes_fewer_tiles_at_a_time_and_changes_no_voxel():
    expected, _ = collect(ConvNetwork(), Placement(CUDA, CUDA))
    found, ladder = collect(WideNetwork(), Placement(CUDA, CUDA, 8))
    assert ladder.placement.device == CUDA
    assert ladder.placement.tile_batch < 8
    assert ladder.notices
    np.testing.assert_allclose(found, expected, atol=2e-3)  # convolutions of other batch sizes round otherwise
