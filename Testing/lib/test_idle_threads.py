"""PyTorch's idle threads sleep, whoever starts it, and the environment stays as it was."""

import json
import os
import re
import subprocess
import sys

import pytest

SCRIPT = """
import json, os
from MambaSegLib import Predictor, load_bundle
from MambaSegLib.idle_threads import SETTINGS
before = [os.environ.get(name) for name in SETTINGS]
Predictor(load_bundle("mamba_unet_multidirectional.hippocampus"), device="cpu", folds=[0], engine="pytorch")
print(json.dumps([os.environ.get(name) for name in SETTINGS] == before))
"""


def run(*words, **environment):
    """Standard output and error of Python; GNU's OpenMP library writes its settings to the latter when it is loaded."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "KMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, *words],
        env=kept | {"OMP_DISPLAY_ENV": "VERBOSE"} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("PyTorch's OpenMP library does not tell its settings here")
    return done


def spins(done):
    """How often a thread looks for work before it sleeps."""
    return int(re.search(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)[1])


def test_from_python_threads_sleep_and_the_environment_stays_as_it_was():
    done = run("-c", SCRIPT)
    assert json.loads(done.stdout.splitlines()[-1]) is True
    assert spins(done) == 0


def test_a_policy_somebody_has_chosen_stays():
    assert spins(run("-c", SCRIPT, OMP_WAIT_POLICY="ACTIVE")) > 0


def test_where_pytorch_is_there_already_nothing_is_changed():
    done = run("-c", "import torch" + SCRIPT)
    assert json.loads(done.stdout.splitlines()[-1]) is True
    assert spins(done) > 0


def test_the_command_line_lets_threads_sleep():
    assert spins(run("-m", "MambaSegLib", "doctor", "--quick")) == 0
