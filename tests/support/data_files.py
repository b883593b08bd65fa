"""Tiny data sets in the formats of torchvision's files."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import savemat  # type: ignore[import-untyped]

__all__ = ["WRITERS", "pixels", "write_cifar10", "write_idx", "write_mnist_like", "write_stl10", "write_svhn"]


def write_idx(path: Path, values: np.ndarray[Any, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">I{values.ndim}I", 0x800 + values.ndim, *values.shape) + values.tobytes())


def pixels(count: int, *shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(count).integers(0, 256, (count, *shape), dtype=np.uint8)


def write_mnist_like(root: Path, name: str) -> None:
    for part, count in (("train", 6), ("t10k", 4)):
        raw = root / name / "raw"
        write_idx(raw / f"{part}-images-idx3-ubyte", pixels(count, 28, 28))
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8))


def write_pickle(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(value))


def write_cifar10(root: Path) -> None:
    folder = root / "cifar-10-batches-py"
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        count = 4 if name == "test_batch" else 2 if i == 0 else 1
        write_pickle(folder / name, {"data": pixels(count, 3072), "labels": list(range(count))})
    write_pickle(folder / "batches.meta", {"label_names": list("abcdefghij")})


def write_cifar100(root: Path) -> None:
    folder = root / "cifar-100-python"
    for name, count in (("train", 6), ("test", 4)):
        write_pickle(folder / name, {"data": pixels(count, 3072), "fine_labels": list(range(count))})
    write_pickle(folder / "meta", {"fine_label_names": [str(i) for i in range(100)]})


def write_svhn(root: Path) -> None:
    for name, count in (("train", 4), ("extra", 2), ("test", 4)):
        images = pixels(count, 32, 32, 3).transpose(1, 2, 3, 0)
        savemat(root / f"{name}_32x32.mat", {"X": images, "y": np.full((count, 1), 10, np.uint8)})


def write_stl10(root: Path) -> None:
    folder = root / "stl10_binary"
    folder.mkdir()
    for name, count in (("train", 6), ("test", 4)):
        (folder / f"{name}_X.bin").write_bytes(pixels(count, 3, 96, 96).tobytes())
        (folder / f"{name}_y.bin").write_bytes(bytes(range(1, count + 1)))


WRITERS: dict[str, Callable[[Path], None]] = {
    "mnist": lambda root: write_mnist_like(root, "MNIST"),
    "fashion_mnist": lambda root: write_mnist_like(root, "FashionMNIST"),
    "kmnist": lambda root: write_mnist_like(root, "KMNIST"),
    "cifar10": write_cifar10,
    "cifar100": write_cifar100,
    "svhn": write_svhn,
    "stl10": write_stl10,
}
