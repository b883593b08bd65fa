"""Folders of image files, in memory and decoded as needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pipeline.config.model import ModelConfig
from pipeline.config.schema import DataConfig, RunConfig, TrainConfig
from pipeline.data import image_folder
from pipeline.data.image_folder import FolderImages
from pipeline.data.named_sets import load_images
from pipeline.errors import ConfigError
from pipeline.training import Options, run
from tests.support.data import batches_of, message


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


def test_image_that_sets_the_size_of_all_is_told_unless_it_is_large(folder: Path) -> None:
    first = folder / "train" / "blue" / "0.png"
    assert (
        f"images are seen with 28x28 pixels, the short side of the first one, {first}"
        in load_images(folder_config(folder)).notes
    )
    Image.new("RGB", (500, 300)).save(first)
    assert not [note for note in load_images(folder_config(folder)).notes if "pixels" in note]


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
    (folder / "val").rename(folder / "evaluation")
    assert f"no folder of test images {folder / 'test'} or {folder / 'val'} or" in told()
    (folder / "train").rename(folder / "training")
    assert f"no folder of training images {folder / 'train'}" in told()


def test_folder_of_one_class_or_without_images_is_refused(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split / "a").mkdir(parents=True)
    assert "has 1 class folders (a)" in message(lambda: load_images(folder_config(tmp_path)))
    for split in ("train", "test"):
        (tmp_path / split / "b").mkdir()
    assert f"{tmp_path / 'train' / 'a'} has no images" in message(lambda: load_images(folder_config(tmp_path)))


def test_what_is_passed_over_is_noted_at_start(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = RunConfig(
        data=folder_config(folder),
        model=ModelConfig(model="mlp", hidden_units=4, hidden_layers=1),
        train=TrainConfig(epochs=1, batch_size=4, threads=1),
    )
    run(config, Options(show=True))
    note = f"note: {folder / 'train'} holds files that are not read as images: 1 .txt\n"
    assert note in capsys.readouterr().out


@pytest.mark.parametrize("lazy", [False, True])
def test_image_of_more_pixels_than_pillow_takes_for_safe_is_named(
    folder: Path, lazy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_folder, "_IN_MEMORY_BYTES", 0 if lazy else 1 << 31)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 28)  # the first image has as many, the next ones have more
    text = message(lambda: list(batches_of(folder_config(folder)).train(1)))
    assert str(folder / "train") in text and ("more than the 1,120" in text or lazy)
