"""Two runs in one process would draw each other's random numbers: the second is refused at once."""

from __future__ import annotations

import os
import threading

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

import pipeline
from pipeline.errors import ConfigError, PipelineError
from pipeline.runtime.exclusive import only_run

MESSAGE = "another run is under way in this process, .* start this one after it, or in a process of its own"


def test_a_second_run_is_refused_in_another_thread_as_in_the_same() -> None:
    refused = []

    def second() -> None:
        with pytest.raises(ConfigError, match=MESSAGE), only_run():
            pass
        refused.append(True)

    with only_run():
        second()
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(10)
    assert refused == [True, True]
    with only_run():
        pass  # the first has ended


def test_a_run_that_fails_makes_room_for_the_next() -> None:
    with pytest.raises(ValueError, match="under way"), only_run():
        raise ValueError("under way")
    with only_run():
        pass


def test_the_run_of_a_parent_is_not_one_of_its_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    with only_run():
        monkeypatch.setattr(os, "getpid", lambda: -1)
        with only_run():
            pass
        monkeypatch.undo()


class Nested(Dataset[tuple[Tensor, int]]):
    """Trains for each sample that it is asked for."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        train(TensorDataset(torch.randn(8, 4), torch.arange(8) % 2))
        return torch.zeros(4), 0


def train(data: Dataset[tuple[Tensor, ...]] | Nested) -> None:
    blocks = pipeline.blocks_from(nn.Sequential(nn.Linear(4, 2)))
    pipeline.train(blocks, data, data, pipeline.TrainConfig(loss="pred", epochs=1, batch_size=4, threads=1))


def test_a_run_inside_a_runs_data_is_refused_and_not_waited_for() -> None:
    with pytest.raises(PipelineError, match=MESSAGE):
        train(Nested())
