"""The run's timetable: everything that enters the first stage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.config.schedule import Schedule
from pipeline.data.batches import Batches
from pipeline.learning.packet import Kind, Packet, Position

__all__ = ["Feed"]


@dataclass(frozen=True)
class Feed:
    """What is fed from any position on; of E epochs with S steps, evaluated and a snapshot taken after every N steps:

        epoch 1   TRAIN (1, 0) ... TRAIN (1, N-1)  SNAPSHOT (1, N)  TRAIN (1, N) ... TRAIN (1, S-1)
                  EVALUATE (1, S) ...  END_OF_EPOCH (1, S)
        epoch 2   TRAIN (2, S) ...                                            ... END_OF_EPOCH (E, E S)  STOP

    A snapshot's position is the one to go on from: `packets(start)` is the tail of `packets()` after it.
    """

    batches: Batches
    schedule: Schedule
    snapshot_every: int | None = None  # steps

    def packets(self, start: Position = Position()) -> Iterator[Packet]:  # noqa: B008  frozen
        """Everything from `start` to the stop packet."""
        at = start
        for epoch in range(start.epoch, self.schedule.epochs + 1):
            at = Position(epoch, at.step)
            skip = at.step - (epoch - 1) * self.batches.steps_per_epoch
            for step, images, labels in self.batches.train(epoch, skip):
                yield Packet.of(Kind.TRAIN, at, images, labels)
                at = Position(epoch, step + 1)
                if self.snapshot_every is not None and at.step % self.snapshot_every == 0:
                    yield Packet(Kind.SNAPSHOT, at)
            if self.schedule.evaluates(epoch):
                for images, labels in self.batches.test():
                    yield Packet.of(Kind.EVALUATE, at, images, labels)
            yield Packet(Kind.END_OF_EPOCH, at)
        yield Packet(Kind.STOP, at)
