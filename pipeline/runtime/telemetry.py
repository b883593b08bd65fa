"""What a process tells of its run while it goes on, and what process 0 makes of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Self

from pipeline.learning.packet import Kind, Packet
from pipeline.learning.stage import Trainable
from pipeline.runtime.requests import Requests
from pipeline.runtime.stopwatch import Clock, Stopwatch
from pipeline.runtime.topology import Topology
from pipeline.transport.control import Control
from pipeline.transport.messages import StageEpoch, StageStatus
from pipeline.transport.topics import EPOCHS, STATUS
from pipeline.transport.watch import watching

__all__ = ["Gatherer", "Observer", "Telemetry"]

_STATUS_S = 0.5  # seconds between two published states
_REFRESH_S = 0.3  # between two looks at them


class Observer:
    """Watches a run; by default it does nothing. All but `snapshot` is called in process 0, by a thread of its own."""

    def status(self, stages: Sequence[StageStatus]) -> None:
        """Where the stages are; a few times a second."""

    def epoch(self, epoch: int, parts: Sequence[StageEpoch]) -> None:
        """An epoch has ended in all stages."""

    def snapshot(self, packet: Packet, stages: Sequence[Trainable], seconds: float) -> None:
        """The stages of this process are at the packet's position; the others will have been at the same one.

        `seconds` is the training time of the epoch so far.
        """

    def check(self) -> None:
        """Raise what has gone wrong beside the training; called before each packet that process 0 feeds."""


class Telemetry:
    """Publishes where the stages of a process are, and how each epoch went.

    An epoch's training time is that from the end of start-up, or of the epoch before, to its last update.
    """

    def __init__(self, stages: Sequence[Trainable], watch: Stopwatch, control: Control) -> None:
        self.stages, self.watch, self.control = stages, watch, control
        self._marks = [Clock() for _ in stages]  # at the start of the epoch
        self._since = self._started = time.perf_counter()  # end of start-up or of the last epoch
        self._updated = self._started  # when the calls of the last update had returned
        self._epoch_seconds = 0.0
        self._training = self._tested = False
        self._done_in_epoch = self._samples = 0
        self._published = 0.0

    def start(self, before_s: float = 0.0) -> Self:
        """The run begins now, in an epoch that has been trained for so long before."""
        self._started = time.perf_counter()
        self._since, self._epoch_seconds = self._started - before_s, before_s
        return self

    @property
    def seconds(self) -> float:
        """Training time of the present epoch so far, to its last update."""
        return self._updated - self._since if self._training else self._epoch_seconds

    def before(self, packet: Packet) -> None:
        """A packet has been taken. Raises StageFailure where training has diverged, so that of two stages the one
        that is nearer to the input, whose numbers have spoilt the other's, says so."""
        self.control.at = packet.at
        if packet.kind is Kind.TRAIN:
            self._training = True
        elif self._training:
            if packet.kind is not Kind.SNAPSHOT:
                self._training = False
                self._epoch_seconds = self._end_of_updates() - self._since
            for stage in self.stages:
                stage.check(packet.at)  # also within an epoch: a snapshot takes the place of an older one

    def _end_of_updates(self) -> float:
        """Not when the first packet after them has come: stages before this one have worked on that meanwhile.

        When a device of its own was done nobody knows; it is by now.
        """
        beside = [stage for stage in self.stages if stage.device.type != "cpu"]
        for stage in beside:
            stage.synchronize()
        return time.perf_counter() if beside else self._updated

    def after(self, packet: Packet) -> None:
        """It has been worked on."""
        if packet.kind is Kind.TRAIN:
            self._updated = time.perf_counter()
            self._samples += packet.batch
            self._done_in_epoch += 1
        elif packet.kind is Kind.EVALUATE:
            self._tested = True
        elif packet.kind is Kind.END_OF_EPOCH:
            self._report(packet.at.epoch)
        now = time.perf_counter()
        if now - self._published >= _STATUS_S or packet.kind is Kind.STOP:
            self._published = now
            self._publish_status(packet, max(now - self._started, 1e-9))

    def _report(self, epoch: int) -> None:
        for position, (stage, clock) in enumerate(zip(self.stages, self.watch.clocks, strict=True)):
            spent = clock.since(self._marks[position])
            train, test = stage.scores(reset=True)
            report = StageEpoch(
                stage=stage.index,
                seconds=self._epoch_seconds,
                busy_fraction=spent.busy_fraction,
                wait_input_s=spent.wait_input_s,
                wait_output_s=spent.wait_output_s,
                train=train,
                test=test if self._tested else None,
            )
            EPOCHS.post(self.control, f"{epoch}/{stage.index}", report)
            self._marks[position] = replace(clock)
        self._done_in_epoch, self._tested = 0, False
        self._since, self._epoch_seconds = time.perf_counter(), 0.0

    def _publish_status(self, packet: Packet, seconds: float) -> None:
        phase = {Kind.EVALUATE: "evaluate", Kind.STOP: "done"}.get(packet.kind, "train")
        for stage, clock in zip(self.stages, self.watch.clocks, strict=True):
            status = StageStatus(
                stage=stage.index,
                phase=phase,
                epoch=packet.at.epoch,
                step=self._done_in_epoch,
                samples=self._samples,
                seconds=seconds,
                busy_fraction=clock.busy_s / seconds,
                wait_input_fraction=clock.wait_input_s / seconds,
                wait_output_fraction=clock.wait_output_s / seconds,
                blocks=stage.scores(reset=False)[0],
            )
            STATUS.post(self.control, stage.index, status)


class Gatherer:
    """Process 0's thread that brings the stages' reports together for an observer, until all stages are done."""

    def __init__(
        self, control: Control, topology: Topology, observer: Observer, epoch: int, requests: Requests
    ) -> None:
        self.control, self.topology, self.observer, self.requests = control, topology, observer, requests
        self._epoch = epoch  # the next to be reported
        self._stop = threading.Event()
        self._broken: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="gatherer", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise what the observer has raised."""
        if self._broken is not None:
            raise self._broken

    def finish(self) -> None:
        """Wait until all stages have told everything; raises what the observer has raised."""
        with watching(self.control) as watch:
            while self._thread.is_alive():
                self._thread.join(_REFRESH_S)
                watch.check()
        self.check()

    def cancel(self) -> None:
        """Stop after a failure."""
        self._stop.set()
        self._thread.join(5.0)

    def _run(self) -> None:
        try:
            while not self._gather():
                if self._stop.wait(_REFRESH_S):
                    self._gather()  # epochs that all stages have ended before the failure
                    return
        except BaseException as error:  # raised again in the main thread
            self._broken = error

    def _gather(self) -> bool:
        """Tell the observer what is new; whether that was all."""
        stages = range(self.topology.stages)
        self.requests.hear(self.control)
        told = [STATUS.peek(self.control, stage) for stage in stages]
        self.observer.status([status for status in told if status is not None])
        while True:
            parts = [EPOCHS.peek(self.control, f"{self._epoch}/{stage}") for stage in stages]
            here = [part for part in parts if part is not None]
            if len(here) < len(parts):
                return all(status is not None and status.phase == "done" for status in told)
            self.observer.epoch(self._epoch, here)
            self._epoch += 1
