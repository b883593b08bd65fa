"""Which files count as images of which class, and that nothing is passed over without a word."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from pipeline.data.class_folders import find_images
from tests.support.data import message


def put(root: Path, *names: str) -> None:
    """Empty files, whose folders are made."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of two classes with one image each, to train and to test with."""
    put(tmp_path, "train/cat/1.png", "train/dog/1.png", "test/cat/1.png", "test/dog/1.png")
    return tmp_path


def trained(root: Path) -> list[tuple[str, int]]:
    """Training images by their paths below the root, with labels."""
    return [(str(path.relative_to(root / "train")), label) for path, label in find_images(root).train]


def told(root: Path) -> str:
    return message(lambda: find_images(root))


def test_classes_are_numbered_by_their_names_and_files_ordered_by_theirs(root: Path) -> None:
    put(root, "train/cat/0.JPG", "train/cat/2.Png", "train/dog/0.jpeg")
    assert trained(root) == [("cat/0.JPG", 0), ("cat/1.png", 0), ("cat/2.Png", 0), ("dog/0.jpeg", 1), ("dog/1.png", 1)]
    assert [label for _, label in find_images(root).test] == [0, 1]
    assert find_images(root).classes == 2 and find_images(root).notes == ()


@pytest.mark.parametrize(
    "kind", ["bmp", "webp", "gif", "tif", "TIFF", "ppm", "pgm", "jp2", "avif", "ico", "jfif", "mpo"]
)
def test_all_kinds_of_pictures_that_pillow_reads_count(root: Path, kind: str) -> None:
    put(root, f"train/dog/2.{kind}")
    assert (f"dog/2.{kind}", 1) in trained(root)


def test_all_levels_below_a_class_belong_to_it(root: Path) -> None:
    put(root, "train/dog/small/brown/2.png", "train/cat/3.png/4.png")
    assert ("dog/small/brown/2.png", 1) in trained(root) and ("cat/3.png/4.png", 0) in trained(root)


def test_names_of_any_characters_count(root: Path) -> None:
    put(root, "train/dog/\N{DOG FACE} \udcff\n[b].png")
    assert len(trained(root)) == 3


def test_links_are_followed(root: Path) -> None:
    put(root, "elsewhere/5.png", "elsewhere/deep/6.png")
    (root / "train" / "dog" / "more").symlink_to(root / "elsewhere")
    (root / "train" / "owl").symlink_to(root / "elsewhere")
    (root / "test" / "owl").symlink_to(root / "elsewhere")
    (root / "train" / "cat" / "7.png").symlink_to(root / "elsewhere" / "5.png")
    names = {name for name, _ in trained(root)}
    assert {"dog/more/deep/6.png", "owl/deep/6.png", "cat/7.png"} <= names


def test_hidden_files_and_known_litter_are_passed_over(root: Path) -> None:
    litter = ("Thumbs.db", "desktop.ini", ".DS_Store", "._1.png", ".ipynb_checkpoints/1.png", "@eaDir/1.png/2.jpg")
    put(root, *(f"train/dog/{name}" for name in litter), "train/.git/1.png", "train/__MACOSX/._cat/1.png")
    assert len(trained(root)) == 2 and find_images(root).notes == ()


@pytest.mark.parametrize("hidden", ["train/.owl/1.png", "train/dog/.more/1.png", "train/dog/.2.PNG", "train/.2.png"])
def test_what_is_hidden_but_may_be_an_image_or_a_class_is_told(root: Path, hidden: str) -> None:
    put(root, hidden, "train/dog/.2.txt", "train/.keep", "train/.Trash-1000/1.png")
    (root / "train" / "cat" / ".#1.png").symlink_to("somebody@somewhere.1")  # an editor's lock
    assert len(trained(root)) == 2
    assert find_images(root).notes == (f"{root}/train holds files that are not read as images: 1 hidden",)


@pytest.mark.parametrize("kind", ["h5", "hdf", "grib", "mpg"])
def test_what_pillow_knows_by_sight_only_is_another_file(root: Path, kind: str) -> None:
    put(root, f"train/features.{kind}", f"train/dog/x.{kind}")
    assert find_images(root).notes == (f"{root}/train holds files that are not read as images: 2 .{kind}",)


def test_other_files_are_counted_in_a_note(root: Path) -> None:
    put(root, "train/dog/README.txt", "train/cat/a.txt", "train/labels.csv", "train/cat/LICENSE", "test/cat/a.json")
    assert find_images(root).notes == (
        f"{root}/train holds files that are not read as images: 1 without an ending, 1 .csv, 2 .txt",
        f"{root}/test holds files that are not read as images: 1 .json",
    )


@pytest.mark.parametrize("kind", ["heic", "SVG", "dcm", "emf"])
@pytest.mark.parametrize("place", ["train/dog", "test"])
def test_images_that_pillow_does_not_read_are_refused(root: Path, kind: str, place: str) -> None:
    put(root, f"{place}/x.{kind}")
    assert f"{root}/{place}" in told(root) and f"x.{kind}" in told(root)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("others", [0, 2])
def test_class_without_images_is_named(root: Path, split: str, others: int) -> None:
    put(root, *(f"{split}/owl/{i}.txt" for i in range(others)))
    for name in ("train", "test"):
        (root / name / "owl").mkdir(exist_ok=True)
        put(root, *(() if name == split else (f"{name}/owl/1.png",)))
    assert told(root).startswith(f"{root}/{split}/owl has no images ({others} other files)")


@pytest.mark.parametrize("split", ["train", "test"])
def test_images_outside_of_class_folders_are_named(root: Path, split: str) -> None:
    put(root, f"{split}/2.png", f"{split}/1.webp", f"{split}/notes.txt")
    assert f"{root}/{split} has images outside of class folders (2, such as {root}/{split}/1.webp)" in told(root)


def test_classes_that_differ_are_named_on_both_sides(root: Path) -> None:
    (root / "test" / "cat").rename(root / "test" / "Cat")
    assert told(root) == (
        f"the classes of {root}/train and {root}/test differ: cat only in {root}/train, Cat only in {root}/test; give "
        "both the same class folders"
    )


def test_test_folder_without_any_known_class_is_taken_for_one_without_labels(root: Path) -> None:
    (root / "test").rename(root / "unknown")
    put(root, "test/images/1.png", *(f"train/{i:02}/1.png" for i in range(50)))
    text = told(root)
    assert f"00, 01, 02, 03, 04, 05, 06, 07 and 44 more only in {root}/train, images only in {root}/test; " in text
    assert text.endswith(f"; if {root}/test has no labels, put images that have some into {root}/val/<class>")


def test_images_without_any_class_folder_are_told_as_such(tmp_path: Path) -> None:
    put(tmp_path, "train/1.png", "test/1.png")
    assert told(tmp_path).startswith(f"{tmp_path}/train has images outside of class folders (1, ")


@pytest.mark.parametrize("name", ["val", "validation", "valid"])
def test_labelled_validation_images_stand_in_for_a_test_folder_without_labels(root: Path, name: str) -> None:
    (root / "test").rename(root / name)
    assert find_images(root).test[0][0] == root / name / "cat" / "1.png" and find_images(root).notes == ()
    put(root, "test/unknown/1.png", "test/2.png")
    found = find_images(root)
    assert found.test[0][0] == root / name / "cat" / "1.png"
    assert found.notes == (f"{root}/{name} is the test set; {root}/test is not read",)


def test_test_folder_goes_before_a_validation_folder_which_is_said(root: Path) -> None:
    put(root, "val/cat/1.png", "val/dog/1.png")
    assert find_images(root).notes == (f"{root}/test is the test set; {root}/val is not read",)
    put(root, "test/owl/1.png")  # some classes are known: it has labels
    assert f"owl only in {root}/test" in told(root)


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as end:
        yield end


def test_what_is_no_file_is_named_and_never_opened(
    root: Path, listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    fifo, plug, device = (root / "train" / "dog" / f"{name}.png" for name in ("fifo", "socket", "device"))
    os.mkfifo(fifo)
    assert told(root).startswith(f"{fifo} is neither a file nor a folder")
    fifo.unlink()
    monkeypatch.chdir(plug.parent)  # the name of a socket must be short
    listening.bind(plug.name)
    assert told(root).startswith(f"{plug} is neither a file nor a folder")
    plug.unlink()
    device.symlink_to("/dev/zero")
    assert told(root).startswith(f"{device} is neither a file nor a folder")


@pytest.mark.parametrize("place", ["train/dog/2.png", "train/owl", "test/dog/deep"])
def test_link_to_nothing_is_named(root: Path, place: str) -> None:
    (root / place).symlink_to(root / "gone")
    assert told(root).startswith(f"{root / place} is a link to nothing")


@pytest.mark.parametrize("target", ["", "..", "../.."])
def test_link_back_to_a_folder_above_is_named(root: Path, target: str) -> None:
    loop = root / "train" / "dog" / "loop"
    loop.symlink_to(loop.parent / target)
    assert f"/loop{'/train' if target == '../..' else ''} leads back" in told(root)


def test_link_to_itself_is_named(root: Path) -> None:
    link = root / "train" / "dog" / "x.png"
    link.symlink_to(link)
    assert told(root).startswith(f"{link} cannot be read (Too many levels of symbolic links)")


def test_folder_that_may_not_be_read_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(os, "scandir", refuse)  # root may read everything
    assert told(root).startswith(f"{root}/train cannot be read (Permission denied); check its permissions")


def test_ending_that_a_plugin_teaches_pillow_counts(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(Image.registered_extensions(), ".heic", "PNG")
    put(root, "train/dog/2.heic")
    assert ("dog/2.heic", 1) in trained(root)
