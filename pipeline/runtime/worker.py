"""The loop of one process: receive, forward, send, update, report, shut down.

Unlocked (local losses), for every batch:

    get ─> forward ─> put ─> local losses, backward, update        nothing flows back

Locked (`glob`, `glob+X`): the stages take turns, and the gradient is sent back:

    get ─> forward ─> put ─> get gradient ─> backward ─> put gradient ─> update
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import ParamSpec, TypeVar

from torch import Tensor

from pipeline.config.schema import TrainConfig
from pipeline.learning.packet import Kind, Packet
from pipeline.learning.stage import Stage
from pipeline.spans import Recorder
from pipeline.transport.control import Control
from pipeline.transport.messages import StageEpoch, StageStatus
from pipeline.transport.queues import ReceiveQueue, SendQueue

__all__ = ["Ends", "Worker"]

P = ParamSpec("P")
T = TypeVar("T")

_STATUS_S = 0.5  # seconds between two published states


@dataclass(frozen=True)
class Ends:
    """Where a process's packets come from and go to; None at the ends of the pipeline and in one process."""

    source: Callable[[], Packet]
    sink: SendQueue | None = None
    gradient_source: ReceiveQueue | None = None
    gradient_sink: SendQueue | None = None


@dataclass
class _Clock:
    """Seconds a stage has spent working and waiting since the run began."""

    busy_s: float = 0.0
    wait_input_s: float = 0.0
    wait_output_s: float = 0.0

    def since(self, mark: _Clock) -> _Clock:
        return _Clock(
            self.busy_s - mark.busy_s, self.wait_input_s - mark.wait_input_s, self.wait_output_s - mark.wait_output_s
        )

    @property
    def busy_fraction(self) -> float:
        whole = self.busy_s + self.wait_input_s + self.wait_output_s
        return self.busy_s / whole if whole > 0 else 0.0


class Worker:
    """Runs the stages of one process over all packets.

    Args:
        stages: one under torchrun; all of them in the single-process fallback.
        ends: queues to the neighbours.
        config: of the run.
        control: takes the reports.
        recorder: takes the spans.
    """

    def __init__(
        self, stages: Sequence[Stage], ends: Ends, config: TrainConfig, control: Control, recorder: Recorder
    ) -> None:
        self.stages, self.ends, self.config = tuple(stages), ends, config
        self.control, self.recorder = control, recorder
        self.clocks = [_Clock() for _ in stages]
        self.train_seconds = 0.0
        self._marks = [_Clock() for _ in stages]  # at the start of the epoch
        self._since = time.perf_counter()  # end of start-up or of the last evaluation
        self._training = False
        self._epoch_seconds = 0.0
        self._done_in_epoch = 0
        self._samples = 0
        self._published = 0.0
        self._started = time.perf_counter()
        self._locked = config.backpropagates

    def run(self) -> None:
        """Work until the stop packet has been handed on, and has come back where gradients do."""
        self._since = self._started = time.perf_counter()
        kind = Kind.TRAIN
        while kind is not Kind.STOP:
            packet = self._take()
            kind = packet.kind
            self._keep_time(packet)
            if kind is Kind.TRAIN:
                (self._train_locked if self._locked else self._train)(packet)
                self._samples += packet.batch
                self._done_in_epoch += 1
            elif kind is Kind.EVALUATE:
                self._evaluate(packet)
            else:
                self._finish_epoch(packet)
            self._publish_status(packet)
        if self.ends.gradient_source is not None:
            self.ends.gradient_source.get()
        if self.ends.gradient_sink is not None:
            self.ends.gradient_sink.put(packet)

    def _take(self) -> Packet:
        start, start_ns = time.perf_counter(), time.monotonic_ns()
        packet = self.ends.source()
        self.clocks[0].wait_input_s += time.perf_counter() - start
        self._span("wait input", packet, start_ns)
        return packet

    def _hand_on(self, packet: Packet) -> None:
        if self.ends.sink is None:
            return
        start, start_ns = time.perf_counter(), time.monotonic_ns()
        self.ends.sink.put(packet)
        self.clocks[-1].wait_output_s += time.perf_counter() - start
        self._span("wait output", packet, start_ns, len(self.stages) - 1)

    def _train(self, packet: Packet) -> None:
        """Hand on before the backward; without a next process, block by block."""
        for position, stage in enumerate(self.stages):
            if self.ends.sink is None:
                packet = self._work("step", position, packet, stage.step, packet)
            else:
                packet = self._work("forward", position, packet, stage.forward, packet)
                self._hand_on(packet)
                self._work("update", position, packet, stage.update)

    def _train_locked(self, packet: Packet) -> None:
        for position, stage in enumerate(self.stages):
            packet = self._work("forward", position, packet, stage.forward, packet)
        self._hand_on(packet)
        gradient = self._take_gradient(packet)
        for position, stage in reversed(list(enumerate(self.stages))):
            gradient = self._work("update", position, packet, stage.update, gradient)
        if self.ends.gradient_sink is not None:
            self.ends.gradient_sink.put(Packet(Kind.TRAIN, packet.epoch, packet.step, gradient, packet.labels))

    def _take_gradient(self, packet: Packet) -> Tensor | None:
        if self.ends.gradient_source is None:
            return None
        start, start_ns = time.perf_counter(), time.monotonic_ns()
        gradient = self.ends.gradient_source.get().activation
        self.clocks[-1].wait_output_s += time.perf_counter() - start
        self._span("wait gradient", packet, start_ns)
        return gradient

    def _evaluate(self, packet: Packet) -> None:
        for position, stage in enumerate(self.stages):
            packet = self._work("evaluate", position, packet, stage.evaluate, packet)
        self._hand_on(packet)

    def _work(
        self, name: str, position: int, packet: Packet, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run one piece of a stage's work, timed."""
        start, start_ns = time.perf_counter(), time.monotonic_ns()
        result = act(*args, **kwargs)
        self.recorder.settle()
        self.clocks[position].busy_s += time.perf_counter() - start
        self._span(name, packet, start_ns, position)
        return result

    def _span(self, name: str, packet: Packet, start_ns: int, position: int = 0) -> None:
        if self.recorder.enabled:
            stage = self.stages[position].index
            duration = time.monotonic_ns() - start_ns
            self.recorder.add(stage, "compute", name, packet.step, start_ns, duration, packet.kind.name.lower())

    def _keep_time(self, packet: Packet) -> None:
        """Training time runs from the end of the last evaluation to the epoch's last update."""
        if packet.kind is Kind.TRAIN:
            self._training = True
        elif self._training:
            self._training = False
            for stage in self.stages:  # reading the meters waits for the device: the update is really done
                stage.blocks[-1].train_meter.sums.tolist()
            self._epoch_seconds = time.perf_counter() - self._since
            self.train_seconds += self._epoch_seconds

    def _finish_epoch(self, packet: Packet) -> None:
        if packet.kind is Kind.END_OF_EPOCH:
            for position in range(len(self.stages)):
                self._report(position, packet.epoch)
            self._done_in_epoch = 0
            self._since = time.perf_counter()
        self._hand_on(packet)

    def _report(self, position: int, epoch: int) -> None:
        stage, clock = self.stages[position], self.clocks[position]
        spent = clock.since(self._marks[position])
        tested = self.config.evaluates(epoch)
        report = StageEpoch(
            stage=stage.index,
            seconds=self._epoch_seconds,
            busy_fraction=spent.busy_fraction,
            wait_input_s=spent.wait_input_s,
            wait_output_s=spent.wait_output_s,
            train=tuple(block.train_meter.score(block.index) for block in stage.blocks),
            test=tuple(block.test_meter.score(block.index) for block in stage.blocks) if tested else None,
        )
        self.control.publish(f"epoch/{epoch}/{stage.index}", asdict(report))
        for block in stage.blocks:
            block.train_meter.reset()
            block.test_meter.reset()
        self._marks[position] = replace(clock)

    def _publish_status(self, packet: Packet) -> None:
        now = time.perf_counter()
        if now - self._published < _STATUS_S and packet.kind is not Kind.STOP:
            return
        self._published = now
        phase = {Kind.TRAIN: "train", Kind.EVALUATE: "evaluate", Kind.STOP: "done"}.get(packet.kind, "train")
        for stage, clock in zip(self.stages, self.clocks, strict=True):
            whole = max(now - self._started, 1e-9)
            status = StageStatus(
                stage=stage.index,
                phase=phase,
                epoch=packet.epoch,
                step=self._done_in_epoch,
                samples=self._samples,
                seconds=whole,
                busy_fraction=clock.busy_s / whole,
                wait_input_fraction=clock.wait_input_s / whole,
                wait_output_fraction=clock.wait_output_s / whole,
                blocks=tuple(block.train_meter.peek(block.index) for block in stage.blocks),
            )
            self.control.publish(f"status/{stage.index}", asdict(status))
