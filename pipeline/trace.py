"""Spans of every stage: who did what when, as a Chrome trace.

Clock: `time.monotonic_ns`, which all processes of one host share. Stages on several hosts are each on their own
clock: their lanes are right in themselves, but may be shifted against each other.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["LANES", "Recorder", "Span", "read_chrome", "spans_from", "to_chrome", "write_chrome"]

LANES = ("compute", "send", "receive")
"""Threads of a process: the stage itself, and the two that wait for transfers."""

_LIMIT = 200_000  # spans a process keeps; at about 100 bytes each a long run must not eat the memory


@dataclass(frozen=True)
class Span:
    """One piece of work of one stage."""

    stage: int
    lane: str
    name: str
    step: int
    start_ns: int
    duration_ns: int
    kind: str = "train"  # of the packet: train, evaluate, end_of_epoch, stop

    @property
    def end_ns(self) -> int:
        """When it ended."""
        return self.start_ns + self.duration_ns


class Recorder:
    """Collects spans from the threads of one process; disabled it does nothing.

    Args:
        enabled: whether anything is recorded.
        synchronize: waits for the device, so that a span covers the work it started; for GPUs.
    """

    def __init__(self, enabled: bool, synchronize: Callable[[], None] | None = None) -> None:
        self.enabled = enabled
        self._synchronize = synchronize
        self._lock = threading.Lock()
        self._spans: list[tuple[Any, ...]] = []
        self.dropped = 0

    def add(
        self, stage: int, lane: str, name: str, step: int, start_ns: int, duration_ns: int, kind: str = "train"
    ) -> None:
        """Record a span that has ended."""
        if not self.enabled:
            return
        with self._lock:
            if len(self._spans) < _LIMIT:
                self._spans.append((stage, lane, name, step, start_ns, duration_ns, kind))
            else:
                self.dropped += 1

    def settle(self) -> None:
        """Wait for the device before a span ends, if anything is recorded."""
        if self.enabled and self._synchronize is not None:
            self._synchronize()

    def export(self) -> list[list[Any]]:
        """All spans as JSON values, for process 0."""
        with self._lock:
            return [list(span) for span in self._spans]


def spans_from(exported: Sequence[Sequence[Any]]) -> list[Span]:
    """What `export` gave, as spans."""
    return [Span(*values) for values in exported]


def to_chrome(spans: Sequence[Span], names: Mapping[int, str]) -> dict[str, Any]:
    """The spans in Chrome's trace event format: a process for each stage, a thread for each lane.

    Args:
        spans: of all stages.
        names: of the stages, by index.
    """
    start = min((span.start_ns for span in spans), default=0)
    events: list[dict[str, Any]] = []
    for stage, name in names.items():
        events.append({"ph": "M", "name": "process_name", "pid": stage, "args": {"name": name}})
        for tid, lane in enumerate(LANES):
            events.append({"ph": "M", "name": "thread_name", "pid": stage, "tid": tid, "args": {"name": lane}})
    events += [
        {
            "ph": "X",
            "name": span.name,
            "cat": span.kind,
            "pid": span.stage,
            "tid": LANES.index(span.lane),
            "ts": (span.start_ns - start) / 1000,  # microseconds
            "dur": span.duration_ns / 1000,
            "args": {"step": span.step},
        }
        for span in sorted(spans, key=lambda s: s.start_ns)
    ]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def write_chrome(path: str | Path, spans: Sequence[Span], names: Mapping[int, str]) -> None:
    """Write a trace that Perfetto and chrome://tracing open."""
    Path(path).write_text(json.dumps(to_chrome(spans, names)), encoding="utf-8")


def read_chrome(path: str | Path) -> list[Span]:
    """The spans of a file that `write_chrome` wrote, times counted from its first span."""
    events = json.loads(Path(path).read_text(encoding="utf-8"))["traceEvents"]
    return [
        Span(
            stage=event["pid"],
            lane=LANES[event["tid"]],
            name=event["name"],
            step=event["args"]["step"],
            start_ns=round(event["ts"] * 1000),
            duration_ns=round(event["dur"] * 1000),
            kind=event["cat"],
        )
        for event in events
        if event["ph"] == "X"
    ]
