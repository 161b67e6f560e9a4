"""A training in bfloat16 starts only where convolutions give right gradients in it."""

from __future__ import annotations

import pytest
import torch
from MambaSegTraining import precision_check
from MambaSegTraining.precision_check import check_bfloat16, require_right_gradients
from torch import Tensor, nn

from MambaSegLib.errors import EnvironmentProblemError


class Pooling(nn.Module):
    """A convolution at full size, dropout, and one after halving."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.drop = nn.Conv3d(1, 8, 3, padding=1), nn.Dropout(0.5)
        self.coarse = nn.Conv3d(8, 8, (1, 3, 3), stride=(2, 2, 2), padding=(0, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        return self.coarse(self.drop(self.fine(image)))


def test_right_gradients_pass_and_leave_network_and_random_numbers_as_they_were():
    network = Pooling().train()
    before = torch.random.get_rng_state()
    require_right_gradients(network, (2, 1, 8, 8, 8))
    assert network.training
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(layer._forward_pre_hooks for layer in network.modules())


def test_a_wrong_gradient_names_the_convolution_its_map_and_the_cure(monkeypatch):
    exact = precision_check._weight_gradient

    def broken(layer: nn.Conv3d, image: Tensor, bf16: bool) -> Tensor:
        gradient = exact(layer, image, bf16)
        if bf16 and layer.kernel_size == (1, 3, 3):
            gradient[0, 0, 0, 0, 0] = float("nan")
        return gradient

    monkeypatch.setattr(precision_check, "_weight_gradient", broken)
    with pytest.raises(
        EnvironmentProblemError, match=r'Conv3d \(1, 3, 3\) on \(8, 8, 8\) voxels\. Set amp = "off"'
    ) as error:
        require_right_gradients(Pooling(), (2, 1, 8, 8, 8))
    assert "(3, 3, 3)" not in str(error.value)


def test_the_gradient_that_is_compared_is_the_training_one():
    layer, image = nn.Conv3d(2, 3, 3, padding=1), torch.randn(1, 2, 4, 5, 6)
    output = layer(image)
    output.backward(torch.randn(output.shape, generator=torch.Generator().manual_seed(1)))
    assert torch.allclose(precision_check._weight_gradient(layer, image, bf16=False), layer.weight.grad)


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_that_only_emulates_bfloat16_is_named_with_the_cure(native, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    check_bfloat16(Pooling(), torch.device("cuda"), (2, 1, 8, 8, 8))
    assert ("Tesla T4 has no bfloat16" in caplog.text) is not native
    assert ('amp = "fp16"' in caplog.text) is not native
