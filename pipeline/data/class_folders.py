"""Which files are images of which class: nothing in a folder is passed over without a word, but for known litter.

DIR/train/<class>/.../*.png      all levels below a class belong to it
DIR/test/<class>/.../*.png       or val, validation, valid
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.images import shown
from pipeline.data.pictures import picture_suffixes
from pipeline.errors import DataError

__all__ = ["ClassFolders", "find_images"]

_TEST_NAMES = ("test", "val", "validation", "valid")
_LITTER = frozenset(
    {
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "__macosx"),
        *(".ipynb_checkpoints", ".git", ".svn", ".hg", ".dvc", ".cache", ".thumbnails", ".appledouble", ".fseventsd"),
        *(".spotlight-v100", ".idea", ".vscode"),
    }
)
_LITTER_BEGINS = ("._", ".#", ".trash")  # of copies from a Mac, of editors' locks, of what has been deleted
# Surely images, so that to leave them out would change what is learned; a plugin may teach Pillow to read some.
_UNREADABLE = frozenset(
    {".heic", ".heif", ".hif", ".avif", ".jxl", ".svg", ".wmf", ".emf", ".exr", ".dcm", ".dng", ".nef", ".cr2"}
)

_HIDDEN = "hidden"  # stands for an ending
_NAMED = 8  # classes in a message

Labelled = list[tuple[Path, int]]
_Identity = tuple[int, int]  # device and inode


@dataclass(frozen=True)
class ClassFolders:
    """Files with their labels, in a fixed order, and what the user should know of the others."""

    train: Labelled
    test: Labelled
    classes: int
    notes: tuple[str, ...]


def find_images(root: Path) -> ClassFolders:
    """All images below `root`. Raises DataError if the folders do not fit, or hold what should not be left out."""
    train = root / "train"
    if not train.is_dir():
        raise _no_folder("training", [train])
    names = _class_names(train)
    test, passed = _test_folder(root, names)
    classes = _agreed_classes(train, names, test, _class_names(test))
    suffixes, notes = picture_suffixes(), []
    if passed:
        notes.append(f"{shown(test)} is the test set; {' and '.join(map(shown, passed))} is not read")
    images: dict[Path, Labelled] = {}
    for folder in (train, test):
        images[folder], others = _images_of(folder, classes, suffixes)
        if others:
            kinds = (f"{count} {shown(kind) or 'without an ending'}" for kind, count in sorted(others.items()))
            notes.append(f"{shown(folder)} holds files that are not read as images: {', '.join(kinds)}")
    return ClassFolders(images[train], images[test], len(classes), tuple(notes))


def _no_folder(needed: str, looked_for: Sequence[Path]) -> DataError:
    return DataError(
        f"image_folder finds no folder of {needed} images {' or '.join(map(shown, looked_for))}; lay images out as "
        "train/<class>/*.png and test/<class>/*.png below --data-dir"
    )


def _test_folder(root: Path, classes: set[str]) -> tuple[Path, list[Path]]:
    """The folder to test with, the first that knows any of the classes, and those that could have been it."""
    found = [root / name for name in _TEST_NAMES if (root / name).is_dir()]
    if not found:
        raise _no_folder("test", [root / name for name in _TEST_NAMES])
    # A folder `test` without labels often lies beside a labelled `val`.
    chosen = next((folder for folder in found if classes & _folders_in(folder)), found[0])
    return chosen, [folder for folder in found if folder != chosen]


def _agreed_classes(train: Path, names: set[str], test: Path, test_names: set[str]) -> list[str]:
    """Names of the classes, which both folders must have."""
    sides = ((train, names - test_names), (test, test_names - names))
    only = [f"{_some(more)} only in {shown(here)}" for here, more in sides if more]
    if only:
        remedy = "give both the same class folders"
        if not names & test_names:
            remedy += (
                f"; if {shown(test)} has no labels, put images that have some into {shown(test.parent)}/val/<class>"
            )
        raise DataError(f"the classes of {shown(train)} and {shown(test)} differ: {', '.join(only)}; {remedy}")
    if len(names) < 2:
        raise DataError(
            f"{shown(train)} has {len(names)} class folders ({', '.join(map(shown, names)) or 'none'}), but telling "
            "classes apart needs at least 2; give each class a folder of its own"
        )
    return sorted(names)


def _some(names: set[str]) -> str:
    first = ", ".join(map(shown, sorted(names)[:_NAMED]))
    return first if len(names) <= _NAMED else f"{first} and {len(names) - _NAMED} more"


def _folders_in(folder: Path) -> set[str]:
    return {entry.name for entry in _entries(folder) if _is_folder(entry)}


def _class_names(folder: Path) -> set[str]:
    """Names of the class folders. Raises DataError if images lie beside them."""
    known = picture_suffixes() | _UNREADABLE
    loose = sorted(e.path for e in _entries(folder) if not e.is_dir() and _kind(e.name) in known)
    if loose:
        raise DataError(
            f"{shown(folder)} has images outside of class folders ({len(loose)}, such as {shown(loose[0])}); move "
            "each into the folder of its class"
        )
    return _folders_in(folder)


def _images_of(folder: Path, classes: Sequence[str], suffixes: frozenset[str]) -> tuple[Labelled, Counter[str]]:
    """Images of all classes with their labels, and the endings of all other files, counted."""
    found: Labelled = []
    others = Counter(_kind(entry.name) for entry in _entries(folder) if not _is_folder(entry))
    for label, name in enumerate(classes):
        images, kinds = [], Counter[str]()
        for path in _files(folder / name, frozenset({_identity(folder)})):
            kind = _kind(path.name)
            if kind in suffixes:
                images.append(path)
            elif kind in _UNREADABLE:
                raise DataError(f"{shown(path)} is of a kind that Pillow does not read; convert it to .png or .jpg")
            else:
                kinds[kind] += 1
        if not images:
            raise DataError(
                f"{shown(folder / name)} has no images ({kinds.total()} other files); put .png, .jpg, .bmp, .webp, "
                ".tif, .gif files there, or remove the class from training and test folder"
            )
        found += [(path, label) for path in sorted(images)]
        others += kinds
    return found, others


def _files(folder: Path, above: frozenset[_Identity]) -> Iterator[Path]:
    """All files of a folder and of those below it, through links too, and folders that are hidden."""
    here = _identity(folder)
    if here in above:
        raise DataError(f"{shown(folder)} leads back to a folder that it lies in; remove the link")
    for entry in _entries(folder):
        if _is_folder(entry):
            yield from _files(Path(entry.path), above | {here})
        else:
            yield Path(entry.path)


def _identity(folder: Path) -> _Identity:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is one whose content counts."""
    return entry.is_dir() and not entry.name.startswith(".")


def _kind(name: str) -> str:
    return _HIDDEN if name.startswith(".") else Path(name).suffix.lower()


def _matters(entry: os.DirEntry[str]) -> bool:
    """Whether it is to be read, or told of; what is hidden only where it may be an image or a class."""
    name = entry.name.lower()
    if name in _LITTER or name.startswith(_LITTER_BEGINS):
        return False
    return not name.startswith(".") or entry.is_dir() or (entry.is_file() and Path(name).suffix in picture_suffixes())


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Files and folders in a folder. Raises DataError if it cannot be listed, or holds anything that is neither."""
    try:
        with os.scandir(folder) as listed:
            entries = [entry for entry in listed if _matters(entry)]
        odd = next((entry for entry in entries if not entry.is_file() and not entry.is_dir()), None)
    except OSError as error:
        where = shown(error.filename or folder)  # a link in a circle, or the folder itself
        raise DataError(f"{where} cannot be read ({error.strerror}); check its permissions, or remove it") from error
    if odd is not None:
        what = "a link to nothing" if odd.is_symlink() and not Path(odd).exists() else "neither a file nor a folder"
        raise DataError(f"{shown(odd.path)} is {what}; mend or remove it")
    return entries
