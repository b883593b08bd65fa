"""Data sets of a library call: any map-style torch data set of (image, label), checked sample by sample."""

from __future__ import annotations

import contextlib
import importlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, Subset, TensorDataset

from pipeline.errors import DataError
from pipeline.seeding import derive_seed

__all__ = ["library_split"]


class _TensorSplit:
    """A TensorDataset of images and labels, by indexing."""

    def __init__(self, images: Tensor, labels: Tensor, device: torch.device) -> None:
        self._images, self._labels, self._device = images, labels.to("cpu", torch.int64), device
        self.classes = int(labels.max()) + 1

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._images.shape[1:])

    def __len__(self) -> int:
        return len(self._labels)

    def batch(self, indices: Tensor, step: int) -> tuple[Tensor, Tensor]:
        chosen = indices.to(self._images.device)
        images = _to_float(self._images.index_select(0, chosen).to(self._device))
        return _channels_last(images), self._labels.index_select(0, indices)

    def prefetch(self, indices: Tensor) -> None:
        """Nothing to do: all is in memory."""


class _DatasetSplit:
    """Any other data set, sample by sample, its random transforms seeded by (key, step)."""

    def __init__(self, dataset: Any, name: str, device: torch.device, key: tuple[int | str, ...]) -> None:
        self._dataset, self._name, self._device, self._key = dataset, name, device, key
        with _keyed_globals(*key, "scan"):
            self.shape = tuple(self._sample(0)[0].shape)
            self.classes = max(self._labels()) + 1

    def __len__(self) -> int:
        return len(self._dataset)

    def batch(self, indices: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The chosen samples. Raises DataError that names a sample unlike the first."""
        with _keyed_globals(*self._key, step):
            images, labels = zip(*(self._checked_sample(index) for index in indices.tolist()), strict=True)
        return _channels_last(torch.stack(images).to(self._device)), torch.tensor(labels)

    def prefetch(self, indices: Tensor) -> None:
        """Nothing is read ahead: the samples' chance is keyed by their own step."""

    def _checked_sample(self, index: int) -> tuple[Tensor, int]:
        image, label = self._sample(index)
        if tuple(image.shape) != self.shape:
            raise DataError(
                f"{self._name}[{index}] is an image of shape {list(image.shape)}, {self._name}[0] of "
                f"{list(self.shape)}; resize or crop them alike"
            )
        if label >= self.classes:
            raise DataError(
                f"{self._name}[{index}] has label {label}, but the labels known at start end at {self.classes - 1}; "
                "make `targets` or `labels` of the data set agree with its samples"
            )
        return image, label

    def _sample(self, index: int) -> tuple[Tensor, int]:
        where = f"{self._name}[{index}]"
        try:
            sample = self._dataset[index]
        except Exception as error:  # whatever the user's own code raises
            raise DataError(f"{where} raised {type(error).__name__}: {error}; mend the data set") from error
        if not isinstance(sample, tuple | list) or len(sample) != 2:
            size = f" of {len(sample)}" if isinstance(sample, tuple | list) else ""
            raise DataError(f"{where} is a {type(sample).__name__}{size}; give a pair (image, label)")
        return _to_image(sample[0], where), _to_label(sample[1], where)

    def _labels(self) -> list[int]:
        """All labels: as the data set lists them, if its first and last samples agree, else by one pass over it."""
        listed = _listed_labels(self._dataset)
        if listed is not None and all(listed[i] == self._sample(i)[1] for i in {0, len(listed) - 1}):
            return [_to_label(label, f"{self._name}[{index}]") for index, label in enumerate(listed)]
        return [self._sample(index)[1] for index in range(len(self))]


def library_split(
    dataset: Any, name: str, device: torch.device, key: tuple[int | str, ...]
) -> _TensorSplit | _DatasetSplit:
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise DataError(
            f"{name} is a {type(dataset).__name__}, which has no length and index; give a map-style data set"
        )
    if len(dataset) == 0:
        raise DataError(f"{name} is empty; give at least 2 training samples and 1 test sample")
    if type(dataset) is TensorDataset and len(dataset.tensors) == 2:  # a subclass may change what indexing gives
        images, labels = dataset.tensors
        _check_tensors(images, labels, name)
        return _TensorSplit(images, labels, device)
    return _DatasetSplit(dataset, name, device, key)


def _check_tensors(images: Tensor, labels: Tensor, name: str) -> None:
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise DataError(
            f"labels of {name} are {_kind(labels)} of shape {list(labels.shape)}; give one integer per sample"
        )
    if int(labels.min()) < 0:
        raise DataError(f"labels of {name} begin at {int(labels.min())}; number the classes from 0")
    _check_image(images[0], name)
    if images.is_floating_point() and not bool(images.isfinite().all()):
        bad = int((~images.isfinite()).flatten(1).any(1).nonzero()[0])
        raise DataError(f"{name}[{bad}] is an image with values that are not finite; mend or remove it")


def _check_image(image: Tensor, where: str) -> None:
    if image.ndim == 0 or not (image.is_floating_point() or image.dtype == torch.uint8):
        raise DataError(
            f"{where} holds an image of {_kind(image)} and shape {list(image.shape)}; give uint8 or floating point "
            "with at least one dimension"
        )


def _to_image(image: Any, where: str) -> Tensor:
    """float32; uint8 values scaled to [0, 1]. PIL images and arrays [H, W, C] become [C, H, W]."""
    if isinstance(image, np.ndarray) and image.ndim == 1:
        image = torch.from_numpy(image)
    if not isinstance(image, Tensor):
        functional = importlib.import_module("torchvision.transforms.functional")
        try:
            image = functional.to_tensor(image)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{where} holds an image of {type(image).__name__}; give a tensor, a PIL image or an array [H, W, C]"
            ) from error
    _check_image(image, where)
    return _to_float(image.detach())


def _to_label(label: Any, where: str) -> int:
    whole = isinstance(label, int | np.integer) and not isinstance(label, bool)
    if isinstance(label, Tensor | np.ndarray) and label.ndim == 0:
        label = label.item()
        whole = type(label) is int
    if not whole:
        raise DataError(f"{where} has label {label!r}; give an integer, the class counted from 0")
    if label < 0:
        raise DataError(f"{where} has label {label}; number the classes from 0")
    return int(label)


def _listed_labels(dataset: Any) -> list[Any] | None:
    """The labels that a data set lists as `targets` or `labels`, unless something may change them on the way."""
    if type(dataset) is Subset:
        whole = _listed_labels(dataset.dataset)
        return None if whole is None else [whole[index] for index in dataset.indices]
    if type(dataset) is TensorDataset and len(dataset.tensors) == 2:
        listed: Any = dataset.tensors[1]
    elif getattr(dataset, "target_transform", None) is not None:
        return None
    else:
        listed = getattr(dataset, "targets", getattr(dataset, "labels", None))
    if isinstance(listed, Tensor | np.ndarray):
        listed = listed.tolist()
    fits = isinstance(listed, list | tuple) and len(listed) == len(dataset)
    return list(listed) if fits and all(isinstance(label, int | np.integer) for label in listed) else None


def _to_float(images: Tensor) -> Tensor:
    return images.to(torch.float32).div_(255) if images.dtype == torch.uint8 else images.to(torch.float32)


def _channels_last(images: Tensor) -> Tensor:
    """Image batches in the memory format of the named data sets; other batches as they are."""
    return images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images.contiguous()


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


@contextlib.contextmanager
def _keyed_globals(*key: int | str) -> Iterator[None]:
    """Seed what random transforms draw from, and leave everybody else's draws as they were."""
    states = torch.default_generator.get_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    seed = derive_seed(*key)
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        torch.default_generator.set_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])  # noqa: NPY002
