"""Traces read again: the spans of a file, and those with given fields."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from pipeline.report.trace import _TRACKS
from pipeline.spans import LANES, Span


def spans_of(spans: Iterable[Span], **given: int | str) -> list[Span]:
    """The spans whose fields are as given, such as `stage=0, name="send"`, by start."""
    found = [span for span in spans if all(getattr(span, field) == value for field, value in given.items())]
    return sorted(found, key=lambda span: span.start_ns)


def read_chrome(path: str | Path) -> list[Span]:
    """The spans of a file that `write_chrome` wrote, by start, times counted from the first."""
    events = json.loads(Path(path).read_text(encoding="utf-8"))["traceEvents"]
    return [
        Span(
            stage=event["pid"],
            lane=LANES[event["tid"] // _TRACKS],
            name=event["name"],
            step=event["args"]["step"],
            start_ns=round(event["ts"] * 1000),
            duration_ns=round(event["dur"] * 1000),
            kind=event["cat"],
        )
        for event in events
        if event["ph"] == "X"
    ]
