"""What a process holds: threads and sockets, the system's own count."""

from __future__ import annotations

import gc
import os
import time
from dataclasses import dataclass

__all__ = ["Leftovers"]


@dataclass(frozen=True)
class Leftovers:
    """Counts of this process."""

    threads: int
    sockets: int

    @classmethod
    def now(cls) -> Leftovers:
        gc.collect()
        links = []
        for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  a path would be resolved
            try:
                links.append(os.readlink(f"/proc/self/fd/{name}"))  # noqa: PTH115
            except OSError:
                continue
        threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208
        return cls(threads, sum(link.startswith("socket:") for link in links))

    def are_all(self, within_s: float = 10.0) -> bool:
        """Whether no more than these are left, soon."""
        deadline = time.monotonic() + within_s
        while (now := Leftovers.now()).threads > self.threads or now.sockets > self.sockets:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True
