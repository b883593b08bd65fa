"""Data sets by name, read as uint8 images and integer labels; what is missing or damaged is said in one line."""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.augment import Augmentation
from pipeline.config import DataConfig
from pipeline.errors import ConfigError, DataError
from pipeline.keys import keyed_generator
from pipeline.plans import DATASETS, DatasetInfo

__all__ = ["FolderImages", "ImageStore", "Images", "LoadedData", "load_images"]

_IN_MEMORY_BYTES = 2 << 30  # image folders below this are decoded once, at start
_LARGEST_SIDE = 224  # pixels, of what the network sees of a photograph
_NETWORK_TIMEOUT_S = 60.0  # silence from a download server
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")

Arrays = tuple[Any, Any]  # numpy arrays as a reader gives them: images [N, H, W, C] and labels [N]


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
        """Rows, columns, channels."""
        _, rows, columns, channels = self.images.shape
        return rows, columns, channels

    def take(self, indices: Tensor) -> Tensor:
        """The chosen images."""
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


def load_images(config: DataConfig) -> LoadedData:
    """Read the data set that `config` names.

    Raises:
        DataError: it is missing, damaged, or smaller than the limits ask for.
        ConfigError: the cutout does not fit the images.
    """
    info = DATASETS[config.dataset]
    if config.dataset == "image_folder":
        return _load_folder(config, info)
    train, test = (_read_split(config, info, training) for training in (True, False))
    assert info.classes is not None, "only the files of an image folder tell the classes"
    augmentation = Augmentation(crop_padding=info.crop_padding, flip=info.flip, cutout=config.cutout)
    return LoadedData(train, test, info.classes, info.mean, info.std, augmentation)


def _read_split(config: DataConfig, info: DatasetInfo, training: bool) -> Images:
    limit = config.train_limit if training else config.test_limit
    if config.dataset in _LAYOUTS:
        images, labels = _read_torchvision(config, _LAYOUTS[config.dataset], training)
    else:
        images, labels = {"digits": _digits, "synthetic": _synthetic}[config.dataset](training, limit)
    _check_arrays(config, info, images, labels)
    count = _limit(config, training, len(labels))
    # Cut first: the copy is what makes a transposed view contiguous.
    images = torch.from_numpy(np.ascontiguousarray(images[:count]))
    return Images(images, torch.from_numpy(labels[:count]).to(torch.int64))


def _limit(config: DataConfig, training: bool, size: int) -> int:
    """Number of samples to keep of `size`."""
    limit = config.train_limit if training else config.test_limit
    flag, kind = ("--train-limit", "training") if training else ("--test-limit", "test")
    if limit is not None and limit > size:
        raise DataError(
            f"{flag} is {limit}, but {config.dataset} has {size} {kind} samples; give at most {size} or drop it"
        )
    return size if limit is None else limit


def _check_arrays(config: DataConfig, info: DatasetInfo, images: Any, labels: Any) -> None:
    assert info.shape is not None and info.classes is not None
    dataset, place = config.dataset, Path(config.data_dir) / _LAYOUTS.get(config.dataset, _NO_FILES).folder
    channels, rows, columns = info.shape
    found = tuple(images.shape)
    if found[1:] != (rows, columns, channels) or found[0] != len(labels) or found[0] == 0 or images.dtype != np.uint8:
        raise DataError(
            f"{dataset} in {place} is damaged: {images.dtype} images of shape {list(found)} and {len(labels)} labels, "
            f"wanted uint8 [N, {rows}, {columns}, {channels}] and as many labels; {_RENEW}"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= info.classes:
        raise DataError(
            f"{dataset} in {place} is damaged: labels from {low} to {high}, wanted 0 to {info.classes - 1}; {_RENEW}"
        )


# --- sets that torchvision reads ---

_RENEW = "delete it and fetch it again with --download, or point --data-dir at a whole copy"


@dataclass(frozen=True)
class _Layout:
    """Where torchvision expects a set below its root, and how to read one split with it."""

    folder: str
    files: tuple[str, ...]
    read: Callable[[Any, str, bool, bool], Arrays]  # torchvision.datasets, root, training, download


_NO_FILES = _Layout("", (), lambda *_: ((), ()))


def _read_torchvision(config: DataConfig, layout: _Layout, training: bool) -> Arrays:
    place = Path(config.data_dir) / layout.folder
    if not config.download:
        _check_files(config.dataset, place, layout.files)
    datasets = _import("torchvision.datasets", config.dataset)
    try:
        with _quiet(), _bounded_wait():
            return layout.read(datasets, config.data_dir, training, config.download)
    except MemoryError:
        raise
    except Exception as error:  # a broken file makes torchvision, pickle, numpy and scipy raise nearly anything
        missing = [name for name in layout.files if not (place / name).is_file()]
        if config.download and missing:
            raise DataError(
                f"{config.dataset} could not be downloaded to {place} ({_reason(error)}); check the network and "
                f"that the folder is writable, or point --data-dir at a copy in torchvision's layout"
            ) from error
        raise DataError(f"{config.dataset} in {place} is damaged ({_reason(error)}); {_RENEW}") from error


def _check_files(dataset: str, place: Path, files: Sequence[str]) -> None:
    missing = [name for name in files if not (place / name).is_file()]
    if missing:
        what = "not found" if len(missing) == len(files) else f"not complete ({', '.join(missing)} missing)"
        raise DataError(
            f"{dataset} is {what} in {place}; add --download to fetch it, or point --data-dir at the folder that "
            "holds it in torchvision's layout"
        )


def _import(module: str, dataset: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = {"sklearn": "scikit-learn"}.get(module.split(".")[0], module.split(".")[0])
        raise DataError(
            f"{dataset} is read through {package}, which cannot be imported ({_reason(error)}); "
            f"pip install {package}, or choose --dataset synthetic"
        ) from error


def _reason(error: BaseException) -> str:
    """The error as a piece of one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Standard output belongs to the run's own lines; whatever a reader prints goes to standard error."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


@contextlib.contextmanager
def _bounded_wait() -> Iterator[None]:
    """Let a silent download server fail; torchvision sets no timeout of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_NETWORK_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _mnist_like(name: str) -> _Layout:
    def read(datasets: Any, root: str, training: bool, download: bool) -> Arrays:
        split = getattr(datasets, name)(root, train=training, download=download)
        return split.data.unsqueeze(3).numpy(), split.targets.numpy()

    files = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
    return _Layout(f"{name}/raw", files, read)


def _cifar(name: str, folder: str, files: tuple[str, ...]) -> _Layout:
    def read(datasets: Any, root: str, training: bool, download: bool) -> Arrays:
        split = getattr(datasets, name)(root, train=training, download=download)
        return split.data, np.array(split.targets)

    return _Layout(folder, files, read)


def _svhn(datasets: Any, root: str, training: bool, download: bool) -> Arrays:
    names = ("train", "extra") if training else ("test",)
    splits = [datasets.SVHN(root, split=name, download=download) for name in names]
    images = np.concatenate([split.data.transpose(0, 2, 3, 1) for split in splits])
    return images, np.concatenate([split.labels.reshape(-1) for split in splits])


def _stl10(datasets: Any, root: str, training: bool, download: bool) -> Arrays:
    split = datasets.STL10(root, split="train" if training else "test", download=download)
    # Stored labels count from 1 as uint8, so that a stored 0 arrives here as 255.
    return split.data.transpose(0, 2, 3, 1), split.labels.astype(np.int64)


_LAYOUTS = {
    "mnist": _mnist_like("MNIST"),
    "fashion_mnist": _mnist_like("FashionMNIST"),
    "kmnist": _mnist_like("KMNIST"),
    "cifar10": _cifar(
        "CIFAR10", "cifar-10-batches-py", (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
    ),
    "cifar100": _cifar("CIFAR100", "cifar-100-python", ("train", "test", "meta")),
    "svhn": _Layout("", ("train_32x32.mat", "extra_32x32.mat", "test_32x32.mat"), _svhn),
    "stl10": _Layout("stl10_binary", ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin"), _stl10),
}


# --- sets that need no files ---

_DIGITS_TRAIN = 1437  # of 1,797; the last 360 are the test set
_SYNTHETIC_COUNT = {True: 10_000, False: 2_000}
_SYNTHETIC_CHUNK = 1_000  # images per generator, so that a small limit costs little


def _digits(training: bool, limit: int | None) -> Arrays:
    """scikit-learn's 8x8 handwritten digits, values 0 to 16, enlarged to 16x16."""
    bunch = _import("sklearn.datasets", "digits").load_digits()
    # RandomState's stream is frozen by numpy's promise: the same split on every machine, whatever --seed.
    order = np.random.RandomState(0).permutation(len(bunch.target))
    chosen = order[:_DIGITS_TRAIN] if training else order[_DIGITS_TRAIN:]
    small = torch.from_numpy(bunch.images[chosen]).float().mul_(255 / 16).unsqueeze(1)
    large = F.interpolate(small, size=(16, 16), mode="bilinear", align_corners=False)
    return large.round_().to(torch.uint8).permute(0, 2, 3, 1).numpy(), bunch.target[chosen]


def _synthetic(training: bool, limit: int | None) -> Arrays:
    """Ten smooth colour patterns, each shifted, faded and buried in noise; the same images for everyone."""
    count = _SYNTHETIC_COUNT[training]
    wanted = count if limit is None else min(limit, count)
    chunks = [_synthetic_chunk(training, chunk) for chunk in range(-(-wanted // _SYNTHETIC_CHUNK))]
    images, labels = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    return images.numpy(), labels.numpy()


def _synthetic_chunk(training: bool, chunk: int) -> tuple[Tensor, Tensor]:
    side, classes = 32, 10
    coarse = torch.randn(classes, 3, 4, 4, generator=keyed_generator("synthetic", "patterns"))
    patterns = F.interpolate(coarse, size=(side, side), mode="bicubic").permute(0, 2, 3, 1)  # [10, H, W, 3]
    generator = keyed_generator("synthetic", int(training), chunk)
    labels = torch.randint(classes, (_SYNTHETIC_CHUNK,), generator=generator)
    shift = torch.randint(-12, 13, (2, _SYNTHETIC_CHUNK, 1), generator=generator)
    contrast = torch.rand(_SYNTHETIC_CHUNK, 1, 1, 1, generator=generator).mul_(30).add_(15)
    rows, columns = (torch.arange(side) + shift) % side  # each [N, side]
    clean = patterns[labels.view(-1, 1, 1), rows.unsqueeze(2), columns.unsqueeze(1)]
    noise = torch.randn(clean.shape, generator=generator).mul_(50)
    return clean.mul_(contrast).add_(noise).add_(127.5).clamp_(0, 255).to(torch.uint8), labels


# --- folders of image files ---


class FolderImages:
    """Image files, decoded when taken, by a few threads; the next batch while the present one trains."""

    def __init__(self, paths: Sequence[Path], labels: Tensor, side: int) -> None:
        self.paths, self.labels, self.side = tuple(paths), labels, side
        self._pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="decode")
        self._ahead: tuple[list[int], list[Future[np.ndarray[Any, Any]]]] = ([], [])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, columns, channels as stored."""
        return self.side, self.side, 3

    def take(self, indices: Tensor) -> Tensor:
        """The chosen images. Raises DataError that names a file which cannot be read."""
        if self._ahead[0] != indices.tolist():
            self.prefetch(indices)
        _, futures = self._ahead
        self._ahead = ([], [])
        return torch.from_numpy(np.stack([future.result() for future in futures]))

    def prefetch(self, indices: Tensor) -> None:
        """Begin to decode the images that the next `take` will ask for."""
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


def _load_folder(config: DataConfig, info: DatasetInfo) -> LoadedData:
    root = Path(config.data_dir)
    train_folder, test_folder = root / "train", _test_folder(root)
    classes = _classes(train_folder, test_folder)
    train_files, test_files = _list_images(train_folder, classes), _list_images(test_folder, classes)
    side = min(_short_side(train_files[0][0]), _LARGEST_SIDE)
    if config.cutout > 2 * side:
        raise ConfigError(
            f"--cutout is {config.cutout}, more than twice the side of {side} pixels that {train_files[0][0]} sets "
            f"for all images; give at most {2 * side}"
        )
    stored = round(side * 8 / 7)  # 256 for 224, as usual for photographs
    train, test = _kept_in_memory(
        _folder_split(config, True, train_files, stored), _folder_split(config, False, test_files, stored)
    )
    augmentation = Augmentation(flip=info.flip, cutout=config.cutout, crop_to=side)
    return LoadedData(train, test, len(classes), info.mean, info.std, augmentation)


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
    chosen = [files[i] for i in order[: _limit(config, training, len(files))]]
    return FolderImages([path for path, _ in chosen], torch.tensor([label for _, label in chosen]), stored)


def _kept_in_memory(train: FolderImages, test: FolderImages) -> tuple[ImageStore, ImageStore]:
    size = (len(train.paths) + len(test.paths)) * train.side**2 * 3
    return (train, test) if size >= _IN_MEMORY_BYTES else (train.in_memory(), test.in_memory())


def _short_side(path: Path) -> int:
    with _opened(path) as image:
        return int(min(image.size))


def _decode(path: Path, side: int) -> np.ndarray[Any, Any]:
    """One image, uint8 [side, side, 3]: its largest centred square, resized."""
    image_ops = importlib.import_module("PIL.ImageOps")
    with _opened(path) as image:
        return np.asarray(image_ops.fit(image.convert("RGB"), (side, side), method=_BILINEAR))


_BILINEAR = 2  # PIL.Image.Resampling.BILINEAR


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    pil = _import("PIL.Image", "image_folder")
    try:
        with pil.open(path) as image:
            yield image
    except Exception as error:  # a broken file makes PIL raise nearly anything
        raise DataError(f"{path} cannot be read as an image ({_reason(error)}); mend or remove it") from error
