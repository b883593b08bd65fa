"""Spans: cheap when off, bounded, recorded by several threads on a clock that processes share."""

from __future__ import annotations

import json
import subprocess
import sys
import threading

import pytest

from pipeline.report.trace import spans_from
from pipeline.spans import Recorder
from tests.support.traces import spans_of


def test_a_disabled_recorder_does_nothing_and_never_waits_for_the_device() -> None:
    recorder = Recorder(enabled=False, synchronize=lambda: pytest.fail("no"))
    assert not recorder.enabled
    recorder.settle()
    recorder.add(0, "compute", "forward", 0, 0, 1)
    assert recorder.export()["spans"] == []


def test_an_enabled_recorder_waits_for_the_device() -> None:
    waits: list[int] = []
    Recorder(synchronize=lambda: waits.append(1)).settle()
    assert waits == [1]


def test_spans_over_the_limit_are_counted_and_the_first_ones_kept() -> None:
    recorder = Recorder(limit=3)
    for step in range(5):
        recorder.add(0, "compute", "forward", step, step, 1)
    assert recorder.dropped == 2
    assert [span.step for span in spans_from(recorder.export())] == [0, 1, 2]
    assert recorder.export()["dropped"] == 2


def test_threads_lose_no_span() -> None:
    recorder = Recorder()

    def record(lane: str) -> None:
        for step in range(500):
            recorder.add(0, lane, lane, step, step, 1)

    threads = [threading.Thread(target=record, args=(lane,)) for lane in ("compute", "send", "receive")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spans = spans_from(recorder.export())
    assert all([s.step for s in spans_of(spans, lane=lane)] == list(range(500)) for lane in ("send", "receive"))
    assert len(spans) == 1500


@pytest.mark.runs
def test_two_processes_of_this_host_agree_on_host_and_wall_clock() -> None:
    code = "import json; from pipeline.spans import Recorder; print(json.dumps(Recorder().export()))"
    theirs = json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)
    ours = Recorder().export()
    assert theirs["host"] == ours["host"]
    assert abs(theirs["wall_offset_ns"] - ours["wall_offset_ns"]) < 50_000_000
