"""The product's own worker, queues and messages around stages that sleep."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.crew import Member
from benchmarks.emulated import BATCH, SHAPE, Load, Turn, Window, Work
from pipeline.blocks import Block, canonical
from pipeline.config import TrainConfig
from pipeline.connect import connect_stage
from pipeline.local import LocalBlock, Numerics
from pipeline.models import BlockShape
from pipeline.packet import Kind, Packet
from pipeline.stage import Stage
from pipeline.trace import Recorder
from pipeline.worker import Worker
from pipeline.world import connect

__all__ = ["EmulatedStage", "run_ours"]

_CPU = torch.device("cpu")


class _Identity(Block):
    """Hands on what it gets; the parameter is there because an optimizer wants one."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def features(self, x: Tensor) -> Tensor:
        return x


class EmulatedStage(Stage):
    """Sleeps a third of a batch's time before it hands on, and the rest after, where the update would be."""

    def __init__(self, config: TrainConfig, work: Work) -> None:
        block = LocalBlock(work.stage, _Identity(), None, config, Numerics(_CPU))
        super().__init__(work.stage, [block], config, last=work.stage == work.load.stages - 1)
        self.work = work
        self._batch = 0

    def forward(self, packet: Packet) -> Packet:
        """Sleep, and copy: what was received is overwritten while what is handed on may still be under way."""
        assert packet.activation is not None
        self._batch = packet.step
        self.work.sleep(self._batch, 1 / 3)
        return packet.with_activation(packet.activation.clone())

    def update(self, gradient: Tensor | None = None) -> None:
        """Sleep; the batch is done."""
        self.work.sleep(self._batch, 2 / 3)
        self.work.finish(self._batch)

    def step(self, packet: Packet) -> Packet:
        """Both."""
        handed_on = self.forward(packet)
        self.update()
        return handed_on


def run_ours(member: Member, load: Load, queue_depth: int, turn: int, window: Window) -> Turn:
    """One run from the first batch to the stop packet, started and ended as training does."""
    config = TrainConfig(batch_size=BATCH, queue_depth=queue_depth, device="cpu")
    work = Work(load, member.rank, turn)
    stage = EmulatedStage(config, work)
    shapes = [BlockShape(SHAPE, SHAPE, SHAPE, 0)] * load.stages
    world, recorder = connect(config), Recorder(enabled=False)
    try:
        links = world.links(_CPU)
        source = _packets(window).__next__ if member.rank == 0 else None
        ends = connect_stage(stage, shapes, links, world.control, config, recorder, source)
        dist.barrier()
        Worker([stage], ends, config, world.control, recorder).run()
        if ends.sink is not None:
            ends.sink.close(config.timeout)
        dist.barrier()
        links.close()
    finally:
        world.control.close()
    return work.measured(window)


def _packets(window: Window) -> Iterator[Packet]:
    activation, labels = canonical(torch.zeros(BATCH, *SHAPE)), torch.zeros(BATCH, dtype=torch.int64)
    for batch in range(window.warm_up + window.count):
        yield Packet(Kind.TRAIN, 1, batch, activation, labels)
    yield Packet(Kind.STOP, 1, window.warm_up + window.count)
