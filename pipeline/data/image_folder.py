"""A folder of image files as a data set: DIR/train/<class>/*.png and DIR/test/<class>/*.png."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.config.catalog import DatasetInfo
from pipeline.config.schema import DataConfig
from pipeline.data.augment import Augmentation
from pipeline.data.images import Images, ImageStore, LoadedData, import_reader, reason_of, sample_count
from pipeline.errors import ConfigError, DataError

__all__ = ["FolderImages", "load_folder"]

_IN_MEMORY_BYTES = 2 << 30  # image folders below this are decoded once, at start
_LARGEST_SIDE = 224  # pixels, of what the network sees of a photograph
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
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
    root = Path(config.data_dir)
    train_folder, test_folder = root / "train", _test_folder(root)
    classes = _classes(train_folder, test_folder)
    train_files, test_files = _list_images(train_folder, classes), _list_images(test_folder, classes)
    with _opened(train_files[0][0]) as image:
        side = min(*image.size, _LARGEST_SIDE)
    if config.cutout > 2 * side:
        raise ConfigError(
            f"--cutout is {config.cutout}, more than twice the side of {side} pixels that {train_files[0][0]} sets "
            f"for all images; give at most {2 * side}"
        )
    stored = round(side * 8 / 7)  # 256 for 224, as usual for photographs
    train = _folder_split(config, True, train_files, stored)
    test = _folder_split(config, False, test_files, stored)
    augmentation = Augmentation(flip=info.flip, cutout=config.cutout, crop_to=side)
    small = (len(train.paths) + len(test.paths)) * stored**2 * 3 < _IN_MEMORY_BYTES
    stores: tuple[ImageStore, ImageStore] = (train.in_memory(), test.in_memory()) if small else (train, test)
    return LoadedData(*stores, len(classes), info.mean, info.std, augmentation)


def _test_folder(root: Path) -> Path:
    for needed, names in (("training", ("train",)), ("test", ("test", "val"))):
        if not any((root / name).is_dir() for name in names):
            raise DataError(
                f"image_folder finds no folder of {needed} images {' or '.join(str(root / name) for name in names)}; "
                "lay images out as train/<class>/*.png and test/<class>/*.png below --data-dir"
            )
    return root / "test" if (root / "test").is_dir() else root / "val"


def _classes(train: Path, test: Path) -> list[str]:
    """Names of the classes, which both folders must have."""
    names = [{entry.name for entry in _entries(folder) if entry.is_dir()} for folder in (train, test)]
    for here, there, more in ((train, test, names[0] - names[1]), (test, train, names[1] - names[0])):
        if more:
            raise DataError(
                f"the classes of {train} and {test} differ: {', '.join(sorted(more))} only in {here}; add them to "
                f"{there} or remove them"
            )
    if len(names[0]) < 2:
        raise DataError(
            f"{train} has {len(names[0])} class folders ({', '.join(names[0]) or 'none'}), but telling classes apart "
            "needs at least 2; give each class a folder of its own"
        )
    return sorted(names[0])


def _list_images(folder: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    found = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted(_entries(folder / name))
        if path.suffix.lower() in _IMAGE_SUFFIXES
    ]
    if not found:
        raise DataError(f"{folder} has no images; put {', '.join(_IMAGE_SUFFIXES)} files into its class folders")
    return found


def _entries(folder: Path) -> list[Path]:
    try:
        return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder} cannot be listed ({error.strerror}); check its permissions") from error


def _folder_split(config: DataConfig, training: bool, files: list[tuple[Path, int]], stored: int) -> FolderImages:
    # A fixed order, so that the first N samples are of all classes.
    order = np.random.RandomState(0).permutation(len(files))
    chosen = [files[i] for i in order[: sample_count(config, training, len(files))]]
    return FolderImages([path for path, _ in chosen], torch.tensor([label for _, label in chosen]), stored)


def _decode(path: Path, side: int) -> np.ndarray[Any, Any]:
    """One image, uint8 [side, side, 3]: its largest centred square, resized."""
    image_ops = importlib.import_module("PIL.ImageOps")
    with _opened(path) as image:
        return np.asarray(image_ops.fit(image.convert("RGB"), (side, side), method=_BILINEAR))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    pil = import_reader("PIL.Image", "image_folder")
    try:
        with pil.open(path) as image:
            yield image
    except Exception as error:  # a broken file makes PIL raise nearly anything
        raise DataError(f"{path} cannot be read as an image ({reason_of(error)}); mend or remove it") from error
