"""A part of the training samples evaluated in place of the test set, so that settings can be chosen without it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.data.images import Images, ImageStore, LoadedData
from pipeline.seeding import keyed_generator

__all__ = ["hold_out"]


@dataclass(frozen=True)
class _Chosen:
    """Some of the images of a store."""

    store: ImageStore
    indices: Tensor  # int64, into the store
    labels: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.store.shape

    def take(self, indices: Tensor) -> Tensor:
        return self.store.take(self.indices[indices])

    def prefetch(self, indices: Tensor) -> None:
        self.store.prefetch(self.indices[indices])


def hold_out(loaded: LoadedData, share: float) -> LoadedData:
    """The data with a `share` of its training samples, chosen at random, as its test set; without it as it came.

    The choice is one for every seed, so that runs with several seeds are evaluated on the same samples.
    """
    if not share:
        return loaded
    count = len(loaded.train.labels)
    order = torch.randperm(count, generator=keyed_generator("held out"))
    held = round(share * count)
    kept, held_out = order[held:].sort().values, order[:held].sort().values
    return replace(loaded, train=_part(loaded.train, kept), test=_part(loaded.train, held_out))


def _part(store: ImageStore, indices: Tensor) -> ImageStore:
    if isinstance(store, Images):  # copied, so that they can be kept on the device
        return Images(store.images[indices], store.labels[indices])
    return _Chosen(store, indices, store.labels[indices])
