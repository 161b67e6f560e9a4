"""Convolutions of slices: the numbers of the 3D convolution, in either layout of the input."""

import pytest
import torch
from torch import nn

from MambaSegLib.devices import place
from MambaSegLib.networks.conv_norm import _convolved


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize(
    ("kernel", "stride", "channels"),
    [((1, 3, 3), (1, 1, 1), 8), ((1, 3, 3), (1, 2, 2), 9), ((1, 3, 3), (2, 2, 2), 8), ((1, 3, 3), (1, 1, 1), 1),
     ((1, 1, 1), (1, 1, 1), 8), ((3, 3, 3), (1, 2, 2), 8), ((1, 5, 5), (1, 1, 1), 16)],
)  # fmt: skip
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_flat_kernel_gives_on_slices_what_it_gives_on_the_volume(layout, kernel, stride, channels, with_bias):
    torch.manual_seed(0)
    padding = tuple(size // 2 for size in kernel)
    convolution = nn.Conv3d(channels, 6, kernel, stride, padding, bias=True)
    x = torch.randn(2, channels, 5, 7, 6).contiguous(memory_format=layout)
    leaves = [x.clone(memory_format=torch.preserve_format).requires_grad_() for _ in range(2)]
    bias = convolution.bias if with_bias else None
    found = _convolved(convolution, leaves[0], bias)
    wanted = nn.functional.conv3d(leaves[1], convolution.weight, bias, stride, padding)
    torch.testing.assert_close(found, wanted)
    weights = torch.randn(wanted.shape)
    (found * weights).sum().backward()
    (wanted * weights).sum().backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad)


def test_a_network_is_placed_on_the_cpu_as_it_is():
    network = nn.Sequential(nn.Conv3d(8, 4, 3), nn.Linear(3, 2))
    pointers = [parameter.data_ptr() for parameter in network.parameters()]
    place(network, torch.device("cpu"))
    assert [parameter.data_ptr() for parameter in network.parameters()] == pointers
