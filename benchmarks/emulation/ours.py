"""The product's own worker, queues and messages around stages that sleep."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.contenders.pipelined import run_stage
from benchmarks.emulation.load import BATCH, SHAPE, Load, Turn, Window, Work
from benchmarks.harness.crew import Member
from pipeline.config.schema import TrainConfig
from pipeline.learning.local_block import LocalBlock
from pipeline.learning.numerics import Numerics
from pipeline.learning.packet import Kind, Packet
from pipeline.learning.stage import Stage
from pipeline.network.blocks import Block, canonical
from pipeline.network.spec import BlockShape
from pipeline.spans import Recorder

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


def run_ours(
    member: Member, load: Load, queue_depth: int, turn: int, window: Window, recorder: Recorder | None = None
) -> Turn:
    """One run from the first batch to the stop packet, started and ended as training does."""
    config = TrainConfig(batch_size=BATCH, queue_depth=queue_depth, device="cpu")
    work = Work(load, member.rank, turn)
    stage = EmulatedStage(config, work)
    shapes = [BlockShape(SHAPE, SHAPE, SHAPE, 0)] * load.stages
    run_stage(stage, shapes, config, _packets(window), recorder)
    return work.measured(window)


def _packets(window: Window) -> Iterator[Packet]:
    activation, labels = canonical(torch.zeros(BATCH, *SHAPE)), torch.zeros(BATCH, dtype=torch.int64)
    for batch in range(window.warm_up + window.count):
        yield Packet(Kind.TRAIN, 1, batch, activation, labels)
    yield Packet(Kind.STOP, 1, window.warm_up + window.count)
