"""What may be asked of an evaluation, and what it reads of a run's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.config.evaluation import THRESHOLDS, Evaluation
from pipeline.config.schema import RunConfig, TrainConfig
from pipeline.config.toml import read_data, read_method, to_toml
from pipeline.errors import ConfigError
from tests.support.data import message


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"test_limit": 0}, "--test-limit is 0; give a whole number at least 1"),
        ({"batch_size": 0}, "--batch-size is 0; give a whole number at least 1"),
        ({"device": "tpu"}, "--device is tpu; choose one of auto, cpu, cuda"),
        ({"thresholds": (0.5, 2.0)}, "--thresholds has 2.0; give probabilities, from 0 to 1"),
        ({"thresholds": (float("nan"),)}, "--thresholds has nan; give probabilities, from 0 to 1"),
        ({"output": ""}, "--output is '', which no file can be called; give a path"),
        ({"run": "a\0b"}, r"RUN is 'a\x00b', which no file can be called; give a path"),
    ],
)
def test_what_cannot_be_asked_is_told(values: dict[str, Any], told: str) -> None:
    assert message(lambda: Evaluation(**{"run": "x", **values}), ConfigError).startswith(told)


def test_thresholds_rise_and_come_once() -> None:
    assert Evaluation(run="x", thresholds=[0.9, 0.5, 0.9]).thresholds == (0.5, 0.9)
    assert Evaluation(run="x").thresholds == THRESHOLDS


def write(folder: Path, text: str) -> str:
    (folder / "config.toml").write_text(text)
    return str(folder / "config.toml")


def test_what_a_run_has_written_is_read(tmp_path: Path) -> None:
    train = TrainConfig(loss="pred-bio", segments=(2, 3), decoder_dim=64, target_projection=8, batch_size=7)
    path = write(tmp_path, to_toml(RunConfig(train=train)))
    method, data = read_method(path), read_data(path)
    names = ("loss", "segments", "decoder_dim", "target_projection", "batch_size", "precision", "seed")
    assert all(getattr(method, name) == getattr(train, name) for name in names)
    assert data == RunConfig().data


def test_entries_of_other_versions_are_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path, '[data]\nspeed = 3\n[train]\nloss = "sim"\nlocality = "block"\noptimizer = "gone"\n')
    method, data = read_method(path), read_data(path)
    assert method.loss == "sim" and data == RunConfig().data


def test_a_users_own_data_have_no_section(tmp_path: Path) -> None:
    assert read_data(write(tmp_path, to_toml(TrainConfig()))) is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("data = 3\ntrain = 4", r"config\.toml has no section \[(data|train)\]; give the config\.toml of a run"),
        ("[data]\ndataset = 3\n[train]\nloss = 3", r"has (data\.dataset|train\.loss) = 3; give text"),
        ('[data]\ndataset = "x"\n[train]\nloss = "x"', r"--(dataset|loss) is 'x'; choose one of"),
        ("[data", r"config\.toml is not TOML"),
    ],
)
@pytest.mark.parametrize("read", [read_method, read_data])
def test_what_is_none_is_told(read: Any, text: str, told: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=told) as caught:
        read(path)
    assert "\n" not in str(caught.value)
