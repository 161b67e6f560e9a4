"""`mambaseg-train cost`: counts of any network, measurements in processes of their own, files for people and programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from MambaSegTraining.__main__ import main
from MambaSegTraining.costs.compute import MeasureSettings, cost_of
from MambaSegTraining.costs.measuring import measure
from MambaSegTraining.costs.paper_values import PRINTED
from MambaSegTraining.costs.process import MeasureJob
from MambaSegTraining.costs.records import CostReport, Measurement, NetworkCost, read_cost
from MambaSegTraining.costs.targets import Target, target_of_run, targets_of_plan
from MambaSegTraining.files import read_json
from MambaSegTraining.recipe import Recipe
from MambaSegTraining.run_folder import RunFolder

from MambaSegLib.errors import EnvironmentProblemError
from MambaSegLib.networks import NETWORKS
from MambaSegLib.plan import NetworkPlan, StagePlan

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _children_find_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'Training'}")


def small_plan(name: str = "nnunet", width: int = 8, patch: tuple[int, int, int] = (16, 16, 16)) -> NetworkPlan:
    stages = (StagePlan(width, (1, 1, 1), (3, 3, 3), 1, 1), StagePlan(width, (2, 2, 2), (3, 3, 3), 1, 1))
    return NetworkPlan(name, 1, 3, patch, stages)


def test_every_network_is_counted_on_every_named_plan_or_says_why_not(tmp_path: Path, capsys) -> None:
    assert main(["cost", "--no-measure", "--output", str(tmp_path / "costs")]) == 0
    costs = read_json(CostReport, tmp_path / "costs" / "costs.json").costs
    assert {(cost.dataset, cost.network) for cost in costs} == {
        (dataset, network) for dataset in ("acdc", "braintumour", "synapse") for network in NETWORKS
    }
    for cost in costs:
        assert (cost.parameters and cost.macs and cost.macs.total > cost.parameters) or cost.problem
    page = (tmp_path / "costs" / "costs.md").read_text()
    assert "| nnunet | 48 × 192 × 192 | 30.71 | 474.69 | 474.69 |" in page
    assert "| nnunet | 30.71 | 30.64 | 474.69 | 410.11 |" in page
    assert "delta u B" in page
    assert "synapse nnunet: 30.71 M parameters, 474.69 GMACs" in capsys.readouterr().out


def test_the_paper_has_a_row_for_each_of_its_networks() -> None:
    """Table 1 has fourteen; what else is in the table of networks, the paper did not print."""
    assert len(PRINTED) == 14
    assert set(NETWORKS) - set(PRINTED) <= {"segmamba", "nnmamba"}


def test_a_planned_run_is_measured_and_keeps_its_cost(planned_run: Path, tmp_path: Path) -> None:
    arguments = ["cost", "--run", str(planned_run), "--output", str(tmp_path / "out"), "--repeats", "1"]
    assert main([*arguments, "--device", "cpu", "--threads", "1", "--batch-size", "1"]) == 0
    cost = read_cost(RunFolder(planned_run))
    assert cost is not None
    assert cost.measured is not None
    assert (cost.dataset, cost.network) == ("Balls", "mamba_unet_multidirectional")
    assert (cost.measured.batch_size, cost.measured.patch_size, cost.measured.threads) == (1, (16, 16, 16), 1)
    assert cost.measured.precision == "off"  # the run's; the default is bf16
    assert cost.measured.volume_shape == (18.0, 22.0, 20.0)
    assert cost.measured.tiles == 2 * 2 * 2
    assert cost.measured.training_step_s > cost.measured.tile_s > 0
    assert json.loads((tmp_path / "out" / "costs.json").read_text())["costs"][0]["network"] == cost.network
    assert not (tmp_path / "out" / "costs.png").exists()  # nothing was validated


def test_a_validated_run_is_drawn(validated_run: Path, tmp_path: Path) -> None:
    from MambaSegTraining.costs.plot import Point, draw_costs, mean_dsc

    dsc = mean_dsc(RunFolder(validated_run))
    assert dsc is not None
    assert 0 <= dsc <= 1
    measured = Measurement(
        "a processor", (), "cpu", 1, "numba", "off", False, 2, (16, 16, 16), 0.5, 10**9, 0.1, 10**8, (20.0,) * 3, 8, 3
    )
    draw_costs([Point(NetworkCost("nnunet", "Balls", (16, 16, 16), measured=measured), dsc)], tmp_path / "costs.png")
    assert (tmp_path / "costs.png").read_bytes().startswith(b"\x89PNG")


def test_memory_is_at_least_what_must_be_held() -> None:
    """In training: five full-size maps of 8 channels in float32 for the gradient of two convolutions, norms and heads."""
    job = MeasureJob(small_plan(patch=(16, 64, 64)), Recipe(batch_size=2, amp="off"), threads=1, repeats=1)
    measured = measure(job, (64, 64, 64))
    assert measured.training_memory_bytes is not None
    assert measured.inference_memory_bytes is not None
    assert measured.training_memory_bytes > 5 * 2 * 8 * 4 * 16 * 64 * 64
    assert measured.training_memory_bytes > measured.inference_memory_bytes > 0
    assert measured.tiles == 7


def test_what_cannot_be_measured_is_told_and_counted_anyway() -> None:
    target = Target(small_plan(), "Balls", Recipe(), (20.0, 20.0, 20.0))
    cost = cost_of(target, MeasureSettings("cpu", timeout_s=0.01))
    assert cost.macs is not None
    assert cost.measured is None
    assert cost.problem == "not measured: training: not done after 0.01 s"


def test_a_process_that_fails_gives_its_last_words() -> None:
    with pytest.raises(EnvironmentProblemError, match=r"training: .*scan backend"):
        measure(MeasureJob(small_plan("umamba_bot"), Recipe(amp="off"), scan="mamba_ssm"), (16.0, 16.0, 16.0))


def test_a_network_that_cannot_be_built_is_a_row_with_the_reason() -> None:
    plan = NetworkPlan("nnunet", 1, 3, (16, 16, 15), small_plan().stages)
    cost = cost_of(Target(plan, "Balls", Recipe(), (16.0, 16.0, 16.0)))
    assert cost.macs is None
    assert "(16, 16, 16)" in cost.problem


def test_a_plan_file_is_counted_with_its_own_network_or_others(planned_run: Path) -> None:
    path = str(planned_run / "plan.json")
    own = targets_of_plan(path)
    assert [target.network for target in own] == [target_of_run(RunFolder(planned_run)).network]
    others = targets_of_plan(path, ["nnunet", "umamba_bot"])
    assert [target.network.name for target in others] == ["nnunet", "umamba_bot"]
    assert others[0].network.stages == own[0].network.stages
