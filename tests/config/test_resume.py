"""What may change when a run goes on, and what may not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipeline.config.recipes import recipe
from pipeline.config.resume import check_resumable, placed_anew
from pipeline.config.schema import RunConfig, TrainConfig, override
from pipeline.errors import ConfigError
from tests.support.data import message


def changed(**values: Any) -> RunConfig:
    return override(recipe("digits"), values)


@pytest.mark.parametrize(
    "values",
    [
        {"epochs": 99},
        {"stages": 3},
        {"split": (4, 4)},
        {"queue_depth": 1},
        {"timeout": 5.0},
        {"data_dir": "/elsewhere"},
    ],
)
def test_placement_and_length_may_change(values: dict[str, Any]) -> None:
    assert check_resumable(recipe("digits"), changed(**values), "run") == []


@pytest.mark.parametrize("schedule", ["cosine", "triangle"])
def test_the_length_may_not_change_where_every_rate_depends_on_it(schedule: str) -> None:
    was = changed(lr_schedule=schedule, lr_milestones=())
    now = changed(lr_schedule=schedule, lr_milestones=(), epochs=13)
    assert check_resumable(was, changed(lr_schedule=schedule, lr_milestones=(), queue_depth=9), "run") == []
    with pytest.raises(ConfigError, match="run was saved with --epochs 12, but it is 13 now; go on with what it was"):
        check_resumable(was, now, "run")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"threads": 2}, "--threads was none and is 2: the last bits may differ from a run undisturbed"),
        ({"device": "cpu"}, "--device was auto and is cpu: the last bits may differ from a run undisturbed"),
    ],
)
def test_what_changes_the_last_bits_is_said(values: dict[str, Any], told: str) -> None:
    assert check_resumable(recipe("digits"), changed(**values), "run") == [told]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"loss": "pred"}, "--loss predsim, but it is pred now"),
        ({"segments": (4, 4)}, "--segments none, but it is 4,4 now"),
        ({"seed": 2}, "--seed 1, but it is 2 now"),
        ({"batch_size": 8}, "--batch-size 128, but it is 8 now"),
        ({"lr_milestones": (3,)}, "--lr-milestones 8,10, but it is 3 now"),
        ({"optimizer": "sgd"}, "--optimizer adam, but it is sgd now"),
        ({"optimizer": "muon"}, "--optimizer adam, but it is muon now"),
        ({"head_lr": 2.0}, "--head-lr 1.0, but it is 2.0 now"),
        ({"ema": 0.99}, "--ema 0.0, but it is 0.99 now"),
        ({"precision": "bf16"}, "--precision fp32, but it is bf16 now"),
        ({"deterministic": True}, "--deterministic False, but it is True now"),
        ({"wire": "bf16"}, "--wire auto, but it is bf16 now"),
        ({"width": 0.5}, "--width 0.25, but it is 0.5 now"),
        ({"train_limit": 100}, "--train-limit none, but it is 100 now"),
        ({"dataset": "synthetic"}, "--dataset digits, but it is synthetic now"),
    ],
)
def test_what_decides_the_weights_may_not_change(values: dict[str, Any], told: str) -> None:
    text = message(lambda: check_resumable(recipe("digits"), changed(**values), "runs/one"), ConfigError)
    assert text.startswith("runs/one was saved with ") and told in text and text.endswith("by --init-from")


LOSSLESS = [{}, {"wire": "fp32"}, {"wire": "fp32", "precision": "bf16"}, {"wire": "bf16", "precision": "bf16"}]
ROUNDING = [{"wire": "bf16"}, {"wire": "fp16"}, {"wire": "fp16", "precision": "bf16"}]


@pytest.mark.parametrize("values", ROUNDING)
def test_the_split_may_not_change_where_the_wire_rounds_at_its_boundaries(values: dict[str, Any]) -> None:
    was = changed(**values, split=(4, 4))
    assert check_resumable(was, changed(**values, split=(4, 4), stages=2, queue_depth=1), "run") == []
    for split, told in (((8,), "8"), ((3, 5), "3,5")):
        with pytest.raises(
            ConfigError, match=f"^run was saved with --split 4,4, but it is {told} now; go on with what"
        ):
            check_resumable(was, changed(**values, split=split), "run")


@pytest.mark.parametrize("values", LOSSLESS)
def test_the_split_may_change_where_the_wire_keeps_every_bit(values: dict[str, Any]) -> None:
    assert check_resumable(changed(**values, split=(4, 4)), changed(**values, split=(8,)), "run") == []


def split_in(processes: int, **values: Any) -> tuple[int, ...] | None:
    """Of the configuration with which a run of two stages goes on."""
    placed = placed_anew(changed(split=(4, 4), stages=2, threads=(3, 1), **values), processes).train
    assert placed.threads == ((3, 1) if processes == 2 else None)
    assert placed.stages == (None if placed.split is None else 2)
    return placed.split


@pytest.mark.parametrize("values", ROUNDING)
def test_a_run_goes_on_with_its_split_in_one_process_where_the_wire_rounds(values: dict[str, Any]) -> None:
    assert [split_in(processes, **values) for processes in (1, 2, 3)] == [(4, 4), (4, 4), None]


@pytest.mark.parametrize("values", LOSSLESS)
def test_a_run_goes_on_with_its_split_in_as_many_processes_alone(values: dict[str, Any]) -> None:
    assert [split_in(processes, **values) for processes in (1, 2, 3)] == [None, (4, 4), None]


def test_a_library_calls_configuration_is_compared_too() -> None:
    config = TrainConfig(epochs=3)
    assert check_resumable(config, replace(config, epochs=5), "run") == []
    with pytest.raises(ConfigError, match=r"--momentum 0\.0, but it is 0\.9 now"):
        check_resumable(replace(config, optimizer="sgd"), replace(config, optimizer="sgd", momentum=0.9), "run")
