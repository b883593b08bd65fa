"""The emulated stages: equal work for all, the same jitter for all."""

from __future__ import annotations

import time
import traceback
from itertools import pairwise
from unittest.mock import patch

import pytest
import torch
from torch.distributed.pipelining.schedules import get_schedule_class

from benchmarks.contenders.torch_schedules import CHUNKS, Stage, chunks_of
from benchmarks.emulation import load
from benchmarks.emulation.load import Load, Turn, Window, Work, ideal_utilisation, summed
from benchmarks.emulation.schedules import Chunk, Scheduled
from benchmarks.experiments.schedule import contests
from benchmarks.harness.crew import Crew, Member
from tests.support.clock import Clock

# Idle percent of equal stages with free messages, by stages and microbatches; found by simulating every action.
IDLE_PERCENT = {
    (2, 4): {"GPipe": 20.0, "1F1B": 20.0, "Interleaved1F1B": 11.1, "InterleavedZeroBubble": 4.0, "ZBVZeroBubble": 4.0},
    (4, 8): {"GPipe": 27.3, "1F1B": 27.3, "Interleaved1F1B": 15.8, "InterleavedZeroBubble": 5.9, "ZBVZeroBubble": 5.9},
    (4, 16): {"GPipe": 15.8, "1F1B": 15.8, "Interleaved1F1B": 8.6, "InterleavedZeroBubble": 3.0, "ZBVZeroBubble": 3.0},
    (8, 16): {
        "GPipe": 30.4,
        "1F1B": 30.4,
        "Interleaved1F1B": 17.9,
        "InterleavedZeroBubble": 6.8,
        "ZBVZeroBubble": 6.8,
    },
}


@pytest.mark.parametrize(("stages", "microbatches"), list(IDLE_PERCENT))
def test_ideal_utilisation_is_what_simulations_found(stages: int, microbatches: int) -> None:
    for name, idle in IDLE_PERCENT[stages, microbatches].items():
        ideal = ideal_utilisation(name, stages, microbatches)
        assert ideal is not None and 100 * (1 - ideal) == pytest.approx(idle, abs=0.06), name
    assert ideal_utilisation(None, stages, microbatches) == 1.0


def test_zero_bubble_with_few_microbatches_has_no_formula() -> None:
    assert ideal_utilisation("ZBVZeroBubble", 4, 4) is None


def test_jitter_strikes_a_tenth_of_the_batches_at_every_stage_and_is_the_same_each_time() -> None:
    jittery = Load(4, 0.1, jitter=True)
    struck = [jittery.struck(1, batch) for batch in range(4000)]
    assert struck == [Load(4, 0.7, jitter=True).struck(1, batch) for batch in range(4000)]
    assert struck != [jittery.struck(2, batch) for batch in range(4000)], "every turn has a table of its own"
    assert sum(stage is not None for stage in struck) == pytest.approx(400, abs=60)
    assert {stage for stage in struck if stage is not None} == {0, 1, 2, 3}
    first = next(batch for batch, stage in enumerate(struck) if stage is not None)
    assert [jittery.factor(1, first, stage) for stage in range(4)].count(5.0) == 1


def test_slow_stage_is_half_as_slow_again_and_nothing_else_is() -> None:
    uneven = Load(4, 0.1, slow_stage=2)
    assert [uneven.factor(1, 7, stage) for stage in range(4)] == [1.0, 1.0, 1.5, 1.0]
    assert all(uneven.struck(1, batch) is None for batch in range(100))
    assert uneven.slowest_rate(1, Window(2, 6)) == pytest.approx(1 / 0.15)


def test_turn_is_summed_on_the_last_clock() -> None:
    # The first process ran ahead: that it was done sooner makes it no busier.
    rate, busy = summed([Turn(4.0, 4.0), Turn(5.0, 4.5)], Window(2, 10))
    assert rate == 2.0 and busy == pytest.approx(85.0)


def test_work_counts_what_was_slept_for_the_batches_of_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "time", clock := Clock())
    work = Work(Load(1, 0.03), 0, 1)
    for batch in range(4):
        work.sleep(batch, 1 / 3)
        work.sleep(batch, 2 / 3)
        clock.sleep(0.01)  # not work
        work.finish(batch)
    turn = work.measured(Window(2, 2))
    assert turn.slept_s == pytest.approx(2 * 0.03)
    assert turn.seconds == pytest.approx(2 * 0.04)
    assert work.slept_s == pytest.approx(4 * 0.03)


def test_chunks_of_every_schedule_cover_the_network() -> None:
    for name, each in CHUNKS.items():
        held = [chunks_of(rank, 4, name) for rank in range(4)]
        assert sorted(chunk for chunks in held for chunk in chunks) == list(range(4 * each))
    assert chunks_of(1, 4, "ZBVZeroBubble") == [1, 6] and chunks_of(1, 4, "InterleavedZeroBubble") == [1, 5]


def test_first_chunk_makes_the_gradient_of_its_input_although_nobody_wants_it() -> None:
    pauses: list[float] = []
    chunk = Chunk(lambda: pauses.append(time.monotonic()))
    out = chunk(torch.zeros(2, 3))
    assert len(pauses) == 1
    out.sum().backward()
    assert len(pauses) == 2
    chunk.weight_gradient()()
    assert len(pauses) == 3


class Actions:
    """Stands where a chunk sleeps and notes on whose behalf torch called it."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self) -> None:
        names = {frame.name for frame in traceback.extract_stack(limit=40)}
        kinds = {"forward_one_chunk": "F", "backward_weight_one_chunk": "W", "backward_one_chunk": "I"}
        self.seen.append(next((kind for name, kind in kinds.items() if name in names), "other"))


def zero_bubble(member: Member, schedule: str, microbatches: int) -> list[str]:
    """What the sleeps of one step were for, after a step in which torch finds out about shapes."""
    actions, mine = Actions(), chunks_of(member.rank, member.size, schedule)
    chunks = [Chunk(actions) for _ in mine]
    stages = [
        Stage(chunk, index, 2 * member.size, torch.device("cpu"), dw_builder=chunk.weight_gradient)
        for chunk, index in zip(chunks, mine, strict=True)
    ]
    last = 2 * member.size - 1 in mine
    run = get_schedule_class(schedule)(stages, microbatches, loss_fn=lambda out, _: out.mean())
    for _ in range(2):
        actions.seen.clear()
        inputs = (torch.zeros(8, 3),) if 0 in mine else ()
        run.step(*inputs, **({"target": torch.zeros(8)} if last else {}))
    return actions.seen


def slept_in_a_step(member: Member, schedule: str, each: Load) -> Turn:
    """What is slept for two batches after a turn that warms up."""
    scheduled = Scheduled(member, each, schedule, 4)
    with patch.object(load, "time", Clock()):
        scheduled.run(0, Window(1, 1))
        return scheduled.run(1, Window(1, 2))


@pytest.mark.bench
@pytest.mark.lowest
@pytest.mark.usefixtures("forked_crews")
def test_work_of_a_microbatch_is_forward_input_and_weight_each_at_its_time() -> None:
    each = Load(2, 0.24)
    with Crew(2) as crew:
        split = {name: crew.call(zero_bubble, name, 4) for name in ("InterleavedZeroBubble", "ZBVZeroBubble")}
        slept = {name: crew.call(slept_in_a_step, name, each) for name in CHUNKS}
    for name, ranks in split.items():
        for seen in ranks:
            assert sorted(seen) == sorted("FIW" * 8), f"{name}: two chunks, four microbatches"
        assert any(_apart(seen) for seen in ranks), f"{name}: some weight gradient waits for another action"
    for name, turns in slept.items():
        for turn in turns:
            assert turn.slept_s == pytest.approx(2 * each.batch_s), f"{name}: the same work as any other"


def _apart(seen: list[str]) -> bool:
    """Whether another action came between some input gradient and the next weight gradient."""
    return any(one == "I" and two != "W" for one, two in pairwise(seen))


def test_contests_compare_at_equal_work_and_start_after_a_warm_up() -> None:
    for quick in (True, False):
        chosen = contests(quick)
        assert all(contest.rounds >= (3 if quick else 5) and contest.window.warm_up >= 1 for contest in chosen)
        assert all(contest.microbatches >= contest.load.stages for contest in chosen), "1F1B refuses less"
        assert len({(contest.load.stages, contest.name) for contest in chosen}) == len(chosen)
    assert {contest.load.stages for contest in contests(False)} == {2, 4, 8, 16}
