"""Folders that results go to: whether they can be written is known before hours of work."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import ConfigError

__all__ = ["check_folder"]


def _try_writing(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder):
        pass


def check_folder(flag: str, folder: Path, write: Callable[[Path], object] = _try_writing) -> None:
    """Make the folder of a flag and write something there. Raises ConfigError, with both, where that does not work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write(folder)
    except OSError as error:
        raise ConfigError(f"{flag} {folder} cannot be written ({error.strerror}); choose another folder") from error
