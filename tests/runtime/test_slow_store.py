"""A store that does not answer stops no training: only the messenger and the gatherer talk to it under way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import cast

import pytest
import torch
from torch.distributed.distributed_c10d import Store
from torch.utils.data import TensorDataset

from pipeline.data.batches import Batches
from pipeline.errors import StageFailure
from pipeline.learning.packet import Packet, Position
from pipeline.runtime import telemetry
from pipeline.runtime.feed import Feed
from pipeline.runtime.requests import Requests
from pipeline.runtime.session import Session
from pipeline.transport import control as control_module
from pipeline.transport.control import Control
from tests.runtime.test_session import Notes
from tests.support.data import library
from tests.support.gated_store import GatedStore
from tests.support.sessions import SHAPE, Fleet, all_at_once, settings, state_of


def data() -> Batches:
    """Three steps an epoch."""
    draw = torch.Generator().manual_seed(1)
    return library(TensorDataset(torch.randn(11, *SHAPE, generator=draw), torch.arange(11) % 3), batch_size=4)


class Trap:
    """A timetable that acts after two packets."""

    def __init__(self, feed: Feed, act: Callable[[], None]) -> None:
        self.feed, self.act = feed, act

    def packets(self, start: Position) -> Iterator[Packet]:
        packets = self.feed.packets(start)
        yield from islice(packets, 2)
        self.act()
        yield from packets


def until(true: Callable[[], bool], limit_s: float = 30) -> None:
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


@contextmanager
def two_stages(store: GatedStore, notes: Notes) -> Iterator[tuple[Fleet, list[Session]]]:
    fleet = Fleet(settings("pred", epochs=2), (3, 3), 2, notes, store=cast(Store, store))
    try:
        yield fleet, fleet.sessions()
    finally:
        store.error = None
        store.open()
        fleet.close()


def test_steps_go_on_while_the_store_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "_STATUS_S", 0.0)  # something to tell at every step
    store, notes = GatedStore(), Notes()
    feed = Feed(data(), settings("pred", epochs=2))
    alone = Fleet(settings("pred", epochs=2), (6,), 1)
    with alone.sessions()[0] as session:
        session.run(feed)
    with ThreadPoolExecutor(2) as pool, two_stages(store, notes) as (fleet, sessions):  # left in the order of need
        all_at_once([session.__enter__ for session in sessions])
        runs = [pool.submit(s.run, Trap(feed, store.shut) if i == 0 else None) for i, s in enumerate(sessions)]
        until(lambda: sessions[1].control.at == Position(3, 6) and sessions[1].ports is not None)
        runs[1].result(30)  # the whole run of stage 1, two epochs and the stop packet
        assert not notes.epochs, "nothing has come through"
        store.open()
        runs[0].result(30)
        for session in sessions:
            session.__exit__(None)
        assert state_of(fleet.stages) == state_of(alone.stages)
    assert store.waiting <= {"heartbeat", "gatherer"}
    assert [epoch for epoch, _ in notes.epochs] == [1, 2], "reports are kept until the store answers"
    assert [status.phase for status in notes.states] == ["done", "done"]


def test_a_store_that_is_gone_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "_STATUS_S", 0.0)
    store = GatedStore()

    def go() -> None:
        store.error = RuntimeError("Connection refused")
        until(lambda: all(control._verdict.of(0) for control in fleet.controls))

    with ThreadPoolExecutor(2) as pool, two_stages(store, Notes()) as (fleet, sessions):
        feed = Trap(Feed(data(), settings("pred", epochs=2)), go)
        all_at_once([session.__enter__ for session in sessions])
        runs = [pool.submit(session.run, feed if i == 0 else None) for i, session in enumerate(sessions)]
        for number, run in enumerate(runs):
            with pytest.raises(StageFailure, match=rf"stage {number} .* lost torchrun's store \(Connection refused\)"):
                run.result(30)
        for session in sessions:
            session.abort()


def test_a_death_is_told_though_the_store_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_module, "_REPORT_S", 0.1)
    store, requests = GatedStore(), Requests()
    control = Control(cast(Store, store), 0, 2, timeout_s=60, hears=requests.fail)
    try:
        store.shut()
        error = control.lost(1, "Connection closed by peer")
        assert str(error).startswith("process 1 died: Connection closed by peer") and error.rank == 0
        assert requests.failed.is_set() and str(requests.failures[0]) == str(error)
    finally:
        store.open()
        control.close()
