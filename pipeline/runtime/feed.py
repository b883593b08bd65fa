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
        epoch 2   TRAIN (2, S) ...           ... END_OF_EPOCH (E, E S)  SNAPSHOT (E + 1, E S)  STOP (E + 1, E S)

    After every epoch, in place of so many steps:

        ... END_OF_EPOCH (1, S)  SNAPSHOT (2, S)  TRAIN (2, S) ...

    The position of a snapshot, and of the stop, is the one to go on from: `packets(start)` is the tail of `packets()`
    after it. Where there is no room for a snapshot, it comes a step later; the last one waits for it. When a stop is
    asked for, SNAPSHOT and STOP come after the present step, or batch of an evaluation, which then begins anew.
    """

    batches: Batches
    schedule: Schedule  # also says after how many steps snapshots come, or after every epoch
    saves: Saves | None = None  # takes them; without it there are none
    requests: Requests = field(default_factory=Requests)

    def packets(self, start: Position = Position()) -> Iterator[Packet]:  # noqa: B008  frozen
        """Everything from `start` to the stop packet."""
        after = start
        for packet, after in self._undisturbed(start):
            yield packet
            if self.requests.stop.is_set() and after.epoch <= self.schedule.epochs:
                if self.saves is not None and packet.kind is not Kind.SNAPSHOT:
                    yield Packet(Kind.SNAPSHOT, after)
                break
        yield Packet(Kind.STOP, after)

    def _undisturbed(self, start: Position) -> Iterator[tuple[Packet, Position]]:
        """All packets but the stop, and the position to go on from after each."""
        at, due = start, False
        for epoch in range(start.epoch, self.schedule.epochs + 1):
            at = Position(epoch, at.step)
            skip = at.step - (epoch - 1) * self.batches.steps_per_epoch
            for step, images, labels in self.batches.train(epoch, skip):
                packet, at = Packet.of(Kind.TRAIN, at, images, labels), Position(epoch, step + 1)
                yield packet, at
                due = due or self._due(at)
                if self.saves is not None and due and self.saves.idle:
                    yield Packet(Kind.SNAPSHOT, at), at
                    due = False
            if self.schedule.evaluates(epoch):
                for images, labels in self.batches.test():
                    yield Packet.of(Kind.EVALUATE, at, images, labels), at
            after, last = Position(epoch + 1, at.step), epoch == self.schedule.epochs
            yield Packet(Kind.END_OF_EPOCH, at), after
            due = due or self.schedule.checkpoint_every is None
            if self.saves is not None and (last or (due and self.saves.idle)):
                yield Packet(Kind.SNAPSHOT, after), after
                due = False

    def _due(self, at: Position) -> bool:
        asked = self.requests.save.is_set()
        self.requests.save.clear()
        every = self.schedule.checkpoint_every
        return asked or (every is not None and at.step % every == 0)
