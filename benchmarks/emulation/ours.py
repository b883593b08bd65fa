"""The product's own worker, queues and messages around stages that sleep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from benchmarks.contenders.pipelined import run_stage
from benchmarks.emulation.load import BATCH, SHAPE, Load, Turn, Window, Work
from benchmarks.harness.crew import Member
from pipeline.config.schema import TrainConfig
from pipeline.learning.packet import Kind, Packet, Position, TensorSpec, labelled
from pipeline.network.blocks import canonical
from pipeline.spans import Recorder

__all__ = ["EmulatedStage", "run_ours"]


class EmulatedStage:
    """A trainable that sleeps a third of a batch's time before it hands on, and the rest where it would update."""

    def __init__(self, work: Work) -> None:
        self.index, self.device = work.stage, torch.device("cpu")
        self.takes = self.gives = labelled(TensorSpec(SHAPE, torch.float32))
        self.work = work
        self._batch = 0

    def forward(self, packet: Packet) -> Packet:
        """Sleep, and copy: what was received is overwritten while what is handed on may still be under way."""
        self._batch = packet.at.step
        self.work.sleep(self._batch, 1 / 3)
        return packet.with_x(packet.x.clone())

    def update(self, gradient: Tensor | None = None) -> None:
        """Sleep; the batch is done."""
        self.work.sleep(self._batch, 2 / 3)
        self.work.finish(self._batch)

    def step(self, packet: Packet) -> Packet:
        """Both."""
        handed_on = self.forward(packet)
        self.update()
        return handed_on

    def evaluate(self, packet: Packet) -> Packet:
        """As it came."""
        return packet

    def scores(self, *, reset: bool) -> tuple[tuple[()], tuple[()]]:
        """There are none."""
        return (), ()

    def check(self, at: Position) -> None:
        """Nothing can be wrong."""

    def synchronize(self) -> None:
        """There is nothing to wait for."""

    def state_dict(self) -> dict[str, Tensor]:
        """It learns nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """It forgets nothing."""


def run_ours(
    member: Member, load: Load, queue_depth: int, turn: int, window: Window, recorder: Recorder | None = None
) -> Turn:
    """One run from the first batch to the stop packet, started and ended as training does."""
    config = TrainConfig(batch_size=BATCH, queue_depth=queue_depth, device="cpu")
    work = Work(load, member.rank, turn)
    run_stage(EmulatedStage(work), load.stages, config, _packets(window), recorder)
    return work.measured(window)


def _packets(window: Window) -> Iterator[Packet]:
    x, labels = canonical(torch.zeros(BATCH, *SHAPE)), torch.zeros(BATCH, dtype=torch.int64)
    batches = window.warm_up + window.count
    for batch in range(batches):
        yield Packet.of(Kind.TRAIN, Position(1, batch), x, labels)
    yield Packet(Kind.STOP, Position(1, batches))
