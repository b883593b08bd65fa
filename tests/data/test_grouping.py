"""Batches of few classes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.schema import DataConfig
from pipeline.data.grouping import grouped
from pipeline.errors import ConfigError
from tests.support.data import batches_of, message


def random_order(samples: int, seed: int = 1) -> torch.Tensor:
    return torch.randperm(samples, generator=torch.Generator().manual_seed(seed))


def classes_of(order: torch.Tensor, labels: torch.Tensor, size: int) -> list[int]:
    return [len(labels[part].unique()) for part in order.split(size)]


def test_every_batch_has_the_asked_number_of_classes() -> None:
    """As CIFAR-100: 100 classes of equal size. Where an epoch ends there may be fewer left."""
    labels = torch.arange(100).repeat(60)
    order = grouped(random_order(6000), labels, 128, 20)
    counts = classes_of(order, labels, 128)
    assert len(counts) == 47
    assert counts[:40] == [20] * 40, counts
    assert max(counts) <= 20 or counts.index(max(counts)) > 40


def test_all_classes_come_in_turn() -> None:
    labels = torch.arange(100).repeat(60)
    parts = grouped(random_order(6000), labels, 128, 20).split(128)
    for start in range(0, 40, 10):
        seen = torch.cat([labels[part] for part in parts[start : start + 10]]).unique()
        assert len(seen) == 100, "ten batches of 20 reach every class"


def test_where_the_classes_are_small_a_batch_takes_more_of_them() -> None:
    labels = torch.arange(50).repeat(2)
    assert classes_of(grouped(random_order(100), labels, 10, 2), labels, 10)[0] == 5


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=80), st.integers(2, 20), st.integers(1, 8), st.integers(0, 99))
def test_every_sample_stays_in_the_epoch_once(kinds: list[int], size: int, classes: int, seed: int) -> None:
    order = random_order(len(kinds), seed)
    found = grouped(order, torch.tensor(kinds), size, classes)
    assert sorted(found.tolist()) == list(range(len(kinds)))
    assert torch.equal(found, grouped(order, torch.tensor(kinds), size, classes))


def test_all_classes_are_the_order_itself() -> None:
    order = random_order(60)
    assert torch.equal(grouped(order, torch.arange(60) % 10, 7, 10), order)


def test_batches_are_grouped_until_the_epoch_given() -> None:
    config = DataConfig(dataset="digits", classes_per_batch=2, classes_per_batch_until=1)
    plain, few = batches_of(DataConfig(dataset="digits"), batch_size=32), batches_of(config, batch_size=32)
    first = [len(labels.unique()) for _, _, labels in few.train(1)]
    assert first[:30] == [2] * 30
    ours, theirs = ([labels for _, _, labels in one.train(2)] for one in (few, plain))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)), "as they come again"
    late = [labels for _, _, labels in few.train(1, skip=3)]
    assert torch.equal(late[0], [labels for _, _, labels in few.train(1)][3])


def test_more_classes_than_there_are_is_a_mistake() -> None:
    told = message(lambda: DataConfig(dataset="digits", classes_per_batch=11), ConfigError)
    assert told == "--classes-per-batch is 11, but digits has 10 classes; give 1 to 10"
    told = message(lambda: DataConfig(classes_per_batch_until=3), ConfigError)
    assert told == "--classes-per-batch-until 3 needs --classes-per-batch"


@pytest.mark.parametrize("value", [0, -1])
def test_no_class_at_all_is_a_mistake(value: int) -> None:
    assert "give a whole number at least 1" in message(lambda: DataConfig(classes_per_batch=value), ConfigError)
