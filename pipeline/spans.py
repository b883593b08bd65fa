"""Spans: who did what when, collected from the threads of a process.

Clock: `time.monotonic_ns`, which all processes of one host share, so that their spans compare to the microsecond.
"""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["LANES", "Recorder", "Span"]

LANES = ("compute", "send", "receive")  # threads of a process: the stage itself, and the two that wait for transfers
_LIMIT = 200_000  # spans a process keeps; at about 100 bytes each a long run must not eat the memory


@dataclass(frozen=True)
class Span:
    stage: int
    lane: str
    name: str
    step: int
    start_ns: int
    duration_ns: int
    kind: str = "train"  # of the packet: train, evaluate, end_of_epoch, stop

    @property
    def end_ns(self) -> int:
        return self.start_ns + self.duration_ns


class Recorder:
    """Collects spans from the threads of one process; disabled it does nothing.

    `synchronize` waits for a GPU, so that a span covers the work it started; spans after the first `limit` are only
    counted, in `dropped`.
    """

    def __init__(
        self, enabled: bool = True, synchronize: Callable[[], None] | None = None, *, limit: int = _LIMIT
    ) -> None:
        self.enabled = enabled
        self.dropped = 0
        self._synchronize, self._limit = synchronize, limit
        self._lock = threading.Lock()
        self._spans: list[tuple[int, str, str, int, int, int, str]] = []

    def add(
        self, stage: int, lane: str, name: str, step: int, start_ns: int, duration_ns: int, kind: str = "train"
    ) -> None:
        """Record a span that has ended."""
        if not self.enabled:
            return
        with self._lock:
            if len(self._spans) < self._limit:
                self._spans.append((stage, lane, name, step, start_ns, duration_ns, kind))
            else:
                self.dropped += 1

    def settle(self) -> None:
        """Wait for the device before a span ends, if anything is recorded."""
        if self.enabled and self._synchronize is not None:
            self._synchronize()

    def export(self) -> dict[str, Any]:
        """All spans as JSON values, for process 0, with what it takes to join them to those of other hosts."""
        with self._lock:
            spans = [list(span) for span in self._spans]
        return {"host": _host(), "wall_offset_ns": _wall_offset_ns(), "dropped": self.dropped, "spans": spans}


def _host() -> str:
    """What processes that share a monotonic clock have in common."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text(encoding="ascii").strip() if boot.exists() else platform.node()


def _wall_offset_ns() -> int:
    """Nanoseconds from the monotonic to the wall clock: of a few readings the one least interrupted."""
    readings = []
    for _ in range(5):
        before, wall, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
        readings.append((after - before, wall - (before + after) // 2))
    return min(readings)[1]
