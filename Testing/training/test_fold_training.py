"""Training: it learns, it can be interrupted anywhere, and it says why when it cannot go on."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from MambaSegTraining.__main__ import main
from MambaSegTraining.batches import PatchBatches, stream_batches
from MambaSegTraining.case_sources import case_key, is_current
from MambaSegTraining.divergence import DivergedError, check_weights, keep_copy, precision_after, rate_factor
from MambaSegTraining.files import load_checkpoint, load_weights, save_checkpoint
from MambaSegTraining.fingerprint import dataset_of
from MambaSegTraining.fold_training import LAST_EPOCH_FILE, FoldJob, train_fold, train_step
from MambaSegTraining.patch_check import patch_dice
from MambaSegTraining.run_folder import CHECKPOINT_FILE, WEIGHTS_FILE, RunFolder
from MambaSegTraining.settings import read_settings
from MambaSegTraining.store import read_record
from MambaSegTraining.training_state import TrainingState
from torch import nn

from MambaSegLib.errors import InputError
from MambaSegLib.networks import create_network
from MambaSegLib.readout import exclusive_classes


@pytest.fixture
def run(planned_run):
    assert main(["preprocess", str(planned_run), "--workers", "0"]) == 0
    return RunFolder(planned_run)


@pytest.fixture
def job(run):
    return FoldJob(run, fold=0, recipe=run.read_settings().recipe, workers=0, scan="auto")


def _stopped_after(job, steps):
    counter = iter([False] * (steps - 1) + [True])
    return replace(job, should_stop=lambda: next(counter))


def test_an_interrupted_training_ends_with_the_same_weights_to_the_bit(job, tmp_path):
    """Four steps in one go, and stopped after step 1 and, in the middle of the second epoch, after step 3."""
    assert train_fold(job)
    folder = job.run.fold(0)
    uninterrupted = load_weights(folder / WEIGHTS_FILE)
    log = (folder / "log.jsonl").read_text()
    folder.rename(tmp_path / "uninterrupted")

    assert not train_fold(_stopped_after(job, 1))
    assert not (folder / WEIGHTS_FILE).exists()
    assert not train_fold(_stopped_after(replace(job, resume=True), 2))
    assert train_fold(replace(job, resume=True))
    resumed = load_weights(folder / WEIGHTS_FILE)
    assert uninterrupted.keys() == resumed.keys()
    assert all(torch.equal(resumed[name], weights) for name, weights in uninterrupted.items())
    for before, after in zip(log.splitlines(), (folder / "log.jsonl").read_text().splitlines(), strict=True):
        before, after = json.loads(before), json.loads(after)
        for measured in ("seconds", "wait_share"):
            del before[measured], after[measured]
        assert before == after


def test_other_seeds_give_other_weights(job, tmp_path):
    train_fold(job)
    first = load_weights(job.run.fold(0) / WEIGHTS_FILE)
    job.run.fold(0).rename(tmp_path / "first")
    train_fold(replace(job, recipe=replace(job.recipe, seed=1)))
    second = load_weights(job.run.fold(0) / WEIGHTS_FILE)
    assert not all(torch.equal(second[name], weights) for name, weights in first.items())


def test_a_short_training_finds_most_of_the_balls(job):
    longer = replace(job.recipe, epochs=1, iterations_per_epoch=40, augmentation="none", ema_decay=0.0)
    train_fold(replace(job, recipe=longer))
    record = json.loads((job.run.fold(0) / "log.jsonl").read_text().splitlines()[-1])
    assert record["patch_dice"][0] > 0.75


def test_batches_made_in_another_process_are_the_same(job):
    plan, fold = job.run.read_plan(), job.run.read_splits().folds[0]
    batches = PatchBatches(job.run.store, fold.train, plan, job.recipe, seed=3)
    here, there = (list(stream_batches(batches, range(2, 5), workers=workers)) for workers in (0, 1))
    for one, other in zip(here, there, strict=True):
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.labels, other.labels)


def test_batches_keep_no_files_open(job):
    """Systems allow few, often 1024: less than twice the cases of some data sets."""
    plan, fold = job.run.read_plan(), job.run.read_splits().folds[0]
    batches = PatchBatches(job.run.store, fold.train, plan, job.recipe, seed=3)
    kept = [batches[0]]
    mapped = Path("/proc/self/maps")
    if not mapped.is_file():
        pytest.skip("this system does not list what a process has mapped")
    kept += [batches[number] for number in range(1, 5)]
    assert str(job.run.store) not in mapped.read_text()


def test_training_is_not_started_over_a_checkpoint_unless_asked(job):
    train_fold(_stopped_after(job, 1))
    with pytest.raises(InputError, match="--resume"):
        train_fold(job)


def test_a_checkpoint_of_another_recipe_is_not_continued(job):
    train_fold(_stopped_after(job, 1))
    other = replace(job, resume=True, recipe=replace(job.recipe, learning_rate=1e-4))
    with pytest.raises(InputError, match=r"another recipe: learning_rate \(0.01 then, 0.0001 now\)"):
        train_fold(other)


def test_recomputation_keeps_less_memory_and_gives_the_same_weights(job, tmp_path):
    """Bytes that autograd keeps for the gradient of one step, each memory counted once."""
    kept, weights = [], []
    for recompute in (False, True):
        saved: dict[int, int] = {}

        def note(tensor, saved=saved):
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        chosen = replace(job, recipe=replace(job.recipe, recompute=recompute))
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            train_fold(_stopped_after(chosen, 1))
        kept.append(sum(saved.values()))
        assert train_fold(replace(chosen, resume=True))
        weights.append(load_weights(job.run.fold(0) / WEIGHTS_FILE))
        job.run.fold(0).rename(tmp_path / str(recompute))
    assert kept[1] < 0.5 * kept[0]
    assert all(torch.equal(weights[1][name], tensor) for name, tensor in weights[0].items())


def test_recomputation_may_be_switched_on_where_the_memory_did_not_suffice(job):
    train_fold(_stopped_after(job, 1))
    assert train_fold(replace(job, resume=True, recipe=replace(job.recipe, recompute=True)))


def test_a_checkpoint_of_another_plan_is_not_continued_but_names_and_colors_may_change(job):
    train_fold(_stopped_after(job, 1))
    plan = json.loads(job.run.plan_file.read_text())
    plan["labels"][0] |= {"name": "sphere", "color": [1, 2, 3]}
    job.run.plan_file.write_text(json.dumps(plan))
    assert not train_fold(_stopped_after(replace(job, resume=True), 1))
    del plan["thick_slices"]  # as earlier versions planned; planning anew adds it
    job.run.plan_file.write_text(json.dumps(plan))
    assert not train_fold(_stopped_after(replace(job, resume=True), 1))
    plan["mirror_axes"] = []
    job.run.plan_file.write_text(json.dumps(plan))
    with pytest.raises(InputError, match="another plan"):
        train_fold(replace(job, resume=True))


def test_a_checkpoint_of_an_earlier_version_is_continued(job):
    """Those held a hash of the whole text of the plan."""
    train_fold(_stopped_after(job, 1))
    path, fold = job.run.fold(0) / CHECKPOINT_FILE, job.run.read_fold(0)
    parts = [job.run.plan_file.read_text(), {"train": fold.train, "val": fold.val}, job.seed]
    earlier = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    save_checkpoint(path, {**load_checkpoint(path), "identity": earlier})
    assert train_fold(replace(job, resume=True))


def test_cases_that_are_missing_or_stale_in_the_store_are_named_before_training(job):
    (job.run.store / "s1_a.json").unlink()
    with pytest.raises(InputError, match=r"s1_a\. Run: mambaseg-train preprocess"):
        train_fold(job)
    main(["preprocess", str(job.run.path), "--workers", "0"])
    label_map = job.run.path.parent / "Dataset900_Balls" / "labelsTr" / "s2_b.nii.gz"
    label_map.write_bytes(label_map.read_bytes()[:-8])  # another label map
    with pytest.raises(InputError, match="s2_b"):
        train_fold(job)


def test_files_whose_time_alone_changed_need_no_preprocessing(job, capsys):
    """As after a copy of the data set, or where it is mounted with other times."""
    assert main(["preprocess", str(job.run.path), "--workers", "0"]) == 0
    for path in (job.run.path.parent / "Dataset900_Balls").rglob("*.nii.gz"):
        os.utime(path, (1e9, 1e9))
    capsys.readouterr()
    made = {path: path.stat().st_mtime_ns for path in job.run.store.glob("*.npy")}
    assert train_fold(replace(job, max_minutes=0)) is False
    assert main(["preprocess", str(job.run.path), "--workers", "0"]) == 0
    assert "0 case(s) preprocessed, 6 were up to date" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in job.run.store.glob("*.npy")} == made
    plan, case = job.run.read_plan(), dataset_of(job.run).cases[0]
    record = read_record(job.run.store, case.name)
    assert record.key == case_key(case, plan)  # the next look is a quick one
    case.labels.write_bytes(case.labels.read_bytes() + b"x")
    os.utime(case.labels, (1e9, 1e9))
    assert not is_current(job.run.store, case, plan)


def test_stores_of_earlier_versions_are_taken_as_they_are(job):
    plan, case = job.run.read_plan(), dataset_of(job.run).cases[0]
    path = job.run.store / f"{case.name}.json"
    old = {name: value for name, value in json.loads(path.read_text()).items() if name not in ("settings", "content")}
    path.write_text(json.dumps(old))
    assert is_current(job.run.store, case, plan)
    os.utime(case.labels, (1e9, 1e9))
    assert not is_current(job.run.store, case, plan)


def test_training_leaves_pytorchs_settings_as_they_were(job):
    assert not torch.are_deterministic_algorithms_enabled()
    train_fold(_stopped_after(job, 1))
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark


def test_a_damaged_checkpoint_is_named(job):
    train_fold(_stopped_after(job, 1))
    path = job.run.fold(0) / CHECKPOINT_FILE
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be read"):
        train_fold(replace(job, resume=True))


def test_checkpoints_hold_data_only(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        load_checkpoint(_pickled_code(tmp_path))


def _pickled_code(folder):
    path = folder / "evil.pt"
    torch.save({"network": print}, path)
    return path


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"step": 1})
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint(path, {"step": lambda: None})
    assert load_checkpoint(path) == {"step": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint.pt"]


def _poison(path):
    """Make one tensor of the network in a checkpoint NaN; returns the name of its module's first part."""
    content = load_checkpoint(path)
    name = next(name for name in content["network"] if name.startswith("decoder") or "stages.1" in name)
    content["network"][name].fill_(float("nan"))
    save_checkpoint(path, content)
    return name.split(".")[0]


def _records(job):
    return [json.loads(line) for line in (job.run.fold(0) / "log.jsonl").read_text().splitlines()]


def test_a_training_that_diverges_goes_back_an_epoch_and_on_with_half_the_learning_rate(job, caplog):
    """Poisoned in the middle of the second epoch of two steps: back to step 2."""
    constant = replace(job, recipe=replace(job.recipe, schedule="cosine", minimum_learning_rate=1e-2))
    train_fold(_stopped_after(constant, 3))
    part = _poison(job.run.fold(0) / CHECKPOINT_FILE)
    assert train_fold(replace(constant, resume=True))
    first, second = _records(job)
    assert (first["learning_rate"], second["learning_rate"]) == pytest.approx((1e-2, 5e-3))
    assert (first["recoveries"], second["recoveries"]) == (0, 1)
    assert all(torch.isfinite(weights).all() for weights in load_weights(job.run.fold(0) / WEIGHTS_FILE).values())
    message = next(record.getMessage() for record in caplog.records if "recovery 1 of 3" in record.getMessage())
    assert "first layer with such values is " + part in message
    assert "Back to step 2" in message


def test_recoveries_are_counted_across_interruptions(job):
    train_fold(_stopped_after(job, 3))
    _poison(job.run.fold(0) / CHECKPOINT_FILE)
    train_fold(_stopped_after(replace(job, resume=True), 1))
    counters = load_checkpoint(job.run.fold(0) / CHECKPOINT_FILE)["counters"]
    assert (counters["iteration"], counters["recoveries"]) == (3, 1)


def test_a_training_that_cannot_recover_stops_and_names_the_layer(job):
    train_fold(_stopped_after(job, 2))
    for name in (CHECKPOINT_FILE, LAST_EPOCH_FILE):
        part = _poison(job.run.fold(0) / name)
    with pytest.raises(DivergedError, match=r"first layer with such values is .*\(3 of 3 attempts\)") as error:
        train_fold(replace(job, resume=True))
    assert "is " + part in str(error.value)
    assert not (job.run.fold(0) / WEIGHTS_FILE).exists()


def test_no_recovery_is_tried_where_the_recipe_wants_none(job):
    strict = replace(job, recipe=replace(job.recipe, recoveries=0))
    train_fold(_stopped_after(strict, 3))
    _poison(job.run.fold(0) / CHECKPOINT_FILE)
    with pytest.raises(DivergedError, match="0 of 0 attempts"):
        train_fold(replace(strict, resume=True))


def test_the_first_recovery_lowers_the_rate_and_the_second_also_leaves_mixed_precision():
    assert [rate_factor(count) for count in range(4)] == [1, 0.5, 0.25, 0.125]
    assert [precision_after("bf16", count) for count in range(4)] == ["bf16", "bf16", "off", "off"]


def test_gradients_that_stay_broken_in_fp16_are_a_divergence_and_not_skipped_forever(job):
    """A scaler leaves out a step whose gradient is no number and goes on with half the scale, to 0 if need be."""

    class Scaler:
        scale_now = 2.0**-11

        def scale(self, loss):
            return loss

        def unscale_(self, optimizer):
            pass

        def step(self, optimizer):
            pass

        def update(self):
            pass

        def is_enabled(self):
            return True

        def get_scale(self):
            return self.scale_now

    plan, fold = job.run.read_plan(), job.run.read_fold(0)
    state = TrainingState(create_network(plan.network), job.recipe, "cpu")
    state.scaler = Scaler()
    batch = PatchBatches(job.run.store, fold.train, plan, job.recipe, 0)[0]
    with pytest.raises(DivergedError, match="no number in fp16"):
        train_step(state, batch, job, exclusive_classes(3))
    Scaler.scale_now = 1.0
    train_step(state, batch, job, exclusive_classes(3))


def test_an_epoch_that_ends_with_broken_weights_is_not_kept():
    network = torch.nn.Linear(2, 1)
    check_weights(network, 7)
    network.bias.data.fill_(float("inf"))
    with pytest.raises(DivergedError, match="weights bias are no longer numbers after step 7"):
        check_weights(network, 7)


def test_a_kept_copy_of_a_checkpoint_stays_when_that_is_replaced(tmp_path):
    path, copy = tmp_path / "checkpoint.pt", tmp_path / "copy.pt"
    for step in (1, 2):
        save_checkpoint(path, {"step": step})
        keep_copy(path, copy)
    save_checkpoint(path, {"step": 3})
    assert load_checkpoint(copy) == {"step": 2}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["checkpoint.pt", "copy.pt"]


def test_the_time_limit_stops_with_a_checkpoint(job):
    assert not train_fold(replace(job, max_minutes=0.0))
    assert load_checkpoint(job.run.fold(0) / CHECKPOINT_FILE)["counters"]["iteration"] == 1


def test_a_fold_that_does_not_exist_is_refused(job):
    with pytest.raises(InputError, match="folds 0 to 2"):
        train_fold(replace(job, fold=7))


class _Constant(torch.nn.Module):
    """Predicts the same class everywhere."""

    def __init__(self, value: int) -> None:
        super().__init__()
        self.value = value

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits = torch.zeros((len(image), 3, *image.shape[2:]))
        logits[:, self.value] = 1
        return (logits,)


def test_patch_dice_pools_all_batches(job):
    from MambaSegTraining.batches import Batch

    image = torch.zeros((1, 1, 1, 1, 4))
    batches = [Batch(image, torch.tensor([[[[1, 1, 0, 2]]]])), Batch(image, torch.tensor([[[[1, 0, 0, 0]]]]))]
    first, second = patch_dice(_Constant(1), batches, exclusive_classes(3), "cpu", "off")
    assert first == pytest.approx(2 * 3 / (8 + 3))
    assert second == 0


@pytest.mark.slow
def test_a_killed_process_loses_nothing(job, config_file, tmp_path):
    """SIGKILL at some moment after the first checkpoint; the command continues to the weights of an unbroken run."""
    config_file.write_text(config_file.read_text().replace("epochs = 2", "epochs = 20"))
    train_fold(replace(job, recipe=read_settings(config_file).recipe))
    folder = job.run.fold(0)
    unbroken = load_weights(folder / WEIGHTS_FILE)
    folder.rename(tmp_path / "unbroken")

    arguments = ["train", str(job.run.path), "--fold", "0", "--config", str(config_file), "--device", "cpu"]
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(
        [sys.executable, "-m", "MambaSegTraining", *arguments, "--threads", "1"],
        env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'Training'}"},
    )
    while not (folder / CHECKPOINT_FILE).is_file():
        assert process.poll() is None, "ended before its first checkpoint"
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (folder / WEIGHTS_FILE).exists()
    assert main([*arguments, "--resume", "--workers", "0"]) == 0
    resumed = load_weights(folder / WEIGHTS_FILE)
    assert all(torch.equal(resumed[name], weights) for name, weights in unbroken.items())


@pytest.mark.parametrize("saved", [1, 2], ids=["of its own GPU", "of each GPU, as earlier versions did"])
def test_a_checkpoint_brings_back_the_random_numbers_of_the_trainings_own_gpu(job, monkeypatch, saved):
    """Of another number than it had, or on a computer with fewer GPUs, too. No GPU here, so calls are watched."""
    kept, restored = torch.arange(4, dtype=torch.uint8), []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: kept + device.index)
    monkeypatch.setattr(
        torch.cuda, "set_rng_state", lambda state, device: restored.append((state.tolist(), device.index))
    )
    state = TrainingState(nn.Linear(1, 1), job.recipe, "cpu")
    state._device = torch.device("cuda", 1)
    content = state.content("same")
    if saved == 2:
        content["random_cuda"] = [kept, kept + 1]
    assert len(content["random_cuda"]) == saved
    state.restore(content, "same")
    state._device = torch.device("cuda", 5)
    state.restore(content, "same")
    assert restored == [([1, 2, 3, 4], 1), ([1, 2, 3, 4], 5)]
