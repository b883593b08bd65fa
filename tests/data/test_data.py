"""Named and library data sets as batches: order, chance, sizes, and every way in which data can be wrong."""

from __future__ import annotations

import lzma
import pickle
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from scipy.io import savemat  # type: ignore[import-untyped]
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from pipeline.config.schema import DataConfig
from pipeline.data import image_folder
from pipeline.data.batches import Batches
from pipeline.data.image_folder import FolderImages
from pipeline.data.images import Images
from pipeline.data.named_sets import load_images
from pipeline.errors import ConfigError, DataError

CPU = torch.device("cpu")
Pairs = list[tuple[Any, Any]]


def batches_of(config: DataConfig, *, seed: int = 1, batch_size: int = 16) -> Batches:
    return Batches.from_config(config, seed=seed, batch_size=batch_size, device=CPU)


def library(train: Any, test: Any = None, *, seed: int = 1, batch_size: int = 4) -> Batches:
    return Batches.from_datasets(train, train if test is None else test, seed=seed, batch_size=batch_size, device=CPU)


def message(call: Callable[[], Any], kind: type[Exception] = DataError) -> str:
    """The message of the error that `call` raises, which must be one line."""
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def numbered(count: int) -> TensorDataset:
    """Samples that tell their own number."""
    return TensorDataset(torch.arange(float(count)).view(count, 1, 1, 1), torch.arange(count) % 3)


# --- order and chance ---


@pytest.mark.parametrize(("count", "steps", "used"), [(12, 3, 12), (14, 4, 14), (13, 3, 12), (3, 1, 3), (2, 1, 2)])
def test_smaller_last_batch_trains_but_one_of_a_single_sample_is_left_out(count: int, steps: int, used: int) -> None:
    batches = library(numbered(count))
    sizes = [len(labels) for _, _, labels in batches.train(1)]
    assert (batches.steps_per_epoch, len(sizes), sum(sizes)) == (steps, steps, used)
    assert batches.train_samples == count


def test_batches_of_one_sample_are_kept_when_asked_for() -> None:
    assert len(list(library(numbered(5), batch_size=1).train(1))) == 5


def test_each_epoch_holds_every_sample_once_in_another_order() -> None:
    batches = library(numbered(40))
    epochs = [torch.cat([images.flatten() for _, images, _ in batches.train(epoch)]) for epoch in (1, 2)]
    for epoch in epochs:
        assert torch.equal(epoch.sort().values, torch.arange(40.0))
    assert not torch.equal(*epochs)


def test_labels_stay_with_their_images() -> None:
    for _, images, labels in library(numbered(40)).train(1):
        assert torch.equal(images.flatten().long() % 3, labels)


def test_steps_are_counted_over_the_whole_run_from_0() -> None:
    batches = library(numbered(14))
    assert [step for epoch in (1, 2, 3) for step, _, _ in batches.train(epoch)] == list(range(12))


def test_evaluation_holds_all_samples_in_their_own_order_even_a_single_last_one() -> None:
    batches = library(numbered(8), numbered(9))
    parts = list(batches.test())
    assert torch.equal(torch.cat([images.flatten() for images, _ in parts]), torch.arange(9.0))
    assert len(parts) == batches.test_steps == 3 and batches.test_samples == 9


def test_batches_are_the_same_whoever_asks_and_in_whatever_order() -> None:
    config = DataConfig(dataset="synthetic", train_limit=60, test_limit=10, cutout=8)
    first, second = batches_of(config), batches_of(config)
    straight = {epoch: list(first.train(epoch)) for epoch in (1, 2)}
    interrupted = second.train(1)
    next(interrupted)
    list(second.test())
    for epoch in (2, 1):
        for ours, theirs in zip(straight[epoch], second.train(epoch), strict=True):
            assert ours[0] == theirs[0] and torch.equal(ours[1], theirs[1]) and torch.equal(ours[2], theirs[2])


def test_other_seeds_and_other_epochs_give_other_batches() -> None:
    config = DataConfig(dataset="synthetic", train_limit=32, test_limit=10)
    one, two = batches_of(config), batches_of(config, seed=2)
    start = next(one.train(1))[1]
    assert not torch.equal(start, next(two.train(1))[1])
    assert not torch.equal(start, next(one.train(2))[1])
    assert torch.equal(next(one.test())[0], next(two.test())[0])


def test_augmentation_differs_from_step_to_step(tmp_path: Path) -> None:
    write_mnist_like(tmp_path, "FashionMNIST")
    write_idx(tmp_path / "FashionMNIST" / "raw" / "train-images-idx3-ubyte", np.full((40, 28, 28), 255, np.uint8))
    write_idx(tmp_path / "FashionMNIST" / "raw" / "train-labels-idx1-ubyte", np.zeros(40, np.uint8))
    batches = batches_of(DataConfig(dataset="fashion_mnist", data_dir=str(tmp_path)), batch_size=20)
    # All images are white, so that only the place of the crop can tell batches apart.
    first, second = (images for _, images, _ in batches.train(1))
    assert not torch.equal(first, second)


def test_batches_leave_the_default_generators_alone() -> None:
    batches = batches_of(DataConfig(dataset="synthetic", train_limit=32, test_limit=10))
    before = torch.default_generator.get_state()
    list(batches.train(1)), list(batches.test())
    assert torch.equal(torch.default_generator.get_state(), before)


# --- sets without files ---


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


@pytest.mark.runs
def test_importing_the_module_imports_neither_torchvision_nor_sklearn() -> None:
    code = "import pipeline.data.batches, sys; print(*{'torchvision', 'sklearn', 'PIL'} & set(sys.modules))"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=root)
    assert done.stdout == "\n", done.stderr


# --- sets in torchvision's layout ---

COUNTS = {True: 6, False: 4}


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


@pytest.fixture
def no_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torchvision take made-up files; only their existence is checked."""
    for module in (torchvision.datasets.cifar, torchvision.datasets.svhn, torchvision.datasets.stl10):
        monkeypatch.setattr(module, "check_integrity", lambda path, md5=None: Path(path).is_file())
    monkeypatch.setattr(torchvision.datasets.STL10, "train_list", [["train_X.bin", ""], ["train_y.bin", ""]])


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


# --- folders of image files ---


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes by colour, photographs of several sizes; the first training image is 28 pixels high."""
    for split, count in (("train", 5), ("val", 2)):
        for name, colour in (("blue", (0, 0, 255)), ("red", (255, 0, 0))):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                suffix = "png" if i % 2 == 0 else "JPG"
                Image.new("RGB", (40 + i, 28 + i), colour).save(tmp_path / split / name / f"{i}.{suffix}")
    (tmp_path / "train" / "red" / "notes.txt").write_text("not an image")
    return tmp_path


def folder_config(folder: Path, **more: Any) -> DataConfig:
    return DataConfig(dataset="image_folder", data_dir=str(folder), **more)


def test_image_folder_gives_squares_of_the_first_images_short_side(folder: Path) -> None:
    batches = batches_of(folder_config(folder), batch_size=4)
    assert (batches.shape, batches.classes) == ((3, 28, 28), 2)
    assert (batches.train_samples, batches.test_samples) == (10, 4)
    for _, images, labels in batches.train(1):
        assert torch.equal((images[:, 0].mean((1, 2)) > images[:, 2].mean((1, 2))).long(), labels)
    assert [images.shape for images, _ in batches.test()] == [(4, 3, 28, 28)]


def test_large_image_folder_is_decoded_as_needed_with_the_same_result(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory = batches_of(folder_config(folder), batch_size=4)
    monkeypatch.setattr(image_folder, "_IN_MEMORY_BYTES", 0)
    assert isinstance(load_images(folder_config(folder)).train, FolderImages)
    lazy = batches_of(folder_config(folder), batch_size=4)
    next(lazy.train(2))  # leaves a batch read ahead that nobody takes
    for ours, theirs in zip(in_memory.train(1), lazy.train(1), strict=True):
        assert torch.equal(ours[1], theirs[1]) and torch.equal(ours[2], theirs[2])


def test_first_samples_of_a_folder_are_of_several_classes(folder: Path) -> None:
    assert set(load_images(folder_config(folder, train_limit=6)).train.labels.tolist()) == {0, 1}


def test_limit_beyond_the_folder_names_both_numbers(folder: Path) -> None:
    text = message(lambda: load_images(folder_config(folder, train_limit=11)))
    assert "--train-limit is 11, but image_folder has 10 training samples" in text


def test_large_photographs_are_seen_at_224_pixels(folder: Path) -> None:
    Image.new("RGB", (500, 300)).save(folder / "train" / "blue" / "0.png")
    loaded = load_images(folder_config(folder))
    assert loaded.augmentation.crop_to == 224 and loaded.train.shape == (256, 256, 3)


def test_cutout_larger_than_the_images_is_refused(folder: Path) -> None:
    assert "--cutout is 57" in message(lambda: load_images(folder_config(folder, cutout=57)), ConfigError)


@pytest.mark.parametrize("lazy", [False, True])
def test_unreadable_image_is_named(folder: Path, lazy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = folder / "train" / "red" / "2.png"
    broken.write_bytes(broken.read_bytes()[:60])
    if lazy:
        monkeypatch.setattr(image_folder, "_IN_MEMORY_BYTES", 0)
    text = message(lambda: list(batches_of(folder_config(folder)).train(1)))
    assert text.startswith(f"{broken} cannot be read as an image")


def test_folder_mistakes_are_told(folder: Path) -> None:
    def told() -> str:
        return message(lambda: load_images(folder_config(folder)))

    (folder / "train" / "green").mkdir()
    assert f"green only in {folder / 'train'}" in told()
    (folder / "train" / "green").rmdir()
    (folder / "val" / "grey").mkdir()
    assert f"grey only in {folder / 'val'}" in told()
    (folder / "val").rename(folder / "validation")
    assert f"{folder / 'test'} or {folder / 'val'}" in told()
    (folder / "train").rename(folder / "training")
    assert f"no folder of training images {folder / 'train'}" in told()


def test_folder_of_one_class_or_without_images_is_refused(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split / "a").mkdir(parents=True)
    assert "has 1 class folders (a)" in message(lambda: load_images(folder_config(tmp_path)))
    for split in ("train", "test"):
        (tmp_path / split / "b").mkdir()
    assert f"{tmp_path / 'train'} has no images" in message(lambda: load_images(folder_config(tmp_path)))


# --- data sets of a library call ---


class Listed(Dataset[Any]):
    """A map-style data set whose items are made by a function; `targets` lists labels where given."""

    def __init__(self, count: int, item: Callable[[int], Any], targets: Any = None) -> None:
        self.count, self.item, self.asked = count, item, 0
        if targets is not None:
            self.targets = targets

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        self.asked += 1
        return self.item(index)


def test_tensor_data_set_gives_the_same_batches_as_the_same_samples_one_by_one() -> None:
    images = torch.randint(0, 256, (11, 3, 4, 4), dtype=torch.uint8)
    whole = TensorDataset(images, torch.arange(11) % 4)
    one_by_one = Listed(11, lambda i: (images[i], i % 4))
    fast, slow = library(whole), library(one_by_one)
    assert fast.shape == slow.shape == (3, 4, 4) and fast.classes == slow.classes == 4
    for ours, theirs in zip(fast.train(1), slow.train(1), strict=True):
        assert torch.equal(ours[1], theirs[1]) and torch.equal(ours[2], theirs[2])
        assert ours[1].stride() == theirs[1].stride()
    for one, other in zip(fast.test(), slow.test(), strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


@pytest.mark.parametrize(
    ("image", "shape", "value"),
    [
        (torch.full((2, 4), 51, dtype=torch.uint8), (2, 4), 0.2),
        (torch.full((5,), 0.2, dtype=torch.float64), (5,), 0.2),
        (np.full((4, 6, 3), 51, np.uint8), (3, 4, 6), 0.2),
        (np.full((7,), 0.2), (7,), 0.2),
        (Image.new("RGB", (6, 4), (51, 51, 51)), (3, 4, 6), 0.2),
        (Image.new("L", (6, 4), 51), (1, 4, 6), 0.2),
    ],
    ids=["uint8", "float64", "array", "vector", "colour image", "grey image"],
)
def test_every_kind_of_image_becomes_float32(image: Any, shape: tuple[int, ...], value: float) -> None:
    batches = library([(image, 0), (image, np.int64(1)), (image, torch.tensor(2))])
    _, images, labels = next(batches.train(1))
    assert batches.shape == shape and images.shape[1:] == shape and batches.classes == 3
    assert images.dtype is torch.float32 and labels.dtype is torch.int64
    torch.testing.assert_close(images, torch.full_like(images, value))


def noisy(index: int) -> tuple[Tensor, int]:
    """A sample whose transforms draw from all three global generators."""
    return torch.tensor([random.random(), np.random.rand(), float(torch.rand(()))]), index % 2  # noqa: NPY002


def global_states() -> tuple[object, ...]:
    """The states of all three global generators."""
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()  # noqa: NPY002


def test_random_transforms_are_keyed_by_seed_and_step_and_disturb_nobody() -> None:
    batches, other = library(Listed(8, noisy)), library(Listed(8, noisy), seed=2)
    before = global_states()
    straight = [images for epoch in (1, 2) for _, images, _ in batches.train(epoch)]
    assert global_states() == before
    again = [images for epoch in (2, 1) for _, images, _ in batches.train(epoch)]
    assert all(torch.equal(a, b) for a, b in zip(straight, again[2:] + again[:2], strict=True))
    assert not torch.equal(straight[0], straight[1])
    assert not torch.equal(straight[0], next(other.train(1))[1])
    assert torch.equal(next(batches.test())[0], next(batches.test())[0])


def test_listed_labels_save_the_pass_over_the_data() -> None:
    data = Listed(100, lambda i: (torch.zeros(2), i % 5), targets=[i % 5 for i in range(100)])
    assert library(data, numbered_vectors()).classes == 5
    assert data.asked < 5


def numbered_vectors() -> TensorDataset:
    return TensorDataset(torch.zeros(4, 2), torch.tensor([0, 1, 2, 3]))


def test_listed_labels_that_disagree_with_the_samples_do_not_count() -> None:
    data = Listed(6, lambda i: (torch.zeros(2), i), targets=[0] * 6)
    assert library(data, numbered_vectors()).classes == 6


def test_subset_lists_the_labels_of_its_own_samples() -> None:
    data = Listed(100, lambda i: (torch.zeros(2), i % 5), targets=[i % 5 for i in range(100)])
    assert library(Subset(data, [0, 1, 5, 6])).classes == 2
    assert data.asked < 10


def test_classes_count_the_labels_of_both_sets() -> None:
    assert library(TensorDataset(torch.zeros(4, 2), torch.tensor([0, 1, 0, 7])), numbered_vectors()).classes == 8


def liar(index: int) -> tuple[Tensor, int]:
    """A label that `targets` hides, neither at the first nor at the last sample, where it would be noticed at once."""
    return torch.zeros(2), 9 if index == 2 else 0


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([])


GOOD = (torch.zeros(2), 0)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (Stream(), "train_data is a Stream, which has no length and index"),
        ([], "train_data is empty"),
        ([GOOD], "1 training and 4 test samples"),
        ([torch.zeros(2), torch.zeros(2)], "train_data[0] is a Tensor; give a pair"),
        ([(torch.zeros(2), 0, 1)] * 2, "train_data[0] is a tuple of 3; give a pair"),
        ([GOOD, (torch.zeros(2), 1.5)], "train_data[1] has label 1.5"),
        ([GOOD, (torch.zeros(2), torch.tensor(1.0))], "train_data[1] has label 1.0"),
        ([GOOD, (torch.zeros(2), True)], "train_data[1] has label True"),
        ([GOOD, (torch.zeros(2), torch.tensor([0, 1]))], "train_data[1] has label tensor([0, 1])"),
        ([GOOD, (torch.zeros(2), -1)], "train_data[1] has label -1; number the classes from 0"),
        ([GOOD, (torch.zeros(3), 0)], "train_data[1] is an image of shape [3], train_data[0] of [2]"),
        ([(torch.zeros(3), 0)] * 2, "images of train_data have shape [3], of test_data [2]"),
        ([("text", 0)] * 2, "train_data[0] holds an image of str"),
        ([(torch.tensor(1.0), 0)] * 2, "train_data[0] holds an image of float32 and shape []"),
        ([(torch.zeros(2, dtype=torch.int64), 0)] * 2, "train_data[0] holds an image of int64 and shape [2]"),
        (Listed(2, lambda i: [][i]), "train_data[0] raised IndexError: list index out of range"),
        (Listed(4, liar, targets=[0] * 4), "train_data[2] has label 9, but the labels known at start end at 3"),
        (TensorDataset(torch.zeros(2, 2), torch.tensor([0.0, 1.0])), "labels of train_data are float32 of shape [2]"),
        (TensorDataset(torch.zeros(2, 2), torch.zeros(2, 2).long()), "labels of train_data are int64 of shape [2, 2]"),
        (TensorDataset(torch.zeros(2, 2), torch.tensor([0, -3])), "labels of train_data begin at -3"),
        (TensorDataset(torch.zeros(2, 2).long(), torch.tensor([0, 1])), "train_data holds an image of int64"),
        (TensorDataset(torch.tensor([[0.0], [float("nan")]]), torch.tensor([0, 1])), "train_data[1] is an image with"),
    ],
)
def test_wrong_library_data_is_told_with_its_values(data: Any, words: str) -> None:
    assert words in message(lambda: list(library(data, numbered_vectors()).train(1)))


def test_empty_test_data_is_refused() -> None:
    assert "test_data is empty" in message(lambda: library(numbered(4), []))
