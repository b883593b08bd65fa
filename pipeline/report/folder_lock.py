"""One run at a time in a folder: a lock that the system frees when its process ends, however that is."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.text import printable

__all__ = ["FolderLock"]

_NAME = ".lock"


class FolderLock:
    """Held from the start; where the file system knows no locks there is none.

    Raises ConfigError if another run holds it, OSError if the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._owner = folder / _NAME, os.getpid()
        self._handle: int | None = None
        self._handle = self._acquire()

    def _acquire(self) -> int | None:
        while True:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_there(handle):
                    return handle
            except BlockingIOError:
                os.close(handle)
                raise ConfigError(
                    f"another run is under way in {printable(str(self._path.parent))}; choose another folder, or wait "
                    "for its end"
                ) from None
            except OSError:
                self._path.unlink(missing_ok=True)
                os.close(handle)
                return None
            os.close(handle)  # whoever held it has removed it meanwhile

    def _is_there(self, handle: int) -> bool:
        try:
            return os.path.samestat(os.fstat(handle), self._path.stat(follow_symlinks=False))
        except FileNotFoundError:
            return False

    def __del__(self) -> None:
        """Of a run that failed between its start and its end."""
        self.release()

    def release(self) -> None:
        """Let another run have the folder; may be called more than once."""
        handle, self._handle = self._handle, None
        if handle is not None and self._owner == os.getpid():  # a forked process has a copy, but not the run
            self._path.unlink(missing_ok=True)
            os.close(handle)
