"""Parameter counts of the released networks on the released plans (counted from the authors' code and plans)."""

import pytest
import torch

from MambaSegLib.networks import create_network
from MambaSegLib.plan import NetworkPlan, StagePlan

FEATURES = (32, 64, 128, 256, 320, 320)
SYNAPSE = (((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2)), ((1, 3, 3), *((3, 3, 3),) * 5))
ACDC = (
    ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2)),
    ((1, 3, 3), (1, 3, 3), *((3, 3, 3),) * 4),
)
BRAIN = (((1, 1, 1), *((2, 2, 2),) * 5), ((3, 3, 3),) * 6)

PLANS = {
    "synapse": (SYNAPSE, 1, 14, (48, 192, 192)),
    "acdc": (ACDC, 1, 4, (14, 256, 224)),
    "braintumour": (BRAIN, 4, 4, (128, 128, 128)),
}

COUNTS = {
    ("synapse", "mamba_unet_unidirectional"): 60_800_966,
    ("synapse", "mamba_unet_bidirectional"): 64_445_606,
    ("synapse", "mamba_unet_multidirectional"): 77_653_734,
    ("acdc", "mamba_unet_unidirectional"): 59_805_780,
    ("acdc", "mamba_unet_bidirectional"): 63_450_420,
    ("acdc", "mamba_unet_multidirectional"): 76_658_548,
    ("braintumour", "mamba_unet_unidirectional"): 61_379_764,
    ("braintumour", "mamba_unet_bidirectional"): 65_024_404,
    ("braintumour", "mamba_unet_multidirectional"): 78_232_532,
}


def released_plan(dataset: str, name: str) -> NetworkPlan:
    (strides, kernels), in_channels, classes, patch = PLANS[dataset]
    stages = tuple(
        StagePlan(features, stride, kernel, blocks=2, decoder_blocks=2)
        for features, stride, kernel in zip(FEATURES, strides, kernels, strict=True)
    )
    return NetworkPlan(name, in_channels, classes, patch, stages, True, {"preset": "released"})


@pytest.mark.parametrize(("dataset", "name"), COUNTS)
def test_released_networks_have_the_parameters_of_the_authors_code(dataset: str, name: str) -> None:
    with torch.device("meta"):
        network = create_network(released_plan(dataset, name))
    assert sum(parameter.numel() for parameter in network.parameters()) == COUNTS[dataset, name]
