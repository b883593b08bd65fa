"""Image sets in memory: what the readers give and the batches are made of."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline.config.schema import DataConfig
from pipeline.data.augment import Augmentation
from pipeline.errors import DataError

__all__ = ["ImageStore", "Images", "LoadedData", "import_reader", "reason_of", "sample_count", "shown"]


class ImageStore(Protocol):
    """Images of one size with their labels."""

    @property
    def labels(self) -> Tensor:
        """int64 [N]."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, columns, channels as stored."""

    def take(self, indices: Tensor) -> Tensor:
        """The chosen images, uint8 [B, H, W, C]; indices lie on the CPU."""

    def prefetch(self, indices: Tensor) -> None:
        """Begin to read what the next `take` will ask for."""


@dataclass(frozen=True)
class Images:
    """Images in memory."""

    images: Tensor  # uint8 [N, H, W, C]
    labels: Tensor  # int64 [N]

    @property
    def shape(self) -> tuple[int, int, int]:
        _, rows, columns, channels = self.images.shape
        return rows, columns, channels

    def take(self, indices: Tensor) -> Tensor:
        return self.images.index_select(0, indices.to(self.images.device))

    def prefetch(self, indices: Tensor) -> None:
        """Nothing to do: all is in memory."""

    def to(self, device: torch.device) -> Images:
        """The same images on `device`; the labels stay, since they travel in packet headers."""
        return Images(self.images.to(device), self.labels)


@dataclass(frozen=True)
class LoadedData:
    """A data set ready to be batched."""

    train: ImageStore
    test: ImageStore
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation
    notes: tuple[str, ...] = ()  # what the user should know of it at start


def sample_count(config: DataConfig, training: bool, size: int) -> int:
    """Number of samples to keep of `size`."""
    limit = config.train_limit if training else config.test_limit
    flag, kind = ("--train-limit", "training") if training else ("--test-limit", "test")
    if limit is not None and limit > size:
        raise DataError(
            f"{flag} is {limit}, but {config.dataset} has {size} {kind} samples; give at most {size} or drop it"
        )
    return size if limit is None else limit


def import_reader(module: str, dataset: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = {"sklearn": "scikit-learn"}.get(module.split(".")[0], module.split(".")[0])
        raise DataError(
            f"{dataset} is read through {package}, which cannot be imported ({reason_of(error)}); "
            f"pip install {package}, or choose --dataset synthetic"
        ) from error


def reason_of(error: BaseException) -> str:
    """The error as a piece of one line."""
    text = " ".join(str(error).split())
    return shown(f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__)


def shown(name: object) -> str:
    """A path or a name as any terminal takes it: what is no character of a line (or of any text) is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(name))
