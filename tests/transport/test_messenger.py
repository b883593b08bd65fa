"""The messenger: what it is handed is done in order, and nobody waits for a store that does not answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import cast

import pytest
from torch.distributed.distributed_c10d import Store

from pipeline.transport.messenger import Messenger, UnansweredError
from pipeline.transport.silence import Silence
from tests.support.gated_store import GatedStore


class Desk:
    """A messenger at a gated store, and what became of it."""

    def __init__(self) -> None:
        self.store, self.turns, self.left, self.lost = GatedStore(), 0, False, list[RuntimeError]()
        self.messenger = Messenger(cast(Store, self.store), 0.05, self._turn, self._leave, self.lost.append)

    def _turn(self, store: Store) -> None:
        self.turns += 1

    def _leave(self, store: Store) -> None:
        self.left = True

    def read(self, key: str) -> bytes:
        return self.messenger.ask(lambda store: store.get(key), 20)


@pytest.fixture
def desk() -> Iterator[Desk]:
    made = Desk()
    yield made
    made.store.open()
    made.messenger.close(20)


def test_what_is_handed_over_is_done_in_order_and_the_last_of_a_key_counts(desk: Desk) -> None:
    done: list[str] = []
    desk.store.shut()
    desk.messenger.post("gate", lambda store: store.set("gate", "1"))
    while not desk.store.waiting:
        time.sleep(0.01)
    for name, key in (("a1", "a"), ("b1", "b"), ("a2", "a"), ("c1", "c")):
        desk.messenger.post(key, lambda store, name=name: done.append(name))  # type: ignore[misc]
    desk.store.open()
    assert desk.read("gate") == b"1"
    assert done == ["b1", "a2", "c1"]


def test_turns_are_taken_without_being_asked(desk: Desk) -> None:
    deadline = time.monotonic() + 20
    while desk.turns < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert desk.messenger.answers >= 2


def test_a_failure_of_what_is_asked_is_the_askers(desk: Desk) -> None:
    with pytest.raises(KeyError, match="mine"):
        desk.messenger.ask(lambda store: dict[str, int]()["mine"], 20)
    assert desk.messenger.ask(lambda store: 3, 20) == 3 and not desk.lost


def test_who_asks_a_store_that_does_not_answer_gives_up(desk: Desk) -> None:
    desk.store.shut()
    start = time.monotonic()
    with pytest.raises(UnansweredError):
        desk.messenger.ask(lambda store: store.check(["a"]), 0.3)
    assert time.monotonic() - start >= 0.3


def test_nobody_gives_up_a_store_that_answers_others(desk: Desk) -> None:
    """It is slow, and works off what came before."""
    for number in range(8):
        desk.messenger.post(str(number), lambda store: time.sleep(0.1))
    assert desk.messenger.ask(lambda store: 3, 0.4) == 3


def test_a_store_that_is_lost_is_told_once_and_whoever_asks_is_told_too(desk: Desk) -> None:
    def lose(store: Store) -> None:
        raise RuntimeError("Connection refused")

    desk.messenger._turn = lose
    while not desk.lost:
        time.sleep(0.01)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="Connection refused"):
            desk.messenger.ask(lambda store: store.check(["a"]), 20)
    assert [str(error) for error in desk.lost] == ["Connection refused"] and not desk.left


def test_a_store_that_has_left_before_is_not_missed(desk: Desk) -> None:
    desk.store.error = RuntimeError("Connection refused")
    desk.messenger._turn = lambda store: None
    desk.messenger._last = lambda store: store.set("a", "1")
    desk.messenger.close(20)
    assert not desk.lost


def test_closing_does_what_is_left_and_is_not_kept_by_a_store_that_does_not_answer() -> None:
    desk = Desk()
    desk.messenger.post("a", lambda store: store.set("a", "1"))
    desk.messenger.close(20)
    assert desk.left and desk.store.get("a") == b"1"
    with pytest.raises(RuntimeError, match="left"):
        desk.messenger.ask(lambda store: 3, 20)
    desk = Desk()
    desk.store.shut()
    desk.messenger.post("a", lambda store: store.set("a", "1"))
    start = time.monotonic()
    desk.messenger.close(0.2)
    assert time.monotonic() - start < 20 and not desk.left
    desk.store.open()
    desk.messenger.close(20)


def test_only_what_stands_still_while_one_looks_is_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    silence = Silence()

    def look(sign: object, after_s: float) -> float:
        now[0] += after_s
        return silence.look(sign)

    assert [look(1, 0.5) for _ in range(3)] == [0, 0.5, 1.0]
    assert look(2, 0.5) == 0
    assert look(2, 0.25) == 0.25
    assert look(2, 3600) == 1.25, "whoever looks was stopped"
