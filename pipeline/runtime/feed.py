"""The run's timetable: everything that enters the first stage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.config.schedule import Schedule
from pipeline.data.batches import Batches
from pipeline.learning.packet import Kind, Packet, Position
from pipeline.runtime.requests import Requests

__all__ = ["Feed"]


class Saves(Protocol):
    """Who takes snapshots."""

    @property
    def idle(self) -> bool:
        """Whether one taken now would not wait for the one before."""


@dataclass(frozen=True)
class Feed:
    """What is fed from any position on; of E epochs with S steps, evaluated and a snapshot taken after every N steps:

        epoch 1   TRAIN (1, 0) ... TRAIN (1, N-1)  SNAPSHOT (1, N)  TRAIN (1, N) ... TRAIN (1, S-1)
                  EVALUATE (1, S) ...  END_OF_EPOCH (1, S)
        epoch 2   TRAIN (2, S) ...                                            ... END_OF_EPOCH (E, E S)  STOP

    After every epoch, in place of so many steps:

        ... END_OF_EPOCH (1, S)  SNAPSHOT (2, S)  TRAIN (2, S) ...  END_OF_EPOCH (E, E S)  SNAPSHOT (E + 1, E S)  STOP

    A snapshot's position is the one to go on from: `packets(start)` is the tail of `packets()` after it. Where there
    is no room for one, it comes a step later. When a stop is asked for: SNAPSHOT and STOP after the present step.
    """

    batches: Batches
    schedule: Schedule  # also says after how many steps snapshots come, or after every epoch
    saves: Saves | None = None  # takes them; without it there are none
    requests: Requests = field(default_factory=Requests)

    def packets(self, start: Position = Position()) -> Iterator[Packet]:  # noqa: B008  frozen
        """Everything from `start` to the stop packet."""
        at, due = start, False
        for epoch in range(start.epoch, self.schedule.epochs + 1):
            at = Position(epoch, at.step)
            skip = at.step - (epoch - 1) * self.batches.steps_per_epoch
            for step, images, labels in self.batches.train(epoch, skip):
                yield Packet.of(Kind.TRAIN, at, images, labels)
                at = Position(epoch, step + 1)
                stop = self.requests.stop.is_set() and at.step < self.schedule.epochs * self.batches.steps_per_epoch
                due = due or self._due(at)
                if self.saves is not None and (stop or (due and self.saves.idle)):
                    yield Packet(Kind.SNAPSHOT, at)
                    due = False
                if stop:
                    yield Packet(Kind.STOP, at)
                    return
            if self.schedule.evaluates(epoch):
                for images, labels in self.batches.test():
                    yield Packet.of(Kind.EVALUATE, at, images, labels)
            yield Packet(Kind.END_OF_EPOCH, at)
            due = due or self.schedule.checkpoint_every is None
            if self.saves is not None and due and (epoch == self.schedule.epochs or self.saves.idle):
                yield Packet(Kind.SNAPSHOT, Position(epoch + 1, at.step))
                due = False
        yield Packet(Kind.STOP, at)

    def _due(self, at: Position) -> bool:
        asked = self.requests.save.is_set()
        self.requests.save.clear()
        every = self.schedule.checkpoint_every
        return asked or (every is not None and at.step % every == 0)
