"""What outlives the processes of a launch when torchrun starts them anew: what its attempts have begun."""

from __future__ import annotations

import json

from torch.distributed.distributed_c10d import PrefixStore, Store

__all__ = ["Attempts"]


class Attempts:
    """The attempts of one launch, of which this process belongs to the last; the store outlives them all.

    Where it does not, or this is another launch, nothing has been begun before.
    """

    def __init__(self, store: Store, attempt: int) -> None:
        self._store, self._attempt = PrefixStore("launch", store), attempt

    def begin(self, name: str, path: str) -> None:
        """Note that this attempt has begun something, and the path where."""
        self._store.set(_key(self._attempt, name), json.dumps(path))

    def begun(self, name: str) -> str | None:
        """Where the last of the earlier attempts has begun it; None where none has, or this one has by now."""
        last = next((at for at in range(self._attempt, -1, -1) if self._store.check([_key(at, name)])), self._attempt)
        return None if last == self._attempt else str(json.loads(self._store.get(_key(last, name))))


def _key(attempt: int, name: str) -> str:
    """The store takes UTF-8 only, and a path may be none."""
    return f"{attempt}/{name!a}"
