"""Numbers that would end in an overflow, a division by zero, or all of the memory."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.config.data import DataConfig
from pipeline.config.schema import ModelConfig, TrainConfig
from pipeline.errors import ConfigError
from tests.support.data import message


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"lr_decay": 1e300, "lr_milestones": (1, 2)}, "comes to inf; give a decay nearer to 1"),
        ({"lr_decay": 1e-200, "lr_milestones": (1, 2)}, "comes to 0; give a decay nearer to 1"),
        ({"timeout": 1e300}, "--timeout is 1e+300; give a finite number above 0 and at most 604800"),
        ({"queue_depth": 10**9}, "give a whole number at least 1 and at most 1024 (every packet takes memory)"),
        ({"epochs": 10**12}, "give a whole number at least 1 and at most 1000000"),
        ({"batch_size": 10**12}, "give a whole number at least 2 and at most 10000000"),
        ({"decoder_dim": 10**12}, "give a whole number at least 1 and at most 1000000"),
        ({"keep": 10**12}, "give a whole number at least 1 and at most 1000"),
        ({"eval_every": 10**12}, "give a whole number at least 1 and at most 1000000 (no run has more epochs)"),
        ({"checkpoint_every": 10**5000}, "is a number of thousands of digits; give a whole number at least 1 and at"),
        ({"stages": 10**12}, "give a whole number at least 1 and at most 1000000 (each takes a block of the network)"),
        ({"segments": 10**12}, "--segments is 1000000000000; give block, a number of segments"),
        ({"split": (10**12,)}, "--split is '1000000000000'; give auto or block counts"),
        ({"lr_milestones": (10**12,)}, "--lr-milestones has 1000000000000; give epochs"),
        ({"threads": tuple(range(1, 5000))}, "...; give auto, a whole number at least 1 and at most 1024"),
        ({"lr": 1e300}, "--lr is 1e+300; give a finite number above 0 and at most 1e+38 (weights hold no more)"),
        ({"weight_decay": 1e300}, "at most 1e+38 (weights hold no more)"),
    ],
)
def test_of_training(values: dict[str, Any], told: str) -> None:
    assert told in message(lambda: TrainConfig(**values), ConfigError)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"dropout": 0.9999999}, "--dropout is 0.9999999, which leaves nothing; give at most 0.9999"),
        ({"hidden_units": 10**12}, "give a whole number at least 1 and at most 1000000"),
        ({"hidden_layers": 10**6}, "give a whole number at least 0 and at most 1000"),
    ],
)
def test_of_a_network(values: dict[str, Any], told: str) -> None:
    assert told in message(lambda: ModelConfig(**values), ConfigError)


@pytest.mark.parametrize("name", ["train_limit", "test_limit", "cutout"])
def test_of_data(name: str) -> None:
    values: dict[str, Any] = {name: 10**5000}
    assert "is a number of thousands of digits; give a whole number at least" in message(
        lambda: DataConfig(**values), ConfigError
    )


def test_those_next_to_them_are_taken() -> None:
    assert ModelConfig(dropout=0.9999).dropout == 0.9999
    assert TrainConfig(lr_decay=1e-20, lr_milestones=(1, 2), timeout=604800).learning_rate(9) > 0
