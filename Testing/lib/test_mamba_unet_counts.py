"""Parameter counts of the released networks on the released plans (counted from the authors' code and plans)."""

import pytest
import torch
from MambaSegTraining.named_plans import named_plan

from MambaSegLib.networks import create_network

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


@pytest.mark.parametrize(("dataset", "name"), COUNTS)
def test_released_networks_have_the_parameters_of_the_authors_code(dataset: str, name: str) -> None:
    with torch.device("meta"):
        network = create_network(named_plan(dataset, name).plan.network)
    assert sum(parameter.numel() for parameter in network.parameters()) == COUNTS[dataset, name]
