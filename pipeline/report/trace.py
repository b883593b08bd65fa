"""Spans of every stage: who did what when, as a Chrome trace.

The clock of each host counts from its own boot; `join` shifts the spans of other hosts by what the wall clocks say,
which is as good as those are synchronised (NTP: about a millisecond).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.spans import LANES, Span
from pipeline.text import json_text

__all__ = ["join", "spans_from", "to_chrome", "tracks_of", "write_chrome"]

_TRACKS = 100  # thread numbers kept for each lane of a trace; several transfers may be under way at once


def spans_from(exported: Mapping[str, Any]) -> list[Span]:
    """What one process's `export` gave, as spans."""
    return [Span(*values) for values in exported["spans"]]


def join(exported: Sequence[Mapping[str, Any]]) -> list[Span]:
    """The spans of all processes on the clock of the first one's host."""
    spans: list[Span] = []
    for part in exported:
        first = exported[0]
        # Never shift within a host: there the monotonic clocks agree better than any two readings of the wall clock.
        shift = 0 if part["host"] == first["host"] else part["wall_offset_ns"] - first["wall_offset_ns"]
        spans += [replace(s, start_ns=s.start_ns + shift) if shift else s for s in spans_from(part)]
    return spans


def tracks_of(spans: Iterable[Span]) -> list[tuple[int, Span]]:
    """The spans by start, each with the lowest track of its stage and lane on which nothing else is under way."""
    ends: dict[tuple[int, str], list[int]] = {}
    placed = []
    for span in sorted(spans, key=lambda span: span.start_ns):
        tracks = ends.setdefault((span.stage, span.lane), [])
        track = next((i for i, end_ns in enumerate(tracks) if end_ns <= span.start_ns), len(tracks))
        tracks[track : track + 1] = [span.end_ns]
        placed.append((track, span))
    return placed


def to_chrome(spans: Sequence[Span], names: Mapping[int, str]) -> dict[str, Any]:
    """The spans in Chrome's trace event format: a process for each stage, named by `names`, a thread for each lane.

    Transfers that overlap get threads of their own, because the format wants the spans of a thread to be nested.
    """
    placed = tracks_of(spans)
    threads = {(span.stage, span.lane, track) for track, span in placed}
    threads |= {(stage, lane, 0) for stage in names for lane in LANES}
    events = []
    for stage, name in names.items():
        events += _label("process", stage, 0, name, stage)
    for stage, lane, track in sorted(threads):
        tid = _thread(lane, track)
        events += _label("thread", stage, tid, lane if track == 0 else f"{lane} {track + 1}", tid)
    start_ns = min((span.start_ns for span in spans), default=0)
    events += [_event(span, track, start_ns) for track, span in placed]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _thread(lane: str, track: int) -> int:
    return LANES.index(lane) * _TRACKS + min(track, _TRACKS - 1)


def _label(what: str, pid: int, tid: int, name: str, order: int) -> list[dict[str, Any]]:
    """Name and place of a process or thread."""
    common = {"ph": "M", "pid": pid, "tid": tid}
    told = {"name": name, "sort_index": order}
    return [common | {"name": f"{what}_{key}", "args": {key: value}} for key, value in told.items()]


def _event(span: Span, track: int, start_ns: int) -> dict[str, Any]:
    return {
        "ph": "X",
        "name": span.name,
        "cat": span.kind,
        "pid": span.stage,
        "tid": _thread(span.lane, track),
        "ts": (span.start_ns - start_ns) / 1000,  # microseconds
        "dur": span.duration_ns / 1000,
        "args": {"step": span.step},
    }


def write_chrome(path: str | Path, spans: Sequence[Span], names: Mapping[int, str]) -> None:
    """Write a trace that Perfetto and chrome://tracing open."""
    Path(path).write_text(json_text(to_chrome(spans, names)), encoding="utf-8")
