"""The second promise, read off real traces of four processes: nothing waits for a backward pass."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.learning.balance import members
from pipeline.spans import Span
from tests.runs.slow_stage_run import DEPTH, SLEEP_S, SPLIT
from tests.support.processes import spawn
from tests.support.traces import read_chrome, spans_of

pytestmark = pytest.mark.runs


@dataclass(frozen=True)
class Run:
    """A traced run of four processes."""

    spans: list[Span]
    processes: list[dict[str, Any]]

    def find(self, stage: int, name: str, lane: str = "compute") -> dict[int, Span]:
        """Training spans by step."""
        return {s.step: s for s in spans_of(self.spans, stage=stage, name=name, lane=lane, kind="train")}


def trace(folder: Path, slowed: int) -> Run:
    path = folder / "trace.json"
    ends = spawn(["-m", "tests.runs.slow_stage_run", str(path), str(slowed)], 4, timeout_s=250)
    assert all(end.status == 0 for end in ends), "\n".join(end.stderr for end in ends)
    assert path.with_suffix(".png").exists()
    return Run(read_chrome(path), [json.loads(Path(f"{path}.{rank}").read_text()) for rank in range(4)])


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trace(tmp_path_factory.mktemp("free"), slowed=-1)


@pytest.fixture(scope="module")
def slowed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Stage 3 sleeps before every step."""
    return trace(tmp_path_factory.mktemp("slowed"), slowed=3)


def test_every_stage_worked_on_every_batch(free: Run) -> None:
    for stage in range(3):
        assert len(free.find(stage, "forward")) == len(free.find(stage, "update")) == 19
    assert len(free.find(3, "step")) == 19


def overlaps(run: Run) -> list[bool]:
    """For each batch but the last: whether stage 0 starts the next one before stage 3 has finished it."""
    first, last = run.find(0, "forward"), run.find(3, "step")
    return [first[step + 1].start_ns < last[step].end_ns for step in range(18)]


def test_stage_0_starts_the_next_batch_before_stage_3_has_finished_this_one(free: Run, slowed: Run) -> None:
    assert all(overlaps(slowed)[DEPTH:]), "once it has run ahead"
    # Without a slow stage the machine's scheduler has a say; one that waited for backward passes would never do it.
    assert any(overlaps(free))


def test_every_send_starts_before_that_stages_backward(free: Run) -> None:
    for stage in range(3):
        sends, updates = free.find(stage, "send", "send"), free.find(stage, "update")
        assert set(updates) <= set(sends)
        assert all(sends[step].start_ns < updates[step].start_ns for step in updates)


def test_a_slow_stage_lets_stage_0_run_ahead_by_the_queues_and_no_further(slowed: Run) -> None:
    """Three queues of DEPTH packets, a packet in work in stages 1, 2 and 3, and the one stage 0 works on."""
    started, finished = slowed.find(0, "forward"), slowed.find(3, "step")
    capacity = 3 * DEPTH + 3
    ahead = []
    for step, span in started.items():
        done = sum(other.end_ns <= span.start_ns for other in finished.values())
        ahead.append(step - done)
    assert max(ahead) == capacity


def test_a_slow_stage_shows_as_waiting_at_its_neighbours(slowed: Run) -> None:
    waits = [process["waits"] for process in slowed.processes]
    for stage in (0, 1, 2):
        assert waits[stage][1] > SLEEP_S, f"stage {stage} waits for a free slot"
    received, finished = slowed.find(3, "receive", "receive"), slowed.find(3, "step")
    at_hand = [received[step + 1].end_ns < finished[step].end_ns for step in range(18)]
    assert sum(at_hand) > 9, "the slow stage itself waits for nobody: its next packet is there"


def test_each_process_holds_only_its_own_blocks(free: Run) -> None:
    assert [tuple(process["blocks"]) for process in free.processes] == members(SPLIT)
