"""Batches: order, chance, and who may draw."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config.schema import DataConfig
from tests.support.data import batches_of, library, numbered
from tests.support.data_files import (
    write_idx,
    write_mnist_like,
)


@pytest.mark.parametrize(("count", "steps", "used"), [(12, 3, 12), (14, 4, 14), (13, 3, 12), (3, 1, 3), (2, 1, 2)])
def test_smaller_last_batch_trains_but_one_of_a_single_sample_is_left_out(count: int, steps: int, used: int) -> None:
    batches = library(numbered(count))
    sizes = [len(labels) for _, _, labels in batches.train(1)]
    assert (batches.steps_per_epoch, len(sizes), sum(sizes)) == (steps, steps, used)
    assert batches.train_samples == count


def test_batches_of_one_sample_are_kept_when_asked_for() -> None:
    assert len(list(library(numbered(5), batch_size=1).train(1))) == 5


def test_each_epoch_holds_every_sample_once_in_another_order() -> None:
    batches = library(numbered(40))
    epochs = [torch.cat([images.flatten() for _, images, _ in batches.train(epoch)]) for epoch in (1, 2)]
    for epoch in epochs:
        assert torch.equal(epoch.sort().values, torch.arange(40.0))
    assert not torch.equal(*epochs)


def test_labels_stay_with_their_images() -> None:
    for _, images, labels in library(numbered(40)).train(1):
        assert torch.equal(images.flatten().long() % 3, labels)


def test_steps_are_counted_over_the_whole_run_from_0() -> None:
    batches = library(numbered(14))
    assert [step for epoch in (1, 2, 3) for step, _, _ in batches.train(epoch)] == list(range(12))


def test_evaluation_holds_all_samples_in_their_own_order_even_a_single_last_one() -> None:
    batches = library(numbered(8), numbered(9))
    parts = list(batches.test())
    assert torch.equal(torch.cat([images.flatten() for images, _ in parts]), torch.arange(9.0))
    assert len(parts) == batches.test_steps == 3 and batches.test_samples == 9


def test_batches_are_the_same_whoever_asks_and_in_whatever_order() -> None:
    config = DataConfig(dataset="synthetic", train_limit=60, test_limit=10, cutout=8)
    first, second = batches_of(config), batches_of(config)
    straight = {epoch: list(first.train(epoch)) for epoch in (1, 2)}
    interrupted = second.train(1)
    next(interrupted)
    list(second.test())
    for epoch in (2, 1):
        for ours, theirs in zip(straight[epoch], second.train(epoch), strict=True):
            assert ours[0] == theirs[0] and torch.equal(ours[1], theirs[1]) and torch.equal(ours[2], theirs[2])


def test_other_seeds_and_other_epochs_give_other_batches() -> None:
    config = DataConfig(dataset="synthetic", train_limit=32, test_limit=10)
    one, two = batches_of(config), batches_of(config, seed=2)
    start = next(one.train(1))[1]
    assert not torch.equal(start, next(two.train(1))[1])
    assert not torch.equal(start, next(one.train(2))[1])
    assert torch.equal(next(one.test())[0], next(two.test())[0])


def test_augmentation_differs_from_step_to_step(tmp_path: Path) -> None:
    write_mnist_like(tmp_path, "FashionMNIST")
    write_idx(tmp_path / "FashionMNIST" / "raw" / "train-images-idx3-ubyte", np.full((40, 28, 28), 255, np.uint8))
    write_idx(tmp_path / "FashionMNIST" / "raw" / "train-labels-idx1-ubyte", np.zeros(40, np.uint8))
    batches = batches_of(DataConfig(dataset="fashion_mnist", data_dir=str(tmp_path)), batch_size=20)
    # All images are white, so that only the place of the crop can tell batches apart.
    first, second = (images for _, images, _ in batches.train(1))
    assert not torch.equal(first, second)


def test_batches_leave_the_default_generators_alone() -> None:
    batches = batches_of(DataConfig(dataset="synthetic", train_limit=32, test_limit=10))
    before = torch.default_generator.get_state()
    list(batches.train(1)), list(batches.test())
    assert torch.equal(torch.default_generator.get_state(), before)


@pytest.mark.runs
def test_importing_the_module_imports_neither_torchvision_nor_sklearn() -> None:
    code = "import pipeline.data.batches, sys; print(*{'torchvision', 'sklearn', 'PIL'} & set(sys.modules))"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=root)
    assert done.stdout == "\n", done.stderr
