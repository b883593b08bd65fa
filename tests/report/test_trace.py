"""Traces: joined over hosts, the same after JSON and after a file, readable by Perfetto."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from pipeline.report.trace import join, spans_from, to_chrome, write_chrome
from pipeline.spans import Recorder, Span
from tests.support.traces import read_chrome, spans_of

SPANS = [
    Span(0, "compute", "forward", 0, 1_000_123, 500_000),
    Span(0, "send", "send", 0, 1_500_123, 2_000_000),
    Span(0, "send", "send", 1, 2_500_123, 2_000_001),  # starts while the one before is under way
    Span(0, "compute", "update", 0, 1_600_123, 700_000),
    Span(1, "receive", "receive", 0, 3_400_123, 1),
    Span(1, "compute", "evaluate", 7, 9_000_123, 10, "evaluate"),
]


def exported(host: str, wall_offset_ns: int, spans: list[list[Any]]) -> dict[str, Any]:
    return {"host": host, "wall_offset_ns": wall_offset_ns, "dropped": 2, "spans": spans}


def test_spans_survive_json() -> None:
    recorder = Recorder()
    for span in SPANS:
        recorder.add(span.stage, span.lane, span.name, span.step, span.start_ns, span.duration_ns, span.kind)
    assert spans_from(json.loads(json.dumps(recorder.export()))) == SPANS


def test_processes_of_one_host_keep_their_common_clock() -> None:
    row = [0, "compute", "forward", 0, 1000, 1, "train"]
    spans = join([exported("a", 50, [row]), exported("a", 53, [row])])
    assert [span.start_ns for span in spans] == [1000, 1000]


def test_spans_of_another_host_are_shifted_by_the_wall_clocks() -> None:
    row = [1, "compute", "forward", 0, 1000, 1, "train"]
    spans = join([exported("a", 5_000, []), exported("b", 9_000, [row])])  # b was booted 4 µs later
    assert [span.start_ns for span in spans] == [5_000]
    assert join([]) == []


def test_spans_are_found_by_what_is_given() -> None:
    assert spans_of(SPANS, name="send", step=1) == [SPANS[2]]
    assert spans_of(SPANS, kind="evaluate") == [SPANS[5]]
    assert [span.start_ns for span in spans_of(SPANS, stage=0)] == [1_000_123, 1_500_123, 1_600_123, 2_500_123]
    assert spans_of(SPANS, stage=4) == []


def test_a_written_trace_reads_back_to_the_nanosecond(tmp_path: Path) -> None:
    write_chrome(tmp_path / "trace.json", SPANS, {0: "stage 0 (cpu)", 1: "stage 1 (cpu)"})
    read = read_chrome(tmp_path / "trace.json")
    first = SPANS[0].start_ns
    by_start = sorted(SPANS, key=lambda span: span.start_ns)
    assert [(s.start_ns + first, s.duration_ns) for s in read] == [(s.start_ns, s.duration_ns) for s in by_start]
    assert [(s.stage, s.lane, s.name, s.step, s.kind) for s in read] == [
        (s.stage, s.lane, s.name, s.step, s.kind) for s in by_start
    ]


def test_a_trace_names_stages_and_lanes() -> None:
    events = to_chrome(SPANS, {0: "stage 0 (cpu)", 1: "stage 1 (cuda:0)"})["traceEvents"]
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert [e["args"]["name"] for e in events if e["name"] == "process_name"] == ["stage 0 (cpu)", "stage 1 (cuda:0)"]
    assert [names[key] for key in sorted(names) if key[0] == 0] == ["compute", "send", "send 2", "receive"]
    assert [names[key] for key in sorted(names) if key[0] == 1] == ["compute", "send", "receive"]


def test_spans_of_one_thread_of_a_trace_never_overlap() -> None:
    """Perfetto drops spans that overlap without being nested: several packets are on their way at once."""
    spans = [Span(0, "send", "send", step, 10 * step, 35) for step in range(20)]
    events = [e for e in to_chrome(spans, {0: "stage 0"})["traceEvents"] if e["ph"] == "X"]
    threads = {event["tid"] for event in events}
    assert len(events) == 20 and len(threads) == 4
    for thread in threads:
        mine = [event for event in events if event["tid"] == thread]
        assert all(a["ts"] + a["dur"] <= b["ts"] + 1e-9 for a, b in pairwise(mine))


def test_an_empty_trace_is_a_trace(tmp_path: Path) -> None:
    write_chrome(tmp_path / "trace.json", [], {0: "stage 0"})
    assert read_chrome(tmp_path / "trace.json") == []
