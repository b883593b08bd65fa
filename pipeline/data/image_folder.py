"""A folder of image files as a data set, decoded at start where that fits into memory, else as needed."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.config.catalog import DatasetInfo
from pipeline.config.schema import DataConfig
from pipeline.data.augment import Augmentation
from pipeline.data.class_folders import Labelled, find_images
from pipeline.data.images import Images, ImageStore, LoadedData, import_reader, sample_count, shown
from pipeline.data.pictures import opened, to_rgb
from pipeline.errors import ConfigError

__all__ = ["FolderImages", "load_folder"]

_IN_MEMORY_BYTES = 2 << 30  # image folders below this are decoded once, at start
_LARGEST_SIDE = 224  # pixels, of what the network sees of a photograph
_BILINEAR = 2  # PIL.Image.Resampling.BILINEAR


class FolderImages:
    """Image files, decoded when taken, by a few threads; the next batch while the present one trains."""

    def __init__(self, paths: Sequence[Path], labels: Tensor, side: int) -> None:
        self.paths, self.labels, self.side = tuple(paths), labels, side
        self._pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="decode")
        self._ahead: tuple[list[int], list[Future[np.ndarray[Any, Any]]]] = ([], [])

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.side, self.side, 3

    def take(self, indices: Tensor) -> Tensor:
        """The chosen images. Raises DataError that names a file which cannot be read."""
        if self._ahead[0] != indices.tolist():
            self.prefetch(indices)
        _, futures = self._ahead
        self._ahead = ([], [])
        return torch.from_numpy(np.stack([future.result() for future in futures]))

    def prefetch(self, indices: Tensor) -> None:
        for future in self._ahead[1]:
            future.cancel()
        wanted = indices.tolist()
        self._ahead = (wanted, [self._pool.submit(_decode, self.paths[index], self.side) for index in wanted])

    def in_memory(self) -> Images:
        """All images, decoded once; nothing can be taken from here any more."""
        images = torch.empty(len(self.paths), *self.shape, dtype=torch.uint8)
        for start in range(0, len(self.paths), 256):
            indices = torch.arange(start, min(start + 256, len(self.paths)))
            images[start : start + 256] = self.take(indices)
        self._pool.shutdown()
        return Images(images, self.labels)


def load_folder(config: DataConfig, info: DatasetInfo) -> LoadedData:
    """Raises DataError if the folder or one of its images cannot be read, ConfigError if the cutout does not fit."""
    pil = import_reader("PIL.Image", "image_folder")
    with warnings.catch_warnings():
        # Such an image is refused by name.
        warnings.simplefilter("ignore", pil.DecompressionBombWarning)
        return _load(config, info)


def _load(config: DataConfig, info: DatasetInfo) -> LoadedData:
    found = find_images(Path(config.data_dir))
    first = found.train[0][0]
    side, notes = _side(config, first), found.notes
    if side < _LARGEST_SIDE:
        notes += (f"images are seen with {side}x{side} pixels, the short side of the first one, {shown(first)}",)
    stored = round(side * 8 / 7)  # 256 for 224, as usual for photographs
    train = _folder_split(config, True, found.train, stored)
    test = _folder_split(config, False, found.test, stored)
    augmentation = Augmentation(flip=info.flip, cutout=config.cutout, crop_to=side)
    small = (len(train.paths) + len(test.paths)) * stored**2 * 3 < _IN_MEMORY_BYTES
    stores: tuple[ImageStore, ImageStore] = (train.in_memory(), test.in_memory()) if small else (train, test)
    return LoadedData(*stores, found.classes, info.mean, info.std, augmentation, notes)


def _side(config: DataConfig, first: Path) -> int:
    """Of what the network sees, in pixels: the first image's short side, up to a limit."""
    with opened(first) as image:
        side: int = min(image.width, image.height, _LARGEST_SIDE)
    if config.cutout > 2 * side:
        raise ConfigError(
            f"--cutout is {config.cutout}, more than twice the side of {side} pixels that {shown(first)} sets for all "
            f"images; give at most {2 * side}"
        )
    return side


def _folder_split(config: DataConfig, training: bool, files: Labelled, stored: int) -> FolderImages:
    # A fixed order, so that the first N samples are of all classes.
    order = np.random.RandomState(0).permutation(len(files))
    chosen = [files[i] for i in order[: sample_count(config, training, len(files))]]
    return FolderImages([path for path, _ in chosen], torch.tensor([label for _, label in chosen]), stored)


def _decode(path: Path, side: int) -> np.ndarray[Any, Any]:
    """One image, uint8 [side, side, 3]: its largest centred square, resized."""
    image_ops = importlib.import_module("PIL.ImageOps")
    with opened(path) as image:
        return np.asarray(image_ops.fit(to_rgb(image, shown(path)), (side, side), method=_BILINEAR))
