"""Checkpoints on disk: complete or ignored.

    checkpoints/epoch-00003-step-000000450/      this name appears last, when everything in it is on the disk
        manifest.sha256                          as `sha256sum -c` takes it
        manifest.json                            position, configuration, metrics so far; every file with size and hash
        block-00000.safetensors ...              all that a block's training depends on

A checkpoint is written beside, under a name that no reader looks at, and renamed. Nothing in it can run code when it
is loaded. Names of tensors begin with the block, not with a stage: any placement finds its own.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pipeline.errors import DataError, first_line
from pipeline.learning.packet import Position
from pipeline.text import json_text

__all__ = ["Checkpoint", "CheckpointWriter", "checkpoints_in", "newest", "prune", "remove_all", "whole_ones"]

_SCHEMA = 1
_NAME = re.compile(r"epoch-(\d{5,})-step-(\d{9,})")
_PARTIAL = re.compile(rf"\.{_NAME.pattern}\.partial")
_BLOCK = re.compile(r"block-(\d{5,})\.safetensors")
_MANIFEST, _HASH = "manifest.json", "manifest.sha256"
_MANIFEST_BYTES = 64 << 20  # at most: what is larger is none


class Damaged(Exception):
    """Why a folder is not a complete checkpoint."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete one, its files checked."""

    path: Path
    at: Position
    about: Mapping[str, Any]  # as it was written

    @property
    def held(self) -> list[int]:
        """The blocks that are in it."""
        return [int(match[1]) for file in self.about["files"] if (match := _BLOCK.fullmatch(file["name"]))]

    @property
    def epoch_s(self) -> float:
        """Training time of its epoch before it, in seconds; older ones do not say, which counts as none."""
        found = self.about.get("epoch_seconds")
        return float(found) if isinstance(found, int | float) else 0.0

    def block(self, index: int) -> dict[str, Tensor]:
        """The tensors of a block. Raises DataError if the file has changed since it was looked for."""
        try:
            entry = self.about["files"][self.held.index(index)]
            return load(_checked(self.path, entry))
        except (Damaged, SafetensorError, ValueError) as error:
            raise DataError(f"{self.path} is damaged ({first_line(error)}); resume from the one before") from error


class CheckpointWriter:
    """Writes a checkpoint block by block; nobody sees it before `finish`, and without that `close` removes it."""

    def __init__(self, folder: Path, at: Position) -> None:
        self._target = folder / f"epoch-{at.epoch:05d}-step-{at.step:09d}"
        self._partial = folder / f".{self._target.name}.partial"
        self._files: list[dict[str, Any]] = []
        self.bytes = 0  # written so far
        if folder.is_symlink():
            raise OSError(errno.ELOOP, "a link, which is not followed", str(folder))
        folder.mkdir(parents=True, exist_ok=True)
        for left in _partial_ones(folder):  # of a process that has died, at whatever position
            shutil.rmtree(left, ignore_errors=True)
        self._partial.mkdir()

    def add(self, tensors: Mapping[str, Tensor], index: int) -> None:
        """A block, of CPU tensors."""
        name = f"block-{index:05d}.safetensors"
        data = save({key: tensor.contiguous() for key, tensor in tensors.items()})
        _write(self._partial / name, data)
        self.bytes += len(data)
        self._files.append({"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})

    def finish(self, at: Position, epoch_s: float, about: Mapping[str, Any]) -> Path:
        """Write what is known of it, and make it a checkpoint; one of the same position is replaced.

        `epoch_s` is the training time of its epoch so far.
        """
        where = {"epoch": at.epoch, "step": at.step, "epoch_seconds": epoch_s}
        manifest = {"schema": _SCHEMA, **where, "files": self._files, **about}
        data = json_text(manifest).encode()
        _write(self._partial / _MANIFEST, data)
        _write(self._partial / _HASH, _hash_line(data))
        _sync(self._partial)
        if self._target.exists():
            shutil.rmtree(self._target)
        self._partial.rename(self._target)
        _sync(self._target.parent)
        return self._target

    def close(self) -> None:
        """Remove what has not been finished."""
        shutil.rmtree(self._partial, ignore_errors=True)


def checkpoints_in(folder: Path) -> list[Path]:
    """What may be checkpoints, the newest first; symbolic links are none, and lead to none."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    found = [
        path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
    ]
    return sorted(found, key=lambda path: [int(part) for part in _NAME.findall(path.name)[0]], reverse=True)


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest complete checkpoint, every file compared with its hash; and why newer ones were passed over."""
    passed: list[str] = []
    return next(whole_ones(folder, passed), None), passed


def whole_ones(folder: Path, passed: list[str], within: str = "") -> Iterator[Checkpoint]:
    """All that are complete, the newest first, each looked at when it is asked for.

    Why others were passed over goes to `passed`, their names with what they are `within`.
    """
    for path in checkpoints_in(folder):
        try:
            yield _opened(path)
        except Damaged as error:
            passed.append(f"checkpoint {within}{path.name} is damaged ({error}): passed over")


def prune(last: Path, keep: int) -> None:
    """Remove all but the newest `keep` of those up to the `last` one that was written.

    A run that has begun before damaged ones comes by their positions later, and must not lose its own to them.
    """
    found = checkpoints_in(last.parent)
    begin = found.index(last) if last in found else len(found)  # cleared away by now, with those before it
    for path in found[begin:][keep:]:
        shutil.rmtree(path, ignore_errors=True)


def remove_all(folder: Path) -> None:
    """Remove all checkpoints, finished or not, and the folder if nothing is left in it: the rest is somebody else's.

    Of a link only that.
    """
    if folder.is_symlink():
        folder.unlink()
    elif folder.is_dir():
        for path in checkpoints_in(folder) + _partial_ones(folder):
            shutil.rmtree(path)
        with contextlib.suppress(OSError):
            folder.rmdir()


def _partial_ones(folder: Path) -> list[Path]:
    """What was never finished."""
    return [path for path in folder.iterdir() if _PARTIAL.fullmatch(path.name) and not path.is_symlink()]


def _opened(path: Path) -> Checkpoint:
    about = _manifest(path)
    for file in about["files"]:
        _checked(path, file)
    return Checkpoint(path, Position(about["epoch"], about["step"]), about)


def _manifest(path: Path) -> dict[str, Any]:
    try:
        with _plain(path / _MANIFEST).open("rb") as file:
            data = file.read(_MANIFEST_BYTES)
        with _plain(path / _HASH).open("rb") as file:
            wanted = file.read(1024)
        if _hash_line(data) != wanted:
            raise Damaged(f"{_MANIFEST} has another hash than it was written with")
        about = json.loads(data)
    except (OSError, ValueError, RecursionError) as error:
        raise Damaged(f"{_MANIFEST}: {first_line(error)}") from error
    if not isinstance(about, dict) or about.get("schema") != _SCHEMA:
        raise Damaged(
            f"{_MANIFEST}: schema {about.get('schema') if isinstance(about, dict) else None!r}, not {_SCHEMA}"
        )
    epoch, step = (int(part) for part in _NAME.findall(path.name)[0])
    if (about.get("epoch"), about.get("step")) != (epoch, step):
        raise Damaged(f"{_MANIFEST}: not of this position")
    if not (isinstance(about.get("files"), list) and about["files"] and all(map(_is_file, about["files"]))):
        raise Damaged(f"{_MANIFEST}: no list of files")
    return about


def _hash_line(manifest: bytes) -> bytes:
    return f"{hashlib.sha256(manifest).hexdigest()}  {_MANIFEST}\n".encode()


def _is_file(entry: Any) -> bool:
    kinds = {"name": str, "bytes": int, "sha256": str}
    return isinstance(entry, dict) and all(isinstance(entry.get(key), kind) for key, kind in kinds.items())


def _checked(path: Path, entry: Mapping[str, Any]) -> bytes:
    """The bytes of a file, as they were written."""
    name = entry["name"]
    if Path(name).name != name:
        raise Damaged(f"{name!r} is no name of a file in it")
    try:
        file = _plain(path / name)
        if file.stat().st_size != entry["bytes"]:
            raise Damaged(f"{name} has {file.stat().st_size} bytes, not {entry['bytes']}")
        data = file.read_bytes()
    except OSError as error:
        raise Damaged(f"{name}: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise Damaged(f"{name} has another hash than it was written with")
    return data


def _plain(path: Path) -> Path:
    """The path of an ordinary file: a link would lead out, and a pipe would wait."""
    if path.is_symlink() or not path.is_file():
        raise Damaged(f"{path.name} is missing" if not path.exists() else f"{path.name} is no ordinary file")
    return path


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Let names in a folder reach the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
