"""Networks from CUDA graphs: the results of the network itself, also after its weights have moved."""

import pytest
import torch

from MambaSegLib.cuda_graphs import CALLS_BEFORE, GraphRunner
from MambaSegLib.networks import create_network
from MambaSegLib.plan import NetworkPlan, StagePlan

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this computer"),
]


def network(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    stages = tuple(StagePlan(8 * (k + 1), (3, 3, 3), (2, 2, 2) if k else (1, 1, 1), 1, 1) for k in range(2))
    plan = NetworkPlan("mamba_unet_multidirectional", 1, 3, (9, 18, 18), stages, options={"d_state_max": 8})
    built = create_network(plan).cuda().eval()
    built.deep_supervision = False
    return built


@torch.inference_mode()
def test_a_graph_repeats_what_the_network_computes_on_new_images_and_after_its_weights_moved():
    own, run = network(0), GraphRunner()
    for round_ in range(2):
        for number in range(CALLS_BEFORE + 3):
            image = torch.randn(2, 1, 9, 18, 18, device="cuda", generator=torch.Generator("cuda").manual_seed(number))
            with torch.autocast("cuda", torch.bfloat16):
                torch.testing.assert_close(run(own, image), own(image)[0])
        if round_ == 0:
            assert any(run._recorded.values())
            own.load_state_dict(network(1).state_dict())
            own.cpu().cuda()


@torch.inference_mode()
def test_members_of_an_ensemble_do_not_get_each_others_results():
    members, run = [network(seed) for seed in range(3)], GraphRunner()
    image = torch.randn(1, 1, 9, 18, 18, device="cuda")
    for _ in range(CALLS_BEFORE + 2):
        results = [run(member, image).clone() for member in members]
    for member, result in zip(members, results, strict=True):
        torch.testing.assert_close(result, member(image)[0])


@torch.inference_mode()
def test_a_network_that_cannot_be_recorded_runs_as_it_is():
    class Asks(torch.nn.Module):
        def forward(self, image):
            return (image * float(image.sum().item() > 0),)  # .item() waits for the GPU: not in a graph

    run, image, module = GraphRunner(), torch.ones(1, 1, 4, 4, 4, device="cuda"), Asks()
    for _ in range(CALLS_BEFORE + 2):
        torch.testing.assert_close(run(module, image), image)
    assert None in run._recorded.values()
