"""What others have written into the store, which whoever reaches its port can: at most the run ends, by a line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._C._distributed_c10d import HashStore

from pipeline.errors import PipelineError, StageFailure
from pipeline.transport.control import Control
from pipeline.transport.topics import EPOCHS, PLANS, STATUS, SUMMARIES, Topic
from pipeline.transport.verdict import read_report
from pipeline.transport.watch import Beat, read_beat
from tests.support.data import message

fuzzed = settings(max_examples=int(os.environ.get("FUZZ", "200")), deadline=None, derandomize=True, database=None)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)
TEXTS = st.binary(max_size=40) | PLAIN.map(lambda value: json.dumps(value).encode()) | st.just(b"[" * 100_000)
TEXTS = TEXTS | st.tuples(PLAIN, PLAIN).map(lambda two: f"pieces {two[0]} {two[1]}".encode())


@pytest.fixture
def control() -> Iterator[Control]:
    """Alone, so that no messenger writes in between."""
    made = Control(HashStore(), 0, 1, timeout_s=5)
    yield made
    made.close()


@pytest.mark.fuzz
@fuzzed
@given(TEXTS)
def test_no_report_of_a_failure_makes_the_reader_fail(text: bytes) -> None:
    told, rank = read_report(text)
    assert told and isinstance(rank, int)


@pytest.mark.fuzz
@fuzzed
@given(TEXTS)
def test_no_heartbeat_makes_the_reader_fail(text: bytes) -> None:
    store = HashStore()
    store.set("beat/1", text)  # type: ignore[arg-type]  # it takes bytes
    beat = read_beat(store, 1)
    assert beat is None or isinstance(beat, Beat)


@pytest.mark.fuzz
@fuzzed
@given(st.sampled_from([PLANS, STATUS, EPOCHS, SUMMARIES, Topic("plain", list)]), TEXTS)
def test_no_value_makes_the_reader_fail(topic: Topic[Any], text: bytes) -> None:
    control = Control(HashStore(), 0, 1, timeout_s=5)
    control.store.set(control._key(f"{topic.name}/0"), text)  # type: ignore[arg-type]
    try:
        value = topic.peek(control, 0)
    except StageFailure as error:
        told = str(error)
        assert f"finds under {topic.name}/0 in torchrun's store what no process of this run has written" in told
    else:
        assert value is None or isinstance(value, topic.kind)
    finally:
        control.close()


@pytest.mark.parametrize(
    "read",
    [
        lambda control: control.peek("key"),
        lambda control: control.read("key", 0),
        lambda control: Topic("key", list).peek(control, 0),
        lambda control: Topic("key", list).share(control, None),
    ],
)
def test_who_finds_what_nobody_wrote_says_so(control: Control, read: Callable[[Control], object]) -> None:
    for key in ("key", "key/0"):
        control.store.set(control._key(key), b"\xff{")  # type: ignore[arg-type]
    told = message(lambda: read(control), StageFailure)
    assert told.startswith("process 0 finds under key") and "look who reaches its port" in told


def test_a_forged_failure_is_an_ended_run(control: Control) -> None:
    control.store.set("0/failure", "[]")
    with pytest.raises(StageFailure, match="been told of a failure by no process of this run") as raised:
        control.raise_if_failed()
    assert raised.value.rank == 0
    assert "told of a failure by no" in str(control.fail("mine")), "it came first"


def test_a_forged_agreement_is_told(control: Control) -> None:
    publish = control.publish

    def forged(key: str, value: object) -> None:
        publish(key, ["Exception", 1])

    control.publish = forged  # type: ignore[method-assign]
    with pytest.raises(PipelineError, match="what no process of this run has written"):
        control.together("name", lambda: None)
