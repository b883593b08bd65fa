"""The run's timetable: everything that enters the first stage."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.config.schema import TrainConfig
from pipeline.data.batches import Batches
from pipeline.learning.packet import Kind, Packet

__all__ = ["packets"]


def packets(batches: Batches, config: TrainConfig) -> Iterator[Packet]:
    """Everything that enters the first stage: each epoch's training batches, its evaluation, its end; then stop."""
    step = 0
    for epoch in range(1, config.epochs + 1):
        for step, images, labels in batches.train(epoch):
            yield Packet(Kind.TRAIN, epoch, step, images, labels)
        if config.evaluates(epoch):
            for images, labels in batches.test():
                yield Packet(Kind.EVALUATE, epoch, step, images, labels)
        yield Packet(Kind.END_OF_EPOCH, epoch, step)
    yield Packet(Kind.STOP, config.epochs, step)
