"""The network in CONTRIBUTING.md's tutorial is one: built from the page, under the contract of all others."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from MambaSegLib.errors import InputError
from MambaSegLib.networks import NETWORKS, NetworkEntry, create_network, resolve_plan
from MambaSegLib.plan import NetworkPlan, StagePlan

PAGE = Path(__file__).resolve().parents[2] / "CONTRIBUTING.md"


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> NetworkPlan:
    """A plan of the page's network, whose file and row were added as the page says."""
    text = PAGE.read_text(encoding="utf-8")
    (code,) = re.findall(r"^ +```python\n(.*?)^ +```$", text, re.MULTILINE | re.DOTALL)
    (row,) = re.findall(r"^ +(NetworkEntry\(.*\)),$", text, re.MULTILINE)
    path = tmp_path / "dilated.py"
    path.write_text(textwrap.dedent(code), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("MambaSegLib.networks.dilated", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    call = ast.parse(row, mode="eval").body
    assert isinstance(call, ast.Call)
    entry = NetworkEntry(*(ast.literal_eval(argument) for argument in call.args))
    monkeypatch.setitem(NETWORKS, entry.name, entry)
    return NetworkPlan(entry.name, 2, 3, (5, 6, 7), (StagePlan(4, (1, 1, 1), (3, 3, 3), 1),), options={"width": 4})


def test_the_tutorials_network_keeps_the_contract(plan: NetworkPlan) -> None:
    network = create_network(plan)
    (logits,) = network(torch.randn(1, 2, 5, 6, 7))
    assert logits.shape == (1, 3, 5, 6, 7)
    logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert resolve_plan(plan).options == {"width": 4, "layers": 4}


def test_the_tutorials_network_refuses_what_it_does_not_know(plan: NetworkPlan) -> None:
    for options in ({"depth": 3}, {"layers": 0}):
        with pytest.raises(InputError):
            create_network(replace(plan, options=options))
