"""Recipes are checked, and the learning rate follows them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from MambaSegTraining.recipe import Recipe
from MambaSegTraining.schedule import learning_rate, momentum
from MambaSegTraining.settings import read_settings
from MambaSegTraining.training_state import TrainingState

from MambaSegLib.errors import InputError

TRAINING = Path(__file__).resolve().parents[2] / "Training"
CONFIGS = sorted((TRAINING / "configs").glob("*.toml"))
STUDIES = sorted((TRAINING / "studies").glob("*/configs/*.toml"))
PAPER = Recipe(epochs=300, iterations_per_epoch=1, schedule_step="epoch")


@pytest.mark.parametrize("path", [*CONFIGS, *STUDIES], ids=lambda path: path.stem)
def test_every_configuration_that_is_shipped_can_be_read(path):
    assert read_settings(path).recipe.epochs >= 1


def test_the_paper_recipe_is_the_papers(tmp_path):
    recipe = read_settings(next(path for path in CONFIGS if path.stem == "paper")).recipe
    assert (recipe.optimizer, recipe.learning_rate, recipe.schedule, recipe.epochs) == ("radam", 3e-4, "linear", 300)
    assert (recipe.iterations_per_epoch, recipe.batch_size, recipe.clip_norm, recipe.weight_decay) == (250, 2, 12, 3e-5)


@pytest.mark.parametrize(
    ("name", "network", "schedule", "epochs"),
    [
        ("released_uni", "mamba_unet_unidirectional", "cosine", 1000),
        ("released_bi", "mamba_unet_bidirectional", "cosine", 300),
        ("released_multi", "mamba_unet_multidirectional", "onecycle", 300),
    ],
)
def test_the_released_recipes_are_those_of_the_published_trainers(name, network, schedule, epochs):
    settings = read_settings(next(path for path in CONFIGS if path.stem == name))
    recipe = settings.recipe
    assert settings.name == name
    assert (settings.network.name, settings.network.options) == (network, {"preset": "released"})
    assert (recipe.optimizer, recipe.learning_rate, recipe.weight_decay) == ("radam", 3e-4, 3e-5)
    assert (recipe.schedule, recipe.schedule_step, recipe.epochs) == (schedule, "epoch", epochs)
    assert (recipe.iterations_per_epoch, recipe.validation_batches, recipe.batch_size) == (250, 50, 2)
    assert (recipe.clip_norm, recipe.foreground_oversampling, recipe.amp) == (12, pytest.approx(1 / 3), "fp16")
    assert (recipe.augmentation, recipe.ema_decay) == ("nnunet", 0)
    rates = [learning_rate(recipe, epoch * 250) for epoch in (0, 29, 100, 200, 299)]
    if schedule == "cosine":
        assert [rates[0], rates[2], rates[3]] == pytest.approx([3e-4, 5e-6, 3e-4])
    else:
        assert [rates[0], rates[1], rates[4]] == pytest.approx([1.2e-5, 3e-4, 0], abs=1e-9)


def test_a_misspelt_key_is_refused_with_its_place_and_the_right_one(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text("[recipe]\nlearning_rat = 1e-3\n")
    with pytest.raises(InputError, match=r'recipe.learning_rat: unknown key; did you mean "learning_rate"'):
        read_settings(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 0},
        {"learning_rate": 0.0},
        {"ema_decay": 1.0},
        {"foreground_oversampling": 1.5},
        {"cycle_momentum": True, "schedule": "linear"},
    ],
)
def test_values_that_cannot_be_meant_are_refused(changes):
    with pytest.raises(InputError, match=next(iter(changes))):
        replace(Recipe(), **changes)


def test_text_that_is_no_toml_and_files_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_settings(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("recipe = [")
    with pytest.raises(InputError, match="not TOML"):
        read_settings(tmp_path / "bad.toml")


def test_linear_falls_to_zero_in_equal_steps():
    assert [learning_rate(PAPER, epoch) for epoch in (0, 150, 299)] == pytest.approx([3e-4, 1.5e-4, 1e-6])


def test_the_released_cosine_goes_up_again():
    """Epochs 0, 100, 200 of the published Uni and Bi trainers: 3e-4, 5e-6, 3e-4."""
    recipe = replace(PAPER, schedule="cosine", cosine_period=100, minimum_learning_rate=5e-6)
    assert [learning_rate(recipe, epoch) for epoch in (0, 100, 200)] == pytest.approx([3e-4, 5e-6, 3e-4])


def test_one_cycle_equals_pytorchs():
    import torch

    recipe = replace(PAPER, schedule="onecycle")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 3e-4, total_steps=300, pct_start=0.1, final_div_factor=1e8
    )
    for epoch in range(300):
        assert learning_rate(recipe, epoch) == pytest.approx(reference.get_last_lr()[0], rel=1e-6, abs=1e-11)
        optimizer.step()
        reference.step() if epoch < 299 else None


@pytest.mark.parametrize("name", ["radam", "sgd"])
def test_the_momentum_of_the_released_multidirectional_trainer_is_that_of_pytorchs_one_cycle(name):
    """Its OneCycleLR keeps PyTorch's default of cycling the momentum, RAdam's beta 1."""
    import torch

    released = read_settings(TRAINING / "configs" / "released_multi.toml").recipe
    recipe = replace(released, optimizer=name, iterations_per_epoch=2)
    state = TrainingState(torch.nn.Linear(1, 1), recipe, "cpu")
    optimizer = _pytorchs(name)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 3e-4, total_steps=300, pct_start=0.1, final_div_factor=1e8
    )
    for epoch in range(300):
        for step in (2 * epoch, 2 * epoch + 1):
            state.set_rate(learning_rate(recipe, step), momentum(recipe, step))
            assert _momentum(state.optimizer) == pytest.approx(_momentum(optimizer), abs=1e-9)
        optimizer.step()
        reference.step() if epoch < 299 else None


@pytest.mark.parametrize(("name", "own"), [("radam", 0.9), ("adamw", 0.9), ("sgd", 0.99)])
def test_other_recipes_leave_the_momentum_alone(name, own):
    import torch

    recipe = replace(PAPER, optimizer=name, schedule="onecycle")
    state = TrainingState(torch.nn.Linear(1, 1), recipe, "cpu")
    state.set_rate(1e-3, momentum(recipe, 5))
    assert _momentum(state.optimizer) == own


def _pytorchs(name):
    import torch

    weights = [torch.zeros(1, requires_grad=True)]
    return torch.optim.SGD(weights, lr=1, momentum=0.5) if name == "sgd" else torch.optim.RAdam(weights, lr=1)


def _momentum(optimizer):
    (group,) = optimizer.param_groups
    return group["betas"][0] if "betas" in group else group["momentum"]


def test_a_schedule_by_epoch_keeps_the_rate_within_one():
    recipe = replace(PAPER, iterations_per_epoch=10)
    assert learning_rate(recipe, 10) == learning_rate(recipe, 19) != learning_rate(recipe, 20)


def test_a_configuration_changes_single_keys_of_its_base_and_keeps_the_rest(tmp_path):
    (tmp_path / "base.toml").write_text(
        'name = "base"\n[network]\nname = "mamba_unet_unidirectional"\nfeatures = [8, 16]\noptions = { preset = "paper" }\n'
        "[recipe]\nepochs = 7\n"
    )
    (tmp_path / "sub").mkdir()
    changed = tmp_path / "sub" / "changed.toml"
    changed.write_text('base = "../base.toml"\nname = "changed"\n[network]\nfeatures = [4]\noptions = {}\n')
    settings = read_settings(changed)
    assert (settings.name, settings.recipe.epochs, settings.network.name) == ("changed", 7, "mamba_unet_unidirectional")
    assert (settings.network.features, settings.network.options) == ((4,), {})


def test_configurations_that_are_each_others_base_are_refused(tmp_path):
    (tmp_path / "a.toml").write_text('base = "b.toml"\n')
    (tmp_path / "b.toml").write_text('base = "a.toml"\n')
    with pytest.raises(InputError, match=r"a\.toml, b\.toml, a\.toml are each other's base"):
        read_settings(tmp_path / "a.toml")


def test_a_missing_base_is_named(tmp_path):
    (tmp_path / "a.toml").write_text('base = "nowhere.toml"\n')
    with pytest.raises(InputError, match=r"nowhere\.toml does not exist"):
        read_settings(tmp_path / "a.toml")
