"""What programs give for plain values is taken as those, and what stands for none is named."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Iterator
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config.schema import DataConfig, ModelConfig, RunConfig, TrainConfig
from pipeline.config.toml import from_toml, to_toml
from pipeline.errors import ConfigError


class Place(str, enum.Enum):  # noqa: UP042  the older way to write it
    HERE = "cpu"


class Count(enum.IntEnum):
    TWO = 2


@pytest.mark.parametrize(
    ("name", "given", "taken"),
    [
        ("device", torch.device("cpu"), "cpu"),
        ("device", torch.device("cpu:0"), "cpu"),
        ("device", torch.device("cuda"), "cuda"),
        ("device", torch.device("cuda:1"), "cuda:1"),
        ("device", Place.HERE, "cpu"),
        ("loss", np.str_("sim"), "sim"),
        ("epochs", np.int64(2), 2),
        ("epochs", np.array(2), 2),
        ("epochs", torch.tensor(2), 2),
        ("epochs", Count.TWO, 2),
        ("lr", np.float32(0.5), 0.5),
        ("lr", torch.tensor(0.5), 0.5),
        ("lr", np.int8(1), 1),
        ("beta", np.array(0.5), 0.5),
        ("deterministic", np.True_, True),
        ("deterministic", torch.tensor(False), False),
        ("lr_milestones", np.array([1, 2]), (1, 2)),
        ("lr_milestones", torch.tensor([1, 2]), (1, 2)),
        ("lr_milestones", range(1, 3), (1, 2)),
        ("lr_milestones", np.array(3), (3,)),
        ("split", np.array([2, 1]), (2, 1)),
        ("split", "auto", None),
        ("segments", np.int32(2), 2),
        ("segments", np.array([2, 1]), (2, 1)),
        ("segments", "block", None),
        ("threads", np.array([1, 2]), (1, 2)),
        ("threads", np.int64(3), 3),
    ],
)
def test_what_stands_for_a_plain_value_is_taken_as_it(name: str, given: Any, taken: Any) -> None:
    config = TrainConfig(**{name: given})
    value = getattr(config, name)
    assert value == taken
    assert type(value) is type(taken)
    assert all(type(one) is int for one in value) if isinstance(value, tuple) else True
    assert from_toml(to_toml(config)).train == config


def test_every_section_of_a_run_takes_them() -> None:
    data = DataConfig(data_dir=Path("there"), train_limit=np.int64(5), download=np.False_)  # type: ignore[arg-type]
    model = ModelConfig(width=np.float64(0.5), hidden_layers=np.int64(2))  # type: ignore[arg-type]
    config = RunConfig(data=data, model=model)
    assert (data.data_dir, data.train_limit, data.download) == ("there", 5, False)
    assert from_toml(to_toml(config)) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": np.float64(2)}, "--epochs is np.float64(2.0); give a whole number at least 1"),
        ({"epochs": np.True_}, "--epochs is np.True_; give a whole number at least 1"),
        ({"epochs": torch.tensor(True)}, "--epochs is tensor(True); give a whole number at least 1"),
        ({"epochs": np.array([2])}, "--epochs is array([2]); give a whole number at least 1"),
        ({"epochs": None}, "--epochs is None; give a whole number at least 1"),
        ({"lr": np.float32("nan")}, "--lr is nan; give a finite number above 0"),
        ({"lr": np.complex64(1)}, "--lr is np.complex64(1+0j); give a finite number above 0"),
        ({"lr": torch.ones(2, 2)}, "--lr is tensor([[1., 1.], [1., 1.]]); give a finite number above 0"),
        ({"lr": "0.1"}, "--lr is '0.1'; give a finite number above 0"),
        ({"lr_milestones": None}, "--lr-milestones has None; give epochs"),
        ({"lr_milestones": {10, 20}}, "--lr-milestones has {10, 20}; give epochs"),
        ({"lr_milestones": b"\x01\x02"}, "--lr-milestones has b'\\x01\\x02'; give epochs"),
        ({"lr_milestones": [True]}, "--lr-milestones has True; give epochs"),
        ({"split": "3,2"}, "--split is '3,2'; give auto or block counts"),
        ({"split": {3: 2, 2: 1}}, "--split is '{3: 2, 2: 1}'; give auto or block counts"),
        ({"segments": {3, 2}}, "--segments is {2, 3}; give block, a number of segments"),
        ({"segments": torch.zeros(2, dtype=torch.int64, device="meta")}, "--segments is tensor(..., device='meta'"),
        ({"threads": bytearray(b"\x02")}, "--threads is bytearray(b'\\x02'); give auto"),
        ({"epochs": torch.tensor(2, device="meta")}, "--epochs is tensor(..., device='meta'"),
        ({"lr": torch.tensor(0.5, device="meta")}, "--lr is tensor(..., device='meta'"),
        ({"compile": torch.tensor(True, device="meta")}, "--compile is tensor(..., device='meta'"),
        ({"deterministic": 1}, "--deterministic is 1; give True or False"),
        ({"deterministic": "no"}, "--deterministic is 'no'; give True or False"),
        ({"device": torch.device("meta")}, "--device is 'meta'; choose auto, cpu, cuda or cuda:N"),
        ({"device": "cuda:\N{FULLWIDTH DIGIT THREE}"}, "--device is 'cuda:\N{FULLWIDTH DIGIT THREE}'; choose auto"),
        ({"device": "cuda:" + "9" * 10_000}, "--device is 'cuda:999"),
        ({"device": 0}, "--device is 0; give auto, cpu, cuda, cuda:N"),
        ({"loss": np.array(["sim", "pred"])}, "--loss is array(['sim', 'pred'], dtype='<U4'); choose one of"),
    ],
)
def test_what_stands_for_none_is_named_in_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**values)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


class Raises:
    """Is no value at all, and says so in its own way."""

    def __index__(self) -> int:
        raise RuntimeError("no data")

    def __float__(self) -> float:
        raise RuntimeError("no data")

    def __iter__(self) -> Iterator[int]:
        raise RuntimeError("no data")

    def __repr__(self) -> str:
        raise RuntimeError("no data")


@pytest.mark.parametrize("f", fields(TrainConfig), ids=lambda f: f.name)
def test_what_raises_an_error_of_its_own_is_named_by_its_class(f: Field[Any]) -> None:
    given: Any = Raises()
    with pytest.raises(ConfigError, match=r"a Raises'?; (give|choose) "):
        TrainConfig(**{f.name: given})


@pytest.mark.parametrize("name", ["lr_milestones", "segments", "split", "threads"])
def test_a_generator_without_an_end_is_not_waited_for(name: str) -> None:
    endless: Any = itertools.cycle([1])
    with pytest.raises(ConfigError, match=r"itertools\.cycle object"):
        TrainConfig(**{name: endless})


def test_a_number_too_large_for_a_float_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--lr is 1000\d+\.\.\.; give a finite number"):
        TrainConfig(lr=10**400)
    with pytest.raises(ConfigError, match=r"--data-dir is 3; give text"):
        DataConfig(data_dir=3)  # type: ignore[arg-type]
