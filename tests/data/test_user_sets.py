"""Data sets of a library call: every kind of sample, and what is wrong with the others."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from pipeline import StageFailure, TrainConfig, blocks_from, train
from pipeline.data import user_sets
from tests.support.data import library, message, numbered


class Listed(Dataset[Any]):
    """A map-style data set whose items are made by a function; `targets` lists labels where given."""

    def __init__(self, count: int, item: Callable[[int], Any], targets: Any = None) -> None:
        self.count, self.item, self.asked = count, item, 0
        if targets is not None:
            self.targets = targets

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        self.asked += 1
        return self.item(index)


def test_tensor_data_set_gives_the_same_batches_as_the_same_samples_one_by_one() -> None:
    images = torch.randint(0, 256, (11, 3, 4, 4), dtype=torch.uint8)
    whole = TensorDataset(images, torch.arange(11) % 4)
    one_by_one = Listed(11, lambda i: (images[i], i % 4))
    fast, slow = library(whole), library(one_by_one)
    assert fast.shape == slow.shape == (3, 4, 4) and fast.classes == slow.classes == 4
    for ours, theirs in zip(fast.train(1), slow.train(1), strict=True):
        assert torch.equal(ours[1], theirs[1]) and torch.equal(ours[2], theirs[2])
        assert ours[1].stride() == theirs[1].stride()
    for one, other in zip(fast.test(), slow.test(), strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_classes_that_a_data_set_names_count_where_a_part_of_it_lacks_them() -> None:
    whole = Listed(6, lambda index: (torch.zeros(2), index % 2))
    assert library(whole).classes == 2
    whole.classes = ["cat", "dog", "owl", "pig"]  # type: ignore[attr-defined]
    assert library(whole).classes == 4
    assert (
        library(Subset(Subset(whole, [0, 1, 2, 3]), [0, 2]), Listed(3, lambda index: (torch.zeros(2), 0))).classes == 4
    )
    whole.target_transform = abs  # type: ignore[attr-defined]
    assert library(whole).classes == 2, "what is made of the labels may be anything"


@pytest.mark.parametrize(
    ("image", "shape", "value"),
    [
        (torch.full((2, 4), 51, dtype=torch.uint8), (2, 4), 0.2),
        (torch.full((5,), 0.2, dtype=torch.float64), (5,), 0.2),
        (np.full((4, 6, 3), 51, np.uint8), (3, 4, 6), 0.2),
        (np.full((7,), 0.2), (7,), 0.2),
        (Image.new("RGB", (6, 4), (51, 51, 51)), (3, 4, 6), 0.2),
        (Image.new("L", (6, 4), 51), (1, 4, 6), 0.2),
    ],
    ids=["uint8", "float64", "array", "vector", "colour image", "grey image"],
)
def test_every_kind_of_image_becomes_float32(image: Any, shape: tuple[int, ...], value: float) -> None:
    batches = library([(image, 0), (image, np.int64(1)), (image, torch.tensor(2))])
    _, images, labels = next(batches.train(1))
    assert batches.shape == shape and images.shape[1:] == shape and batches.classes == 3
    assert images.dtype is torch.float32 and labels.dtype is torch.int64
    torch.testing.assert_close(images, torch.full_like(images, value))


def noisy(index: int) -> tuple[Tensor, int]:
    """A sample whose transforms draw from all three global generators."""
    return torch.tensor([random.random(), np.random.rand(), float(torch.rand(()))]), index % 2  # noqa: NPY002


def global_states() -> tuple[object, ...]:
    """The states of all three global generators."""
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()  # noqa: NPY002


def test_random_transforms_are_keyed_by_seed_and_step_and_disturb_nobody() -> None:
    batches, other = library(Listed(8, noisy)), library(Listed(8, noisy), seed=2)
    before = global_states()
    straight = [images for epoch in (1, 2) for _, images, _ in batches.train(epoch)]
    assert global_states() == before
    again = [images for epoch in (2, 1) for _, images, _ in batches.train(epoch)]
    assert all(torch.equal(a, b) for a, b in zip(straight, again[2:] + again[:2], strict=True))
    assert not torch.equal(straight[0], straight[1])
    assert not torch.equal(straight[0], next(other.train(1))[1])
    assert torch.equal(next(batches.test())[0], next(batches.test())[0])


def test_listed_labels_save_the_pass_over_the_data() -> None:
    data = Listed(100, lambda i: (torch.zeros(2), i % 5), targets=[i % 5 for i in range(100)])
    assert library(data, numbered_vectors()).classes == 5
    assert data.asked < 5


def numbered_vectors() -> TensorDataset:
    return TensorDataset(torch.zeros(4, 2), torch.tensor([0, 1, 2, 3]))


def test_listed_labels_that_cannot_be_asked_for_do_not_count() -> None:
    class Closed(Listed):
        @property
        def labels(self) -> list[int]:
            raise RuntimeError("closed")

    assert library(Closed(6, lambda i: (torch.zeros(2), i)), numbered_vectors()).classes == 6


def test_tensors_of_a_data_set_take_no_part_in_a_graph() -> None:
    weights = torch.ones(4, 2, requires_grad=True)
    assert not next(library(TensorDataset(weights * 2, torch.arange(4))).train(1))[1].requires_grad


def test_listed_labels_that_disagree_with_the_samples_do_not_count() -> None:
    data = Listed(6, lambda i: (torch.zeros(2), i), targets=[0] * 6)
    assert library(data, numbered_vectors()).classes == 6


def test_subset_lists_the_labels_of_its_own_samples() -> None:
    data = Listed(100, lambda i: (torch.zeros(2), i % 5), targets=[i % 5 for i in range(100)])
    assert library(Subset(data, [0, 1, 5, 6])).classes == 2
    assert data.asked < 10


def test_classes_count_the_labels_of_both_sets() -> None:
    assert library(TensorDataset(torch.zeros(4, 2), torch.tensor([0, 1, 0, 7])), numbered_vectors()).classes == 8


def liar(index: int) -> tuple[Tensor, int]:
    """A label that `targets` hides, neither at the first nor at the last sample, where it would be noticed at once."""
    return torch.zeros(2), 9 if index == 2 else 0


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([])


def ragged() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a prototype, says torch
        return torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])


class Unmeasured(Dataset[Any]):
    def __len__(self) -> int:
        raise TypeError("no\nlength")


GOOD, PLAIN = (torch.zeros(2), 0), (torch.zeros(3, 2, 2), 0)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (Stream(), "train_data is a Stream, which has no length and index"),
        (
            DataLoader(TensorDataset(torch.zeros(4, 2), torch.zeros(4))),
            "train_data is a DataLoader, whose batches the run makes by itself; give what it loads, its `dataset`",
        ),
        (
            (torch.zeros(4, 2), torch.arange(4)),
            "train_data[0] is a Tensor; give a pair (image, label) for each sample, as list(zip(images, labels)) is",
        ),
        (
            (np.zeros((4, 2)), [0, 1, 2, 3]),
            "train_data[0] is a ndarray; give a pair (image, label) for each sample, as",
        ),
        (
            TensorDataset(ragged(), torch.tensor([0, 1])),
            "train_data holds an image whose tensor is nested; give a dense",
        ),
        ([], "train_data is empty"),
        ([GOOD], "1 training and 4 test samples"),
        ([torch.zeros(2), torch.zeros(2)], "train_data[0] is a Tensor; give a pair"),
        ([(torch.zeros(2), 0, 1)] * 2, "train_data[0] is a tuple of 3; give a pair"),
        ([GOOD, (torch.zeros(2), 1.5)], "train_data[1] has label 1.5"),
        ([GOOD, (torch.zeros(2), torch.tensor(1.0))], "train_data[1] has label 1.0"),
        ([GOOD, (torch.zeros(2), True)], "train_data[1] has label True"),
        ([GOOD, (torch.zeros(2), torch.tensor([0, 1]))], "train_data[1] has a label of shape [2]"),
        ([GOOD, (torch.zeros(2), 10**9)], "labels of train_data go up to 1000000000"),
        (TensorDataset(torch.zeros(2, 2), torch.tensor([0, 2**40])), "labels of train_data go up to 1099511627776"),
        ([GOOD, (torch.zeros(2), -1)], "train_data[1] has label -1; number the classes from 0"),
        ([GOOD, (torch.zeros(3), 0)], "train_data[1] is an image of shape [3], train_data[0] of [2]"),
        (
            [PLAIN, (torch.zeros(4, 2, 2), 0)],
            "train_data[0] of [3, 2, 2]; convert them alike, as by image.convert('RGB')",
        ),
        ([PLAIN, (torch.zeros(3, 2, 9), 0)], "train_data[0] of [3, 2, 2]; resize or crop them alike"),
        ([GOOD, (torch.tensor([0, float("inf")]), 0)], "train_data[1] is an image with values that are not finite"),
        ([GOOD, (np.array([0, 1e300]), 0)], "train_data[1] is an image with values that are not finite in float32"),
        ([(torch.zeros(3), 0)] * 2, "images of train_data have shape [3], of test_data [2]"),
        ([("text", 0)] * 2, "train_data[0] holds an image of str"),
        ([(torch.tensor(1.0), 0)] * 2, "train_data[0] holds an image of float32 and shape []"),
        ([(torch.zeros(2, dtype=torch.int64), 0)] * 2, "train_data[0] holds an image of int64 and shape [2]"),
        (Listed(2, lambda i: [][i]), "train_data[0] raised IndexError: list index out of range"),
        (Listed(4, liar, targets=[0] * 4), "train_data[2] has label 9, but the labels known at start end at 3"),
        (TensorDataset(torch.zeros(2, 2), torch.tensor([0.0, 1.0])), "labels of train_data are float32 of shape [2]"),
        (TensorDataset(torch.zeros(2, 2), torch.zeros(2, 2).long()), "labels of train_data are int64 of shape [2, 2]"),
        (TensorDataset(torch.zeros(2, 2), torch.tensor([0, -3])), "labels of train_data begin at -3"),
        (TensorDataset(torch.zeros(2, 2).long(), torch.tensor([0, 1])), "train_data holds an image of int64"),
        (TensorDataset(torch.tensor([[0.0], [float("nan")]]), torch.tensor([0, 1])), "train_data[1] is an image with"),
        (
            TensorDataset(torch.tensor([[0.0], [1e300]]).double(), torch.tensor([0, 1])),
            "train_data[1] is an image with",
        ),
        (Unmeasured(), "the length of train_data raised TypeError: no length; mend the data set"),
    ],
)
def test_wrong_library_data_is_told_with_its_values(data: Any, words: str) -> None:
    assert words in message(lambda: list(library(data, numbered_vectors()).train(1)))


def not_finite_at(bad: int, value: float = float("nan")) -> Callable[[int], tuple[Tensor, int]]:
    return lambda index: (torch.full((2,), value if index == bad else 0.0), index % 2)


@pytest.mark.parametrize("limit", [1 << 24, 4], ids=["whole", "in parts"])
def test_value_of_a_tensor_data_set_that_is_not_finite_is_found_wherever_it_is(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_sets, "_CHECKED_VALUES", limit)
    for bad in range(5):
        images = torch.zeros(5, 2, dtype=torch.float64)
        images[bad, 1] = 1e300  # finite, but not in float32
        data = TensorDataset(images, torch.arange(5))
        text = message(partial(library, data))
        assert text.startswith(f"train_data[{bad}] is an image with values that are not finite")


def test_value_that_is_not_finite_is_found_before_training_where_all_samples_are_seen() -> None:
    good = Listed(48, not_finite_at(-1))
    assert message(lambda: library(Listed(48, not_finite_at(17)), good)).startswith("train_data[17] is an image with")
    assert message(lambda: library(good, Listed(48, not_finite_at(17)))).startswith("test_data[17] is an image with")


@pytest.mark.parametrize("name", ["train_data", "test_data"])
def test_value_that_is_not_finite_is_named_under_way_where_labels_are_listed(name: str) -> None:
    targets = [i % 2 for i in range(48)]
    good, bad = (Listed(48, not_finite_at(at), targets) for at in (-1, 17))
    batches = library(bad, good) if name == "train_data" else library(good, bad)
    text = message(lambda: list(batches.train(1) if name == "train_data" else batches.test()))
    assert text.startswith(f"{name}[17] is an image with values that are not finite")


def test_run_that_meets_a_value_that_is_not_finite_fails_with_the_sample() -> None:
    targets = [i % 2 for i in range(48)]
    good, bad = (Listed(48, not_finite_at(at), targets) for at in (-1, 17))
    blocks = blocks_from(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)))
    with pytest.raises(StageFailure, match=r"^train_data\[17\] is an image with values that are not finite"):
        train(blocks, bad, good, TrainConfig(epochs=1, batch_size=16, threads=1))


def test_empty_test_data_is_refused() -> None:
    assert "test_data is empty" in message(lambda: library(numbered(4), []))
