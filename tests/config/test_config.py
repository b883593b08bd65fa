"""Configuration: defaults in one place, checks with messages, TOML there and back."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.cli import parse
from pipeline.config.method import Method
from pipeline.config.paper import experiments
from pipeline.config.placement import Placement
from pipeline.config.recipes import RECIPES, recipe
from pipeline.config.schedule import Schedule
from pipeline.config.schema import DataConfig, ModelConfig, RunConfig, TrainConfig, override
from pipeline.config.toml import from_toml, read_model, read_toml, to_toml
from pipeline.errors import ConfigError


def test_beta_follows_the_loss() -> None:
    assert TrainConfig().beta == 0.99
    assert TrainConfig(loss="predsim-bio").beta == 0.01
    assert TrainConfig(loss="predsim-bio", beta=0.5).beta == 0.5
    assert parse(["--loss", "predsim-bio"]).config.train.beta == 0.01


def test_momentum_follows_the_optimizer() -> None:
    assert [TrainConfig(optimizer=name).momentum for name in ("adam", "amsgrad", "sgd", "muon")] == [0, 0, 0, 0.95]
    assert TrainConfig(optimizer="muon", momentum=0.0).momentum == 0
    assert "momentum = 0.95" in to_toml(TrainConfig(optimizer="muon"))
    was = RunConfig(train=TrainConfig(optimizer="sgd", momentum=0.9))
    assert override(was, {"optimizer": "muon"}).train.momentum == 0.95
    assert override(was, {"optimizer": "adam"}).train.momentum == 0
    assert override(was, {"optimizer": "muon", "momentum": 0.5}).train.momentum == 0.5
    assert override(was, {"optimizer": "sgd"}).train.momentum == 0.9
    assert parse(["--optimizer", "muon"]).config.train.momentum == 0.95


def test_hidden_layers_follow_the_model() -> None:
    assert ModelConfig(model="mlp").hidden_layers == 3
    assert ModelConfig(model="vgg8b").hidden_layers == 1
    assert parse(["--recipe", "digits", "--model", "mlp", "--width", "1"]).config.model.hidden_layers == 3


def test_the_learning_rate_falls_after_each_milestone() -> None:
    config = TrainConfig(lr=1.0, lr_milestones=(2, 4), lr_decay=0.5)
    assert [config.learning_rate(epoch) for epoch in range(1, 7)] == [1, 1, 0.5, 0.5, 0.25, 0.25]


def test_the_last_epoch_is_always_evaluated() -> None:
    config = TrainConfig(epochs=5, eval_every=2)
    assert [config.evaluates(epoch) for epoch in range(1, 6)] == [False, True, False, True, True]


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        TrainConfig().lr = 1.0  # type: ignore[misc]  # that it is frozen is what is tested


def test_every_recipe_survives_toml() -> None:
    for name in (*RECIPES, *experiments()):
        assert from_toml(to_toml(recipe(name))) == recipe(name), name


def test_toml_keeps_every_field() -> None:
    config = RunConfig(
        data=DataConfig(dataset="mnist", data_dir='a "quoted" dir', train_limit=10, cutout=3),
        model=ModelConfig(model="mlp", hidden_units=7, nonlinearity="relu", dropout=0.25),
        train=TrainConfig(loss="glob+sim", split=(1, 3), lr_milestones=(2, 5), timeout=1.5, deterministic=True),
    )
    assert from_toml(to_toml(config)) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train", "is not TOML"),
        ("[other]\na = 1", r"unknown section \[other\]"),
        ("[train]\nspeed = 1", r"unknown entry train\.speed"),
        ('[train]\nepochs = "ten"', r"train\.epochs = 'ten'; give a whole number"),
        ("[train]\nepochs = 1.5", r"train\.epochs = 1\.5; give a whole number"),
        ("[train]\nlr = true", r"train\.lr = True; give a number"),
        ("[data]\ndataset = 3", r"data\.dataset = 3; give text"),
        ("[data]\ndownload = 1", r"data\.download = 1; give true or false"),
        ('[train]\nsplit = "1,2"', r"train\.split = '1,2'; give a list of whole numbers"),
    ],
)
def test_a_wrong_file_is_named_with_its_entry(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_toml(text, "run/config.toml")


def test_an_entry_that_has_gone_names_what_replaced_it() -> None:
    gone = {"train.speed": ("--pace", "drop the entry, or give --pace slow")}
    message = "old.toml has train.speed, which --pace has replaced; drop the entry, or give --pace slow"
    with pytest.raises(ConfigError, match=f"^{message}$"):
        from_toml('[train]\nspeed = "low"', "old.toml", gone)


def test_the_network_is_read_whatever_else_an_older_version_wrote(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[model]\nmodel = "mlp"\n[train]\nloss = "sim"\nspeed = 3\nepochs = "many"\n[other]\na = 1\n')
    assert read_model(str(path)) == (ModelConfig(model="mlp"), "sim")
    path.write_text("[model]\ndepth = 3\n")
    with pytest.raises(ConfigError, match=r"config\.toml has an unknown entry model\.depth"):
        read_model(str(path))
    path.write_text('[train]\nloss = "hinge"\n')
    with pytest.raises(ConfigError, match=r"--loss is 'hinge'"):
        read_model(str(path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--config .*none\.toml cannot be read \(No such file"):
        read_toml(str(tmp_path / "none.toml"))


def test_flags_override_the_file_that_overrides_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(to_toml(RunConfig(train=TrainConfig(epochs=3, lr=0.5))))
    config = parse(["--config", str(path), "--epochs", "4"]).config
    assert (config.train.epochs, config.train.lr) == (4, 0.5)


def test_a_configuration_of_four_stages_can_be_laid_out_anew(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(to_toml(RunConfig(train=TrainConfig(stages=4, split=(2, 2, 2, 2)))))
    config = ["--config", str(path)]
    assert parse(config).config.train.stage_count(1) == parse(config).config.train.stage_count(4) == 4
    assert parse([*config, "--split", "auto"]).config.train.stage_count(2) == 2
    assert parse([*config, "--split", "3,5"]).config.train.stage_count(2) == 2
    assert parse([*config, "--stages", "3"]).config.train.stage_count(1) == 3
    with pytest.raises(ConfigError, match=r"--split 2,2,2,2 makes 4 stages, but there are 2 processes"):
        parse(config).config.check_world(2)


def test_the_digits_recipe_applies_only_while_nothing_else_is_named() -> None:
    assert parse([]).config == recipe("digits")
    assert parse(["--epochs", "1"]).config.model.width == recipe("digits").model.width
    assert parse(["--dataset", "mnist"]).config == RunConfig(data=DataConfig(dataset="mnist"))


@pytest.mark.parametrize(
    ("values", "blocks", "world", "message"),
    [
        ({"split": (2, 2)}, 5, 1, "--split 2,2 places 4 blocks, but the network has 5"),
        ({"split": (2, 3)}, 5, 3, "--split 2,3 makes 2 stages, but there are 3 processes"),
        ({"stages": 2}, 5, 3, "--stages is 2, but under torchrun stages are the 3 processes"),
        ({"stages": 6}, 5, 1, "--stages 6 for a network of 5 blocks leave stages empty"),
        ({}, 2, 3, "3 processes for a network of 2 blocks leave stages empty"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(values: Any, blocks: int, world: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**values).check_blocks(blocks, world)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"threads": 2.5}, "--threads is 2.5; give auto, a whole number at least 1"),
        ({"threads": [True, 1]}, "--threads is True,1; give auto"),
        ({"threads": []}, r"--threads is \(\); give auto"),
        ({"segments": 2.5}, "--segments is 2.5; give block, a number of segments"),
        ({"segments": [2, True]}, "--segments is 2,True; give block"),
        ({"split": 2.5}, "--split is '2.5'; give auto or block counts"),
        ({"split": [2, True]}, "--split is '2,True'; give auto"),
        ({"lr_milestones": 2.5}, "--lr-milestones has 2.5; give epochs"),
    ],
)
def test_what_a_program_gives_for_whole_numbers_is_checked_too(values: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**values)


def test_a_training_configuration_is_method_schedule_and_placement() -> None:
    parts = (Method, Schedule, Placement)
    assert [f.name for f in fields(TrainConfig)] == [f.name for part in parts for f in fields(part)]
    config = TrainConfig(loss="sim", epochs=3, split=[2, 1], lr_milestones=[1, 2])  # type: ignore[arg-type]  # lists do
    assert (config.split, config.lr_milestones) == ((2, 1), (1, 2))
    assert all(isinstance(config, part) for part in parts)


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        (Method, {"lr": 0.0}, "--lr is 0.0; give a finite number above 0"),
        (Schedule, {"epochs": 0}, "--epochs is 0; give a whole number at least 1"),
        (Placement, {"wire": "int8"}, "--wire is 'int8'; choose one of auto, fp32, bf16, fp16"),
    ],
)
def test_each_part_checks_itself_alone_and_in_the_whole(part: type, values: Any, message: str) -> None:
    for cls in (part, TrainConfig):
        with pytest.raises(ConfigError, match=message):
            cls(**values)
