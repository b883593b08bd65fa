"""The other processes of this host: the kernel says when one has ended, whatever it was at."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from pathlib import Path

__all__ = ["Mates", "own_place"]


class Mates:
    """Processes by rank that this one can see; where the kernel cannot tell of their end (before Linux 5.3), none."""

    def __init__(self) -> None:
        self._open: dict[int, tuple[int, int]] = {}  # file descriptor and id of each process
        self._gone: dict[int, int] = {}
        self._lock = threading.Lock()

    def add(self, rank: int, place: object) -> None:
        """Look after a process from now on, if it is another one of this host; `place` is its `own_place`, as told."""
        kernel, mine = own_place()
        match place:
            case [told, int(pid)] if kernel and told == kernel and pid != mine:
                with self._lock, contextlib.suppress(AttributeError, OSError, OverflowError):
                    try:
                        self._open[rank] = (os.pidfd_open(pid), pid)
                    except ProcessLookupError:
                        self._gone[rank] = pid

    def gone(self) -> dict[int, int]:
        """Ids of the processes that have ended, by rank."""
        with self._lock:
            poll, ranks = select.poll(), {descriptor: rank for rank, (descriptor, _) in self._open.items()}
            for descriptor in ranks:
                poll.register(descriptor, select.POLLIN)
            for descriptor, _ in poll.poll(0):
                os.close(descriptor)
                rank = ranks[descriptor]
                self._gone[rank] = self._open.pop(rank)[1]
            return dict(self._gone)

    def left(self) -> list[int]:
        """Ranks of the processes that have not ended."""
        self.gone()
        with self._lock:
            return list(self._open)

    def close(self) -> None:
        """Look after nobody any more."""
        with self._lock:
            for descriptor, _ in self._open.values():
                os.close(descriptor)
            self._open.clear()
            self._gone.clear()


def own_place() -> tuple[str, int]:
    """What tells this process from all others: the kernel and its name space, empty where nobody knows; the id."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}", os.getpid()
    return "", os.getpid()
