"""The control channel: values, agreement, and errors that reach every process."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import torch
from torch._C._distributed_c10d import HashStore, TCPStore

from pipeline.errors import ConfigError, DataError, PipelineError, StageFailure
from pipeline.learning.packet import Position, TensorSpec, labelled
from pipeline.learning.scores import BlockScore
from pipeline.transport import values
from pipeline.transport.control import Control
from pipeline.transport.messages import StageEpoch, StagePlan
from pipeline.transport.topics import EPOCHS, PLANS, Topic
from pipeline.transport.verdict import known_to_all
from pipeline.transport.wire import Contract, agree
from tests.support.sessions import all_at_once


@pytest.fixture
def controls() -> Iterator[list[Control]]:
    """Three processes' ends, in one process."""
    store = HashStore()
    made = [Control(store, rank, 3, timeout_s=5) for rank in range(3)]
    yield made
    for control in made:
        control.close()


def test_values_are_read_when_they_are_there(controls: list[Control]) -> None:
    assert controls[1].peek("key") is None
    threading.Timer(0.1, lambda: controls[0].publish("key", {"a": [1, None, 2.5]})).start()
    assert controls[1].read("key", 0) == {"a": [1, None, 2.5]}


@pytest.mark.parametrize("kind", [ConfigError, DataError])
def test_an_error_in_one_process_is_raised_in_all(controls: list[Control], kind: type[PipelineError]) -> None:
    raised: list[PipelineError] = []

    def act(control: Control) -> None:
        def check() -> int:
            if control.rank == 1:
                raise kind("the message")
            return control.rank

        try:
            control.together("check", check)
        except PipelineError as error:
            raised.append(error)

    all_at_once([partial(act, control) for control in controls])
    assert [type(error) for error in raised] == [kind] * 3
    assert {str(error) for error in raised} == {"the message"}
    assert {error.rank for error in raised} == {1}, "the process that is to print it"
    assert all(known_to_all(error) for error in raised)


def test_agreement_gives_each_process_its_own_result(controls: list[Control]) -> None:
    results: dict[int, int] = {}

    def act(control: Control) -> None:
        results[control.rank] = control.together("fine", lambda: 10 * control.rank)

    all_at_once([partial(act, control) for control in controls])
    assert results == {0: 0, 1: 10, 2: 20}


def test_the_first_failure_wins(controls: list[Control]) -> None:
    first, second = controls[2].fail("stage 2 broke"), controls[0].fail("stage 0 noticed")
    assert (str(first), first.rank) == (str(second), second.rank) == ("stage 2 broke", 2)
    with pytest.raises(StageFailure, match="stage 2 broke"):
        controls[1].read("never", 0)


def test_an_agreement_may_be_asked_for_again_under_its_name(controls: list[Control]) -> None:
    results: list[tuple[int, str]] = []

    def act(control: Control) -> None:
        results.append((control.together("twice", lambda: 1), "fine"))
        try:
            control.together("twice", lambda: fail(control))
        except ConfigError as error:
            results.append((2, str(error)))

    def fail(control: Control) -> int:
        if control.rank == 2:
            raise ConfigError("the second time")
        return 0

    all_at_once([partial(act, control) for control in controls])
    assert sorted(results) == [(1, "fine")] * 3 + [(2, "the second time")] * 3


def test_a_failure_ends_its_generation_and_the_next_knows_nothing_of_it(controls: list[Control]) -> None:
    controls[0].publish("value", 1)
    controls[1].fail("stage 1 broke")
    for control in controls:
        with pytest.raises(StageFailure, match="stage 1 broke"):
            control.raise_if_failed()
        control.advance()
        control.raise_if_failed()
        assert control.peek("value") is None
    all_at_once([partial(control.together, "again", lambda: None) for control in controls])


def test_a_new_round_forgets_values_but_not_a_failure(controls: list[Control]) -> None:
    controls[0].publish("value", 1)
    controls[1].renew()
    assert controls[1].peek("value") is None and controls[2].peek("value") == 1
    controls[0].fail("stage 0 broke")
    with pytest.raises(StageFailure, match="stage 0 broke"):
        controls[1].raise_if_failed()


def test_a_process_that_starts_after_a_failure_joins_the_next_generation(controls: list[Control]) -> None:
    controls[0].fail("stage 0 broke")
    late = Control(controls[0].store, 1, 3, timeout_s=5)
    try:
        late.raise_if_failed()
    finally:
        late.close()


def test_who_does_not_come_is_named(controls: list[Control]) -> None:
    def meet(control: Control) -> None:
        if control.rank != 1:
            with pytest.raises(StageFailure, match=r"process 1 has not come within 0\.2 s; start all 3 processes"):
                control.meet(0.2)

    all_at_once([partial(meet, control) for control in controls])


def test_a_heartbeat_says_where_a_process_is_and_on_whom_it_waits(controls: list[Control]) -> None:
    controls[1].at, controls[1].waits_for = Position(3, 41), 2
    deadline = time.monotonic() + 20
    while (beat := controls[0].beat(1)) is None or beat.step != 41:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (beat.epoch, beat.step, beat.waits_for) == (3, 41, 2)


@pytest.mark.parametrize(
    ("topic", "value"),
    [
        (PLANS, StagePlan(1, "cpu", 2, (0, 1), ("conv 3-8", "output"), 5, 6, 0.25)),
        (EPOCHS, StageEpoch(0, 1.5, 0.9, 0.1, 0.2, (BlockScore(0, 0.5, None),), None)),
        (EPOCHS, StageEpoch(0, 1.5, 0.9, 0.1, 0.2, (), (BlockScore(0, None, 3.25), BlockScore(1, 1e300, 0.0)))),
        (Topic("plain", list), [1, "a", None]),
    ],
)
def test_a_topic_gives_back_what_it_was_given(controls: list[Control], topic: Topic[Any], value: Any) -> None:
    assert topic.peek(controls[1], 0) is None
    topic.publish(controls[0], 0, value)
    assert topic.peek(controls[1], 0) == topic.read(controls[2], 0, 0) == value
    assert topic.share(controls[0], value) == topic.share(controls[1], None) == value
    assert topic.gather(controls[1], [0]) == [value]


def test_what_is_not_finite_is_nan_again_or_none_where_that_may_be(controls: list[Control]) -> None:
    EPOCHS.publish(controls[0], 0, StageEpoch(0, math.inf, math.nan, 0.1, 0.2, (BlockScore(0, math.inf, 1.0),), None))
    told = EPOCHS.read(controls[1], 0, 0)
    assert math.isnan(told.seconds) and math.isnan(told.busy_fraction)
    assert told.train == (BlockScore(0, None, 1.0),)


def test_a_value_larger_than_the_store_takes_at_once_arrives() -> None:
    """Its libuv backend closes a connection that sends more than 8 MiB."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20))
    ends = [Control(store if rank == 0 else store.clone(), rank, 2, timeout_s=10) for rank in range(2)]
    try:
        value = {"text": "x" * (9 << 20), "more": ["\u00e9", 1.5]}
        ends[0].publish("large", value)
        assert ends[1].read("large", 0) == value
        ends[0].publish("large", "small")
        assert ends[1].peek("large") == "small"
        assert len(str(ends[1].fail("z" * (9 << 20)))) == 10_000
        with pytest.raises(StageFailure, match=r"^z+$"):
            ends[0].raise_if_failed()
    finally:
        for end in ends:
            end.close()


def test_a_large_value_that_is_being_replaced_is_not_read_by_halves(
    controls: list[Control], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(values, "_PIECE", 10)
    controls[0].publish("key", "a" * 25)
    place = controls[0]._key("key")
    controls[0].store.set(f"{place}/pieces/1", "2 bbbbbbbbbb")  # the first of what a later call writes
    assert controls[1].peek("key") is None
    threading.Timer(0.1, lambda: controls[0].publish("key", "b" * 25)).start()
    assert controls[1].read("key", 0) == "b" * 25


def test_neighbours_that_disagree_are_told_both_sides() -> None:
    expected = Contract(labelled(TensorSpec((16, 8, 8), torch.float32)), 128)
    agree(0, expected.describe(), expected)
    promised = Contract(labelled(TensorSpec((16, 4, 4), torch.bfloat16)), 128).describe()
    message = (
        r"stage 0 sends x \[16, 4, 4\] bfloat16, labels \[\] int64, batches up to 128, but stage 1 expects "
        r"x \[16, 8, 8\] float32, labels \[\] int64, batches"
    )
    with pytest.raises(ConfigError, match=message):
        agree(0, promised, expected)
