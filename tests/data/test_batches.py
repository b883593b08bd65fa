"""Batches: order, chance, and who may draw."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.config.schema import DataConfig
from pipeline.data.batches import Batches
from pipeline.data.holding_out import hold_out
from pipeline.data.images import Images
from pipeline.data.named_sets import load_images
from pipeline.errors import DataError
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


def test_held_out_samples_are_evaluated_and_not_learned_from() -> None:
    config = DataConfig(dataset="synthetic", train_limit=60)
    whole, parted = batches_of(config), batches_of(replace(config, held_out=0.1))
    assert (parted.train_samples, parted.test_samples) == (54, 6)
    known = {tuple(image.flatten().tolist()) for image in whole.plain(60)}
    learned = {tuple(image.flatten().tolist()) for image in parted.plain(60)}
    evaluated = {tuple(image.flatten().tolist()) for images, _ in parted.test() for image in images}
    assert len(known) == 60 and learned | evaluated == known and not learned & evaluated


def test_the_same_samples_are_held_out_for_every_seed() -> None:
    config = DataConfig(dataset="synthetic", train_limit=60, held_out=0.2)
    one, other = (Batches.from_config(config, seed=seed, batch_size=4, device=torch.device("cpu")) for seed in (1, 2))
    for (images, labels), (others, other_labels) in zip(one.test(), other.test(), strict=True):
        assert torch.equal(images, others) and torch.equal(labels, other_labels)


def test_images_that_are_not_in_memory_can_be_held_out() -> None:
    @dataclass(frozen=True)
    class OnDisk:
        images: Images
        asked: list[Tensor]

        @property
        def labels(self) -> Tensor:
            return self.images.labels

        @property
        def shape(self) -> tuple[int, int, int]:
            return self.images.shape

        def take(self, indices: Tensor) -> Tensor:
            return self.images.take(indices)

        def prefetch(self, indices: Tensor) -> None:
            self.asked.append(indices)

    loaded = load_images(DataConfig(dataset="synthetic", train_limit=20, test_limit=5))
    assert isinstance(loaded.train, Images)
    store = OnDisk(loaded.train, [])
    parted, same = hold_out(replace(loaded, train=store), 0.25), hold_out(loaded, 0.25)
    for part, in_memory in ((parted.train, same.train), (parted.test, same.test)):
        chosen = torch.tensor([3, 0])
        part.prefetch(chosen)
        assert torch.equal(part.labels, in_memory.labels) and part.shape == in_memory.shape
        assert torch.equal(part.take(chosen), in_memory.take(chosen))
        assert torch.equal(store.take(store.asked.pop()), part.take(chosen))


def test_a_part_too_small_to_hold_a_sample_is_told() -> None:
    with pytest.raises(DataError) as caught:
        batches_of(DataConfig(dataset="synthetic", train_limit=4, held_out=0.1))
    assert str(caught.value) == "the data has 4 training and 0 test samples; give at least 2 and 1 of them"
