"""Data sets by name, read as uint8 images and integer labels; what is missing or damaged is said in one line."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.config.catalog import DATASETS, DatasetInfo
from pipeline.config.schema import DataConfig
from pipeline.data.augment import Augmentation
from pipeline.data.image_folder import load_folder
from pipeline.data.images import Images, LoadedData, import_reader, reason_of, sample_count, shown
from pipeline.errors import DataError
from pipeline.seeding import keyed_generator

__all__ = ["load_images"]

_NETWORK_TIMEOUT_S = 60.0  # silence from a download server

Arrays = tuple[Any, Any]  # numpy arrays as a reader gives them: images [N, H, W, C] and labels [N]


def load_images(config: DataConfig) -> LoadedData:
    """Read the data set that `config` names.

    Raises:
        DataError: it is missing, damaged, or smaller than the limits ask for.
        ConfigError: the cutout does not fit the images.
    """
    try:
        return _load(config, DATASETS[config.dataset])
    except OSError as error:
        where = shown(error.filename or config.data_dir)
        raise DataError(
            f"{config.dataset} cannot be read: {where} ({error.strerror or reason_of(error)}); check --data-dir and "
            "the permissions there"
        ) from error


def _load(config: DataConfig, info: DatasetInfo) -> LoadedData:
    if config.dataset == "image_folder":
        return load_folder(config, info)
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
    count = sample_count(config, training, len(labels))
    # Cut first: the copy is what makes a transposed view contiguous.
    images = torch.from_numpy(np.ascontiguousarray(images[:count]))
    return Images(images, torch.from_numpy(labels[:count]).to(torch.int64))


def _check_arrays(config: DataConfig, info: DatasetInfo, images: Any, labels: Any) -> None:
    assert info.shape is not None and info.classes is not None
    dataset, place = config.dataset, shown(Path(config.data_dir) / _LAYOUTS.get(config.dataset, _NO_FILES).folder)
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
    datasets = import_reader("torchvision.datasets", config.dataset)
    try:
        # Standard output belongs to the run's own lines; what a reader prints goes to standard error.
        with contextlib.redirect_stdout(sys.stderr), _bounded_wait():
            return layout.read(datasets, config.data_dir, training, config.download)
    except MemoryError:
        raise
    except Exception as error:  # a broken file makes torchvision, pickle, numpy and scipy raise nearly anything
        missing = [name for name in layout.files if not (place / name).is_file()]
        if config.download and missing:
            raise DataError(
                f"{config.dataset} could not be downloaded to {shown(place)} ({reason_of(error)}); check the network "
                "and that the folder is writable, or point --data-dir at a copy in torchvision's layout"
            ) from error
        if isinstance(error, PermissionError):
            raise
        raise DataError(f"{config.dataset} in {shown(place)} is damaged ({reason_of(error)}); {_RENEW}") from error


def _check_files(dataset: str, place: Path, files: Sequence[str]) -> None:
    missing = [name for name in files if not (place / name).is_file()]
    packed = [f"{name}.gz" for name in missing if (place / f"{name}.gz").is_file()]
    if packed:
        raise DataError(f"{dataset} in {shown(place)} is still packed ({', '.join(packed)}); gunzip these files")
    if missing:
        what = "not found" if len(missing) == len(files) else f"not complete ({', '.join(missing)} missing)"
        raise DataError(
            f"{dataset} is {what} in {shown(place)}; add --download to fetch it, or point --data-dir at the folder "
            "that holds it in torchvision's layout"
        )


@contextlib.contextmanager
def _bounded_wait() -> Iterator[None]:
    """Let a silent download server fail; torchvision sets no timeout of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_NETWORK_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _layout(name: str, folder: str, files: tuple[str, ...]) -> _Layout:
    """Of a class of torchvision that tells its splits by `train`; grey images have no dimension of channels there."""

    def read(datasets: Any, root: str, training: bool, download: bool) -> Arrays:
        split = getattr(datasets, name)(root, train=training, download=download)
        images = np.asarray(split.data)
        return images[..., None] if images.ndim == 3 else images, np.asarray(split.targets)

    return _Layout(folder, files, read)


def _mnist_like(name: str) -> _Layout:
    files = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
    return _layout(name, f"{name}/raw", files)


def _svhn(datasets: Any, root: str, training: bool, download: bool) -> Arrays:
    names = ("train", "extra") if training else ("test",)
    splits = [datasets.SVHN(root, split=name, download=download) for name in names]
    images = np.concatenate([split.data.transpose(0, 2, 3, 1) for split in splits])
    return images, np.concatenate([split.labels.reshape(-1) for split in splits])


def _stl10(datasets: Any, root: str, training: bool, download: bool) -> Arrays:
    # Without the 2.6 GB of images that have no label, which torchvision wants to be there whatever is read.
    files = [entry for entry in datasets.STL10.train_list if entry[0] != "unlabeled_X.bin"]
    reader = type("STL10", (datasets.STL10,), {"train_list": files})
    split = reader(root, split="train" if training else "test", download=download)
    # Stored labels count from 1 as uint8, so that a stored 0 arrives here as 255.
    return split.data.transpose(0, 2, 3, 1), split.labels.astype(np.int64)


_LAYOUTS = {
    "mnist": _mnist_like("MNIST"),
    "fashion_mnist": _mnist_like("FashionMNIST"),
    "kmnist": _mnist_like("KMNIST"),
    "cifar10": _layout(
        "CIFAR10", "cifar-10-batches-py", (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
    ),
    "cifar100": _layout("CIFAR100", "cifar-100-python", ("train", "test", "meta")),
    "svhn": _Layout("", ("train_32x32.mat", "extra_32x32.mat", "test_32x32.mat"), _svhn),
    "stl10": _Layout("stl10_binary", ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin"), _stl10),
}

_DIGITS_TRAIN = 1437  # of 1,797; the last 360 are the test set
_SYNTHETIC_COUNT = {True: 10_000, False: 2_000}
_SYNTHETIC_CHUNK = 1_000  # images per generator, so that a small limit costs little


def _digits(training: bool, limit: int | None) -> Arrays:
    """scikit-learn's 8x8 handwritten digits, values 0 to 16, enlarged to 16x16."""
    bunch = import_reader("sklearn.datasets", "digits").load_digits()
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
