"""The one thread of a process that talks to the store while a run is under way, so that no other waits for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch.distributed.distributed_c10d import Store

__all__ = ["Messenger"]


class Messenger:
    """Writes what it is handed, and takes a turn at the store several times a second.

    However long the store takes, only this thread waits.

    Args:
        store: of which it gets a connection of its own.
        interval_s: between two turns.
        write: writes one value under a key.
        turn: what else there is to do with the store.
        last: what is done with it at the end.
        lost: is told why the store cannot be reached any more; then the thread ends.
    """

    def __init__(
        self,
        store: Store,
        interval_s: float,
        write: Callable[[Store, str, Any], None],
        turn: Callable[[Store], None],
        last: Callable[[Store], None],
        lost: Callable[[RuntimeError], None],
    ) -> None:
        self._store, self._interval_s = store, interval_s
        self._write, self._turn, self._last, self._lost = write, turn, last, lost
        self._outbox: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def post(self, key: str, value: Any) -> None:
        """Have a value written soon; one that waits under the same key is replaced. The order of the rest is kept."""
        with self._lock:
            self._outbox.pop(key, None)  # what was handed over in between comes before it
            self._outbox[key] = value
        self._wake.set()

    def close(self, limit_s: float) -> None:
        """Write what is left, and end; a store that does not answer is waited for no longer than `limit_s`."""
        self._stop.set()
        self._wake.set()
        self._thread.join(limit_s)

    def _run(self) -> None:
        try:
            store = self._store.clone()  # a call of another thread may block
            while not self._stop.is_set():
                self._deliver(store)
                self._turn(store)
                self._wake.wait(self._interval_s)
                self._wake.clear()
            self._deliver(store)
            self._last(store)
        except RuntimeError as error:
            self._lost(error)

    def _deliver(self, store: Store) -> None:
        while True:
            with self._lock:
                if not self._outbox:
                    return
                key = next(iter(self._outbox))
                value = self._outbox.pop(key)
            self._write(store, key, value)
