"""A store that can be kept from answering, as one is that thousands of strangers call, or whose host is stopped."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import HashStore

__all__ = ["GatedStore"]


class GatedStore:
    """A `HashStore` behind a gate, on connections of their own; `waiting` has the names of those that stood there."""

    def __init__(self) -> None:
        self._store, self._gate = HashStore(), threading.Event()
        self.waiting: set[str] = set()
        self.error: RuntimeError | None = None  # what every call then ends with
        self._gate.set()

    def shut(self) -> None:
        """From now on no call returns."""
        self._gate.clear()

    def open(self) -> None:
        """All that wait, and all to come, go on."""
        self._gate.set()

    def clone(self) -> GatedStore:
        return self

    def set_timeout(self, timeout: timedelta) -> None:
        self._store.set_timeout(timeout)

    def __getattr__(self, name: str) -> Any:
        act = getattr(self._store, name)

        def gated(*arguments: Any) -> Any:
            if not self._gate.is_set():
                self.waiting.add(threading.current_thread().name)
            assert self._gate.wait(60), "the gate stays shut"
            if self.error is not None:
                raise self.error
            return act(*arguments)

        return gated
