"""The names a person imports from MambaSegLib: each is there, and none costs anything until it is used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import MambaSegLib

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", MambaSegLib.__all__)
def test_every_public_name_is_there(name: str) -> None:
    value = getattr(MambaSegLib, name)
    assert value.__name__ == name
    assert name in dir(MambaSegLib)


def test_every_public_name_has_a_home() -> None:
    homes = [name for names in MambaSegLib._HOMES.values() for name in names]
    assert sorted(homes) == sorted(MambaSegLib.__all__)


def test_networks_and_scan_are_there_without_an_import_of_their_own() -> None:
    code = "import MambaSegLib; print(MambaSegLib.networks.create_network, MambaSegLib.scan.selective_scan)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        MambaSegLib.nonsense  # noqa: B018


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, MambaSegLib; MambaSegLib.load_bundle; MambaSegLib.list_models; MambaSegLib.Volume\n"
        "print([name for name in ('torch', 'SimpleITK', 'numba', 'scipy', 'safetensors') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
