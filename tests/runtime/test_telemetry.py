"""How long an epoch took, told by a clock that the tests set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import pytest
import torch

from pipeline.learning.packet import Kind, Packet, Position
from pipeline.learning.stage import Trainable
from pipeline.runtime import telemetry
from pipeline.runtime.stopwatch import Stopwatch
from pipeline.runtime.telemetry import Telemetry
from pipeline.spans import Recorder
from pipeline.transport.control import Control


@dataclass
class Clock:
    now: float = 100.0

    def perf_counter(self) -> float:
        return self.now


@dataclass
class FakeStage:
    """Whose device goes on for `behind` seconds after the calls of the last update."""

    clock: Clock
    device: torch.device
    behind: float = 0.0

    def synchronize(self) -> None:
        self.clock.now += self.behind

    def check(self, at: Position) -> None:
        pass


@dataclass
class NoStore:
    at: Position = field(default_factory=Position)


def seconds_of_an_epoch(monkeypatch: pytest.MonkeyPatch, stages: Sequence[FakeStage], clock: Clock) -> float:
    """Of one update that takes two seconds, and an evaluation that is ten seconds away."""
    monkeypatch.setattr(telemetry, "time", clock)
    monkeypatch.setattr(telemetry, "_STATUS_S", float("inf"))  # nothing is published
    watch = Stopwatch([0] * len(stages), Recorder(enabled=False))
    told = Telemetry(cast("list[Trainable]", stages), watch, cast(Control, NoStore())).start()
    train, evaluate = (Packet(kind, Position(1, 1), {}) for kind in (Kind.TRAIN, Kind.EVALUATE))
    told.before(train)
    clock.now += 2.0
    told.after(train)
    clock.now += 10.0
    assert told.seconds == 2.0, "also as a snapshot keeps it"
    told.before(evaluate)
    return told.seconds


def test_an_epoch_ends_with_its_last_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when a later stage takes the first test batch, which those before have worked on meanwhile."""
    clock = Clock()
    assert seconds_of_an_epoch(monkeypatch, [FakeStage(clock, torch.device("cpu"))] * 2, clock) == 2.0


def test_a_device_of_its_own_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """When it was done before that, nobody knows."""
    clock = Clock()
    assert seconds_of_an_epoch(monkeypatch, [FakeStage(clock, torch.device("cuda"), 3.0)], clock) == 15.0
