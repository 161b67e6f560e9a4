"""`mambaseg doctor --tune`: the scans a model makes on this GPU, and the fastest division of each."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from MambaSegLib.errors import EnvironmentProblemError
from MambaSegLib.progress import Progress

if TYPE_CHECKING:
    from MambaSegLib.commands.reporting import Reporter
    from MambaSegLib.predictor import Predictor
    from MambaSegLib.scan.triton_tuning import Problem


@dataclass(frozen=True)
class Tuned:
    """What was found for one scan.

    Attributes:
        scan: Pass, channels x states, tokens, how many at once, type.
        gain: How many times as fast as by rule.
        tried: Divisions that were measured.
    """

    scan: str
    gain: float
    tried: int


def tune_scans(predictor: Predictor, reporter: Reporter) -> tuple[Tuned, ...]:
    """Watch the model predict noise, measure the divisions of its scans, and keep the fastest for this GPU.

    Raises:
        EnvironmentProblemError: If the model does not scan with the backend "triton" here.
    """
    if predictor.backend != "triton":
        msg = (
            f"--tune divides the scans of the backend 'triton', on an NVIDIA GPU; here {predictor.bundle.manifest.name} computes on "
            f"{predictor.device} with the scan backend {predictor.backend!r}"
        )
        raise EnvironmentProblemError(msg)
    from MambaSegLib.scan.triton_search import tune

    problems = list({problem.key: problem for problem in sorted(_scans_of(predictor), key=str)}.values())
    tuned = []
    for found in tune(problems, predictor.device):
        tuned.append(Tuned(found.problem.key, round(found.gain, 3), found.tried))
        reporter.progress(Progress("Tuning", len(tuned), len(problems)))
    return tuple(tuned)


def _scans_of(predictor: Predictor) -> set[Problem]:
    """Those of single tiles, and of as many as are computed together: fewer where memory does not suffice, as in a prediction."""
    import torch

    from MambaSegLib.devices import place
    from MambaSegLib.memory_ladder import MemoryLadder, Placement, explain_lack_of_memory, tiles_at_a_time
    from MambaSegLib.scan.triton_tuning import problems_met

    plan, ensemble, device = predictor.bundle.manifest.plan, predictor.ensemble, predictor.device
    most = predictor.tile_batch or tiles_at_a_time(device, prod(ensemble.patch_size))
    noise = torch.randn((most, len(plan.channels), *plan.patch_size), generator=torch.Generator().manual_seed(0))
    for network in ensemble.networks:
        place(network, device)

    def watched(placement: Placement) -> set[Problem]:
        with problems_met() as met:
            ensemble.tile_probabilities(noise[: placement.tile_batch].to(device), with_entropy=False)
        return met

    with explain_lack_of_memory():
        found = watched(Placement(device, device, 1))
        return found if most == 1 else found | MemoryLadder(Placement(device, device, most)).run(watched)
