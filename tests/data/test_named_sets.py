"""Data sets by name: sizes, layouts, and every way in which their files can be wrong."""

from __future__ import annotations

import lzma
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision

from pipeline.config.schema import DataConfig
from pipeline.data.images import Images
from pipeline.data.named_sets import load_images
from tests.support.data import batches_of, message
from tests.support.data_files import (
    WRITERS,
    pixels,
    write_cifar10,
    write_idx,
    write_mnist_like,
    write_stl10,
    write_svhn,
)


def test_digits_have_the_promised_sizes_and_lie_within_their_statistics() -> None:
    batches = batches_of(DataConfig(dataset="digits"), batch_size=128)
    assert (batches.shape, batches.classes) == ((1, 16, 16), 10)
    assert (batches.train_samples, batches.test_samples, batches.steps_per_epoch) == (1437, 360, 12)
    loaded = load_images(DataConfig(dataset="digits"))
    assert isinstance(loaded.train, Images)
    values = loaded.train.images.float() / 255
    assert float(values.mean()) == pytest.approx(loaded.mean[0], abs=1e-3)
    assert float(values.std()) == pytest.approx(loaded.std[0], abs=1e-3)


def test_digits_split_is_fixed() -> None:
    loaded = load_images(DataConfig(dataset="digits"))
    assert loaded.train.labels[:12].tolist() == DIGITS_HEAD
    assert loaded.test.labels.bincount().min() > 25


DIGITS_HEAD = [2, 8, 2, 6, 6, 7, 1, 9, 8, 5, 2, 8]


def test_synthetic_is_fixed_and_a_limit_only_shortens_it() -> None:
    whole = load_images(DataConfig(dataset="synthetic", train_limit=1500))
    part = load_images(DataConfig(dataset="synthetic", train_limit=40))
    assert isinstance(whole.train, Images) and isinstance(part.train, Images) and isinstance(part.test, Images)
    assert torch.equal(whole.train.images[:40], part.train.images)
    assert part.train.images.shape == (40, 32, 32, 3) and part.test.images.shape == (2000, 32, 32, 3)
    assert not torch.equal(part.train.images, part.test.images[:40])
    assert whole.train.labels.bincount(minlength=10).min() > 100


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"train_limit": 10_001}, "--train-limit is 10001, but synthetic has 10000 training samples"),
        ({"test_limit": 2_001, "train_limit": 10}, "--test-limit is 2001, but synthetic has 2000 test samples"),
    ],
)
def test_limit_beyond_the_set_names_both_numbers(limits: dict[str, int], words: str) -> None:
    assert words in message(lambda: load_images(DataConfig(dataset="synthetic", **limits)))  # type: ignore[arg-type]


def test_missing_package_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert "pip install scikit-learn" in message(lambda: load_images(DataConfig(dataset="digits")))


@pytest.fixture
def no_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torchvision take made-up files; only their existence is checked."""
    for module in (torchvision.datasets.cifar, torchvision.datasets.svhn, torchvision.datasets.stl10):
        monkeypatch.setattr(module, "check_integrity", lambda path, md5=None: Path(path).is_file())


@pytest.mark.usefixtures("no_checksums")
@pytest.mark.parametrize("name", WRITERS)
def test_torchvision_set_is_read_from_its_own_layout(name: str, tmp_path: Path, capfd: Any) -> None:
    WRITERS[name](tmp_path)
    batches = batches_of(DataConfig(dataset=name, data_dir=str(tmp_path)), batch_size=4)
    assert (batches.train_samples, batches.test_samples) == (6, 4)
    for _, images, labels in batches.train(1):
        assert images.shape[1:] == batches.shape and images.dtype is torch.float32
        assert labels.dtype is torch.int64 and int(labels.max()) < batches.classes
    assert capfd.readouterr().out == ""


@pytest.mark.usefixtures("no_checksums")
def test_pixels_keep_their_places(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    write_stl10(tmp_path)
    cifar = load_images(DataConfig(dataset="cifar10", data_dir=str(tmp_path))).test
    stl = load_images(DataConfig(dataset="stl10", data_dir=str(tmp_path))).test
    assert isinstance(cifar, Images) and isinstance(stl, Images)
    assert torch.equal(cifar.images.permute(0, 3, 1, 2), torch.from_numpy(pixels(4, 3072)).view(4, 3, 32, 32))
    # STL-10 stores columns first.
    assert torch.equal(stl.images.permute(0, 3, 2, 1), torch.from_numpy(pixels(4, 3, 96, 96)))


@pytest.mark.usefixtures("no_checksums")
def test_svhn_joins_train_and_extra_and_calls_ten_zero(tmp_path: Path) -> None:
    write_svhn(tmp_path)
    loaded = load_images(DataConfig(dataset="svhn", data_dir=str(tmp_path)))
    assert loaded.train.labels.tolist() == [0] * 6


@pytest.mark.parametrize("name", WRITERS)
def test_missing_set_names_itself_the_folder_and_the_remedies(name: str, tmp_path: Path) -> None:
    text = message(lambda: load_images(DataConfig(dataset=name, data_dir=str(tmp_path / "none"))))
    assert text.startswith(f"{name} is not found in {tmp_path / 'none'}")
    assert "--download" in text and "--data-dir" in text


def test_incomplete_set_names_the_missing_file(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    text = message(lambda: load_images(DataConfig(dataset="cifar10", data_dir=str(tmp_path))))
    assert "not complete (data_batch_3 missing)" in text


@pytest.mark.usefixtures("no_checksums")
def test_complete_stl10_needs_no_unlabelled_images_nor_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(torchvision.datasets.stl10, "download_and_extract_archive")
    write_stl10(tmp_path)
    assert not (tmp_path / "stl10_binary" / "unlabeled_X.bin").exists()
    for download in (False, True):
        loaded = load_images(DataConfig(dataset="stl10", data_dir=str(tmp_path), download=download))
        assert len(loaded.train.labels) == 6


def test_files_that_are_still_packed_are_named(tmp_path: Path) -> None:
    write_mnist_like(tmp_path, "MNIST")
    for file in sorted((tmp_path / "MNIST" / "raw").iterdir()):
        file.rename(f"{file}.gz")
    text = message(lambda: load_images(DataConfig(dataset="mnist", data_dir=str(tmp_path))))
    assert "MNIST/raw is still packed (train-images-idx3-ubyte.gz, " in text and text.endswith("; gunzip these files")


@pytest.mark.parametrize("name", ["image_folder", "mnist"])
def test_folder_that_cannot_be_looked_into_is_named(name: str, tmp_path: Path) -> None:
    place = tmp_path / ("n" * 300)
    text = message(lambda: load_images(DataConfig(dataset=name, data_dir=str(place))))
    assert text.startswith(f"{name} cannot be read: {place}/") and "(File name too long); check" in text


def test_file_that_may_not_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist_like(tmp_path, "MNIST")
    file = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(torchvision.datasets, "MNIST", refuse)  # root may read everything
    text = message(lambda: load_images(DataConfig(dataset="mnist", data_dir=str(tmp_path))))
    assert text == f"mnist cannot be read: {file} (Permission denied); check --data-dir and the permissions there"


def test_missing_set_in_a_folder_of_an_odd_name_is_told_on_one_line(tmp_path: Path) -> None:
    text = message(lambda: load_images(DataConfig(dataset="mnist", data_dir=f"{tmp_path}/a\nb\x1b")))
    assert f"mnist is not found in {tmp_path}/a\\nb\\x1b/MNIST/raw; " in text


def test_wrong_checksum_is_damage(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    text = message(lambda: load_images(DataConfig(dataset="cifar10", data_dir=str(tmp_path))))
    assert f"cifar10 in {tmp_path / 'cifar-10-batches-py'} is damaged" in text and "--download" in text


@pytest.mark.usefixtures("no_checksums")
@pytest.mark.parametrize("content", [b"", b"garbage", b"\x80\x04garbage" * 9], ids=["empty", "short", "long"])
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("fashion_mnist", "FashionMNIST/raw/train-images-idx3-ubyte"),
        ("mnist", "MNIST/raw/t10k-labels-idx1-ubyte"),
        ("cifar10", "cifar-10-batches-py/data_batch_2"),
        ("cifar100", "cifar-100-python/meta"),
        ("svhn", "extra_32x32.mat"),
        ("stl10", "stl10_binary/train_X.bin"),
    ],
)
def test_broken_file_is_one_line_that_names_its_folder(name: str, file: str, content: bytes, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    (tmp_path / file).write_bytes(content)
    text = message(lambda: load_images(DataConfig(dataset=name, data_dir=str(tmp_path))))
    assert f"{name} in {(tmp_path / file).parent} is damaged" in text


def test_truncated_images_are_damage(tmp_path: Path) -> None:
    write_mnist_like(tmp_path, "KMNIST")
    file = tmp_path / "KMNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-100])
    assert "is damaged" in message(lambda: load_images(DataConfig(dataset="kmnist", data_dir=str(tmp_path))))


def test_images_without_their_labels_are_damage(tmp_path: Path) -> None:
    write_mnist_like(tmp_path, "MNIST")
    write_idx(tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte", np.zeros(5, np.uint8))
    text = message(lambda: load_images(DataConfig(dataset="mnist", data_dir=str(tmp_path))))
    assert "images of shape [6, 28, 28, 1] and 5 labels" in text


def test_label_outside_the_classes_is_damage(tmp_path: Path) -> None:
    write_mnist_like(tmp_path, "MNIST")
    write_idx(tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte", np.array([0, 1, 2, 3, 4, 10], np.uint8))
    text = message(lambda: load_images(DataConfig(dataset="mnist", data_dir=str(tmp_path))))
    assert "labels from 0 to 10, wanted 0 to 9" in text


def test_failed_download_gives_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        print("noise on standard output")
        raise RuntimeError("Error downloading x:\nTried y, got:\nno route to host")

    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", refuse)
    config = DataConfig(dataset="mnist", data_dir=str(tmp_path), download=True)
    text = message(lambda: load_images(config))
    assert "mnist could not be downloaded" in text and "no route to host" in text and "--data-dir" in text


def test_complete_set_is_read_without_network_even_with_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mnist_like(tmp_path, "MNIST")
    monkeypatch.delattr(torchvision.datasets.mnist, "download_and_extract_archive")
    load_images(DataConfig(dataset="mnist", data_dir=str(tmp_path), download=True))


def test_real_fashion_mnist_is_as_known(shared_dir: Path, tmp_path: Path) -> None:
    packed = shared_dir / "data" / "FashionMNIST" / "raw"
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for file in packed.iterdir():
        content = file.read_bytes()
        (raw / file.name.removesuffix(".xz")).write_bytes(
            lzma.decompress(content) if file.suffix == ".xz" else content
        )
    train = load_images(DataConfig(dataset="fashion_mnist", data_dir=str(tmp_path))).train
    assert isinstance(train, Images)
    assert float(train.images.sum(dtype=torch.int64)) / train.images.numel() / 255 == pytest.approx(0.2860, abs=1e-4)
    assert train.labels.bincount().tolist() == [6000] * 10
