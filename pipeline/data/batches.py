"""Data sets as batches: the same batches in the same order for a given seed, whoever asks, and however often.

Both kinds of data set meet in `Batches`, all the rest of the program sees:

    named set     uint8 images  ─> order by (seed, epoch) ─> augmentation by (seed, step) ─┐
                                                                                           ├─> float32, on the device
    library set   dataset[i]    ─> order by (seed, epoch) ─> its transforms, seeded ───────┘
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.config.schema import DataConfig
from pipeline.data.augment import augment, normalize
from pipeline.data.grouping import grouped
from pipeline.data.holding_out import hold_out
from pipeline.data.images import Images, ImageStore, LoadedData
from pipeline.data.named_sets import load_images
from pipeline.data.user_sets import library_split
from pipeline.errors import DataError
from pipeline.seeding import keyed_generator

__all__ = ["Batches"]

_ON_DEVICE_BYTES = 2 << 30  # image sets below this are kept on the accelerator


class _Split(Protocol):
    """The training or the test samples."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample, as the network sees it."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Images, float32 on the device, and labels, int64 on the CPU like the indices; the step keys all chance."""

    def prefetch(self, indices: Tensor) -> None:
        """Begin to read what the next `batch` will ask for."""

    def plain(self, indices: Tensor) -> Tensor:
        """Images as evaluation would see them, as far as the data set knows."""


class Batches:
    """Training and test batches. Holds no state between calls: a batch is a function of data, seed, epoch and step.

    Attributes:
        shape: of one sample; channels, height, width for images.
        classes: number of classes.
        train_samples, test_samples: sizes of the splits.
        steps_per_epoch, test_steps: batches in each.
        notes: what the user should know of the data at start.
    """

    def __init__(
        self,
        train: _Split,
        test: _Split,
        *,
        classes: int,
        seed: int,
        batch_size: int,
        notes: tuple[str, ...] = (),
        arrange: Callable[[Tensor, int], Tensor] = lambda order, epoch: order,
    ) -> None:
        """`arrange` makes of the random order of an epoch the one in which samples come."""
        if len(train) < 2 or len(test) < 1:
            raise DataError(
                f"the data has {len(train)} training and {len(test)} test samples; give at least 2 and 1 of them"
            )
        self.shape, self.classes, self.notes = train.shape, classes, notes
        self.train_samples, self.test_samples = len(train), len(test)
        full, rest = divmod(len(train), batch_size)
        self.steps_per_epoch = full + (rest > 1)  # a last batch of a single sample has no batch statistics
        self.test_steps = -(-len(test) // batch_size)
        self._train, self._test, self._seed, self._batch_size = train, test, seed, batch_size
        self._arrange = arrange

    @classmethod
    def from_config(cls, data: DataConfig, *, seed: int, batch_size: int, device: torch.device) -> Batches:
        """Batches of a named data set. Raises DataError if it is missing, damaged or too small."""
        loaded = hold_out(load_images(data), data.held_out)
        train = _ImageSplit(loaded.train, loaded, device, seed)
        test = _ImageSplit(loaded.test, loaded, device, None)

        def arrange(order: Tensor, epoch: int) -> Tensor:
            until = epoch if data.classes_per_batch_until is None else data.classes_per_batch_until
            if data.classes_per_batch is None or epoch > until:
                return order
            return grouped(order, train.labels, batch_size, data.classes_per_batch)

        return cls(
            train,
            test,
            classes=loaded.classes,
            seed=seed,
            batch_size=batch_size,
            notes=loaded.notes,
            arrange=arrange,
        )

    @classmethod
    def from_datasets(
        cls, train_data: Dataset[Any], test_data: Dataset[Any], *, seed: int, batch_size: int, device: torch.device
    ) -> Batches:
        """Batches of map-style data sets of (image, label). Raises DataError if samples or labels do not fit."""
        train = library_split(train_data, "train_data", device, (seed, "sample"))
        test = library_split(test_data, "test_data", device, (seed, "sample", "test"))
        if train.shape != test.shape:
            raise DataError(
                f"images of train_data have shape {list(train.shape)}, of test_data {list(test.shape)}; "
                "give both the same transforms"
            )
        train.classes = test.classes = max(train.classes, test.classes)
        return cls(train, test, classes=train.classes, seed=seed, batch_size=batch_size)

    def train(self, epoch: int, skip: int = 0) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Step over the whole run (from 0), images and labels of an epoch (from 1), without its first `skip` steps."""
        drawn = torch.randperm(self.train_samples, generator=keyed_generator(self._seed, "order", epoch))
        order = self._arrange(drawn, epoch)
        parts = order.split(self._batch_size)[skip : self.steps_per_epoch]
        first = (epoch - 1) * self.steps_per_epoch + skip
        for step, (images, labels) in enumerate(_read_ahead(self._train, parts, first), first):
            yield step, images, labels

    def plain(self, count: int) -> Tensor:
        """The first `count` training samples at most, unaugmented, float32 on the device."""
        return self._train.plain(torch.arange(min(count, self.train_samples)))

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels of all test samples, in their own order."""
        return _read_ahead(self._test, torch.arange(self.test_samples).split(self._batch_size), 0)


def _read_ahead(split: _Split, parts: tuple[Tensor, ...], first: int) -> Iterator[tuple[Tensor, Tensor]]:
    for position, indices in enumerate(parts):
        batch = split.batch(indices, first + position)
        if position + 1 < len(parts):
            split.prefetch(parts[position + 1])
        yield batch


class _ImageSplit:
    """uint8 images, augmented on the device for training, only normalised where `seed` is None."""

    def __init__(self, store: ImageStore, loaded: LoadedData, device: torch.device, seed: int | None) -> None:
        if isinstance(store, Images) and store.images.nbytes < _ON_DEVICE_BYTES:
            store = store.to(device)
        self._store, self._loaded, self._device, self._seed = store, loaded, device, seed

    @property
    def shape(self) -> tuple[int, ...]:
        rows, columns, channels = self._store.shape
        side = self._loaded.augmentation.crop_to
        return (channels, rows, columns) if side is None else (channels, side, side)

    @property
    def labels(self) -> Tensor:
        """Of all samples, int64."""
        return self._store.labels

    def __len__(self) -> int:
        return len(self._store.labels)

    def batch(self, indices: Tensor, step: int) -> tuple[Tensor, Tensor]:
        labels = self._store.labels.index_select(0, indices)
        if self._seed is None:
            return self.plain(indices), labels
        images_NHWC, loaded = self._store.take(indices).to(self._device), self._loaded
        generator = keyed_generator(self._seed, "augment", step)
        return augment(images_NHWC, loaded.augmentation, loaded.mean, loaded.std, generator), labels

    def plain(self, indices: Tensor) -> Tensor:
        images_NHWC, loaded = self._store.take(indices).to(self._device), self._loaded
        return normalize(images_NHWC, loaded.mean, loaded.std, loaded.augmentation.crop_to)

    def prefetch(self, indices: Tensor) -> None:
        self._store.prefetch(indices)
