"""Several processes train as one would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from MambaSegTraining.__main__ import main
from MambaSegTraining.batches import PatchBatches
from MambaSegTraining.fold_training import FoldJob, train_fold
from MambaSegTraining.ranks import Ranks, _own_gpu, joined_ranks
from MambaSegTraining.run_folder import WEIGHTS_FILE, RunFolder
from MambaSegTraining.settings import read_settings

from MambaSegLib.errors import InputError


@pytest.fixture
def job(planned_run):
    assert main(["preprocess", str(planned_run), "--workers", "0"]) == 0
    run = RunFolder(planned_run)
    return FoldJob(run, fold=0, recipe=run.read_settings().recipe, workers=0)


def test_the_processes_slices_make_up_the_batch_of_one(job):
    recipe = replace(job.recipe, batch_size=4)
    plan, names = job.run.read_plan(), job.run.read_fold(0).train
    whole = PatchBatches(job.run.store, names, plan, recipe, seed=1)[5]
    places = [Ranks(rank, 2).slice_of(4) for rank in range(2)]
    parts = [PatchBatches(job.run.store, names, plan, recipe, seed=1, places=part)[5] for part in places]
    assert torch.equal(torch.cat([part.image for part in parts]), whole.image)
    assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)


def test_a_batch_that_cannot_be_shared_equally_is_refused():
    with pytest.raises(InputError, match="batch_size is 3, which 2 processes cannot share"):
        Ranks(0, 2).slice_of(3)


def test_alone_nothing_is_exchanged():
    with joined_ranks("cpu") as ranks:
        assert (ranks.rank, ranks.count, ranks.device) == (0, 1, "cpu")
    assert (ranks.gathered("a"), ranks.mean(0.5), ranks.any(True), ranks.any(False)) == (["a"], 0.5, True, False)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InputError, match=r"more processes on this computer than the 2 GPU\(s\) it has"):
        _own_gpu(2)
    assert _own_gpu(3) == 2


def test_only_the_other_processes_random_numbers_are_moved():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    Ranks(0, 2).separate_randomness(1, 2)
    assert torch.equal(torch.get_rng_state(), before)
    Ranks(1, 2).separate_randomness(1, 2)
    assert not torch.equal(torch.get_rng_state(), before)


def _train_with_two_processes(job: FoldJob, config: Path, *more: str) -> subprocess.CompletedProcess:
    root = Path(__file__).resolve().parents[2]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "MambaSegTraining"]
    train = ["train", str(job.run.path), "--fold", "0", "--config", str(config), "--device", "cpu", "--threads", "1"]
    return subprocess.run(
        [sys.executable, *torchrun, *train, "--workers", "0", *more],
        env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'Training'}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def _records(job: FoldJob) -> list[dict]:
    return [json.loads(line) for line in (job.run.fold(0) / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_follow_the_loss_curve_of_one_with_the_whole_batch(job, config_file, tmp_path):
    """Two patches each, against four in one process; stopped after the first step and continued on the way.

    With the Dice of the batch, which needs sums over the processes, besides the mean of their losses.
    """
    text = config_file.read_text().replace("batch_size = 2", "batch_size = 4\nbatch_dice = true")
    config_file.write_text(text.replace("validation_batches = 1", "validation_batches = 3"))
    stopped = _train_with_two_processes(job, config_file, "--max-minutes", "0")
    assert "Stopped; continue with" in stopped.stdout, stopped.stderr
    finished = _train_with_two_processes(job, config_file, "--resume")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("is trained") == 1
    assert (job.run.fold(0) / WEIGHTS_FILE).is_file()
    together = _records(job)

    job.run.fold(0).rename(tmp_path / "together")
    assert train_fold(replace(job, recipe=read_settings(config_file).recipe))
    alone = _records(job)
    assert len(together) == len(alone) == 2
    for one, other in zip(together, alone, strict=True):
        for measured in ("train_loss", "gradient_norm", "patch_dice", "learning_rate"):
            # Sums in another order: 1e-7 each, grown by four steps at a high learning rate. Weights are not compared:
            # where the gradient should be 0, as of a bias before a normalization, AdamW makes whole steps of rounding.
            assert one[measured] == pytest.approx(other[measured], rel=1e-4, abs=1e-5), measured
