"""Data sets of a library call: any map-style torch data set of (image, label), checked sample by sample."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from pipeline.data.images import reason_of
from pipeline.data.samples import (
    check_classes,
    check_dense,
    check_finite,
    check_image,
    to_float,
    to_image,
    to_label,
    to_labels,
)
from pipeline.errors import DataError
from pipeline.seeding import host_generators_kept, seed_host_generators

__all__ = ["library_split"]

_CHECKED_VALUES = 1 << 24  # of a data set in memory at a time


class _TensorSplit:
    """A TensorDataset of images and labels, by indexing."""

    def __init__(self, images: Tensor, labels: Tensor, name: str, device: torch.device) -> None:
        images = images.detach()
        self._images, self._labels, self._device = images, to_labels(labels, name), device
        self.classes = int(self._labels.max()) + 1
        check_dense(images, f"{name} holds an image whose tensor is")
        check_image(images[0], name)
        if images.is_floating_point():
            for part in torch.arange(len(images)).split(max(1, _CHECKED_VALUES // images[0].numel())):
                check_finite(to_float(images[int(part[0]) : int(part[-1]) + 1]), part, name)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._images.shape[1:])

    def __len__(self) -> int:
        return len(self._labels)

    def batch(self, indices: Tensor, step: int) -> tuple[Tensor, Tensor]:
        chosen = indices.to(self._images.device)
        images = to_float(self._images.index_select(0, chosen).to(self._device))
        return _channels_last(images), self._labels.index_select(0, indices)

    def plain(self, indices: Tensor) -> Tensor:
        return self.batch(indices, 0)[0]

    def prefetch(self, indices: Tensor) -> None:
        """Nothing to do: all is in memory."""


class _DatasetSplit:
    """Any other data set, sample by sample, its random transforms seeded by (key, step)."""

    def __init__(self, dataset: Any, size: int, name: str, device: torch.device, key: tuple[int | str, ...]) -> None:
        self._dataset, self._size, self._name, self._device, self._key = dataset, size, name, device, key
        with _keyed_globals(*key, "scan"):
            self.shape = tuple(self._sample(0)[0].shape)
            self.classes = max(max(self._labels()) + 1, _named_classes(dataset))

    def __len__(self) -> int:
        return self._size

    def batch(self, indices: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The chosen samples. Raises DataError that names one unlike the first, or with values that are not finite."""
        with _keyed_globals(*self._key, step):
            images, labels = zip(*(self._known_sample(index) for index in indices.tolist()), strict=True)
        together = torch.stack(images)
        check_finite(together, indices, self._name)
        return _channels_last(together.to(self._device)), torch.tensor(labels)

    def plain(self, indices: Tensor) -> Tensor:
        return self.batch(indices, 0)[0]

    def prefetch(self, indices: Tensor) -> None:
        """Nothing is read ahead: the samples' chance is keyed by their own step."""

    def _known_sample(self, index: int) -> tuple[Tensor, int]:
        image, label = self._like_the_first(index)
        if label >= self.classes:
            raise DataError(
                f"{self._name}[{index}] has label {label}, but the labels known at start end at {self.classes - 1}; "
                "make `targets` or `labels` of the data set agree with its samples"
            )
        return image, label

    def _like_the_first(self, index: int) -> tuple[Tensor, int]:
        image, label = self._sample(index)
        if tuple(image.shape) != self.shape:
            same_size = image.ndim == len(self.shape) == 3 and tuple(image.shape[1:]) == self.shape[1:]
            remedy = "convert them alike, as by image.convert('RGB')" if same_size else "resize or crop them alike"
            raise DataError(
                f"{self._name}[{index}] is an image of shape {list(image.shape)}, {self._name}[0] of "
                f"{list(self.shape)}; {remedy}"
            )
        return image, label

    def _sample(self, index: int) -> tuple[Tensor, int]:
        where = f"{self._name}[{index}]"
        try:
            sample = self._dataset[index]
        except Exception as error:  # whatever the user's own code raises
            raise DataError(f"{where} raised {reason_of(error)}; mend the data set") from error
        if not isinstance(sample, tuple | list) or len(sample) != 2:
            size = f" of {len(sample)}" if isinstance(sample, tuple | list) else ""
            how = (
                " for each sample, as list(zip(images, labels)) is" if isinstance(sample, Tensor | np.ndarray) else ""
            )
            raise DataError(f"{where} is a {type(sample).__name__}{size}; give a pair (image, label){how}")
        return to_image(sample[0], where), to_label(sample[1], where)

    def _labels(self) -> list[int]:
        """All labels: as the data set lists them, if its first and last samples agree, else by one pass over it."""
        try:
            listed = _listed_labels(self._dataset, self._size)
        except Exception:  # whatever the user's own code raises: the samples tell as well
            listed = None
        if listed is not None and all(listed[i] == self._sample(i)[1] for i in {0, len(listed) - 1}):
            return [to_label(label, f"{self._name}[{index}]") for index, label in enumerate(listed)]
        return [self._scanned_label(index) for index in range(self._size)]

    def _scanned_label(self, index: int) -> int:
        image, label = self._like_the_first(index)
        check_finite(image.unsqueeze(0), torch.tensor([index]), self._name)
        return label


def library_split(
    dataset: Any, name: str, device: torch.device, key: tuple[int | str, ...]
) -> _TensorSplit | _DatasetSplit:
    if isinstance(dataset, DataLoader):
        raise DataError(
            f"{name} is a {type(dataset).__name__}, whose batches the run makes by itself; give what it loads, its "
            "`dataset`"
        )
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise DataError(
            f"{name} is a {type(dataset).__name__}, which has no length and index; give a map-style data set"
        )
    size = _length(dataset, name)
    if size == 0:
        raise DataError(f"{name} is empty; give at least 2 training samples and 1 test sample")
    split: _TensorSplit | _DatasetSplit
    if type(dataset) is TensorDataset and len(dataset.tensors) == 2:  # a subclass may change what indexing gives
        split = _TensorSplit(*dataset.tensors, name, device)
    else:
        split = _DatasetSplit(dataset, size, name, device, key)
    check_classes(split.classes, size, name)
    return split


def _length(dataset: Any, name: str) -> int:
    try:
        return len(dataset)
    except Exception as error:  # whatever the user's own code raises
        raise DataError(f"the length of {name} raised {reason_of(error)}; mend the data set") from error


def _listed_labels(dataset: Any, size: int) -> list[Any] | None:
    """The labels that a data set lists as `targets` or `labels`, unless something may change them on the way."""
    if type(dataset) is Subset:
        whole: Any = dataset.dataset
        listed_there = _listed_labels(whole, len(whole))
        return None if listed_there is None else [listed_there[index] for index in dataset.indices]
    if type(dataset) is TensorDataset and len(dataset.tensors) == 2:
        listed: Any = dataset.tensors[1]
    elif getattr(dataset, "target_transform", None) is not None:
        return None
    else:
        listed = getattr(dataset, "targets", getattr(dataset, "labels", None))
    if isinstance(listed, Tensor | np.ndarray):
        listed = listed.tolist()
    fits = isinstance(listed, list | tuple) and len(listed) == size
    return list(listed) if fits and all(isinstance(label, int | np.integer) for label in listed) else None


def _named_classes(dataset: Any) -> int:
    """How many classes a data set names in `classes`, as torchvision's do: a part of it may lack some."""
    while type(dataset) is Subset:
        dataset = dataset.dataset
    named = getattr(dataset, "classes", None)
    changed = getattr(dataset, "target_transform", None) is not None
    return len(named) if isinstance(named, list | tuple) and not changed else 0


def _channels_last(images: Tensor) -> Tensor:
    """Image batches in the memory format of the named data sets; other batches as they are."""
    return images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images.contiguous()


@contextlib.contextmanager
def _keyed_globals(*key: int | str) -> Iterator[None]:
    """Seed what random transforms draw from, and leave everybody else's draws as they were."""
    with host_generators_kept():
        seed_host_generators(*key)
        yield
