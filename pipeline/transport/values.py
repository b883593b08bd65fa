"""JSON values in a key-value store; long ones in several places."""

from __future__ import annotations

from typing import Any

from torch.distributed.distributed_c10d import Store

from pipeline.text import json_text

__all__ = ["Values"]

_PIECE = 1 << 20  # bytes of one value in the store, whose libuv backend closes a connection that sends over 8 MiB
_MOST = 10_000  # pieces
_PIECES = "pieces"  # begins a value that lies in several places; no JSON begins so


class Values:
    """What one process writes, and how it reads what any has written. What is not finite is read as None."""

    def __init__(self) -> None:
        self._versions = 0

    def put(self, store: Store, key: str, value: Any) -> None:
        """Write a value; a later one replaces it."""
        text = json_text(value)
        store.set(key, self._in_pieces(store, key, text) if len(text) > _PIECE else text)

    def _in_pieces(self, store: Store, key: str, text: str) -> str:
        """Write a long value in several places; what to write in its own one. Readers tell by the version whether all
        pieces belong to one value."""
        self._versions += 1
        pieces = [text[start : start + _PIECE] for start in range(0, len(text), _PIECE)]
        for number, piece in enumerate(pieces):
            store.set(f"{key}/{_PIECES}/{number}", f"{self._versions} {piece}")
        return f"{_PIECES} {self._versions} {len(pieces)}"

    @staticmethod
    def text(store: Store, key: str) -> str | None:
        """What lies under a key, or None if nobody has written it yet, or somebody is writing it anew."""
        if not store.check([key]):
            return None
        text = store.get(key).decode(errors="replace")
        match text.split(" ") if text.startswith(_PIECES) else []:
            case [_, version, count] if count.isdecimal() and int(count) <= _MOST:
                places = [f"{key}/{_PIECES}/{number}" for number in range(int(count))]
            case _:
                return text
        if not store.check(places):
            return None
        found = [store.get(place).decode(errors="replace").partition(" ") for place in places]
        return "".join(piece for _, _, piece in found) if all(of == version for of, _, _ in found) else None
