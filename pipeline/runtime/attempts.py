"""What outlives the processes of a launch when torchrun starts them anew: what its attempts have begun."""

from __future__ import annotations

from torch.distributed.distributed_c10d import PrefixStore, Store

__all__ = ["Attempts"]


class Attempts:
    """The attempts of one launch, of which this process belongs to the last; the store outlives them all.

    Where it does not, or this is another launch, nothing has been begun before.
    """

    def __init__(self, store: Store, attempt: int) -> None:
        self._store, self._attempt = PrefixStore("launch", store), attempt

    def begin(self, name: str) -> None:
        """Note that this attempt has begun something."""
        self._store.set(_key(self._attempt, name), "")

    def has_begun(self, name: str) -> bool:
        """Whether an earlier attempt has begun it, and this one has not."""
        begun = [self._store.check([_key(attempt, name)]) for attempt in range(self._attempt + 1)]
        return any(begun) and not begun[-1]


def _key(attempt: int, name: str) -> str:
    """In ASCII: a name may hold a path, which need not be UTF-8, and a store takes no other text."""
    return f"{attempt}/{name!a}"
