"""The control channel: values, agreement, and errors that reach every process."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch._C._distributed_c10d import HashStore

from pipeline.errors import ConfigError, DataError, PipelineError, StageFailure
from pipeline.transport.control import Control, known_to_all
from pipeline.transport.wire import Contract, agree


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

    threads = [threading.Thread(target=act, args=(control,)) for control in controls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert [type(error) for error in raised] == [kind] * 3
    assert {str(error) for error in raised} == {"the message"}
    assert {error.rank for error in raised} == {1}, "the process that is to print it"
    assert all(known_to_all(error) for error in raised)


def test_agreement_gives_each_process_its_own_result(controls: list[Control]) -> None:
    results: dict[int, int] = {}

    def act(control: Control) -> None:
        results[control.rank] = control.together("fine", lambda: 10 * control.rank)

    threads = [threading.Thread(target=act, args=(control,)) for control in controls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert results == {0: 0, 1: 10, 2: 20}


def test_the_first_failure_wins(controls: list[Control]) -> None:
    first, second = controls[2].fail("stage 2 broke"), controls[0].fail("stage 0 noticed")
    assert (str(first), first.rank) == (str(second), second.rank) == ("stage 2 broke", 2)
    with pytest.raises(StageFailure, match="stage 2 broke"):
        controls[1].read("never", 0)


def test_neighbours_that_disagree_are_told_both_sides() -> None:
    expected = Contract((16, 8, 8), torch.float32, 128)
    agree(0, expected.describe(), expected)
    promised = Contract((16, 4, 4), torch.bfloat16, 128).describe()
    message = (
        r"stage 0 sends \[16, 4, 4\] bfloat16, batches up to 128, but stage 1 expects \[16, 8, 8\] float32, batches"
    )
    with pytest.raises(ConfigError, match=message):
        agree(0, promised, expected)
